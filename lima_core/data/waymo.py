"""Waymo Open Dataset v2 (perception): `<split>/<component>/<segment>.parquet`, split training, validation or testing.

Components read: `lidar_segmentation`, `lidar`, `lidar_calibration` and, where they are there, `lidar_pose` with
`vehicle_pose`. This layout, and not the tfrecords of v1, because one component can be downloaded without the cameras
and read without TensorFlow. Layout and formulas: waymo-research/waymo-open-dataset, `v2/perception/{lidar,context,
segmentation,pose}.py`, `v2/perception/utils/lidar_utils.py` and `utils/range_image_utils.py`.

Only frames with point labels are frames here, and of those the TOP lidar, both returns (spec/datasets.md 1.2 and 7).
Points are in the vehicle frame (x forward, y left, z up, origin on the ground), intensity is tanh of the raw value.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lima_core.data.frame import DatasetError, Frame
from lima_core.data.scans import NO_POSE, Scan, Scans, Split
from lima_core.geometry import se3

SPLITS = {"train": ("training",), "val": ("validation",), "test": ("testing",), "all": ("training", "validation")}
TOP = 1  # key.laser_name
STAMP, LASER = "key.frame_timestamp_micros", "key.laser_name"
LABEL_CHANNEL = 1  # of instance, class


class Waymo(Scans):
    """Labelled frames of one split, segment by segment, `sequence` the segment's context name.

    A read streams through the row group of its frame up to the frame and holds one row: parquet cannot jump to a row,
    so that frames in random order take about a second each. Raises DatasetError, also where
    pyarrow, the extra `waymo`, is not installed.
    """

    name = "waymo"

    def __init__(self, root: str | Path, split: Split = "train") -> None:
        self._rows: dict[str, dict[int, int]] = {}  # file -> stamp -> row of TOP
        self._calibrations: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}  # file and height of the image
        super().__init__(root, split)

    def find(self, split: Split) -> list[Scan]:
        """Every frame of TOP with labels, by segment and time."""
        pyarrow()
        folders = [f"{folder}/lidar_segmentation" for folder in SPLITS[split]]
        files = [
            f"{folder}/{path.name}" for folder in folders for path in sorted((self.root / folder).glob("*.parquet"))
        ]
        scans = []
        for labels in tqdm(files, "Waymo segments", disable=len(files) < 100, leave=False):
            points = labels.replace("/lidar_segmentation/", "/lidar/")
            stamps = sorted(self._top(labels))
            scans += [Scan(Path(labels).stem, i, points, labels, 1000 * stamp) for i, stamp in enumerate(stamps)]
        return scans

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises DatasetError."""
        scan = self.scans[index]
        pose = self.pose(scan)
        images = self._images(scan.points, scan, "LiDARComponent", 4)
        labels = self._images(scan.labels, scan, "LiDARSegmentationLabelComponent", 2)
        pixels = self._pixel_poses(scan)
        parts = [self._points(scan, number, image, pixels, pose) for number, image in images.items()]
        raw = [self._raw_labels(scan, image, labels.get(number)) for number, image in images.items()]
        points = np.concatenate(parts)
        if not len(points):
            raise DatasetError(
                f"{self.root / scan.points}: no point at {scan.stamp_ns // 1000} us; copy the file again"
            )
        return Frame(
            stamp_ns=scan.stamp_ns,
            sequence=scan.sequence,
            index=scan.index,
            points=points,
            world_from_lidar=pose,
            labels=self.taxonomy.train_ids(np.concatenate(raw), self.root / scan.labels),
        )

    def pose(self, scan: Scan) -> np.ndarray:
        """world_from_vehicle (4, 4) of a scan; nan where `vehicle_pose` is not there."""
        name = self._component(scan, "vehicle_pose")
        if not (self.root / name).parent.is_dir():
            return NO_POSE
        column = "[VehiclePoseComponent].world_from_vehicle.transform"
        (numbers,) = self._row(name, self._place(name, scan), [column])
        return self._matrix(numbers, name, column)

    def _images(self, name: str, scan: Scan, component: str, channels: int) -> dict[int, np.ndarray]:
        """(H, W, channels) range images by number of the return, those that the row has."""
        columns = [f"[{component}].range_image_return{n}.{part}" for n in (1, 2) for part in ("values", "shape")]
        cells = self._row(name, self._place(name, scan), columns)
        pairs = {n: (cells[2 * n - 2], cells[2 * n - 1]) for n in (1, 2)}
        found = {n: self._image(name, *pair, channels) for n, pair in pairs.items() if pair[0] is not None}
        if 1 not in found:
            raise DatasetError(f"{self.root / name} has no first return at {scan.stamp_ns // 1000} us; copy it again")
        return found

    def _image(self, name: str, values: np.ndarray, shape: np.ndarray | None, channels: int) -> np.ndarray:
        dimensions = () if shape is None else tuple(map(int, shape))
        if len(dimensions) != 3 or dimensions[2] != channels or np.prod(dimensions) != len(values):
            raise DatasetError(
                f"{self.root / name}: {len(values)} values are no range image of shape {dimensions} with {channels} "
                "channels; copy the file again"
            )
        return values.reshape(dimensions)

    def _points(
        self, scan: Scan, number: int, image: np.ndarray, pixels: np.ndarray | None, world_from_vehicle: np.ndarray
    ) -> np.ndarray:
        """(N, 4) float32 points of one return, row by row of its image."""
        if not np.isfinite(image[..., :2]).all():
            raise DatasetError(
                f"{self.root / scan.points}: return {number} has values that are not finite; copy it again"
            )
        inclination, vehicle_from_lidar = self._calibration(scan, len(image))
        xyz = cartesian(image[..., 0], inclination, vehicle_from_lidar)
        returned = image[..., 0] > 0
        xyz = xyz[returned]
        if pixels is not None:
            if pixels.shape[:2] != image.shape[:2]:
                raise DatasetError(
                    f"{self.root / self._component(scan, 'lidar_pose')}: {pixels.shape[:2]} poses for a range image of "
                    f"{image.shape[:2]}; copy it again"
                )
            xyz = at_the_frame(xyz, pixels[returned], world_from_vehicle)
        return np.column_stack([xyz, np.tanh(image[..., 1][returned])]).astype(np.float32)

    def _raw_labels(self, scan: Scan, image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """(N,) raw classes of the points of one return; 0, undefined, where that return has no labels."""
        returned = image[..., 0] > 0
        if labels is None:
            return np.zeros(returned.sum(), np.int32)
        if labels.shape[:2] != image.shape[:2]:
            raise DatasetError(
                f"{self.root / scan.labels}: labels of {labels.shape[:2]} for a range image of {image.shape[:2]}; copy "
                "both files again"
            )
        return labels[..., LABEL_CHANNEL][returned]

    def _pixel_poses(self, scan: Scan) -> np.ndarray | None:
        """(H, W, 6) roll, pitch, yaw in rad, x, y, z in m: world_from_vehicle when each pixel was measured."""
        name = self._component(scan, "lidar_pose")
        if not (self.root / name).parent.is_dir():
            return None
        if not (self.root / self._component(scan, "vehicle_pose")).parent.is_dir():
            raise DatasetError(f"{self.root / name} wants vehicle_pose beside lidar_pose; download that component too")
        columns = [f"[LiDARPoseComponent].range_image_return1.{part}" for part in ("values", "shape")]
        values, shape = self._row(name, self._place(name, scan), columns)
        return None if values is None else self._image(name, values, shape, 6)

    def _calibration(self, scan: Scan, height: int) -> tuple[np.ndarray, np.ndarray]:
        """(H,) inclination in rad of each row of the image, from the top; vehicle_from_lidar (4, 4). One a segment."""
        key = self._component(scan, "lidar_calibration"), height
        if key not in self._calibrations:
            self._calibrations[key] = self._read_calibration(*key)
        return self._calibrations[key]

    def _read_calibration(self, name: str, height: int) -> tuple[np.ndarray, np.ndarray]:
        prefix = "[LiDARCalibrationComponent]"
        columns = [
            f"{prefix}.extrinsic.transform",
            *(f"{prefix}.beam_inclination.{k}" for k in ("values", "min", "max")),
        ]
        lasers = self._column(name, LASER)
        if TOP not in lasers:
            raise DatasetError(f"{self.root / name} lacks the TOP lidar, laser {TOP}; copy it again")
        transform, values, low, high = self._row(name, lasers.index(TOP), columns)
        if values is None or not len(values):
            values = float(low) + (np.arange(height) + 0.5) / height * (float(high) - float(low))
        if len(values) != height:
            raise DatasetError(
                f"{self.root / name}: {len(values)} inclinations for {height} rows of the range image; copy it again"
            )
        return values[::-1], self._matrix(transform, name, columns[0])

    def _matrix(self, numbers: np.ndarray | None, name: str, column: str) -> np.ndarray:
        if numbers is None or len(numbers) != 16 or not np.isfinite(numbers).all():
            raise DatasetError(f"{self.root / name}: {column} is no 4 x 4 matrix; copy the file again")
        return numbers.reshape(4, 4).astype(np.float64)

    def _component(self, scan: Scan, component: str) -> str:
        return f"{scan.points.split('/', 1)[0]}/{component}/{scan.sequence}.parquet"

    def _place(self, name: str, scan: Scan) -> int:
        """Row of the scan's stamp in a file."""
        stamp = scan.stamp_ns // 1000
        rows = self._top(name)
        if stamp not in rows:
            raise DatasetError(f"{self.root / name} has no row of the frame at {stamp} us; copy the file again")
        return rows[stamp]

    def _top(self, name: str) -> dict[int, int]:
        """stamp in us -> row, of the TOP lidar where rows have a laser."""
        if name not in self._rows:
            stamps = self._column(name, STAMP)
            lasers = [TOP] * len(stamps) if "/vehicle_pose/" in name else self._column(name, LASER)
            self._rows[name] = {
                s: row for row, (s, laser) in enumerate(zip(stamps, lasers, strict=True)) if laser == TOP
            }
        return self._rows[name]

    def _column(self, name: str, column: str) -> list[int]:
        with self._opened(name, [column]) as file:
            return file.read(columns=[column]).column(0).to_pylist()

    def _row(self, name: str, row: int, columns: list[str]) -> list[Any]:
        """Cells of one row: arrays of lists, numbers, None; nothing of the row groups before is read."""
        with self._opened(name, columns) as file:
            group = 0
            while row >= (length := file.metadata.row_group(group).num_rows):
                group, row = group + 1, row - length
            batch = next(islice(file.iter_batches(1, row_groups=[group], columns=columns), row, None))
            cells = [batch.column(column)[0] for column in columns]
            return [
                c.values.to_numpy(zero_copy_only=False) if hasattr(c, "values") and c.is_valid else c.as_py()
                for c in cells
            ]

    def _opened(self, name: str, columns: list[str]) -> _Parquet:
        return _Parquet(self.path(name), columns)


class _Parquet:
    """An open parquet file in which whatever is wrong becomes a DatasetError that names it."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns

    def __enter__(self) -> Any:
        arrow, parquet = pyarrow()
        try:
            # so it streams; with its defaults it would hold the whole row group, hundreds of MB
            self.file = parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except (arrow.ArrowException, OSError) as error:
            raise self._broken(error) from error
        missing = [column for column in self.columns if column not in self.file.schema_arrow.names]
        if missing:
            self.file.close()
            raise DatasetError(f"{self.path} has no column {missing[0]}; it is no file of Waymo Open Dataset v2")
        return self.file

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, (pyarrow()[0].ArrowException, OSError)):
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> DatasetError:
        return DatasetError(f"{self.path} is no readable parquet file ({error}); copy it again")


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises DatasetError naming the extra where they are not installed."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DatasetError('Waymo\'s files need pyarrow; pip install "lima_ros[waymo]"') from error
    return arrow, parquet


def cartesian(range_m: np.ndarray, inclination: np.ndarray, vehicle_from_lidar: np.ndarray) -> np.ndarray:
    """(H, W) ranges in m and (H,) inclinations in rad -> (H, W, 3) float64 m in the vehicle frame.

    Column 0 looks backwards, columns run clockwise, and the image is turned so that its middle looks along the
    vehicle's x: azimuth_c = pi (2 (W - c - 0.5) / W - 1) - yaw of the extrinsic (`compute_range_image_polar`).
    """
    width = range_m.shape[1]
    yaw = np.arctan2(vehicle_from_lidar[1, 0], vehicle_from_lidar[0, 0])
    azimuth = np.pi * (2 * (width - np.arange(width) - 0.5) / width - 1) - yaw
    flat = np.cos(inclination)[:, None]
    rays = np.stack(
        np.broadcast_arrays(flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)[:, None]), axis=-1
    )
    points = rays * range_m[..., None].astype(np.float64)
    return points @ vehicle_from_lidar[:3, :3].T + vehicle_from_lidar[:3, 3]


def at_the_frame(points: np.ndarray, poses: np.ndarray, world_from_vehicle: np.ndarray) -> np.ndarray:
    """(N, 3) m measured at (N, 6) poses roll, pitch, yaw, x, y, z -> (N, 3) in the vehicle frame of the whole frame.

    The rotation is Rz(yaw) Ry(pitch) Rx(roll) (`transform_utils.get_rotation_matrix`).
    """
    roll, pitch, yaw, x, y, z = poses.astype(np.float64).T
    vehicle_from_world = se3.inverse(world_from_vehicle)
    moves = vehicle_from_world @ se3.poses(x, y, z, yaw, pitch, roll)
    return np.einsum("nij,nj->ni", moves[:, :3, :3], points) + moves[:, :3, 3]

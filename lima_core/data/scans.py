"""Data sets that keep one file of points and one of labels per scan: what their readers share.

A reader is a subclass that says where its files are and how they are laid out; everything that can be wrong with a
file is found here, and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import CameraView, DatasetError, Frame
from lima_core.data.rig import Rig
from lima_core.data.splits import share_of_frames
from lima_core.files import inside

Split = Literal["train", "val", "test", "all"]
NO_POSE = np.full((4, 4), np.nan)
PERIOD_NS = 100_000_000  # one turn of the LiDAR: stamps of data sets that keep none


@dataclass(frozen=True)
class Scan:
    """One scan on disk: its place in a sequence, its stamp, and its files relative to the root."""

    sequence: str
    index: int
    points: str
    labels: str | None = None
    stamp_ns: int = 0


class Scans:
    """Frames of one split of such a data set, sequence by sequence.

    Subclasses set `name` (of the classes), `columns` of the points file (a fifth is the ring), `intensity_scale` (the
    raw value that means 1.0), `no_return_at_origin`, `label_dtype`, `label_mask`, and say in `find` which scans there
    are. Raises ValueError on an unknown split, DatasetError: no root, no scans, and, on reading, missing, truncated or
    mislabelled files.
    """

    name: str
    columns = 4
    intensity_scale = 1.0
    no_return_at_origin = False  # rows of rays that met nothing, left out with their labels
    label_dtype = "<u4"
    label_mask: int | None = 0xFFFF  # the upper half holds the instance

    def __init__(self, root: str | Path, split: Split = "train") -> None:
        if split not in get_args(Split):
            raise ValueError(f"no split {split!r}; there are {', '.join(get_args(Split))}")
        self.root, self.split = Path(root).resolve(), split
        if not self.root.is_dir():
            raise DatasetError(
                f"{self.root} is no folder; {self.name} belongs there, see python -m lima_core.data.check"
            )
        self.taxonomy = load_taxonomy(self.name)
        self.scans = self.find(split)
        if not self.scans:
            raise DatasetError(
                f"{self.root} has no scans of split {split!r}; "
                f"`python -m lima_core.data.check {self.name} {self.root}` says what belongs where"
            )
        self.sequences = tuple(scan.sequence for scan in self.scans)
        self.rig = Rig(self.name, "/points", "lidar", np.eye(4), intensity_scale=self.intensity_scale)

    def find(self, split: Split) -> list[Scan]:
        """The scans of a split, in order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises DatasetError."""
        scan = self.scans[index]
        columns = self.read_points(scan)
        if not len(columns):
            raise DatasetError(f"{self.root / scan.points} holds no point; copy the file again")
        labels = self._train_ids(scan, len(columns))
        if self.no_return_at_origin:
            returned = columns[:, :3].any(1)
            columns, labels = columns[returned], None if labels is None else labels[returned]
        scale = np.array([1, 1, 1, 1 / self.intensity_scale], np.float32)
        points = np.ascontiguousarray(columns[:, :4] * scale)
        points[:, 3] = np.clip(points[:, 3], 0, 1)
        return Frame(
            stamp_ns=scan.stamp_ns,
            sequence=scan.sequence,
            index=scan.index,
            points=points,
            world_from_lidar=self.pose(scan),
            cameras=self.cameras(scan),
            extra={"ring": columns[:, 4].astype(np.int32)} if self.columns > 4 else {},
            labels=labels,
        )

    def _train_ids(self, scan: Scan, count: int) -> np.ndarray | None:
        """(count,) uint8 train ids, None where the scan has no labels."""
        if scan.labels is None:
            return None
        raw = self.read_labels(scan)
        if len(raw) != count:
            raise DatasetError(
                f"{self.root / scan.labels}: {len(raw)} labels for {count} points of {scan.points}; "
                "copy both files again"
            )
        return self.taxonomy.train_ids(raw, self.root / scan.labels)

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k scans of the same sequence before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        first = index
        while first > max(0, index - k) and self.sequences[first - 1] == self.sequences[index]:
            first -= 1
        return [self[i] for i in range(first, index)]

    def labelled_share(self, percent: int) -> list[int]:
        """Indices of the frames that a share of the training labels keeps. Raises ValueError."""
        return share_of_frames(len(self), percent)

    def pose(self, scan: Scan) -> np.ndarray:
        """world_from_lidar (4, 4) of a scan; nan where the data set has no poses."""
        return NO_POSE

    def cameras(self, scan: Scan) -> tuple[CameraView, ...]:
        """Pictures that belong to a scan."""
        return ()

    def read_points(self, scan: Scan) -> np.ndarray:
        """(N, >= 4) float32 x, y, z in m, raw intensity."""
        values = self.read(scan.points, "<f4")
        if len(values) % self.columns:
            raise DatasetError(
                f"{self.root / scan.points}: {4 * len(values)} bytes are no whole number of points of {self.columns} "
                "float32; it is cut short or of another data set: copy it again"
            )
        points = values.reshape(-1, self.columns)
        self.check_finite(points, scan)
        return points

    def check_finite(self, points: np.ndarray, scan: Scan) -> None:
        """Raises DatasetError where a point is not finite."""
        broken = ~np.isfinite(points).all(1)
        if broken.any():
            raise DatasetError(
                f"{self.root / scan.points}: {broken.sum()} of {len(points)} points are not finite, the first is "
                f"{broken.argmax()}; copy the file again, or remove them from it and from the labels"
            )

    def read_labels(self, scan: Scan) -> np.ndarray:
        """(N,) raw class ids."""
        raw = self.read(scan.labels, self.label_dtype)
        return raw & self.label_mask if self.label_mask else raw

    def read(self, name: str, dtype: str) -> np.ndarray:
        """The file `name` below the root as numbers. Raises DatasetError where it is missing, outside or cut short."""
        path = self.path(name)
        size = path.stat().st_size
        if size % np.dtype(dtype).itemsize:
            raise DatasetError(f"{path}: {size} bytes are no whole number of {np.dtype(dtype)}; copy the file again")
        return np.fromfile(path, dtype)

    def folders(self, parent: str = ".") -> list[str]:
        """Names of the folders below `parent`, sorted."""
        return sorted(path.name for path in (self.root / parent).glob("*") if path.is_dir())

    def path(self, name: str) -> Path:
        """A file below the root that exists. Raises DatasetError."""
        try:
            path = inside(self.root, name)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        if not path.is_file():
            raise DatasetError(f"{path} is missing; unpack {self.name} into {self.root} again")
        return path

    def numbered(self, sequence: str, points: str, labels: str) -> list[Scan]:
        """Scans of one sequence from folders `points` and `labels` relative to the root; files of one name belong
        together. Where the labels' folder is absent the scans have none. Stamps are those of 10 Hz."""
        files = sorted((self.root / points).glob("*.bin"))
        has_labels = (self.root / labels).is_dir()
        return [
            Scan(
                sequence,
                index,
                f"{points}/{file.name}",
                f"{labels}/{file.stem}.label" if has_labels else None,
                PERIOD_NS * index,
            )
            for index, file in enumerate(files)
        ]

"""nuScenes (and data in its on-disk layout) as `Frame`s: keyframes with six cameras, poses, lidarseg and boxes.

Reads the json tables itself (`nuscenes_index.py`), no devkit. Layout and conventions: spec/datasets.md sections 1.2
and 2; the chain LiDAR -> ego(t_lidar) -> world -> ego(t_cam) -> camera is multiplied here in float64 and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Frame, Image
from lima_core.data.nuscenes_index import LIDAR, LOST, NONE, Index, open_index
from lima_core.data.nuscenes_tables import NuScenesError
from lima_core.data.rig import CameraMount, Rig
from lima_core.files import inside
from lima_core.geometry import se3

__all__ = ["LIDAR", "NuScenes", "NuScenesError"]

SCALE = np.array([1, 1, 1, 1 / 255], np.float32)  # of x, y, z, intensity


class NuScenes:
    """Keyframes of every scene of one version folder, in table order.

    `root` holds `<version>/*.json` and `samples/`; `version` may be left out where there is only one. `sequences`
    (len,) the scene of each keyframe. Raises NuScenesError naming the missing or broken file.
    """

    def __init__(self, root: str | Path, version: str | None = None) -> None:
        self.root = Path(root).resolve()
        self.version = version or _only_version(self.root)
        self.taxonomy: Taxonomy = load_taxonomy("nuscenes")
        self._index: Index = open_index(self.root / self.version)
        names = [name.decode() for name in self._index.scene_names.tolist()]
        self.sequences: tuple[str, ...] = tuple(names[scene] for scene in self._index.scene.tolist())
        self._channels = [name.decode() for name in self._index.channels.tolist()]
        self._class_of_category = self._detection_classes()
        self.rig = self._make_rig()

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Frame:
        """The keyframe at `index`. Raises NuScenesError on missing or truncated files, DatasetError on unknown ids."""
        index = range(len(self))[index]
        data, lidar = self._data(index)
        columns = self._points(lidar)
        world_from_lidar = self._world_from_sensor(lidar)
        return Frame(
            stamp_ns=self._stamp_ns(lidar),
            sequence=self.sequences[index],
            index=int(self._index.position[index]),
            points=np.ascontiguousarray(columns[:, :4] * SCALE),
            extra={"ring": columns[:, 4].astype(np.uint8)},
            world_from_lidar=world_from_lidar,
            cameras=tuple(self._camera(c, d, world_from_lidar) for c, d in data.items() if c != LIDAR),
            labels=self._labels(index, len(columns)),
            boxes=self._boxes(index, world_from_lidar),
        )

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k keyframes of the same scene before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        return [self[j] for j in range(max(index - k, index - int(self._index.position[index])), index)]

    def sweeps(self, index: int, count: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """The `count` LIDAR_TOP sweeps before a keyframe, newest first; fewer where the scene begins.

        Each is its points (N, 4) float32 in its own frame (x, y, z m, intensity 0-1), lidar_from_sweep (4, 4) float64
        to the keyframe's LiDAR frame, and the seconds it is older (spec/datasets.md 2.2). Raises NuScenesError.
        """
        index = range(len(self))[index]
        _, row = self._data(index)
        stamp_ns, lidar_from_world = self._stamp_ns(row), se3.inverse(self._world_from_sensor(row))
        found = []
        while len(found) < count and (row := self._before(row)) != NONE:
            points = np.ascontiguousarray(self._points(row)[:, :4] * SCALE)
            lidar_from_sweep = lidar_from_world @ self._world_from_sensor(row)
            found.append((points, lidar_from_sweep, (stamp_ns - self._stamp_ns(row)) / 1e9))
        return found

    def classes(self, index: int) -> np.ndarray:
        """(n,) uint8 sorted detection classes of the boxes with a return in a keyframe; no file is read for them."""
        rows = self._annotations(index)
        class_id = self._class_of_category[self._index.box_category[rows]]
        return np.unique(class_id[(class_id != NONE) & (self._index.box_points[rows] > 0)]).astype(np.uint8)

    def world_from_lidar(self, index: int) -> np.ndarray:
        """(4, 4) float64 pose of the LiDAR at a keyframe, without reading its files."""
        return self._world_from_sensor(self._data(range(len(self))[index])[1])

    def tokens(self, index: int) -> tuple[str, str]:
        """Tokens of the sample and of its LIDAR_TOP sample_data, as results for the official evaluators name them."""
        return self._index.sample_token[index].decode(), self._index.lidar_token[index].decode()

    def _data(self, index: int) -> tuple[dict[str, int], int]:
        """channel -> row of the keyframe's files, and that of LIDAR_TOP; channels are sorted."""
        rows = zip(self._channels, self._index.data[index].tolist(), strict=True)
        data = {channel: row for channel, row in rows if row != NONE}
        if LIDAR not in data:
            sample = self.tokens(index)[0]
            raise NuScenesError(f"{self.root}: sample {sample} of {self.sequences[index]} has no {LIDAR} keyframe")
        return data, data[LIDAR]

    def _before(self, row: int) -> int:
        prev = int(self._index.prev[row])
        if prev == LOST:
            raise NuScenesError(
                f"{self.root / self.version}/sample_data.json lacks the row before {self._filename(row)}; unpack the "
                f"metadata of {self.version} again"
            )
        return prev

    def _stamp_ns(self, row: int) -> int:
        return int(self._index.stamp_us[row]) * 1000

    def _filename(self, row: int) -> str:
        return self._index.filename[row].decode()

    def _file(self, filename: str) -> Path:
        """A path from a table, which must stay inside the data root and exist."""
        try:
            path = inside(self.root, filename)
        except ValueError as error:
            raise NuScenesError(f"{error} (of the tables of {self.version})") from error
        if not path.is_file():
            raise NuScenesError(f"{path} is missing; unpack the sensor blobs of {self.version} into {self.root}")
        return path

    def _points(self, row: int) -> np.ndarray:
        """(N, 5) float32 x, y, z m, intensity 0-255, ring."""
        path = self._file(self._filename(row))
        size = path.stat().st_size
        if size % 20:
            raise NuScenesError(f"{path}: {size} bytes are no whole number of 5 x float32 points; truncated?")
        points = np.fromfile(path, "<f4").reshape(-1, 5)
        broken = ~np.isfinite(points).all(1)
        if broken.any():
            raise NuScenesError(
                f"{path}: {broken.sum()} of {len(points)} points are not finite, the first is {broken.argmax()}; "
                f"unpack the sensor blobs of {self.version} again"
            )
        return points

    def _labels(self, index: int, count: int) -> np.ndarray | None:
        filename = self._index.lidarseg[index].decode()
        if not filename:
            return None
        path = self._file(filename)
        raw = np.fromfile(path, np.uint8)
        if len(raw) != count:
            raise NuScenesError(f"{path}: {len(raw)} labels for {count} points of its sweep; unpack both again")
        return self.taxonomy.train_ids(raw, path)

    def _world_from_sensor(self, row: int) -> np.ndarray:
        pose = self._index.pose[row]
        return se3.transform(pose[:4], pose[4:]) @ self._mount(row)

    def _mount(self, row: int) -> np.ndarray:
        """ego_from_sensor of a file."""
        pose = self._index.mount_pose[self._index.mount[row]]
        return se3.transform(pose[:4], pose[4:])

    def _camera(self, channel: str, row: int, world_from_lidar: np.ndarray) -> CameraView:
        path = self._file(self._filename(row))
        width, height = self._index.size[row].tolist()
        return CameraView(
            name=channel,
            stamp_ns=self._stamp_ns(row),
            image=Image(encoded=path.read_bytes(), source=str(path)),
            size=(width, height),
            K=self._index.intrinsic[self._index.mount[row]].copy(),
            camera_from_lidar=se3.inverse(self._world_from_sensor(row)) @ world_from_lidar,
        )

    def _make_rig(self) -> Rig:
        """Topics are the channel names; offsets are those of the first keyframe."""
        data, lidar = self._data(0)
        mounts = [
            CameraMount(
                name=channel,
                frame_id=channel,
                image_topic=f"/{channel}/image_rect_compressed",
                info_topic=f"/{channel}/camera_info",
                base_from_camera=self._mount(row),
                offset_ms=(self._stamp_ns(row) - self._stamp_ns(lidar)) / 1e6,
            )
            for channel, row in data.items()
            if channel != LIDAR
        ]
        return Rig("nuscenes", f"/{LIDAR}", LIDAR, self._mount(lidar), tuple(mounts))

    def _detection_classes(self) -> np.ndarray:
        """(categories,) int: index into `Taxonomy.detection_names`, NONE where a category is not detected."""
        known, names = self.taxonomy.detection_from_category, self.taxonomy.detection_names
        classes = [known.get(category.decode()) for category in self._index.categories.tolist()]
        return np.array([NONE if name is None else names.index(name) for name in classes], int)

    def _annotations(self, index: int) -> slice:
        return slice(*self._index.box_start[index : index + 2].tolist())

    def _boxes(self, index: int, world_from_lidar: np.ndarray) -> Boxes | None:
        """Annotations of the detection classes in the LiDAR frame (spec/datasets.md section 2.3)."""
        if not len(self._index.box):
            return None
        rows = self._annotations(index)
        class_id = self._class_of_category[self._index.box_category[rows]]
        known, attribute = class_id != NONE, self._index.box_attribute
        box = self._index.box[rows][known]
        lidar_from_world = se3.inverse(world_from_lidar)
        poses = [lidar_from_world @ se3.transform(b[6:10], b[:3]) for b in box]
        return Boxes(
            center=np.array([p[:3, 3] for p in poses]).reshape(-1, 3),
            size=box[:, [4, 3, 5]],
            yaw=np.array([se3.yaw(p) for p in poses]),
            velocity=(box[:, 10:] @ lidar_from_world[:3, :3].T)[:, :2],
            class_id=class_id[known].astype(np.uint8),
            points=self._index.box_points[rows][known],
            attribute=attribute[rows][known] if len(attribute) else None,
        )


def _only_version(root: Path) -> str:
    versions = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
    if len(versions) != 1:
        found = ", ".join(versions) or "none"
        raise NuScenesError(f"{root}: name one nuScenes version folder (v1.0-mini, v1.0-trainval, ...); found: {found}")
    return versions[0]

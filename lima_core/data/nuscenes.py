"""nuScenes (and data in its on-disk layout) as `Frame`s: keyframes with six cameras, poses, lidarseg and boxes.

Reads the json tables itself, no devkit. Layout and conventions: spec/datasets.md sections 1.2 and 2; the chain
LiDAR -> ego(t_lidar) -> world -> ego(t_cam) -> camera is multiplied here in float64 and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Frame, Image
from lima_core.data.rig import CameraMount, Rig
from lima_core.geometry import se3

LIDAR = "LIDAR_TOP"
TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
MAX_VELOCITY_GAP_S = 1.5

Row = dict[str, Any]


class NuScenesError(ValueError):
    """The data set on disk is incomplete or broken; the message names the file and the fix."""


class NuScenes:
    """Keyframes of every scene of one version folder, in table order.

    `root` holds `<version>/*.json` and `samples/`; `version` may be left out where there is only one.
    Raises NuScenesError naming the missing or broken file.
    """

    def __init__(self, root: str | Path, version: str | None = None) -> None:
        self.root = Path(root).resolve()
        self.version = version or _only_version(self.root)
        self.taxonomy: Taxonomy = load_taxonomy("nuscenes")
        tables = {name: self._table(name) for name in TABLES}
        self._poses, self._mounts = tables["ego_pose"], tables["calibrated_sensor"]
        self._channels = {t: tables["sensor"][m["sensor_token"]]["channel"] for t, m in self._mounts.items()}
        self._keyframes = self._group_keyframes(tables["sample_data"])
        self._index = list(self._walk(tables["scene"], tables["sample"]))
        self._times = {token: row["timestamp"] for token, row in tables["sample"].items()}
        self._lidarseg = {
            r["sample_data_token"]: r["filename"] for r in self._table("lidarseg", optional=True).values()
        }
        self._annotations, self._boxes_of = self._load_annotations()
        self.rig = self._make_rig()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Frame:
        """The keyframe at `index`. Raises NuScenesError on missing, truncated or mislabelled files."""
        scene, position, sample = self._index[index]
        data = self._keyframes[sample["token"]]
        if LIDAR not in data:
            raise NuScenesError(f"{self.root}: sample {sample['token']} of {scene} has no {LIDAR} keyframe")
        lidar = data[LIDAR]
        columns = self._points(lidar)
        world_from_lidar = self._world_from_sensor(lidar)
        return Frame(
            stamp_ns=lidar["timestamp"] * 1000,
            sequence=scene,
            index=position,
            points=np.ascontiguousarray(columns[:, :4] * np.array([1, 1, 1, 1 / 255], np.float32)),
            extra={"ring": columns[:, 4].astype(np.uint8)},
            world_from_lidar=world_from_lidar,
            cameras=tuple(self._camera(c, d, world_from_lidar) for c, d in data.items() if c.startswith("CAM")),
            labels=self._labels(lidar, len(columns)),
            boxes=self._boxes(sample["token"], world_from_lidar),
        )

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k keyframes of the same scene before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        return [self[j] for j in range(max(index - k, index - self._index[index][1]), index)]

    def _table(self, name: str, optional: bool = False) -> dict[str, Row]:
        path = self.root / self.version / f"{name}.json"
        if optional and not path.is_file():
            return {}
        try:
            return {row["token"]: row for row in json.loads(path.read_text())}
        except FileNotFoundError as error:
            raise NuScenesError(f"{path} is missing; unpack the metadata of {self.version} into {self.root}") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise NuScenesError(f"{path} is not a nuScenes table: {error}; unpack the metadata again") from error

    def _group_keyframes(self, sample_data: dict[str, Row]) -> dict[str, dict[str, Row]]:
        """sample token -> channel -> keyframe row, channels sorted so that frames do not depend on table order."""
        grouped: dict[str, dict[str, Row]] = {}
        for row in sample_data.values():
            if row["is_key_frame"]:
                channel = self._channels[row["calibrated_sensor_token"]]
                grouped.setdefault(row["sample_token"], {})[channel] = row
        return {token: dict(sorted(rows.items())) for token, rows in grouped.items()}

    def _walk(self, scenes: dict[str, Row], samples: dict[str, Row]) -> Iterator[tuple[str, int, Row]]:
        """Yields (scene name, position in scene, sample row), following the chain of `next`."""
        for scene in scenes.values():
            token, position = scene["first_sample_token"], 0
            while token:
                yield scene["name"], position, samples[token]
                token, position = samples[token]["next"], position + 1

    def _file(self, filename: str) -> Path:
        """A path from a table, which must stay inside the data root and exist."""
        path = (self.root / filename).resolve()
        if not path.is_relative_to(self.root):
            raise NuScenesError(f"{filename} in the tables of {self.version} points outside {self.root}")
        if not path.is_file():
            raise NuScenesError(f"{path} is missing; unpack the sensor blobs of {self.version} into {self.root}")
        return path

    def _points(self, lidar: Row) -> np.ndarray:
        """(N, 5) float32 x, y, z m, intensity 0-255, ring."""
        path = self._file(lidar["filename"])
        if path.stat().st_size % 20:
            size = path.stat().st_size
            raise NuScenesError(f"{path}: {size} bytes are no whole number of 5 x float32 points; truncated?")
        return np.fromfile(path, "<f4").reshape(-1, 5)

    def _labels(self, lidar: Row, count: int) -> np.ndarray | None:
        if lidar["token"] not in self._lidarseg:
            return None
        path = self._file(self._lidarseg[lidar["token"]])
        raw = np.fromfile(path, np.uint8)
        if len(raw) != count:
            raise NuScenesError(f"{path}: {len(raw)} labels for {count} points of {lidar['filename']}")
        if raw.size and raw.max() > 31:
            raise NuScenesError(f"{path}: raw label {raw.max()} is outside the 32 lidarseg categories")
        return self.taxonomy.train_from_raw[raw]

    def _pose(self, row: Row) -> np.ndarray:
        """world_from_ego at the stamp of a sample_data row."""
        pose = self._poses[row["ego_pose_token"]]
        return se3.transform(np.array(pose["rotation"]), np.array(pose["translation"]))

    def _mount(self, row: Row) -> np.ndarray:
        """ego_from_sensor of a sample_data row."""
        mount = self._mounts[row["calibrated_sensor_token"]]
        return se3.transform(np.array(mount["rotation"]), np.array(mount["translation"]))

    def _world_from_sensor(self, row: Row) -> np.ndarray:
        return self._pose(row) @ self._mount(row)

    def _camera(self, channel: str, row: Row, world_from_lidar: np.ndarray) -> CameraView:
        path = self._file(row["filename"])
        return CameraView(
            name=channel,
            stamp_ns=row["timestamp"] * 1000,
            image=Image(encoded=path.read_bytes(), source=str(path)),
            size=(row["width"], row["height"]),
            K=np.array(self._mounts[row["calibrated_sensor_token"]]["camera_intrinsic"], np.float64),
            camera_from_lidar=se3.inverse(self._world_from_sensor(row)) @ world_from_lidar,
        )

    def _make_rig(self) -> Rig:
        """Topics are the channel names; offsets are those of the first keyframe."""
        first = self._keyframes[self._index[0][2]["token"]]
        lidar = first[LIDAR]
        mounts = [
            CameraMount(
                name=channel,
                frame_id=channel,
                image_topic=f"/{channel}/image_rect_compressed",
                info_topic=f"/{channel}/camera_info",
                base_from_camera=self._mount(row),
                offset_ms=(row["timestamp"] - lidar["timestamp"]) / 1000,
            )
            for channel, row in first.items()
            if channel.startswith("CAM")
        ]
        return Rig("nuscenes", f"/{LIDAR}", LIDAR, self._mount(lidar), tuple(mounts))

    def _load_annotations(self) -> tuple[dict[str, Row], dict[str, list[Row]]]:
        annotations = self._table("sample_annotation", optional=True)
        categories = self._table("category", optional=True)
        instances = self._table("instance", optional=True)
        boxes_of: dict[str, list[Row]] = {}
        for row in annotations.values():
            category = categories[instances[row["instance_token"]]["category_token"]]["name"]
            detection = self.taxonomy.detection_from_category.get(category)
            if detection is not None:
                row["class_id"] = self.taxonomy.detection_names.index(detection)
                boxes_of.setdefault(row["sample_token"], []).append(row)
        return annotations, boxes_of

    def _boxes(self, sample_token: str, world_from_lidar: np.ndarray) -> Boxes | None:
        """Annotations of the detection classes in the LiDAR frame (spec/datasets.md section 2.3)."""
        if not self._annotations:
            return None
        rows = self._boxes_of.get(sample_token, [])
        lidar_from_world = se3.inverse(world_from_lidar)
        poses = [lidar_from_world @ se3.transform(np.array(r["rotation"]), np.array(r["translation"])) for r in rows]
        velocity = [lidar_from_world[:3, :3] @ self._velocity(r) for r in rows]
        return Boxes(
            center=np.array([p[:3, 3] for p in poses]).reshape(-1, 3),
            size=np.array([r["size"] for r in rows], np.float64).reshape(-1, 3)[:, [1, 0, 2]],
            yaw=np.array([se3.yaw(p) for p in poses]),
            velocity=np.array(velocity).reshape(-1, 3)[:, :2],
            class_id=np.array([r["class_id"] for r in rows], np.uint8),
        )

    def _velocity(self, row: Row) -> np.ndarray:
        """(3,) m/s in the world: centred difference, one-sided at the ends, nan where unknown."""
        before = self._annotations.get(row["prev"], row)
        after = self._annotations.get(row["next"], row)
        seconds = (self._sample_time(after) - self._sample_time(before)) / 1e6
        limit = MAX_VELOCITY_GAP_S * (2 if before is not row and after is not row else 1)
        if not 0 < seconds <= limit:
            return np.full(3, np.nan)
        return (np.array(after["translation"]) - np.array(before["translation"])) / seconds

    def _sample_time(self, annotation: Row) -> int:
        """Keyframe time in microseconds."""
        return self._times[annotation["sample_token"]]


def _only_version(root: Path) -> str:
    versions = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
    if len(versions) != 1:
        found = ", ".join(versions) or "none"
        raise NuScenesError(f"{root}: name one nuScenes version folder (v1.0-mini, v1.0-trainval, ...); found: {found}")
    return versions[0]

"""One vehicle = one YAML file: topics, frames, mounting of every sensor and each camera's time offset.

A rig gives what CameraInfo does not: where the sensors sit. With an odometry topic it replaces TF where
tf2 is not installed (spec/ros.md, "Versions and process facts").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lima_core.files import write_whole
from lima_core.geometry import se3


class RigError(ValueError):
    """A rig file is incomplete or wrong; the message names the file, the key and the fix."""


def is_rectified(image_topic: str) -> bool:
    """Topics called `image_rect*` carry rectified pictures, for which CameraInfo's projection matrix holds."""
    return "image_rect" in image_topic


@dataclass(frozen=True)
class CameraMount:
    """One camera of a rig. `base_from_camera` (4, 4); `offset_ms` = image stamp minus LiDAR stamp, nominal."""

    name: str
    frame_id: str
    image_topic: str
    info_topic: str
    base_from_camera: np.ndarray
    offset_ms: float = 0.0
    transport: str = "compressed"


@dataclass(frozen=True)
class Rig:
    """Sensors of one vehicle. `base_from_lidar` (4, 4); `intensity_scale` = raw value that means 1.0."""

    name: str
    lidar_topic: str
    lidar_frame: str
    base_from_lidar: np.ndarray
    cameras: tuple[CameraMount, ...] = ()
    base_frame: str = "base_link"
    world_frame: str = "map"
    odometry_topic: str = "/odom"
    intensity_scale: float = 255.0

    def camera(self, name: str) -> CameraMount:
        """The mount called `name`. Raises KeyError naming those there are."""
        for mount in self.cameras:
            if mount.name == name:
                return mount
        raise KeyError(f"rig {self.name} has no camera {name!r}; it has {[m.name for m in self.cameras]}")

    @classmethod
    def load(cls, path: str | Path) -> Rig:
        """Reads a rig file. Raises RigError naming the file and the key that is missing or wrong."""
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text())
            lidar, cameras = data["lidar"], data.get("cameras") or {}
            return cls(
                name=data.get("name", path.stem),
                lidar_topic=lidar["topic"],
                lidar_frame=lidar["frame_id"],
                base_from_lidar=_pose(lidar["base_from_lidar"]),
                intensity_scale=float(lidar.get("intensity_scale", 255.0)),
                base_frame=data.get("base_frame", "base_link"),
                world_frame=data.get("world_frame", "map"),
                odometry_topic=data.get("odometry_topic", "/odom"),
                cameras=tuple(_mount(name, camera) for name, camera in cameras.items()),
            )
        except FileNotFoundError as error:
            raise RigError(f"rig file {path} does not exist; see config/rigs for examples") from error
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RigError(f"rig file {path}: {type(error).__name__}: {error}; compare with config/rigs") from error

    def save(self, path: str | Path) -> None:
        """Writes the rig as YAML, whole or not at all."""
        write_whole(path, yaml.safe_dump(self.plain(), sort_keys=False))

    def plain(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "name": self.name,
            "base_frame": self.base_frame,
            "world_frame": self.world_frame,
            "odometry_topic": self.odometry_topic,
            "lidar": {
                "topic": self.lidar_topic,
                "frame_id": self.lidar_frame,
                "intensity_scale": self.intensity_scale,
                "base_from_lidar": _plain_pose(self.base_from_lidar),
            },
            "cameras": {
                m.name: {
                    "frame_id": m.frame_id,
                    "image_topic": m.image_topic,
                    "info_topic": m.info_topic,
                    "transport": m.transport,
                    "offset_ms": m.offset_ms,
                    "base_from_camera": _plain_pose(m.base_from_camera),
                }
                for m in self.cameras
            },
        }


def _mount(name: str, data: dict[str, Any]) -> CameraMount:
    transport = data.get("transport", "compressed")
    if transport not in ("compressed", "raw"):
        raise ValueError(f"cameras.{name}.transport is {transport!r}; use compressed or raw")
    return CameraMount(
        name=name,
        frame_id=data.get("frame_id", name),
        image_topic=data["image_topic"],
        info_topic=data["info_topic"],
        base_from_camera=_pose(data["base_from_camera"]),
        offset_ms=float(data.get("offset_ms", 0.0)),
        transport=transport,
    )


def _pose(data: dict[str, Any]) -> np.ndarray:
    """{translation: [x, y, z] m, rotation: [w, x, y, z]} -> (4, 4)."""
    return se3.transform(np.array(data["rotation"], np.float64), np.array(data["translation"], np.float64))


def _plain_pose(matrix: np.ndarray) -> dict[str, list[float]]:
    quaternion = se3.quaternion_from_rotation(matrix[:3, :3])
    return {
        "translation": [round(float(v), 9) for v in matrix[:3, 3]],
        "rotation": [round(float(v), 12) for v in quaternion],
    }

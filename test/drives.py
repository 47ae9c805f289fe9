"""A drive in the nuScenes layout that is written in a moment: boxes of points and noisy pictures, no simulation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.data.rig import Rig
from lima_core.data.synthetic.street import street_rig
from lima_core.geometry import se3

CAMERAS = 2
SIZE = (56, 28)
K = np.array([[20.0, 0, 28], [0, 20.0, 14], [0, 0, 1]])


class ToyDrive:
    """`frames` frames of each of `sequences` sequences, one metre apart, of different numbers of points."""

    def __init__(self, sequences: int = 3, frames: int = 4) -> None:
        self._frames, self._count = frames, sequences * frames
        self.sequences = tuple(f"toy-{i // frames}" for i in range(self._count))
        full = street_rig()
        self.rig: Rig = replace(full, cameras=full.cameras[:CAMERAS])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Frame:
        rng = np.random.default_rng(index)
        points = rng.uniform([-12, -12, -2, 0], [12, 12, 1, 1], (300 + 20 * index, 4)).astype(np.float32)
        stamp = (1_600_000_000_000_000 + 500_000 * index) * 1000
        world_from_base = se3.transform(np.eye(3), np.array([float(index % self._frames), 0, 0]))
        world_from_lidar = world_from_base @ self.rig.base_from_lidar
        views = []
        for mount in self.rig.cameras:
            picture = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
            camera_from_lidar = se3.inverse(world_from_base @ mount.base_from_camera) @ world_from_lidar
            image = Image(encoded=Image(pixels=picture).jpeg())
            views.append(CameraView(mount.name, stamp, image, SIZE, K, camera_from_lidar))
        return Frame(
            stamp_ns=stamp, sequence=self.sequences[index], index=index % self._frames, points=points,
            world_from_lidar=world_from_lidar, cameras=tuple(views), extra={"ring": np.zeros(len(points), np.uint8)},
        )  # fmt: skip

    def window(self, index: int, k: int) -> list[Frame]:
        return [self[i] for i in range(max(index - k, index - index % self._frames), index)]


def write_drive(folder: Path) -> Path:
    """The toy drive on disk."""
    return write_nuscenes(ToyDrive(), folder)

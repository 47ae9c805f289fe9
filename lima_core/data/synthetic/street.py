"""A deterministic simulated street as a source of frames: LiDAR, six cameras, labels, boxes and poses by seed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Frame
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.synthetic.camera import Renderer, intrinsics
from lima_core.data.synthetic.lidar import Sweep, sweep
from lima_core.data.synthetic.rays import Caster
from lima_core.data.synthetic.vehicle_rig import CAMERAS, street_rig
from lima_core.data.synthetic.world import World
from lima_core.geometry import se3

PERIOD_NS = 100_000_000
BOX_RANGE_M = 60.0


class Street:
    """`frames` sweeps at 10 Hz along the street of `seed`; images are `image_size` (width, height).

    A FrameSource: frame i is the same in every process and in any order of calls. Raises ValueError on a negative
    seed or fewer than one frame, IndexError past the end.
    """

    def __init__(
        self, seed: int, frames: int = 20, cameras: bool = True, image_size: tuple[int, int] = (448, 224)
    ) -> None:
        if seed < 0 or frames < 1 or min(image_size) < 16:
            raise ValueError(
                f"street {seed} with {frames} frames of {image_size}: use seed >= 0, frames >= 1, images from 16 x 16"
            )
        self.seed, self.frames, self.cameras, self.image_size = seed, frames, cameras, image_size
        self.rig: Rig = street_rig()
        self.taxonomy: Taxonomy = load_taxonomy("nuscenes")

    def __len__(self) -> int:
        return self.frames

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("world", "_caster", "_renderer")}

    @cached_property
    def world(self) -> World:
        """The layout, built on first use."""
        return World(self.seed, self.frames * PERIOD_NS * 1e-9, self.taxonomy.names)

    @cached_property
    def _caster(self) -> Caster:
        return Caster(self.world)

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._caster)

    def stamp_ns(self, index: int) -> int:
        """LiDAR stamp of frame `index`; streets lie a thousand seconds apart."""
        return (1_600_000_000 + 1000 * (self.seed % 1_000_000)) * 10**9 + (index + 1) * PERIOD_NS

    def time_s(self, stamp_ns: int) -> float:
        """Simulation time of a stamp, in seconds."""
        return (stamp_ns - self.stamp_ns(-1)) * 1e-9

    def base_pose(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) world_from_base at any stamp."""
        return self.world.ego.pose(self.time_s(stamp_ns))

    def __getitem__(self, index: int) -> Frame:
        if not -self.frames <= index < self.frames:
            raise IndexError(f"street {self.seed} has {self.frames} frames, asked for {index}")
        index %= self.frames
        stamp = self.stamp_ns(index)
        found = sweep(self._caster, self.rig.base_from_lidar, self.time_s(stamp), self.world.rng(100, index))
        world_from_lidar = self.base_pose(stamp) @ self.rig.base_from_lidar
        mounts = self.rig.cameras if self.cameras else ()
        return Frame(
            stamp_ns=stamp,
            sequence=f"street-{self.seed}",
            index=index,
            points=found.points,
            world_from_lidar=world_from_lidar,
            cameras=tuple(self._view(mount, i, index, world_from_lidar) for i, mount in enumerate(mounts)),
            extra={"ring": found.ring, "time_s": found.time_s},
            labels=found.label,
            boxes=self._boxes(found, self.time_s(stamp), world_from_lidar),
        )

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames before `index`, oldest first; fewer at the start."""
        return [self[i] for i in range(max(0, index - k), index)]

    def _view(self, mount: CameraMount, camera: int, index: int, world_from_lidar: np.ndarray) -> CameraView:
        stamp = self.stamp_ns(index) + round(mount.offset_ms * 1e6)
        world_from_camera = self.base_pose(stamp) @ mount.base_from_camera
        K = intrinsics(CAMERAS[mount.name][1], self.image_size)
        image = self._renderer.image(
            world_from_camera, K, self.image_size, self.time_s(stamp), self.world.rng(101, index, camera)
        )
        camera_from_lidar = se3.inverse(world_from_camera) @ world_from_lidar
        return CameraView(mount.name, stamp, image, self.image_size, K, camera_from_lidar)

    def _boxes(self, found: Sweep, time_s: float, world_from_lidar: np.ndarray) -> Boxes:
        """Boxes of the objects that returned at least one point and lie within 60 m."""
        lidar_from_world = se3.inverse(world_from_lidar)
        rows = []
        for index, points in zip(*np.unique(found.thing[found.thing >= 0], return_counts=True), strict=True):
            thing = self.world.things[index]
            pose = lidar_from_world @ thing.pose(time_s)
            size = thing.mesh.size
            center = se3.apply(pose, np.array([[0.0, 0.0, size[2] / 2]]))[0]
            velocity = lidar_from_world[:2, :2] @ thing.velocity(time_s)
            if np.hypot(*center[:2]) <= BOX_RANGE_M:
                class_id = self.taxonomy.detection_names.index(thing.name)
                rows.append((*center, *size, se3.yaw(pose), *velocity, class_id, points))
        table = np.array(rows, np.float64).reshape(-1, 11)
        class_id, points = table[:, 9].astype(np.uint8), table[:, 10].astype(np.int32)
        return Boxes(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:9], class_id, points)

"""A frame as the method sees it, and what becomes of bad input.

Counted and left out: points that are not finite or farther than a kilometre (`View.dropped_points`), a camera that
the frame lacks (`View.cameras` is smaller), a point or a whole frame that no camera sees (no sighting). An error that
names sequence, frame and camera: no point left, a pose or calibration that is missing (nan) or not rigid, a picture
that cannot be read or has not its calibration's size. Pictures of different sizes are fine: sightings are relative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from lima_core.data.frame import CameraView, Frame, ImageError
from lima_core.lima.cross_view import Sightings, sightings
from lima_core.models.voxelize import FARTHEST_M

RIGID = 1e-3  # largest deviation of R R^T from the identity


class ViewError(ValueError):
    """A frame cannot be learned from; the message names sequence, frame, camera and what is wrong."""


@dataclass(frozen=True)
class View:
    """`points` (N, 4) float32, all finite, LiDAR frame; `world_from_lidar` (4, 4) float64; `seen` where its `cameras`
    cameras see the points; `dropped_points` how many were left out; `grids` (V, C, h, w) the teacher's patch features
    of the cameras in the frame's order, None until they are given; `where` sequence and index, for messages."""

    where: str
    points: np.ndarray
    world_from_lidar: np.ndarray
    seen: Sightings
    cameras: int
    dropped_points: int
    grids: Tensor | None = None

    def with_grids(self, grids: Tensor) -> View:
        """The view with its patch features. Raises ViewError unless there is one grid per camera."""
        if grids.ndim != 4 or len(grids) != self.cameras:
            raise ViewError(f"{self.where}: patch features {tuple(grids.shape)} for {self.cameras} cameras")
        return replace(self, grids=grids)


def frame_view(frame: Frame) -> View:
    """Frame -> View without patch features. Raises ViewError."""
    _check_rigid(frame.world_from_lidar, f"{frame.where}: world_from_lidar")
    for camera in frame.cameras:
        _check_camera(camera, frame.where)
    clean = _clean(frame)
    return View(
        where=frame.where,
        points=clean.points,
        world_from_lidar=frame.world_from_lidar,
        seen=sightings(clean),
        cameras=len(frame.cameras),
        dropped_points=len(frame.points) - len(clean.points),
    )


def pictures(frame: Frame) -> list[np.ndarray]:
    """The (H, W, 3) uint8 RGB picture of every camera, for Teacher.prepare. Raises ViewError."""
    return [_picture(camera, frame.where) for camera in frame.cameras]


def _clean(frame: Frame) -> Frame:
    with np.errstate(invalid="ignore"):
        near = (np.abs(frame.points[:, :3]) <= FARTHEST_M).all(axis=1)
    keep = near & np.isfinite(frame.points).all(axis=1)
    if not keep.any():
        raise ViewError(f"{frame.where}: none of its {len(frame.points)} points is finite and within {FARTHEST_M} m")
    return replace(frame, points=frame.points[keep], extra={}, labels=None)


def _picture(camera: CameraView, where: str) -> np.ndarray:
    try:
        rgb = camera.image.rgb
    except ImageError as error:
        raise ViewError(f"{where}, {camera.name}: {error}; restore the file or leave the camera out") from error
    height, width = rgb.shape[:2]
    if (width, height) != tuple(camera.size):
        raise ViewError(
            f"{where}, {camera.name}: the picture is {width} x {height}, its calibration is for "
            f"{camera.size[0]} x {camera.size[1]}"
        )
    return rgb


def _check_camera(camera: CameraView, where: str) -> None:
    _check_rigid(camera.camera_from_lidar, f"{where}, {camera.name}: camera_from_lidar")
    if not np.isfinite(camera.K).all() or min(camera.K[0, 0], camera.K[1, 1]) <= 0:
        raise ViewError(f"{where}, {camera.name}: intrinsics {np.asarray(camera.K).tolist()} are none")


def _check_rigid(a_from_b: np.ndarray, what: str) -> None:
    """A pose that is missing, or only half filled in, must not become a place."""
    if not np.isfinite(a_from_b).all():
        raise ViewError(f"{what} is missing (not finite); leave the frame out or repair its pose")
    rotation = a_from_b[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=RIGID) or np.linalg.det(rotation) < 0:
        raise ViewError(f"{what} is no rigid transform: {np.round(a_from_b, 4).tolist()}")

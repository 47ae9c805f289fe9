"""From a synchronised image message to the JPEG of its overlay."""

from __future__ import annotations

from typing import Any

import numpy as np

from lima_core.data.frame import CameraView, Image, ImageError
from lima_core.data.rig import CameraMount, Rig, is_rectified
from lima_core.data.ros_image import camera_from_info, image_from_message
from lima_core.runtime.synchronizer import TimedImage
from lima_core.runtime.transforms import PoseBuffer, PoseError, camera_from_lidar, static_camera_from_lidar
from lima_core.viz import overlay


class OverlayError(ValueError):
    """An overlay cannot be drawn; `reason` is one word for the counters."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def camera_view(mount: CameraMount, image: TimedImage, info: Any, camera_from_lidar: np.ndarray) -> CameraView:
    """Image and CameraInfo messages of a mounted camera -> CameraView. Raises OverlayError naming what is wrong."""
    if info is None:
        raise OverlayError("no_camera_info", f"no CameraInfo on {mount.info_topic}")
    try:
        K, distortion, size = camera_from_info(info, rectified=is_rectified(mount.image_topic))
    except ValueError as error:
        raise OverlayError("bad_camera_info", f"{mount.info_topic}: {error}") from error
    picture = decoded(image.message, mount.image_topic)
    height, width = picture.rgb.shape[:2]
    if (width, height) != size:
        raise OverlayError(
            "size_differs", f"{mount.image_topic} is {width} x {height}, its CameraInfo {size[0]} x {size[1]}"
        )
    return CameraView(mount.name, image.stamp_ns, picture, size, K, camera_from_lidar, distortion)


def decoded(message: Any, topic: str) -> Image:
    """Image message -> decoded `Image`. Raises OverlayError (corrupt)."""
    try:
        image = image_from_message(message, topic)
        image.rgb  # noqa: B018  decodes here, where a corrupt picture has a name
    except ImageError as error:
        raise OverlayError("corrupt", str(error)) from error
    return image


def extrinsics(
    rig: Rig, mount: CameraMount, poses: PoseBuffer, camera_ns: int, lidar_ns: int
) -> tuple[np.ndarray, bool]:
    """camera_from_lidar (4, 4) and whether ego-motion is in it; without poses the mounting alone."""
    try:
        return camera_from_lidar(poses, mount.base_from_camera, rig.base_from_lidar, camera_ns, lidar_ns), True
    except PoseError:
        return static_camera_from_lidar(mount.base_from_camera, rig.base_from_lidar), False


def overlay_jpeg(view: CameraView, points: np.ndarray, colors: np.ndarray, radius: int, quality: int) -> bytes:
    """JPEG of the picture with (N, >=3) points in (N, 3) uint8 RGB; radius 0 = by image width."""
    return Image(pixels=overlay.overlay(view, points, colors, radius or None)).jpeg(quality)

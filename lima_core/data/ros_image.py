"""Image, CompressedImage and CameraInfo messages -> `Image`, intrinsics and distortion; no ROS, no cv_bridge.

Works on anything with the attributes of the sensor_msgs message (rclpy, rosbags, a test double).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lima_core.data.frame import Image, ImageError
from lima_core.geometry.camera import NO_DISTORTION, Distortion

CHANNELS = {"rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1}
TO_RGB = {
    "bgr8": cv2.COLOR_BGR2RGB,
    "8UC3": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "8UC1": cv2.COLOR_GRAY2RGB,
    # ROS names a mosaic by its first two rows, OpenCV by the second and third pixel of the second row
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}


def image_from_message(msg: Any, source: str) -> Image:
    """CompressedImage (decoded later, on first use) or raw Image -> `Image`; `source` names the topic in errors.

    Raises ImageError when a raw image has an unknown encoding or too few bytes.
    """
    if hasattr(msg, "format"):
        if "compressedDepth" in msg.format:
            raise ImageError(f"{source}: {msg.format!r} is a depth image, not a picture")
        return Image(encoded=bytes(msg.data), source=source)
    return Image(pixels=_pixels(msg, source), source=source)


def _pixels(msg: Any, source: str) -> np.ndarray:
    """Raw Image -> (H, W, 3) uint8 RGB of its own; padding at the end of each row is left out."""
    channels = 1 if msg.encoding.startswith("bayer_") and msg.encoding in TO_RGB else CHANNELS.get(msg.encoding)
    if channels is None:
        known = sorted({"rgb8", *TO_RGB})
        raise ImageError(f"{source}: encoding {msg.encoding!r} is not supported; supported: {', '.join(known)}")
    if msg.width == 0 or msg.height == 0 or msg.step < msg.width * channels:
        raise ImageError(f"{source}: {msg.width} x {msg.height} {msg.encoding} with step {msg.step} is no picture")
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(f"{source}: {len(msg.data)} bytes, but step {msg.step} * height {msg.height} needs more")
    shape, strides = (msg.height, msg.width, channels), (msg.step, channels, 1)
    view = np.ndarray(shape, np.uint8, msg.data, 0, strides)
    return view.copy() if msg.encoding == "rgb8" else cv2.cvtColor(view, TO_RGB[msg.encoding])


def camera_from_info(msg: Any, rectified: bool = False) -> tuple[np.ndarray, Distortion, tuple[int, int]]:
    """CameraInfo -> K (3, 3) float64, distortion, (width, height) in pixels.

    `rectified`: the picture is an `image_rect*`, so that the projection matrix P holds and there is no distortion.
    Raises ValueError naming what is invalid.
    """
    size = (int(msg.width), int(msg.height))
    if min(size) <= 0:
        raise ValueError(f"CameraInfo has size {size[0]} x {size[1]}")
    if msg.binning_x > 1 or msg.binning_y > 1 or msg.roi.width not in (0, size[0]) or msg.roi.x_offset:
        raise ValueError("CameraInfo with binning or a region of interest is not supported: send the full picture")
    distortion = _distortion(msg)
    K = _intrinsics(np.array(msg.k, np.float64).reshape(3, 3), "K")
    if rectified:
        P = np.array(msg.p, np.float64).reshape(3, 4)
        if P.any():
            return _intrinsics(P[:, :3], "P"), NO_DISTORTION, size
        if distortion.model != "none":
            raise ValueError("CameraInfo of a rectified picture has distortion but P is zero: calibrate and fill P")
    return K, distortion, size


def _intrinsics(matrix: np.ndarray, name: str) -> np.ndarray:
    """(3, 3) checked: finite, positive focal lengths, last row 0 0 1."""
    if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0 or (matrix[2] != (0, 0, 1)).any():
        raise ValueError(
            f"CameraInfo.{name} is not a calibration: {matrix.ravel().tolist()}; is the camera calibrated?"
        )
    return matrix


def _distortion(msg: Any) -> Distortion:
    """Model and coefficients; polynomial models with all coefficients zero are none."""
    model = {"fisheye": "equidistant"}.get(msg.distortion_model, msg.distortion_model)
    coefficients = tuple(float(c) for c in msg.d)
    if not np.isfinite(coefficients).all():
        raise ValueError(f"CameraInfo.d is not finite: {coefficients}")
    if not any(coefficients) and model in ("", "none", "plumb_bob", "rational_polynomial"):
        return NO_DISTORTION
    return Distortion(model, coefficients)

"""Image, CompressedImage and CameraInfo messages -> `Image`, intrinsics and distortion; no ROS, no cv_bridge.

Works on anything with the attributes of the sensor_msgs message (rclpy, rosbags, a test double).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lima_core.data.frame import Image, ImageError
from lima_core.geometry.camera import NO_DISTORTION, Distortion

# encoding -> channels, bytes per channel, OpenCV's conversion to RGB (None = it is RGB)
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "8UC3": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    # two pixels share one U and one V; sensor_msgs has two names for each order
    **dict.fromkeys(("yuv422", "uyvy"), (2, 1, cv2.COLOR_YUV2RGB_UYVY)),
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), (2, 1, cv2.COLOR_YUV2RGB_YUY2)),
    # ROS names a mosaic by its first two rows, OpenCV by the second and third pixel of the second row
    **{
        f"bayer_{pattern}{8 * size}": (1, size, code)
        for size in (1, 2)
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2RGB),
            ("bggr", cv2.COLOR_BayerRG2RGB),
            ("gbrg", cv2.COLOR_BayerGR2RGB),
            ("grbg", cv2.COLOR_BayerGB2RGB),
        )
    },
}
MAX_PIXELS = 2**26  # 67 megapixels, 200 MB: a few bytes of JPEG can claim 900, which takes 5 GB and half a minute
TRAILING = 1024  # some encoders pad the end of a picture
ROTATION_TOLERANCE = 1e-4  # in each number of R; 0.1 mrad is a tenth of a pixel at 1000 pixels of focal length


def image_from_message(msg: Any, source: str) -> Image:
    """CompressedImage (decoded later, on first use) or raw Image -> `Image`; `source` names the topic in errors.

    Raises ImageError when a raw image has an unknown encoding, an impossible size or too few bytes, or a compressed
    one claims more than MAX_PIXELS.
    """
    if hasattr(msg, "format"):
        if "compressedDepth" in msg.format:
            raise ImageError(f"{source}: {msg.format!r} is a depth image, not a picture")
        data = bytes(msg.data)
        width, height = _claimed_size(data)
        if width * height > MAX_PIXELS:
            raise ImageError(f"{source}: {len(data)} bytes claim {width} x {height}, more than {MAX_PIXELS} pixels")
        return Image(encoded=data, source=source)
    return Image(pixels=_pixels(msg, source), source=source)


def encoded_picture(msg: Any, source: str, size: tuple[int, int], quality: int) -> bytes:
    """A picture as JPEG or PNG bytes: those of a CompressedImage untouched, a raw Image as JPEG of `quality` percent.

    Raises ImageError where the bytes are neither, cut off, or of another size than (width, height).
    """
    image = image_from_message(msg, source)
    encoded = image.jpeg(quality)
    found = _claimed_size(encoded)
    if found == (0, 0):
        raise ImageError(f"{source}: {len(encoded)} bytes are neither a JPEG nor a PNG")
    if found != size:
        raise ImageError(f"{source}: {found[0]} x {found[1]} pixels, its CameraInfo says {size[0]} x {size[1]}")
    end = b"IEND\xaeB`\x82" if encoded.startswith(b"\x89PNG") else b"\xff\xd9"
    if end not in encoded[-TRAILING:]:
        raise ImageError(f"{source}: the picture is cut off after {len(encoded)} bytes")
    return encoded


def _claimed_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the header of a JPEG (ITU-T T.81, B.2) or PNG; 0, 0 for what has none, which fails later."""
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    at = data.find(b"\xff", 2) if data.startswith(b"\xff\xd8") else -1
    while 0 <= at < len(data) - 9:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame, no table
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9  # no length follows
        at += 1 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        at = data.find(b"\xff", at)
    return 0, 0


def _pixels(msg: Any, source: str) -> np.ndarray:
    """Raw Image -> (H, W, 3) uint8 RGB of its own; padding at the end of each row is left out."""
    if msg.encoding not in ENCODINGS:
        known = ", ".join(sorted(ENCODINGS))
        raise ImageError(f"{source}: encoding {msg.encoding!r} is not supported; supported: {known}")
    channels, size, code = ENCODINGS[msg.encoding]
    _check_size(msg, channels * size, source)
    # of 16 bits the high byte is taken: pictures are shown and learned from in 8 bits
    high = 0 if size == 1 or msg.is_bigendian else 1
    shape, strides = (msg.height, msg.width, channels), (msg.step, channels * size, size)
    view = np.ndarray(shape, np.uint8, msg.data, high, strides)
    return view.copy() if code is None else cv2.cvtColor(np.ascontiguousarray(view), code)


def _check_size(msg: Any, pixel_bytes: int, source: str) -> None:
    """Raises ImageError unless all pixels lie inside `data` and the encoding can have this size."""
    what = f"{source}: {msg.width} x {msg.height} {msg.encoding}"
    if msg.width == 0 or msg.height == 0 or msg.step < msg.width * pixel_bytes:
        raise ImageError(f"{what} with step {msg.step} is no picture; a row has {msg.width * pixel_bytes} bytes")
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(f"{source}: {len(msg.data)} bytes, but step {msg.step} * height {msg.height} needs more")
    if msg.encoding.startswith("bayer_") and min(msg.width, msg.height) < 3:
        raise ImageError(f"{what} is too small: colours of a mosaic need 3 x 3 pixels")
    if ENCODINGS[msg.encoding][0] == 2 and msg.width % 2:
        raise ImageError(f"{what} has an odd width: two pixels share their colour")


def camera_from_info(msg: Any, rectified: bool = False) -> tuple[np.ndarray, Distortion, tuple[int, int]]:
    """CameraInfo -> K (3, 3) float64, distortion, (width, height) in pixels.

    `rectified`: the picture is an `image_rect*`, so that the projection matrix P holds and there is no distortion.
    R must then be a rotation by nothing, or all zero, which drivers send for "not rectified". Raises ValueError
    naming what is invalid.
    """
    size = (int(msg.width), int(msg.height))
    if min(size) <= 0:
        raise ValueError(f"CameraInfo has size {size[0]} x {size[1]}")
    if msg.binning_x > 1 or msg.binning_y > 1 or _is_part(msg.roi, size):
        raise ValueError("CameraInfo with binning or a region of interest is not supported: send the full picture")
    distortion = _distortion(msg)
    K = _intrinsics(_matrix(msg.k, "K", (3, 3)), "K", size)
    if rectified:
        P = _matrix(msg.p, "P", (3, 4))
        if P.any():
            _check_rectification(_matrix(msg.r, "R", (3, 3)))
            return _intrinsics(P[:, :3], "P", size), NO_DISTORTION, size
        if distortion.model != "none":
            raise ValueError("CameraInfo of a rectified picture has distortion but P is zero: calibrate and fill P")
    return K, distortion, size


def _is_part(roi: Any, size: tuple[int, int]) -> bool:
    """True when the region of interest is not the whole picture; all zero means whole."""
    return bool(roi.x_offset or roi.y_offset or roi.width not in (0, size[0]) or roi.height not in (0, size[1]))


def _matrix(values: Any, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Row-major numbers of a message -> float64 of `shape`."""
    matrix = np.array(values, np.float64)
    if matrix.size != shape[0] * shape[1]:
        raise ValueError(f"CameraInfo.{name} has {matrix.size} numbers; it is {shape[0]} x {shape[1]}")
    return matrix.reshape(shape)


def _intrinsics(matrix: np.ndarray, name: str, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) checked: finite, positive focal lengths, lower triangle 0, principal point inside the picture."""
    focal, below = (matrix[0, 0], matrix[1, 1]), (matrix[1, 0], *matrix[2])
    if not np.isfinite(matrix).all() or min(focal) <= 0 or below != (0, 0, 0, 1):
        raise ValueError(
            f"CameraInfo.{name} is not a calibration: {matrix.ravel().tolist()}; is the camera calibrated?"
        )
    if not (0 <= matrix[0, 2] <= size[0] and 0 <= matrix[1, 2] <= size[1]):
        raise ValueError(
            f"CameraInfo.{name} has its principal point at {matrix[0, 2]:g}, {matrix[1, 2]:g}, outside of "
            f"{size[0]} x {size[1]} pixels; was the camera calibrated at another resolution?"
        )
    return matrix


def _check_rectification(R: np.ndarray) -> None:
    """Raises ValueError where R is no rotation, or one that turns: the mount of a rectified camera has no turn."""
    if not R.any():
        return
    if not np.isfinite(R).all() or np.abs(R @ R.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise ValueError(f"CameraInfo.R is not a rotation: {R.ravel().tolist()}; one camera alone has the identity")
    if np.abs(R - np.eye(3)).max() > ROTATION_TOLERANCE:
        raise ValueError("CameraInfo.R turns the picture (a stereo pair), which is not supported: use the raw picture")


def _distortion(msg: Any) -> Distortion:
    """Model and coefficients; polynomial models with all coefficients zero are none."""
    model = {"fisheye": "equidistant"}.get(msg.distortion_model, msg.distortion_model)
    coefficients = tuple(float(c) for c in msg.d)
    if not np.isfinite(coefficients).all():
        raise ValueError(f"CameraInfo.d is not finite: {coefficients}")
    if not any(coefficients) and model in ("", "none", "plumb_bob", "rational_polynomial"):
        return NO_DISTORTION
    return Distortion(model, coefficients)

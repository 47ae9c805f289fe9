"""Projection of LiDAR points into a camera: camera frame (x right, y down, z forward) -> pixels.

Source: spec/datasets.md section 2.1 (nuScenes devkit `view_points`, SLidR mask rule) and the OpenCV
camera models `plumb_bob`, `rational_polynomial` and `equidistant` as named in sensor_msgs/CameraInfo.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lima_core.geometry import se3

MIN_DEPTH_M = 1.0
COEFFICIENTS = {"none": (0,), "plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True)
class Distortion:
    """Lens distortion as in CameraInfo: model name and its coefficients; `none` for rectified images."""

    model: str = "none"
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError on an unknown model or a wrong number of coefficients."""
        if self.model not in COEFFICIENTS:
            raise ValueError(f"distortion model {self.model!r} is unknown; known: {', '.join(COEFFICIENTS)}")
        if len(self.coefficients) not in COEFFICIENTS[self.model]:
            raise ValueError(
                f"distortion model {self.model} takes {COEFFICIENTS[self.model]} coefficients, "
                f"got {len(self.coefficients)}"
            )


NO_DISTORTION = Distortion()


@dataclass(frozen=True)
class Projection:
    """Where points fall in one image: `uv` (N, 2) pixels, `depth` (N,) m, `visible` (N,) bool."""

    uv: np.ndarray
    depth: np.ndarray
    visible: np.ndarray


def project(
    points_lidar: np.ndarray,
    camera_from_lidar: np.ndarray,
    K: np.ndarray,
    size: tuple[int, int],
    distortion: Distortion = NO_DISTORTION,
) -> Projection:
    """(N, >=3) LiDAR points -> pixels of an image of `size` (width, height), in float64.

    Visible = depth > 1 m, 0 < u < W-1 and 0 < v < H-1 (the rule of SLidR, ScaLR and SuperFlow, no
    occlusion test). uv of points at or behind the camera plane, or non-finite, is nan.
    """
    with np.errstate(invalid="ignore"):  # a sweep may hold nan points: they are invisible
        camera = se3.apply(camera_from_lidar, points_lidar)
        front = (camera[:, 2] > MIN_DEPTH_M) & np.isfinite(camera).all(axis=1)
        uv = np.full((len(camera), 2), np.nan)
        uv[front] = _pixels(camera[front], K, distortion)
        inside = (uv > 0).all(axis=1) & (uv[:, 0] < size[0] - 1) & (uv[:, 1] < size[1] - 1)
        return Projection(uv, camera[:, 2], inside & _undoubled(camera, distortion))


def _pixels(camera: np.ndarray, K: np.ndarray, distortion: Distortion) -> np.ndarray:
    """(N, 3) points before the camera -> (N, 2) pixels."""
    if distortion.model == "none":
        uvw = camera @ np.asarray(K, np.float64).T
        return uvw[:, :2] / uvw[:, 2:]
    if len(camera) == 0:
        return np.empty((0, 2))
    model = cv2.fisheye if distortion.model == "equidistant" else cv2
    zero = np.zeros(3)
    uv, _ = model.projectPoints(
        camera.reshape(-1, 1, 3), zero, zero, np.asarray(K, np.float64), np.array(distortion.coefficients)
    )
    return uv.reshape(-1, 2)


def _undoubled(camera: np.ndarray, distortion: Distortion) -> np.ndarray:
    """(N,) bool: directions within 60 degrees of the axis where polynomial distortion is one-to-one.

    Radial polynomials fold back far off the axis, so that a point far outside would land in the image.
    """
    if distortion.model not in ("plumb_bob", "rational_polynomial"):
        return np.ones(len(camera), bool)
    return np.hypot(camera[:, 0], camera[:, 1]) < np.sqrt(3.0) * camera[:, 2]

"""Label colours of LiDAR points drawn into the camera picture they project to."""

from __future__ import annotations

import numpy as np

from lima_core.data.frame import CameraView
from lima_core.geometry.camera import Projection

DIM = 0.75  # the picture is darkened a little, so that any class colour stands out


def overlay(view: CameraView, points_lidar: np.ndarray, colors: np.ndarray, radius: int | None = None) -> np.ndarray:
    """(N, >=3) points of the sweep and their (N, 3) uint8 RGB -> (H, W, 3) uint8 RGB picture with the points in it."""
    return draw_points(view.image.rgb, view.project(points_lidar), colors, radius)


def draw_points(rgb: np.ndarray, where: Projection, colors: np.ndarray, radius: int | None = None) -> np.ndarray:
    """Draws the visible points as discs of `radius` pixels, near ones over far ones; returns a new picture.

    `rgb` (H, W, 3) uint8; `colors` (N, 3) uint8. Default radius: 1 pixel per 500 pixels of width, at least 1.
    """
    height, width = rgb.shape[:2]
    radius = max(1, round(width / 500)) if radius is None else radius
    picture = (rgb * np.float32(DIM)).astype(np.uint8)
    visible = np.flatnonzero(where.visible)
    far_to_near = visible[np.argsort(-where.depth[visible], kind="stable")]
    center = np.rint(where.uv[far_to_near]).astype(np.int64)
    # one row per point: an assignment to a repeated pixel keeps the last, hence nearest, point
    pixels = center[:, None, :] + _disc(radius)[None]
    inside = (pixels >= 0).all(axis=2) & (pixels < (width, height)).all(axis=2)
    u, v = pixels[inside].T
    picture[v, u] = np.repeat(colors[far_to_near], inside.sum(axis=1), axis=0)
    return picture


def _disc(radius: int) -> np.ndarray:
    """(K, 2) pixel offsets (u, v) of a filled disc; a plus sign for radius 1."""
    span = np.arange(-radius, radius + 1)
    u, v = np.meshgrid(span, span)
    inside = u * u + v * v <= radius * (radius + 0.5)
    return np.stack([u[inside], v[inside]], axis=1)

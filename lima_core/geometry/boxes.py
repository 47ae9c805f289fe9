"""Oriented boxes: their corners, the points inside them, and the way into another frame.

A table of boxes is (B, 7) float64: centre x, y, z, length, width, height in metres, yaw in radians counter-clockwise
about z; the length lies along the heading. Source: spec/datasets.md 2.3, vectors `box_corners`, `box_global_to_lidar`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

# front (+x) first: left top, right top, right bottom, left bottom; then the rear in the same order
CORNERS = np.array([(x, y, z) for x in (1, -1) for y, z in ((1, 1), (-1, 1), (-1, -1), (1, -1))]) / 2
FOOTPRINT = [2, 3, 7, 6]  # rows of CORNERS
BEV = [0, 1, 3, 4, 6]  # columns of a table that a box has from above: x, y, l, w, yaw


class OrientedBoxes(Protocol):
    """The columns that geometry needs; `lima_core.data.frame.Boxes` has them (frame imports geometry, not back)."""

    @property
    def center(self) -> np.ndarray:
        """(B, 3) m."""

    @property
    def size(self) -> np.ndarray:
        """(B, 3) m, length-width-height."""

    @property
    def yaw(self) -> np.ndarray:
        """(B,) rad."""

    @property
    def velocity(self) -> np.ndarray:
        """(B, 2) m/s, nan = unknown."""


BoxesT = TypeVar("BoxesT", bound=OrientedBoxes)


def box_table(boxes: OrientedBoxes) -> np.ndarray:
    """B boxes -> (B, 7) float64 table x, y, z, l, w, h in m, yaw in rad."""
    return np.column_stack([boxes.center, boxes.size, boxes.yaw]).astype(np.float64)


def corners(table: np.ndarray) -> np.ndarray:
    """(B, 7) table -> (B, 8, 3) float64 corners in m.

    Front left top, front right top, front right bottom, front left bottom, then the rear ones in the same order
    (nuScenes devkit `Box.corners`). Raises ValueError on another shape.
    """
    table = _checked(table)
    local = CORNERS * table[:, None, 3:6]
    cos, sin = np.cos(table[:, 6:]), np.sin(table[:, 6:])
    x = cos * local[..., 0] - sin * local[..., 1]
    y = sin * local[..., 0] + cos * local[..., 1]
    return np.stack([x, y, local[..., 2]], axis=-1) + table[:, None, :3]


def bev_corners(table: np.ndarray) -> np.ndarray:
    """(B, 7) table -> (B, 4, 2) float64 x, y in m: front right, front left, rear left, rear right (counter-clockwise).

    Raises ValueError on another shape.
    """
    return corners(table)[:, FOOTPRINT, :2]


def points_in_boxes(points: np.ndarray, table: np.ndarray) -> list[np.ndarray]:
    """(N, >=3) points in m, (B, 7) table -> for each box the ascending int64 rows of its points, in float64.

    Boxes are closed: a point on a face is inside; nan points are nowhere. Raises ValueError on another shape.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points must be (N, >=3) x, y, z; got {points.shape}")
    table = _checked(table)
    x, y = np.ascontiguousarray(points[:, :2].T)
    reach = np.hypot(table[:, 3], table[:, 4]) / 2
    reach += 1e-5 * (reach + np.abs(table[:, 0]) + np.abs(table[:, 1]))  # float32 points are compared in float32
    found = []
    for box, radius in zip(table, reach.tolist(), strict=True):
        near = np.flatnonzero((np.abs(x - float(box[0])) <= radius) & (np.abs(y - float(box[1])) <= radius))
        found.append(near[_inside(points[near, :3], box)])
    return found


def moved(boxes: BoxesT, a_from_b: np.ndarray) -> BoxesT:
    """Boxes in frame b, rigid (4, 4) a_from_b -> the same boxes in frame a, changed columns in float64.

    The centre is moved, the velocity (taken as level in b) rotated, and yaw is the heading of the turned length, so
    that a tilt between the frames is allowed and dropped. An unknown velocity (nan) stays unknown.
    """
    rotation = np.asarray(a_from_b, np.float64)[:3, :3]
    heading = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw)], axis=-1) @ rotation[:2, :2].T
    return replace(
        boxes,
        center=np.asarray(boxes.center, np.float64) @ rotation.T + a_from_b[:3, 3],
        yaw=np.arctan2(heading[:, 1], heading[:, 0]),
        velocity=np.asarray(boxes.velocity, np.float64) @ rotation[:2, :2].T,
    )


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(N, 3) points, (7,) box -> (N,) bool."""
    x, y, z = (points.astype(np.float64) - box[:3]).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = cos * x + sin * y, cos * y - sin * x
    return (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2) & (np.abs(z) <= box[5] / 2)


def _checked(table: np.ndarray) -> np.ndarray:
    """The table as float64; ValueError when it is not (B, 7)."""
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or table.shape[1] != 7:
        raise ValueError(f"boxes must be a (B, 7) table x, y, z, l, w, h, yaw; got {table.shape}")
    return table

"""SECOND's anchors: where they lie, which of them a true box takes, and the code between the two (spec 3.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lima_core.geometry.boxes import BEV
from lima_core.geometry.overlap import nearest_bev_iou
from lima_core.models.bev import BevGrid

ROTATIONS = (0.0, 1.57)  # rad; the published value, not pi / 2
BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True)
class Anchor:
    """The usual box of a class: `size` l, w, h m, `bottom` z m for a LiDAR 1.84 m above ground, and the IoU from which
    a box matches it and below which it does not."""

    size: tuple[float, float, float]
    bottom: float
    matched: float
    unmatched: float


# spec/datasets/nuscenes_detection.yaml, second_anchors
ANCHORS = {
    "car": Anchor((4.63, 1.97, 1.74), -0.95, 0.6, 0.45),
    "truck": Anchor((6.93, 2.51, 2.84), -0.6, 0.55, 0.4),
    "construction_vehicle": Anchor((6.37, 2.85, 3.19), -0.225, 0.5, 0.35),
    "bus": Anchor((10.5, 2.94, 3.47), -0.085, 0.55, 0.4),
    "trailer": Anchor((12.29, 2.9, 3.87), 0.115, 0.5, 0.35),
    "barrier": Anchor((0.5, 2.53, 0.98), -1.33, 0.55, 0.4),
    "motorcycle": Anchor((2.11, 0.77, 1.47), -1.085, 0.5, 0.3),
    "bicycle": Anchor((1.7, 0.6, 1.28), -1.18, 0.5, 0.35),
    "pedestrian": Anchor((0.73, 0.67, 1.77), -0.935, 0.6, 0.4),
    "traffic_cone": Anchor((0.41, 0.41, 1.07), -1.285, 0.6, 0.4),
}


def anchor_table(anchor: Anchor, grid: BevGrid) -> Tensor:
    """(2 * Y * X, 7) float32 x, y, z, l, w, h, yaw, in the order rotation, y, x.

    The first and last ones lie on the border of the grid, not in the middle of a cell (`align_center` False).
    """
    x, y = (torch.linspace(low, high, n) for low, high, n in zip(grid.low, grid.high, grid.size, strict=True))
    yaw, y, x = torch.meshgrid(torch.tensor(ROTATIONS), y, x, indexing="ij")
    fixed = torch.tensor([anchor.bottom + anchor.size[2] / 2, *anchor.size]).expand(*x.shape, 4)
    return torch.cat([x[..., None], y[..., None], fixed, yaw[..., None]], 3).flatten(0, 2)


def match(anchors: Tensor, boxes: Tensor, anchor: Anchor) -> Tensor:
    """(A, 7) anchors, (N, >=7) boxes of their class in one scene -> (A,) int64 row of each anchor's box.

    BACKGROUND below the lower IoU, IGNORED between the two. The anchors that overlap a box best are its own however
    little that is, even where another box overlaps them more. A box between all anchors, as a small cone can be,
    takes the nearest ones (OpenPCDet leaves it out). Of two boxes with the same best anchors one goes without.
    """
    taken = torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    if not len(boxes):
        return taken
    iou = nearest_bev_iou(anchors[:, BEV], boxes[:, BEV])
    best, row = iou.max(1)
    taken[best >= anchor.unmatched] = IGNORED
    taken = torch.where(best >= anchor.matched, row, taken)
    distance = (anchors[:, None, :2] - boxes[None, :, :2]).norm(dim=2)
    closeness = torch.where(iou > 0, iou, -distance)
    forced, row = torch.where(closeness == closeness.amax(0), closeness, -torch.inf).max(1)
    return torch.where(forced > -torch.inf, row, taken)


def encode_residuals(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(N, >=9) boxes, (N, 7) anchors -> (N, 10) residuals.

    dx, dy over the anchor's diagonal, dz over its height, log ratios of l, w, h, differences of cos and sin, velocity.
    """
    center = (boxes[:, :3] - anchors[:, :3]) / _scale(anchors)
    yaw, base = boxes[:, 6:7], anchors[:, 6:7]
    ratio = (boxes[:, 3:6] / anchors[:, 3:6]).log()
    return torch.cat([center, ratio, yaw.cos() - base.cos(), yaw.sin() - base.sin(), boxes[:, 7:9]], 1)


def decode_residuals(code: Tensor, anchors: Tensor) -> Tensor:
    """(N, 10) residuals, (N, 7) anchors -> (N, 9) x, y, z, l, w, h, yaw, vx, vy."""
    center = code[:, :3] * _scale(anchors) + anchors[:, :3]
    size = code[:, 3:6].exp() * anchors[:, 3:6]
    base = anchors[:, 6:7]
    yaw = torch.atan2(code[:, 7:8] + base.sin(), code[:, 6:7] + base.cos())
    return torch.cat([center, size, yaw, code[:, 8:10]], 1)


def _scale(anchors: Tensor) -> Tensor:
    """(N, 7) -> (N, 3) m: diagonal, diagonal, height."""
    diagonal = anchors[:, 3:5].norm(dim=1)
    return torch.stack([diagonal, diagonal, anchors[:, 5]], 1)

"""Overlap of boxes seen from above: exact rotated IoU, and the axis-aligned one that anchors are matched with.

The exact area needs neither polygons nor sorted corners. In the frame of box b, x along its length, the overlap with
box a is the integral of clip(top of a) - clip(bottom of a) over |x| <= length / 2, where clip limits y to the width of
b. Top and bottom are the four edges of a, walked once around, and the integral of a clipped straight line has a closed
form. Every term is a continuous function of the boxes, so that identical, touching, parallel or empty boxes are no
special cases. Checked against shapely in spec/datasets/reference_vectors.json, `rotated_bev_iou`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

PAIRS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 20}  # intermediate results stay in the cache of a CPU core
PARALLEL = 1e-30  # |sine| below which an edge is parallel to an axis
NO_DIVISION_BY_ZERO = 1e-300
ROUNDING = 1e-12  # a smaller IoU is none: boxes that are apart have exactly 0


@torch.no_grad()
def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, 5) and (M, 5) boxes x, y, l, w in m, yaw in rad -> (N, M) exact IoU in [0, 1], dtype of a.

    Computed in float64 for pairs whose circumscribed circles touch; a box without area has IoU 0. Raises ValueError on
    another shape, a nan, an infinite value or a negative size.
    """
    dtype, a, b = a.dtype, rectangles(a), rectangles(b)
    reach = torch.hypot(a[2], a[3])[:, None] + torch.hypot(b[2], b[3])
    iou = (a[0, :, None] - b[0]).square_().add_((a[1, :, None] - b[1]).square_())  # squared distance, for a while
    row, column = (iou <= reach.square_()).nonzero(as_tuple=True)
    iou.zero_()[row, column] = pairs_iou(a, b, row, column)
    return iou.to(dtype)


@torch.no_grad()
def paired_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """(P, 5) and (P, 5) boxes x, y, l, w in m, yaw in rad -> (P,) IoU of each row of a with the same row of b.

    As `bev_iou`. Raises ValueError also where the numbers of rows differ.
    """
    if len(a) != len(b):
        raise ValueError(f"paired boxes: {len(a)} boxes in a and {len(b)} in b; every row needs its partner")
    rows = torch.arange(len(a), device=a.device)
    return pairs_iou(rectangles(a), rectangles(b), rows, rows).to(a.dtype)


def nearest_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, 5) and (M, 5) boxes x, y, l, w in m, yaw in rad -> (N, M) IoU of their nearest axis-aligned boxes.

    Length and width are exchanged where |yaw mod pi| >= pi / 4. Computed in the dtype of a, (N, M) at a time: anchors
    are many. Raises ValueError as `bev_iou`. Source: spec/datasets.md 3.5, OpenPCDet `boxes3d_nearest_bev_iou`.
    """
    low_a, high_a = _aligned(_checked(a))
    low_b, high_b = _aligned(_checked(b).to(a.dtype))
    inside = [
        (torch.minimum(high_a[:, None, k], high_b[:, k]) - torch.maximum(low_a[:, None, k], low_b[:, k])).clamp_(min=0)
        for k in (0, 1)
    ]
    area = inside[0].mul_(inside[1])
    both = (high_a - low_a).prod(1)[:, None] + (high_b - low_b).prod(1)
    return _ratio(area, both)


def rectangles(boxes: Tensor) -> Tensor:
    """(N, 5) boxes x, y, l, w, yaw -> (6, N) float64 x, y, l / 2, w / 2, cos(yaw), sin(yaw). Checks as `bev_iou`."""
    x, y, length, width, yaw = _checked(boxes).double().unbind(1)
    return torch.stack([x, y, length / 2, width / 2, yaw.cos(), yaw.sin()])


@torch.no_grad()
def pairs_iou(a: Tensor, b: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(6, N), (6, M) `rectangles` and (P,) int64 indices into each -> (P,) float64 IoU of the pairs."""
    size = PAIRS_AT_ONCE.get(a.device.type, PAIRS_AT_ONCE["cuda"])
    parts = [
        _iou(a.index_select(1, i), b.index_select(1, j))
        for i, j in zip(row.split(size), column.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(6, P) and (6, P) `rectangles` -> (P,) IoU."""
    area_a, area_b = 4 * a[2] * a[3], 4 * b[2] * b[3]
    # rounding may carry the area of a nested box beyond its own
    area = _area(a, b).clamp_(min=0).minimum(torch.minimum(area_a, area_b))
    return functional.threshold(_ratio(area, area_a + area_b), ROUNDING, 0.0)


def _area(a: Tensor, b: Tensor) -> Tensor:
    """(6, P) and (6, P) `rectangles` -> (P,) m2 that a and b share: the formula above."""
    ax, ay, along, across, cos_a, sin_a = a
    bx, by, half_length, half_width, cos_b, sin_b = b
    right, up = ax - bx, ay - by
    centre_x, centre_y = cos_b * right + sin_b * up, cos_b * up - sin_b * right
    cos, sin = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b
    # corners of a, counter-clockwise from rear to front on its right side, the first one again at the end
    x = _around(along * cos + across * sin, along * cos - across * sin).add_(centre_x)
    y = _around(along * sin - across * cos, along * sin + across * cos).add_(centre_y)
    clipped_x = torch.clamp(x, -half_length, half_length)
    cut = clipped_x - x
    across_slope, along_slope = -cos / _apart_from_zero(sin), sin / _apart_from_zero(cos)
    slope = torch.stack([across_slope, along_slope, across_slope, along_slope])
    start = torch.addcmul(y[:-1], slope, cut[:-1])
    end = torch.addcmul(y[1:], slope, cut[1:])
    return torch.linalg.vecdot(_mean_of_clipped(start, end, half_width), clipped_x[:-1] - clipped_x[1:], dim=0)


def _around(first: Tensor, second: Tensor) -> Tensor:
    """(P,) coordinates of two neighbouring corners about the centre -> (5, P), once around."""
    return torch.stack([first, second, -first, -second, first])


def _apart_from_zero(x: Tensor) -> Tensor:
    """x, and a tiny number in place of none: an edge parallel to y adds nothing, whatever its slope."""
    return torch.where(x.abs() < PARALLEL, PARALLEL, x)


def _mean_of_clipped(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """Mean of clip(y, -limit, limit) while y goes straight from start to end; all (4, P).

    With c = clip: m + r (s - m), m = (c(start) + c(end)) / 2, s = (start + end) / 2 and
    r = (c(end) - c(start)) / (end - start) in [0, 1]. Where start = end, r = 0 and m is exact.
    """
    low, high = torch.clamp(start, -limit, limit), torch.clamp(end, -limit, limit)
    inner = (high - low).div_((end - start).add_(NO_DIVISION_BY_ZERO))
    return torch.lerp(low.add_(high), start.add_(end), inner).mul_(0.5)


def _aligned(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 5) boxes -> (N, 2) lowest and highest x, y of the nearest axis-aligned box."""
    yaw = boxes[:, 4:]
    turned = (yaw - math.pi * torch.floor(yaw / math.pi + 0.5)).abs() >= math.pi / 4
    half = torch.where(turned, boxes[:, [3, 2]], boxes[:, 2:4]) / 2
    return boxes[:, :2] - half, boxes[:, :2] + half


def _ratio(area: Tensor, both: Tensor) -> Tensor:
    """Common area, sum of both areas -> IoU, 0 where both are empty."""
    return area / (both - area).clamp_(min=torch.finfo(area.dtype).tiny)


def _checked(boxes: Tensor) -> Tensor:
    """The boxes, if finite (N, 5) floats without a negative size; else ValueError names the first bad row."""
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not boxes.is_floating_point():
        raise ValueError(f"boxes must be (N, 5) float x, y, l, w, yaw; got {tuple(boxes.shape)} {boxes.dtype}")
    good = boxes.isfinite().all(1) & (boxes[:, 2:4] >= 0).all(1)
    if not good.all():
        row = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"box {row} of {len(boxes)} is {boxes[row].tolist()} (x, y, l, w, yaw): values must be finite and sizes "
            "not negative; drop such boxes first"
        )
    return boxes

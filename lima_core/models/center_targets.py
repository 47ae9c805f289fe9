"""CenterPoint's targets: a peak for each object's centre, and the code of its box (spec/datasets.md 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lima_core.models.bev import BevGrid
from lima_core.models.box_rows import CLASS, BoxRows, cells
from lima_core.models.tasks import Task

OVERLAP, MIN_RADIUS = 0.1, 2


@dataclass(frozen=True)
class CenterTargets:
    """Truth of one task: `heatmap` (B, C, Y, X) in [0, 1]; of N objects `scene` (N,), `cell` (N,) = y * X + x, `code`
    (N, 10)."""

    heatmap: Tensor
    scene: Tensor
    cell: Tensor
    code: Tensor


def center_targets(boxes: BoxRows, scenes: int, task: Task, grid: BevGrid) -> CenterTargets:
    """Boxes of a batch on the grid -> targets of one task. Their number is not capped (500 in OpenPCDet)."""
    columns, rows = grid.size
    layer = _layer(boxes.rows[:, CLASS], task)
    mine = layer >= 0
    table, scene, layer = boxes.rows[mine], boxes.scene[mine], layer[mine]
    position = cells(table, grid)
    cell = position.long()  # on the grid, so it truncates downwards
    radius = peak_radius(table[:, 3:5] / table.new_tensor(grid.cell))
    heatmap = draw_peaks(cell, radius, scene * len(task.classes) + layer, (scenes * len(task.classes), rows, columns))
    code = encode_centers(table, position - cell)
    return CenterTargets(heatmap.unflatten(0, (scenes, -1)), scene, cell[:, 1] * columns + cell[:, 0], code)


def _layer(class_id: Tensor, task: Task) -> Tensor:
    """(N,) classes -> (N,) int64 position in the task, -1 for others."""
    same = class_id[:, None] == class_id.new_tensor(task.classes)
    return torch.where(same.any(1), same.int().argmax(1), -1)


def gaussian_radius(size: Tensor, overlap: float = OVERLAP) -> Tensor:
    """(N, 2) length and width in cells -> (N,) cells by which a box may move and overlap the true one so much.

    The published form of CornerNet: (b + sqrt(b^2 - 4ac)) / 2, not / 2a (trap 11).
    """
    total, area = size.sum(1), size.prod(1)
    coefficients = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, area * (1 - overlap)),
        (4 * overlap, -2 * overlap * total, area * (overlap - 1)),
    )
    roots = [(b + (b * b - 4 * a * c).sqrt()) / 2 for a, b, c in coefficients]
    return torch.stack(roots, 1).amin(1)


def peak_radius(size: Tensor) -> Tensor:
    """(N, 2) length and width in cells -> (N,) int64 radius of the peak in cells, at least 2."""
    return gaussian_radius(size).long().clamp(min=MIN_RADIUS)


def draw_peaks(cell: Tensor, radius: Tensor, layer: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(N, 2) int64 x, y, (N,) radius in cells, (N,) layer -> float32 maps of `shape` (L, Y, X); the highest peak wins.

    exp(-d^2 / 2 s^2) with s = (2 r + 1) / 6 on a square window of 2 r + 1 cells, exactly 1 in its middle.
    """
    heatmap = torch.zeros(shape, device=cell.device)
    if not len(cell):
        return heatmap
    reach = min(int(radius.max()), max(shape))  # a window beyond the map costs memory for nothing
    line = torch.arange(-reach, reach + 1, device=cell.device)
    shift = torch.cartesian_prod(line, line)
    sigma = (2 * radius + 1) / 6
    height = torch.exp(-shift.square().sum(1) / (2 * sigma.square())[:, None])
    x, y = (cell[:, None] + shift).unbind(2)
    drawn = (shift.abs().amax(1) <= radius[:, None]) & (x >= 0) & (x < shape[2]) & (y >= 0) & (y < shape[1])
    flat = (layer[:, None] * shape[1] + y) * shape[2] + x
    heatmap.view(-1).scatter_reduce_(0, flat[drawn], height[drawn], "amax")
    return heatmap


def encode_centers(rows: Tensor, offset: Tensor) -> Tensor:
    """(N, >=9) rows, (N, 2) place within the cell -> (N, 10) offset, z, log l, w, h, sin, cos of yaw, velocity."""
    yaw = rows[:, 6:7]
    return torch.cat([offset, rows[:, 2:3], rows[:, 3:6].log(), yaw.sin(), yaw.cos(), rows[:, 7:9]], 1)


def decode_centers(code: Tensor, cell: Tensor, grid: BevGrid) -> Tensor:
    """(..., 10) codes, (...,) int64 cells y * X + x -> (..., 9) x, y, z, l, w, h, yaw, vx, vy."""
    corner = torch.stack([cell % grid.size[0], cell // grid.size[0]], -1)
    center = (corner + code[..., :2]) * code.new_tensor(grid.cell) + code.new_tensor(grid.low)
    yaw = torch.atan2(code[..., 6:7], code[..., 7:8])
    return torch.cat([center, code[..., 2:3], code[..., 3:6].exp(), yaw, code[..., 8:10]], -1)

"""Boxes as rows of a tensor, the way the detection heads take and give them.

A row of the truth is x, y, z, l, w, h (m, LiDAR frame), yaw (rad), vx, vy (m/s, nan = unknown), class; a row that
a head found has the score as eleventh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lima_core.metrics.detection import MAX_BOXES
from lima_core.models.bev import BevGrid

COLUMNS = 10
CLASS, SCORE = 9, 10
CODE_WEIGHTS = (1.0,) * 8 + (0.2, 0.2)  # the velocity weighs less (spec/datasets.md, trap 9)


@dataclass(frozen=True)
class BoxRows:
    """Boxes of a batch: `rows` (N, 10) float32, `scene` (N,) int64 the scene of each."""

    rows: Tensor
    scene: Tensor

    def of(self, class_id: int, scene: int) -> Tensor:
        """(M, 10): those of one class in one scene."""
        return self.rows[(self.rows[:, CLASS] == class_id) & (self.scene == scene)]


def joined(boxes: Sequence[Tensor], scenes: int, num_classes: int, grid: BevGrid) -> BoxRows:
    """(B_i, 10) rows per scene -> those with their centre on the grid; none is moved onto its border.

    Raises ValueError when a scene is missing, and for a broken box: its scene and row are named.
    """
    if len(boxes) != scenes:
        raise ValueError(f"boxes of {len(boxes)} scenes for outputs of {scenes}")
    for scene, rows in enumerate(boxes):
        if rows.ndim != 2 or rows.shape[1] != COLUMNS:
            raise ValueError(f"scene {scene}: boxes must be (B, {COLUMNS}), got {tuple(rows.shape)}")
    rows = torch.cat(list(boxes)).float()
    counts = torch.tensor([len(part) for part in boxes], device=rows.device)
    scene = torch.repeat_interleave(torch.arange(scenes, device=rows.device), counts)
    _check(rows, scene, counts, num_classes)
    cell = cells(rows, grid)
    inside = ((cell >= 0) & (cell < cell.new_tensor(grid.size))).all(1)
    return BoxRows(rows[inside], scene[inside])


def cells(rows: Tensor, grid: BevGrid) -> Tensor:
    """(N, >=2) rows -> (N, 2) continuous cell coordinates x, y; cell i covers [i, i + 1)."""
    return (rows[:, :2] - rows.new_tensor(grid.low)) / rows.new_tensor(grid.cell)


def code_l1(found: Tensor, truth: Tensor) -> Tensor:
    """(N, 10) codes -> (N,) weighted sums of absolute differences; what is nan in the truth adds nothing."""
    known = ~truth.isnan()
    difference = (found - truth.where(known, 0)).abs() * known
    return (difference * truth.new_tensor(CODE_WEIGHTS)).sum(1)


def ranked(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """(D, 11) rows by group and scene -> per scene the best MAX_BOXES of all groups, best first."""
    rows = (torch.cat(scene) for scene in zip(*parts, strict=True))
    return [scene[scene[:, SCORE].argsort(descending=True, stable=True)[:MAX_BOXES]] for scene in rows]


def _check(rows: Tensor, scene: Tensor, counts: Tensor, num_classes: int) -> None:
    size, velocity, class_id = rows[:, 3:6], rows[:, 7:9], rows[:, CLASS]
    faults = {
        "is not finite": ~rows[:, :7].isfinite().all(1) | velocity.isinf().any(1),
        "has a size that is not positive": (size <= 0).any(1),
        f"has a class that is not one of 0 to {num_classes - 1}": ~torch.isin(
            class_id, torch.arange(num_classes, dtype=class_id.dtype, device=class_id.device)
        ),
    }
    for fault, where in faults.items():
        if where.any():
            row = int(where.nonzero()[0])
            number = int(scene[row])
            box = row - int(counts[:number].sum())
            values = ", ".join(f"{value:g}" for value in rows[row].tolist())
            raise ValueError(f"scene {number}, box {box} {fault}: {values}; correct it or leave it out")

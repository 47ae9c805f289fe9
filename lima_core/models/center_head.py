"""CenterPoint's head: objects are peaks of a heat map, and each peak carries its box (spec/datasets.md 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lima_core.geometry.boxes import BEV
from lima_core.models.bev import BevGrid, conv_norm
from lima_core.models.box_rows import SCORE, code_l1, joined, ranked
from lima_core.models.center_targets import CenterTargets, center_targets, decode_centers
from lima_core.models.loss import Loss
from lima_core.models.nms import circle_nms, rotated_nms
from lima_core.models.tasks import Task, TaskHead, TaskOutput, tasks_of

BIAS = -2.19  # a score of 0.1 at the start
BOX_WEIGHT = 0.25
TOP, MIN_SCORE, MAX_IOU, KEPT = 500, 0.1, 0.2, 83
MARGIN, HEIGHT = 10.0, 10.0  # m: a centre may lie so far beyond the grid, and so far from z = 0


class CenterHead(nn.Module):
    """A shared 3x3 convolution to `channels`, then for each group of classes a heat map and five regressions.

    `class_names` gives the meaning of the class column; `nms` "rotated" suppresses by IoU > 0.2, "circle" by the
    distance of the centres. Raises ValueError for unknown class names.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BevGrid,
        class_names: tuple[str, ...],
        channels: int = 64,
        nms: Literal["rotated", "circle"] = "rotated",
    ) -> None:
        super().__init__()
        self.grid, self.class_names, self.nms = grid, class_names, nms
        self.tasks = tasks_of(class_names)
        self.shared = conv_norm(in_channels, channels)
        self.heads = nn.ModuleList(TaskHead(channels, len(task.classes), 1, BIAS) for task in self.tasks)

    def forward(self, bev: Tensor) -> list[TaskOutput]:
        """(B, in_channels, Y, X) -> per task logits (B, C, Y, X) and codes (B, 1, 10, Y, X)."""
        self.grid.check(bev)
        shared = self.shared(bev)
        return [head(shared) for head in self.heads]

    def loss(self, outputs: Sequence[TaskOutput], boxes: Sequence[Tensor]) -> Loss:
        """Per scene (B_i, 10) true boxes -> parts `heatmap` and `box`, sums over the tasks; total heatmap + box / 4.

        Both are divided by the number of a task's objects in the whole batch, so the loss of a batch is not the mean
        of its scenes'. Raises ValueError for a broken box.
        """
        scenes = len(outputs[0].score)
        rows = joined(boxes, scenes, len(self.class_names), self.grid)
        heatmap, box = [], []
        for task, output in zip(self.tasks, outputs, strict=True):
            truth = center_targets(rows, scenes, task, self.grid)
            heatmap.append(heatmap_loss(output.score, truth.heatmap))
            box.append(_box_loss(output, truth))
        heatmap, box = torch.stack(heatmap).sum(), torch.stack(box).sum()
        return Loss(heatmap + BOX_WEIGHT * box, {"heatmap": heatmap.detach(), "box": box.detach()})

    @torch.no_grad()
    def decode(self, outputs: Sequence[TaskOutput]) -> list[Tensor]:
        """Per scene (D, 11) float32 x, y, z, l, w, h, yaw, vx, vy, class, score; best first, at most 83 of a task."""
        return ranked([self._found(output, task) for task, output in zip(self.tasks, outputs, strict=True)])

    def _found(self, output: TaskOutput, task: Task) -> list[Tensor]:
        """Boxes of one task, per scene."""
        area = output.score[0, 0].numel()
        logits = output.score.float().flatten(1)
        score, place = logits.sigmoid().topk(min(TOP, logits.shape[1]))
        cell, class_id = place % area, place.new_tensor(task.classes)[place // area]
        codes = output.code[:, 0].flatten(2).transpose(1, 2)
        code = codes.gather(1, cell[..., None].expand(-1, -1, codes.shape[2])).float()
        rows = torch.cat([decode_centers(code, cell, self.grid), class_id[..., None], score[..., None]], 2)
        return [self._suppressed(scene[self._wanted(scene)], task) for scene in rows]

    def _wanted(self, rows: Tensor) -> Tensor:
        """(D, 11) -> (D,) bool: likely enough, finite and near the grid."""
        low, high = rows.new_tensor(self.grid.low) - MARGIN, rows.new_tensor(self.grid.high) + MARGIN
        near = ((rows[:, :2] >= low) & (rows[:, :2] <= high)).all(1) & (rows[:, 2].abs() <= HEIGHT)
        return near & rows.isfinite().all(1) & (rows[:, SCORE] > MIN_SCORE)

    def _suppressed(self, rows: Tensor, task: Task) -> Tensor:
        if self.nms == "circle":
            return rows[circle_nms(rows[:, :2], rows[:, SCORE], task.squared_radius, KEPT)]
        return rows[rotated_nms(rows[:, BEV], rows[:, SCORE], MAX_IOU, KEPT)]


def heatmap_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Logits and heat map of one shape -> focal loss with alpha 2, beta 4, over the number of cells that are 1.

    Without such a cell it is not divided. p = sigmoid(logits), held within [1e-4, 1 - 1e-4].
    """
    p = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = truth == 1
    hit = -p.log() * (1 - p).square()
    miss = -(1 - p).log() * p.square() * (1 - truth) ** 4
    return torch.where(peak, hit, miss).sum() / peak.sum().clamp(min=1)


def _box_loss(output: TaskOutput, truth: CenterTargets) -> Tensor:
    """Mean over the objects of the weighted L1 distance of the codes."""
    found = output.code[:, 0].flatten(2)[truth.scene, :, truth.cell].float()
    return code_l1(found, truth.code).sum() / max(len(found), 1)

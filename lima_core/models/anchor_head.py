"""SECOND's head: two anchors of each class in every cell, scored and corrected (spec/datasets.md 3.5).

The recipe is OpenPCDet's cbgs_second_multihead. It has no direction classifier (trap 13): the residuals are
differences of cos and sin of the yaw, which tell a heading from its opposite by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lima_core.geometry.boxes import BEV
from lima_core.models.anchors import (
    ANCHORS,
    IGNORED,
    ROTATIONS,
    anchor_table,
    decode_residuals,
    encode_residuals,
    match,
)
from lima_core.models.bev import BevGrid, conv_norm
from lima_core.models.box_rows import SCORE, BoxRows, code_l1, joined, ranked
from lima_core.models.loss import Loss
from lima_core.models.nms import rotated_nms
from lima_core.models.tasks import TaskHead, TaskOutput, tasks_of

BIAS = -math.log(99)  # a score of 0.01 at the start
BOX_WEIGHT, NEGATIVE_WEIGHT = 0.25, 2.0
ALPHA, GAMMA = 0.25, 2.0
TOP, MIN_SCORE, MAX_IOU, KEPT = 1000, 0.1, 0.2, 83
TURNS = len(ROTATIONS)


class AnchorHead(nn.Module):
    """A shared 3x3 convolution to `channels`, then for each group of classes scores and residuals of its anchors.

    An anchor has one score, that of its own class: OpenPCDet also gives it scores for the other class of its group,
    which are trained to 0 everywhere. Raises ValueError for unknown class names.
    """

    def __init__(self, in_channels: int, grid: BevGrid, class_names: tuple[str, ...], channels: int = 64) -> None:
        super().__init__()
        self.grid, self.class_names = grid, class_names
        self.tasks = tasks_of(class_names)
        self.shared = conv_norm(in_channels, channels)
        counts = [TURNS * len(task.classes) for task in self.tasks]
        self.heads = nn.ModuleList(TaskHead(channels, count, count, BIAS) for count in counts)
        tables = [anchor_table(ANCHORS[name], grid) for name in class_names]
        self._tables = torch.stack(tables)  # (C, 2 * Y * X, 7); no buffer: half precision would move it by centimetres

    def forward(self, bev: Tensor) -> list[TaskOutput]:
        """(B, in_channels, Y, X) -> per task logits (B, A, Y, X) and codes (B, A, 10, Y, X), A = 2 * classes."""
        self.grid.check(bev)
        shared = self.shared(bev)
        return [head(shared) for head in self.heads]

    def loss(self, outputs: Sequence[TaskOutput], boxes: Sequence[Tensor]) -> Loss:
        """Per scene (B_i, 10) true boxes -> parts `score` and `box`; total score + box / 4.

        A scene's sums are divided by its own number of matched anchors, all tasks together; the loss of a batch is the
        mean of its scenes'. Raises ValueError for a broken box.
        """
        scenes = len(outputs[0].score)
        rows = joined(boxes, scenes, len(self.class_names), self.grid)
        terms = [self._sums(c, logits, codes, rows) for c, logits, codes in self._by_class(outputs)]
        score, box, matched = torch.stack(terms).sum(0).unbind(1)
        matched = matched.clamp(min=1)
        score, box = (score / matched).mean(), (box / matched).mean()
        return Loss(score + BOX_WEIGHT * box, {"score": score.detach(), "box": box.detach()})

    @torch.no_grad()
    def decode(self, outputs: Sequence[TaskOutput]) -> list[Tensor]:
        """Per scene (D, 11) float32 x, y, z, l, w, h, yaw, vx, vy, class, score; best first, at most 83 of a class."""
        return ranked([self._found(c, logits, codes) for c, logits, codes in self._by_class(outputs)])

    def _by_class(self, outputs: Sequence[TaskOutput]) -> list[tuple[int, Tensor, Tensor]]:
        """Class, logits (B, 2 * Y * X) and codes (B, 2, 10, Y * X) of every class."""
        found = []
        for task, output in zip(self.tasks, outputs, strict=True):
            logits = output.score.split(TURNS, 1)
            codes = output.code.flatten(3).split(TURNS, 1)
            found += [(c, a.flatten(1).float(), b) for c, a, b in zip(task.classes, logits, codes, strict=True)]
        return found

    def _sums(self, class_id: int, logits: Tensor, codes: Tensor, boxes: BoxRows) -> Tensor:
        """(B, 3): per scene the focal loss, the L1 loss and the number of matched anchors of one class."""
        anchors, kind = self._anchors(class_id, logits), ANCHORS[self.class_names[class_id]]
        sums = []
        for scene, (logit, code) in enumerate(zip(logits, codes, strict=True)):
            truth = boxes.of(class_id, scene)
            taken = match(anchors, truth, kind)
            place = (taken >= 0).nonzero().squeeze(1)
            residuals = encode_residuals(truth[taken[place]], anchors[place])
            box = code_l1(_codes_at(code, place), residuals).sum()
            sums.append(torch.stack([score_loss(logit, taken), box, box.new_tensor(len(place))]))
        return torch.stack(sums)

    def _anchors(self, class_id: int, like: Tensor) -> Tensor:
        """(2 * Y * X, 7) float32 of one class, on the device of `like`."""
        self._tables = self._tables.to(like.device)
        return self._tables[class_id]

    def _found(self, class_id: int, logits: Tensor, codes: Tensor) -> list[Tensor]:
        """Boxes of one class, per scene."""
        return [self._found_in(class_id, logit, code) for logit, code in zip(logits, codes, strict=True)]

    def _found_in(self, class_id: int, logits: Tensor, codes: Tensor) -> Tensor:
        score, place = logits.sigmoid().topk(min(TOP, len(logits)))
        boxes = decode_residuals(_codes_at(codes, place), self._anchors(class_id, logits)[place])
        rows = torch.cat([boxes, torch.full_like(score, class_id)[:, None], score[:, None]], 1)
        rows = rows[(score > MIN_SCORE) & rows.isfinite().all(1)]
        return rows[rotated_nms(rows[:, BEV], rows[:, SCORE], MAX_IOU, KEPT)]


def score_loss(logits: Tensor, taken: Tensor) -> Tensor:
    """(A,) logits, (A,) rows as from `match` -> summed focal loss: matched weigh 1, background 2, ignored 0."""
    matched = taken >= 0
    weight = torch.where(matched, 1.0, NEGATIVE_WEIGHT) * (taken != IGNORED)
    return (focal_loss(logits, matched.float()) * weight).sum()


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Logits and truth (0 or 1) of one shape -> sigmoid focal loss of each, alpha 0.25, gamma 2."""
    p = logits.sigmoid()
    alpha = truth * ALPHA + (1 - truth) * (1 - ALPHA)
    error = truth * (1 - p) + (1 - truth) * p
    return alpha * error**GAMMA * functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _codes_at(codes: Tensor, place: Tensor) -> Tensor:
    """(2, 10, Y * X) codes of one class, (K,) places as in `anchor_table` -> (K, 10) float32."""
    area = codes.shape[2]
    return codes[place // area, :, place % area].float()

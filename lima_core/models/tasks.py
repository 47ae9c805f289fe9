"""What the two detection heads share: classes in groups, a small network for each group (spec/datasets.md 3.4, 3.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lima_core.models.bev import conv_norm

# Classes of like shape share a group. The number is the squared radius in m^2 of the circle NMS (trap 12).
GROUPS = (
    (("car",), 4.0),
    (("truck", "construction_vehicle"), 12.0),
    (("bus", "trailer"), 10.0),
    (("barrier",), 1.0),
    (("motorcycle", "bicycle"), 0.85),
    (("pedestrian", "traffic_cone"), 0.175),
)
BRANCHES = (2, 1, 3, 2, 2)  # offset, z, dimensions, rotation, velocity: the code of a box


@dataclass(frozen=True)
class Task:
    """One group: `classes` are indices into the head's class names, `squared_radius` m^2 is for the circle NMS."""

    classes: tuple[int, ...]
    squared_radius: float


@dataclass(frozen=True)
class TaskOutput:
    """Maps of one group: `score` (B, S, Y, X) logits, `code` (B, A, 10, Y, X) of A boxes a cell."""

    score: Tensor
    code: Tensor


def tasks_of(class_names: tuple[str, ...]) -> tuple[Task, ...]:
    """The groups of the classes that are there. Raises ValueError for no, unknown or repeated names."""
    known = [name for group, _ in GROUPS for name in group]
    unknown = [name for name in class_names if name not in known]
    if unknown or not class_names or len(set(class_names)) < len(class_names):
        fault = f"no group holds {', '.join(unknown)}" if unknown else "there must be at least one, each once"
        raise ValueError(f"detection classes {class_names}: {fault}; the heads know {', '.join(known)}")
    present = ((tuple(class_names.index(n) for n in group if n in class_names), radius) for group, radius in GROUPS)
    return tuple(Task(classes, radius) for classes, radius in present if classes)


class TaskHead(nn.Module):
    """Six branches of one group, each a 3x3 convolution, BatchNorm, ReLU, and a 3x3 convolution to its outputs.

    The first convolutions of all branches are one wide one: a sixth of the kernel launches. `scores` outputs of
    the first branch, whose bias starts at `bias`; `boxes` boxes a cell.
    """

    def __init__(self, channels: int, scores: int, boxes: int, bias: float) -> None:
        super().__init__()
        widths = (scores, *(boxes * width for width in BRANCHES))
        self.boxes = boxes
        self.middle = conv_norm(channels, channels * len(widths))
        self.out = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for width in widths)
        nn.init.constant_(self.out[0].bias, bias)

    def forward(self, x: Tensor) -> TaskOutput:
        """(B, channels, Y, X) -> maps of the same Y, X."""
        features = self.middle(x).chunk(len(self.out), 1)
        score, *code = (conv(part) for conv, part in zip(self.out, features, strict=True))
        return TaskOutput(score, torch.cat([part.unflatten(1, (self.boxes, -1)) for part in code], 2))

"""What the tests of both detection heads share: the classes, two grids, boxes compared, a head that learns a scene."""

from __future__ import annotations

import math

import torch
from torch import nn

from lima_core.models.bev import BevGrid

NAMES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
GRID = BevGrid((-51.2, -51.2), (0.8, 0.8), (128, 128))
SMALL = BevGrid((-12.8, -6.4), (0.8, 0.8), (32, 16))


def same_boxes(found: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Equal sets of boxes, in any order; yaw modulo a full turn."""
    assert len(found) == len(truth)
    pairs = torch.cdist(found[:, [0, 1, 9]], truth[:, [0, 1, 9]]).argmin(1)
    assert len(pairs.unique()) == len(truth)
    difference = found[:, :10] - truth[pairs]
    difference[:, 6] = torch.remainder(difference[:, 6] + math.pi, 2 * math.pi) - math.pi
    assert difference.abs().max() < tolerance


def learned(network: nn.Module, bev: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
    """The likely boxes that a head of one map finds after 160 steps on one scene."""
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 160)
    for _ in range(160):
        optimiser.zero_grad()
        network.loss(network(bev), [scene]).total.backward()
        optimiser.step()
        schedule.step()
    found = network.decode(network(bev))[0]
    return found[found[:, 10] > 0.5]

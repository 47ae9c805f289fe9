"""The dense bird's-eye-view network: shape, size, border of the grid; and how classes are grouped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lima_core.models.bev import BevBackbone, BevGrid
from lima_core.models.tasks import GROUPS, TaskHead, tasks_of

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
NAMES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip


def closed_form(in_channels: int, width: int, layers: int) -> int:
    """Parameters: 3x3 convolutions of both stages, 1x1 and 2x2 up, and two numbers a channel of each norm."""
    fine = 9 * in_channels * width + layers * 9 * width**2
    coarse = 9 * width * 2 * width + layers * 9 * (2 * width) ** 2
    up = width * 2 * width + 4 * (2 * width) ** 2
    norms = (layers + 1) * (width + 2 * width) + 2 * 2 * width
    return fine + coarse + up + 2 * norms


@pytest.mark.parametrize("arguments", [(256, 128, 5), (7, 4, 1)])
def test_backbone_has_the_published_size(arguments: tuple[int, int, int]) -> None:
    network = BevBackbone(*arguments)
    assert sum(p.numel() for p in network.parameters()) == closed_form(*arguments)
    assert {(m.eps, m.momentum) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.01)}


def test_default_backbone_gives_512_channels_of_the_same_map() -> None:
    network = BevBackbone(256).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 256, 6, 4)).shape == (1, 512, 6, 4) == (1, network.out_channels, 6, 4)


def test_backbone_sees_as_far_as_its_kernels_reach() -> None:
    """Fine branch: 1 + layers cells; coarse: one more, then 2 * (layers) at half resolution, and the cell's pair."""
    network = BevBackbone(3, width=4, layers=1).double().eval()
    bev = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    network(bev)[0, :, 16, 16].abs().sum().backward()
    rows = bev.grad.abs().sum((0, 1, 3)).nonzero().squeeze(1)
    assert rows.min() >= 16 - (2 + 1 + 2) and rows.max() <= 17 + (2 + 1 + 2)
    assert rows.min() < 16 - 2 and rows.max() > 16 + 2


@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_odd_map_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"map of {size[0]} x {size[1]} cells .* even"):
        BevBackbone(3, 4, 1)(torch.zeros(1, 3, *size))


def test_grid_knows_its_border_and_its_maps() -> None:
    grid = BevGrid((-51.2, -10.0), (0.8, 0.5), (128, 40))
    assert grid.high == pytest.approx((51.2, 10.0))
    grid.check(torch.zeros(2, 3, 40, 128))
    with pytest.raises(ValueError, match=r"\(2, 3, 128, 40\).*\(B, C, 40, 128\)"):
        grid.check(torch.zeros(2, 3, 128, 40))


def test_ten_classes_form_the_published_tasks() -> None:
    assert [task.classes for task in tasks_of(NAMES)] == [(0,), (1, 2), (3, 4), (5,), (6, 7), (8, 9)]
    assert [task.squared_radius for task in tasks_of(NAMES)] == [4, 12, 10, 1, 0.85, 0.175]


def test_groups_keep_the_names_that_are_there_and_empty_ones_vanish() -> None:
    tasks = tasks_of(("pedestrian", "trailer", "car", "traffic_cone"))
    assert [task.classes for task in tasks] == [(2,), (1,), (0, 3)]
    assert [task.squared_radius for task in tasks] == [4, 10, 0.175]


@pytest.mark.parametrize("names, fault", [(("car", "tram"), "tram"), ((), "at least one"), (("car", "car"), "once")])
def test_impossible_classes_are_refused(names: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        tasks_of(names)


def test_every_known_class_is_in_one_group() -> None:
    assert sorted(name for group, _ in GROUPS for name in group) == sorted(NAMES)


def test_task_head_equals_its_branches_one_by_one() -> None:
    """The wide convolution computes what six narrow ones would; channel 2a + k of the offsets is box a, code k."""
    head, x = TaskHead(8, 4, 4, -2.0).eval(), torch.randn(2, 8, 5, 3)
    output = head(x)
    assert output.score.shape == (2, 4, 5, 3) and output.code.shape == (2, 4, 10, 5, 3)
    conv, norm, relu = head.middle
    branches = []
    for weight, scale, shift, out in zip(
        conv.weight.chunk(6), norm.weight.chunk(6), norm.bias.chunk(6), head.out, strict=True
    ):
        y = nn.functional.conv2d(x, weight, padding=1)
        y = nn.functional.batch_norm(y, torch.zeros(8), torch.ones(8), scale, shift, eps=1e-3)
        branches.append(out(relu(y)))
    torch.testing.assert_close(output.score, branches[0])
    torch.testing.assert_close(output.code[:, 2, 1], branches[1][:, 5])
    torch.testing.assert_close(output.code[:, 3, 3:6], branches[3][:, 9:])
    torch.testing.assert_close(output.code[:, 0, 8:], branches[5][:, :2])
    assert (head.out[0].bias == -2).all()

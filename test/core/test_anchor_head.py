"""SECOND's head: golden anchors, residuals and losses, matching, matched anchors that decode to their boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from head_boxes import GRID, NAMES, SMALL, learned, same_boxes
from lima_core.models.anchor_head import AnchorHead, focal_loss, score_loss
from lima_core.models.anchors import (
    ANCHORS,
    BACKGROUND,
    IGNORED,
    Anchor,
    anchor_table,
    decode_residuals,
    encode_residuals,
    match,
)
from lima_core.models.bev import BevGrid
from lima_core.models.tasks import TaskOutput

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
NAN = math.nan
SCENE = torch.tensor(
    [
        [5.0, 2.0, -0.1, 4.6, 1.9, 1.6, 0.7, 3.0, -1.0, 0],
        [-5.0, -3.0, 0.5, 8.0, 2.5, 3.0, 2.6, 0.0, 0.5, 1],
        [-10.2, 3.3, 1.2, 6.0, 2.8, 3.1, -2.2, 0.0, 0.0, 2],
        [9.0, -4.0, 2.0, 12.0, 2.9, 3.9, -0.4, -4.0, 2.0, 4],
        [0.0, 0.0, -0.1, 0.7, 0.6, 1.7, -3.0, 0.2, -0.3, 8],
        [0.0, 3.0, -0.8, 0.4, 0.4, 1.0, 1.5, 0.0, 0.0, 9],
    ]
)


def head(grid: BevGrid = SMALL, names: tuple[str, ...] = NAMES) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(8, grid, names, channels=8)


def perfect(network: AnchorHead, boxes: list[torch.Tensor]) -> list[TaskOutput]:
    """The outputs of a network that knows the truth: sure of every matched anchor, and of no other."""
    columns, rows = network.grid.size
    outputs = []
    for task in network.tasks:
        score = torch.full((len(boxes), len(task.classes), 2 * rows * columns), -12.0)
        code = torch.zeros(len(boxes), len(task.classes), 2 * rows * columns, 10)
        for k, class_id in enumerate(task.classes):
            anchors = network._tables[class_id]
            for scene, table in enumerate(boxes):
                truth = table[table[:, 9] == class_id]
                taken = match(anchors, truth, ANCHORS[network.class_names[class_id]])
                place = taken >= 0
                score[scene, k, place] = 12.0
                code[scene, k, place] = encode_residuals(truth[taken[place]], anchors[place]).nan_to_num()
        code = code.view(len(boxes), -1, rows, columns, 10).permute(0, 1, 4, 2, 3)
        outputs.append(TaskOutput(score.view(len(boxes), -1, rows, columns), code))
    return outputs


def test_anchors_lie_on_the_published_grid(vectors: dict) -> None:
    expected, tol = vectors["second_anchor_grid"]["expected"], 1e-5  # 51.2 m in float32
    network = AnchorHead(8, GRID, NAMES, channels=8)
    assert network._tables.shape == (10, 2 * 128 * 128, 7)
    assert network._tables[..., 0].numel() == expected["total"] == expected["anchors_per_cell"] * 128 * 128
    table = network._tables[0].view(2, 128, 128, 7)
    for line in (table[0, 5, :, 0], table[1, :, 7, 1]):
        torch.testing.assert_close(line[:3], torch.tensor(expected["first3"]), rtol=0, atol=tol)
        assert line[-1].item() == pytest.approx(expected["last"], abs=tol)
        torch.testing.assert_close(line.diff(), torch.full((127,), expected["spacing"]), rtol=0, atol=tol)
    assert table[0, ..., 6].unique().item() == 0 and table[1, ..., 6].unique().item() == pytest.approx(1.57)


def test_anchors_have_the_published_sizes(shared) -> None:
    yaml = pytest.importorskip("yaml")
    facts = yaml.safe_load((shared / "spec" / "datasets" / "nuscenes_detection.yaml").read_text())["second_anchors"]
    assert list(facts) == list(ANCHORS)
    for name, fact in facts.items():
        wanted = Anchor(tuple(fact["size_lwh"]), fact["bottom_z"], fact["matched"], fact["unmatched"])
        assert ANCHORS[name] == wanted
        row = anchor_table(ANCHORS[name], SMALL)[0]
        assert row[2:6].tolist() == pytest.approx([fact["center_z"], *fact["size_lwh"]], abs=6e-3)  # rounded there


def test_residual_coder(vectors: dict) -> None:
    golden = vectors["second_residual_coder"]
    anchor = torch.tensor([golden["inputs"]["anchor"][:7]], dtype=torch.float64)
    box = torch.tensor([golden["inputs"]["box"]], dtype=torch.float64)
    code = encode_residuals(box, anchor)
    expected = torch.tensor([golden["expected"]["encoding"]], dtype=torch.float64)
    torch.testing.assert_close(code, expected, rtol=0, atol=golden["tol"])
    torch.testing.assert_close(decode_residuals(code, anchor), box)


@settings(max_examples=50, deadline=None)
@given(st.floats(-math.pi, math.pi), st.sampled_from([0.0, 1.57]))
def test_a_heading_is_told_from_its_opposite(yaw: float, base: float) -> None:
    box = torch.tensor([[1.0, 2, 0, 4, 2, 1.5, yaw, 1, -1]], dtype=torch.float64)
    anchor = torch.tensor([[0.0, 0, 0, 4.63, 1.97, 1.74, base]], dtype=torch.float64)
    found = decode_residuals(encode_residuals(box, anchor), anchor)[0, 6].item()
    assert math.cos(found - yaw) == pytest.approx(1, abs=1e-12)


def test_focal_loss(vectors: dict) -> None:
    golden = vectors["sigmoid_focal_loss"]
    logits, truth = torch.tensor(golden["inputs"]["logits"]), torch.tensor(golden["inputs"]["targets"])
    weighted = focal_loss(logits, truth) * torch.tensor(golden["inputs"]["anchor_weights"])[:, None]
    torch.testing.assert_close(weighted, torch.tensor(golden["expected"]["elementwise"]), rtol=0, atol=golden["tol"])
    assert weighted.sum().item() == pytest.approx(golden["expected"]["sum"], abs=golden["tol"])


def test_matched_anchors_weigh_one_background_two_and_ignored_nothing() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    each = focal_loss(logits, torch.tensor([1.0, 0.0, 0.0]))
    taken = torch.tensor([4, BACKGROUND, IGNORED])
    torch.testing.assert_close(score_loss(logits, taken), each[0] + 2 * each[1])


def test_match_takes_ignores_and_leaves_by_overlap() -> None:
    """Unit squares shifted by d overlap by (1 - d) / (1 + d): 1, 0.67, 0.54, 0.33, 0."""
    anchors = torch.tensor([[d, 0, 0, 1, 1, 1, 0] for d in (0, 0.2, 0.3, 0.5, 3)])
    box, kind = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0]]), Anchor((1, 1, 1), 0, 0.6, 0.4)
    assert match(anchors, box, kind).tolist() == [0, 0, IGNORED, BACKGROUND, BACKGROUND]
    assert match(anchors, box[:0], kind).tolist() == [BACKGROUND] * 5


def test_the_best_anchors_of_a_box_are_its_own_however_little_they_overlap() -> None:
    anchors = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 0], [2, 0, 0, 1, 1, 1, 0]])
    kind = Anchor((1, 1, 1), 0, 0.6, 0.4)
    far, near, lost = [0.9, 0, 0, 1, 1, 1, 0], [0.1, 0, 0, 1, 1, 1, 0], [9.0, 0, 0, 1, 1, 1, 0]
    assert match(anchors, torch.tensor([far]), kind).tolist() == [0, 0, BACKGROUND]
    assert match(anchors, torch.tensor([near, lost]), kind).tolist() == [0, 0, 1]  # meets none: the nearest is its own
    assert match(anchors, torch.tensor([near, [1.9, 0, 0, 1, 1, 1, 0]]), kind).tolist() == [0, 0, 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(list(ANCHORS)))
def test_no_box_goes_without_an_anchor(seed: int, count: int, name: str) -> None:
    """Unless two boxes share their best anchors, which boxes a few metres apart do not."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.tensor([[-10.0, -4], [-10, 4], [0, -4], [0, 4], [10, -4], [10, 4]])[:count]
    boxes = torch.rand(count, 7, generator=generator) * 1.5 + 0.2
    boxes[:, :2] += spots
    boxes[:, 6] *= 4
    taken = match(anchor_table(ANCHORS[name], SMALL), boxes, ANCHORS[name])
    assert set(range(count)) <= set(taken.tolist())


def test_anchor_goes_to_the_box_that_has_no_better_one() -> None:
    """It overlaps the first box more (by 2 / 3 against 1 / 3), which has a better anchor; the second box has not."""
    anchors = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0], [0.2, 0, 0, 1, 1, 1, 0]])
    boxes = torch.tensor([[0.2, 0, 0, 1, 1, 1, 0], [-0.5, 0, 0, 1, 1, 1, 0]])
    assert match(anchors, boxes, Anchor((1, 1, 1), 0, 0.6, 0.4)).tolist() == [1, 0]


def test_a_turned_box_takes_the_turned_anchors() -> None:
    anchors = anchor_table(ANCHORS["bus"], SMALL)
    box = torch.tensor([[*anchors[100, :6].tolist(), yaw, 0, 0] for yaw in (0.1, 1.5, math.pi, -1.6)])
    for one, turned in zip(box, (False, True, False, True), strict=True):
        place = (match(anchors, one[None], ANCHORS["bus"]) >= 0).nonzero().squeeze(1)
        assert len(place) > 0 and ((place >= len(anchors) // 2) == turned).all()


def test_perfect_outputs_decode_to_the_boxes() -> None:
    network, other = head(), SCENE[[0, 4]] + torch.tensor([1.0, -2.0, *[0.0] * 8])
    found = network.decode(perfect(network, [SCENE, torch.zeros(0, 10), other]))
    assert [rows.shape[1] for rows in found] == [11] * 3 and len(found[1]) == 0
    same_boxes(found[0], SCENE)
    same_boxes(found[2], other)
    loss = network.loss(perfect(network, [SCENE, other]), [SCENE, other])
    assert loss.total < 1e-3 and loss.parts["box"] < 1e-4


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(st.floats(-12.8, 12.7), st.floats(-6.4, 6.3), st.floats(-3, 3)),
    st.tuples(*[st.floats(1.0, 6)] * 3),
    st.floats(-math.pi, math.pi),
    st.tuples(*[st.floats(-20, 20)] * 2),
    st.integers(0, 9),
)
def test_any_box_on_the_grid_comes_back(center, size, yaw, velocity, class_id) -> None:
    network, box = head(), torch.tensor([[*center, *size, yaw, *velocity, class_id]], dtype=torch.float32)
    same_boxes(network.decode(perfect(network, [box]))[0], box)


def test_boxes_come_best_first_and_unlikely_ones_not_at_all() -> None:
    network = head()
    outputs = perfect(network, [SCENE])
    for output, logit in zip(outputs, (1.0, 3.0, -2.5, 0.0, 0.0, 2.0), strict=True):
        output.score[output.score > 0] = logit
    found = network.decode(outputs)[0]
    assert set(found[:2, 9].tolist()) == {1, 2} and set(found[2:4, 9].tolist()) == {8, 9}
    torch.testing.assert_close(found[:, 10], torch.tensor([3.0, 3.0, 2.0, 2.0, 1.0]).sigmoid())


def test_classes_of_one_task_do_not_suppress_each_other() -> None:
    pair = SCENE[[4, 4]].clone()
    pair[:, 9] = torch.tensor([8, 9])
    pair[:, :2] = 0.3
    same_boxes(head().decode(perfect(head(), [pair]))[0], pair)


def test_half_precision_outputs_decode_in_float32() -> None:
    network = head()
    outputs = [TaskOutput(o.score.half(), o.code.half()) for o in perfect(network, [SCENE])]
    found = network.decode(outputs)[0]
    assert found.dtype == torch.float32
    same_boxes(found, SCENE, 2e-2)
    assert network.loss(outputs, [SCENE]).total.dtype == torch.float32


def test_untrained_head_finds_nothing() -> None:
    network = head().eval()
    found = network.decode(network(torch.randn(2, 8, 16, 32)))
    assert [tuple(rows.shape) for rows in found] == [(0, 11)] * 2


def test_not_finite_outputs_decode_to_nothing() -> None:
    network = head()
    outputs = perfect(network, [SCENE])
    outputs[0].code[:] = NAN
    outputs[1].score[:] = NAN
    outputs[2].code[:, :, 3:6] = 1e3  # exp of it is infinite
    assert network.decode(outputs)[0][:, 9].unique().tolist() == [8, 9]


def test_scene_without_boxes_still_teaches_the_scores() -> None:
    network = head()
    loss = network.loss(network(torch.randn(2, 8, 16, 32)), [torch.zeros(0, 10)] * 2)
    assert loss.total.isfinite() and loss.parts["box"] == 0
    loss.total.backward()
    for task in network.heads:
        assert task.out[0].weight.grad.abs().sum() > 0
        assert all((conv.weight.grad == 0).all() for conv in task.out[1:])


def test_loss_of_a_batch_is_the_mean_of_its_scenes() -> None:
    network, bev = head().eval(), torch.randn(3, 8, 16, 32)
    boxes = [SCENE, torch.zeros(0, 10), SCENE[[0, 4]]]
    with torch.no_grad():
        together = network.loss(network(bev), boxes)
        alone = [network.loss(network(bev[i : i + 1]), boxes[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together.total, torch.stack([loss.total for loss in alone]).mean())
    for part in ("score", "box"):
        torch.testing.assert_close(together.parts[part], torch.stack([loss.parts[part] for loss in alone]).mean())
    torch.testing.assert_close(together.total, together.parts["score"] + together.parts["box"] / 4)


def test_unknown_velocity_gives_finite_loss_and_no_velocity_gradient() -> None:
    network, boxes = head(), SCENE.clone()
    boxes[:, 7:9] = NAN
    network.loss(network(torch.randn(1, 8, 16, 32)), [boxes]).total.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert all((task.out[5].weight.grad == 0).all() for task in network.heads)
    assert network.heads[0].out[1].weight.grad.abs().sum() > 0


def test_boxes_beyond_the_grid_are_left_out() -> None:
    outside = SCENE[[0, 0, 0, 0]].clone()
    outside[:, 0] = torch.tensor([-12.81, 12.81, 0, 0])
    outside[:, 1] = torch.tensor([0, 0, -6.41, 6.41])
    network = head()
    outputs = network(torch.randn(1, 8, 16, 32))
    assert network.loss(outputs, [outside]).total == network.loss(outputs, [torch.zeros(0, 10)]).total
    assert network.loss(outputs, [torch.cat([outside, SCENE])]).total == network.loss(outputs, [SCENE]).total


def test_broken_box_and_wrong_map_are_named() -> None:
    network, broken = head(), SCENE.clone()
    broken[3, 4] = 0
    with pytest.raises(ValueError, match="scene 1, box 3 has a size"):
        network.loss(network(torch.randn(2, 8, 16, 32)), [SCENE, broken])
    with pytest.raises(ValueError, match="was built for"):
        network(torch.randn(1, 8, 32, 16))
    with pytest.raises(ValueError, match="tram"):
        head(names=("car", "tram"))


def test_full_head_has_the_closed_form_size_and_keeps_its_anchors_out_of_the_weights() -> None:
    network = AnchorHead(512, GRID, NAMES)
    wanted = 9 * 512 * 64 + 2 * 64
    for count in (2, 4, 4, 2, 4, 4):
        wanted += sum(9 * 64 * 64 + 2 * 64 + (9 * 64 + 1) * count * width for width in (1, 2, 1, 3, 2, 2))
    assert sum(p.numel() for p in network.parameters()) == wanted
    assert "anchors" not in network.state_dict()
    assert all(
        task.out[0].bias.sigmoid().tolist() == pytest.approx([0.01] * len(task.out[0].bias)) for task in network.heads
    )


def test_a_few_steps_on_a_fixed_map_find_the_boxes() -> None:
    torch.manual_seed(1)
    network, bev = AnchorHead(16, SMALL, NAMES, channels=16), torch.randn(1, 16, 16, 32)
    same_boxes(learned(network, bev, SCENE), SCENE, 0.3)

"""Non-maximum suppression: golden vectors, a plain greedy walk over shapely polygons, ties, limits, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.models import nms
from lima_core.models.nms import circle_nms, rotated_nms

torch.set_num_threads(1)


def scene(seed: int, count: int, objects: int, extent: float = 30.0) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` detections scattered about `objects` boxes; half of the scores come twice."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(-extent, extent, (objects, 2)), rng.uniform(0.4, 9, (objects, 2))])
    truth = np.column_stack([truth, rng.uniform(-4, 4, objects)])
    boxes = truth[rng.integers(0, objects, count)] + rng.normal(0, [0.3, 0.3, 0.02, 0.02, 0.2], (count, 5))
    return torch.from_numpy(boxes), torch.from_numpy(rng.integers(0, count, count) / count)


def polygons(boxes: np.ndarray) -> np.ndarray:
    shapely = pytest.importorskip("shapely")
    x, y, length, width, yaw = boxes.T[:, :, None]
    along, across = length / 2 * [1, 1, -1, -1], width / 2 * [-1, 1, 1, -1]
    corners = [x + along * np.cos(yaw) - across * np.sin(yaw), y + along * np.sin(yaw) + across * np.cos(yaw)]
    return shapely.polygons(np.stack(corners, axis=-1))


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """One kept box after the other, shapely's areas."""
    shapes = polygons(boxes.numpy())
    shapely = pytest.importorskip("shapely")
    area, kept = shapely.area(shapes), []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row].item()):
        common = shapely.area(shapely.intersection(shapes[row], shapes[kept]))
        if not (common / (area[row] + area[kept] - common) > threshold).any():
            kept.append(row)
    return kept


def test_golden_rotated(vectors: dict) -> None:
    vector = vectors["nms"]["inputs"]["rotated"]
    table = torch.tensor(vector["boxes_xylwyaw_score"])
    kept = rotated_nms(table[:, :5], table[:, 5], vector["thr"], limit=83)
    assert kept.tolist() == vectors["nms"]["expected"]["rotated_keep"] and kept.dtype == torch.int64


def test_golden_circle(vectors: dict) -> None:
    vector = vectors["nms"]["inputs"]["circle"]
    table = torch.tensor(vector["xy_score"])
    for radius, name in zip(vector["thresh"], ("circle_keep_4", "circle_keep_0p85"), strict=True):
        kept = circle_nms(table[:, :2], table[:, 2], radius, limit=83)
        assert kept.tolist() == vectors["nms"]["expected"][name] and kept.dtype == torch.int64


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 120), st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]))
def test_rotated_equals_the_plain_greedy_walk(seed: int, count: int, objects: int, threshold: float) -> None:
    boxes, scores = scene(seed, count, objects)
    assert rotated_nms(boxes, scores, threshold, count).tolist() == greedy(boxes, scores, threshold)


@pytest.mark.parametrize("few", [0, 50, 1 << 40])
def test_crowds_take_the_long_way_to_the_same_rows(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "FEW_PAIRS", few)
    monkeypatch.setattr(nms, "ROWS_AT_ONCE", 64 if few else 1)
    for seed in range(3):
        boxes, scores = scene(seed, 300, 25, extent=12.0)
        assert rotated_nms(boxes, scores, 0.2, 300).tolist() == greedy(boxes, scores, 0.2)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 150), st.sampled_from([0.0, 0.175, 0.85, 4.0, 400.0]))
def test_circle_equals_the_plain_greedy_walk(seed: int, count: int, squared_radius: float) -> None:
    rng = np.random.default_rng(seed)
    centers, scores = rng.integers(-12, 12, (count, 2)) / 2.0, rng.integers(0, 20, count) / 20  # distances of just 2 m
    kept = []
    for row in sorted(range(count), key=lambda row: -scores[row]):
        if not (np.square(centers[kept] - centers[row]).sum(1) <= squared_radius).any():
            kept.append(row)
    found = circle_nms(torch.from_numpy(centers), torch.from_numpy(scores), squared_radius, count)
    assert found.tolist() == kept


def test_what_is_kept_does_not_depend_on_the_frame() -> None:
    boxes, scores = scene(7, 200, 40)
    kept = rotated_nms(boxes, scores, 0.2, 200).tolist()
    far = boxes.clone()
    far[:, :2] = boxes[:, :2].flip(1) * torch.tensor([-1.0, 1.0]) + torch.tensor([1000.0, -2000.0])  # turned by 90 deg
    far[:, 4] += torch.pi / 2
    assert rotated_nms(far, scores, 0.2, 200).tolist() == kept
    boxes[::2, 4] += torch.pi
    assert rotated_nms(boxes, scores, 0.2, 200).tolist() == kept


def test_limit_keeps_the_best() -> None:
    boxes, scores = scene(3, 100, 50)
    everything = rotated_nms(boxes, scores, 0.2, 100).tolist()
    for limit in (0, 1, 7, 1000):
        assert rotated_nms(boxes, scores, 0.2, limit).tolist() == everything[:limit]
    circles = circle_nms(boxes[:, :2], scores, 4.0, 100).tolist()
    assert circle_nms(boxes[:, :2], scores, 4.0, 5).tolist() == circles[:5]


def test_of_equal_scores_the_lower_row_is_better() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2, 0]] * 3 + [[50.0, 0, 4, 2, 0]] * 3)
    scores = torch.tensor([0.5, 0.5, 0.5, 0.7, 0.9, 0.9])
    assert rotated_nms(boxes, scores, 0.2, 10).tolist() == [4, 0]
    assert circle_nms(boxes[:, :2], scores, 1.0, 10).tolist() == [4, 0]


def test_only_a_kept_box_suppresses() -> None:
    chain = torch.tensor([[1.5 * k, 0.0, 4, 2, 0] for k in range(300)])  # each overlaps the next by more than 0.2
    assert rotated_nms(chain, torch.linspace(1, 0, 300), 0.2, 300).tolist() == list(range(0, 300, 2))


def test_boxes_without_area_are_all_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 4, 2, 0], [0, 0, 0, 2, 1]])
    assert rotated_nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.0, 3).tolist() == [2, 1, 0]


def test_no_boxes() -> None:
    assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.2, 83).shape == (0,)
    assert circle_nms(torch.zeros(0, 2), torch.zeros(0), 4.0, 83).shape == (0,)
    assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.2, 83).dtype == torch.int64


def test_errors() -> None:
    boxes, nan = torch.tensor([[0.0, 0, 4, 2, 0], [1, 0, 4, 2, 0]]), float("nan")
    scores = torch.tensor([0.5, 0.6])
    with pytest.raises(ValueError, match=r"box 1 of 2 is .*nan.*finite"):
        rotated_nms(torch.tensor([[0.0, 0, 4, 2, 0], [1, nan, 4, 2, 0]]), scores, 0.2, 2)
    with pytest.raises(ValueError, match=r"centers must be \(N, 2\), finite"):
        circle_nms(torch.tensor([[0.0, 0], [nan, 0]]), scores, 0.2, 2)
    for bad in (torch.tensor([0.5, nan]), scores[:1], scores[:, None]):
        with pytest.raises(ValueError, match=r"scores must be \(2,\), one per box, without nan"):
            rotated_nms(boxes, bad, 0.2, 2)
        with pytest.raises(ValueError, match=r"scores must be \(2,\)"):
            circle_nms(boxes[:, :2], bad, 0.2, 2)

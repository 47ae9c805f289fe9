"""Overlap of boxes seen from above: golden vectors, shapely, closed forms, and boxes that break polygon clippers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lima_core.geometry.overlap import bev_iou, nearest_bev_iou, paired_bev_iou

torch.set_num_threads(1)
PLACE, SIZE, YAW = st.floats(-4, 4), st.floats(0.05, 12), st.floats(-7, 7)
BOX = st.tuples(PLACE, PLACE, SIZE, SIZE, YAW)
THIN = st.tuples(PLACE, PLACE, st.floats(1, 100), st.floats(1e-3, 0.1), YAW)
TILT = st.sampled_from([0.0, 1e-16, 1e-12, 1e-9, 1e-7, 1e-4]).flatmap(lambda angle: st.sampled_from([angle, -angle]))
QUARTERS = st.integers(-4, 4).map(lambda k: k * np.pi / 2)


def table(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5)


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return bev_iou(table(a), table(b)).item()


def polygon_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """By shapely, from corners that are computed here."""
    shapely = pytest.importorskip("shapely")
    first, second = (shapely.Polygon(footprint(box)) for box in (a, b))
    area = shapely.area(shapely.intersection(first, second))
    return area / (a[2] * a[3] + b[2] * b[3] - area)


def footprint(box: tuple[float, ...]) -> np.ndarray:
    x, y, length, width, yaw = box
    rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    return np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) * [length / 2, width / 2] @ rotation.T + [x, y]


def test_golden_values(vectors: dict) -> None:
    vector = vectors["rotated_bev_iou"]
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*vector["inputs"]["pairs"], strict=True))
    expected = torch.tensor([pair["iou"] for pair in vector["expected"]["rotated"]], dtype=torch.float64)
    nearest = torch.tensor(vector["expected"]["nearest_bev_iou"], dtype=torch.float64)
    torch.testing.assert_close(bev_iou(a, b).diag(), expected, rtol=0, atol=vector["tol"])
    torch.testing.assert_close(paired_bev_iou(a, b), expected, rtol=0, atol=vector["tol"])
    torch.testing.assert_close(nearest_bev_iou(a, b).diag(), nearest, rtol=0, atol=vector["tol"])


@given(BOX, BOX)
def test_equals_shapely(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert iou(a, b) == pytest.approx(polygon_iou(a, b), abs=1e-9)


@given(THIN, st.one_of(BOX, THIN))
def test_equals_shapely_on_thin_boxes(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert iou(a, b) == pytest.approx(polygon_iou(a, b), abs=1e-8)
    assert iou(b, a) == pytest.approx(polygon_iou(a, b), abs=1e-8)


@given(BOX, TILT, QUARTERS, st.sampled_from([0.0, 1e-12, 1e-6, 0.5]))
def test_equals_shapely_on_nearly_parallel_boxes(
    box: tuple[float, ...], tilt: float, quarter: float, ahead: float
) -> None:
    x, y, length, width, yaw = box
    other = (x + ahead * np.cos(yaw), y + ahead * np.sin(yaw), length, width, yaw + tilt + quarter)
    assert iou(box, other) == pytest.approx(polygon_iou(box, other), abs=1e-9)


@given(BOX, BOX, st.floats(-3000, 3000), st.floats(-3000, 3000), st.floats(-3.2, 3.2))
def test_does_not_depend_on_the_frame(
    a: tuple[float, ...], b: tuple[float, ...], right: float, up: float, turn: float
) -> None:
    def seen(x: float, y: float, length: float, width: float, yaw: float) -> tuple[float, ...]:
        cos, sin = np.cos(turn), np.sin(turn)
        return cos * x - sin * y + right, sin * x + cos * y + up, length, width, yaw + turn

    assert iou(seen(*a), seen(*b)) == pytest.approx(iou(a, b), abs=1e-8)


@given(BOX, BOX)
def test_is_symmetric_and_blind_to_front_and_rear(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    value = iou(a, b)
    assert 0 <= value <= 1
    assert iou(b, a) == pytest.approx(value, abs=1e-9)
    assert iou((*a[:4], a[4] + np.pi), b) == pytest.approx(value, abs=1e-9)
    x, y, length, width, yaw = b
    assert iou(a, (x, y, width, length, yaw + np.pi / 2)) == pytest.approx(value, abs=1e-9)


@given(BOX, st.sampled_from([0.0, np.pi, np.pi / 2, -np.pi]))
def test_identical_nested_and_touching_boxes(box: tuple[float, ...], turn: float) -> None:
    x, y, length, width, yaw = box
    assert iou(box, (x, y, *((width, length) if turn == np.pi / 2 else (length, width)), yaw + turn)) == pytest.approx(
        1
    )
    assert iou(box, (x, y, length / 2, width / 4, yaw)) == pytest.approx(1 / 8)
    cos, sin = np.cos(yaw), np.sin(yaw)
    assert iou(box, (x + length * cos, y + length * sin, length, width, yaw)) == pytest.approx(0, abs=1e-9)
    assert iou(box, (x + length / 2 * cos, y + length / 2 * sin, length, width, yaw)) == pytest.approx(1 / 3)


def test_a_box_without_area_overlaps_nothing() -> None:
    boxes = table((0, 0, 0, 0, 0), (0, 0, 4, 0, 0.3), (0, 0, 0, 2, 0), (0, 0, 4, 2, 0))
    for function in (bev_iou, nearest_bev_iou):
        values = function(boxes, boxes)
        assert torch.equal(values[:3], torch.zeros(3, 4, dtype=torch.float64))
        assert torch.equal(values[:, :3], torch.zeros(4, 3, dtype=torch.float64))
    assert bev_iou(boxes, boxes)[3, 3] == 1


def test_huge_and_tiny_boxes_stay_finite() -> None:
    sizes = [1e-30, 1e-6, 1.0, 1e6, 1e30]
    boxes = table(*((0.1, 0.2, length, width, yaw) for length in sizes for width in sizes for yaw in (0.0, 0.7)))
    values = bev_iou(boxes, boxes)
    assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1
    assert bev_iou(boxes.float(), boxes.float()).isfinite().all()


def test_many_pairs_equal_one_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(150, 5, generator=generator, dtype=torch.float64) * torch.tensor([6, 6, 5, 3, 6.0])
    values = bev_iou(boxes, boxes[:80])  # more pairs than are taken at once
    paired = torch.stack([paired_bev_iou(boxes, boxes[k].expand(150, 5)) for k in range(80)], dim=1)
    torch.testing.assert_close(values, paired, rtol=0, atol=1e-12)
    nearest = nearest_bev_iou(boxes.float(), boxes[:80])
    assert nearest.dtype == torch.float32 and bev_iou(boxes.float(), boxes).dtype == torch.float32
    torch.testing.assert_close(nearest.double(), nearest_bev_iou(boxes, boxes[:80]), rtol=0, atol=1e-5)


@given(BOX, BOX)
def test_nearest_is_the_exact_one_of_boxes_along_the_axes(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    def aligned(x: float, y: float, length: float, width: float, yaw: float) -> tuple[float, ...]:
        return x, y, length, width, np.round(yaw / (np.pi / 2)) * np.pi / 2

    if min(abs(abs(box[4]) % (np.pi / 2) - np.pi / 4) for box in (a, b)) < 1e-9:
        return  # half way between the axes: rounding decides
    value = nearest_bev_iou(table(a), table(b)).item()
    assert value == pytest.approx(iou(aligned(*a), aligned(*b)), abs=1e-9)


def test_no_boxes() -> None:
    none, one = table(), table((0, 0, 4, 2, 0))
    for function in (bev_iou, nearest_bev_iou):
        assert function(none, one).shape == (0, 1) and function(one, none).shape == (1, 0)
        assert function(none, none).shape == (0, 0)
    assert paired_bev_iou(none, none).shape == (0,)


@pytest.mark.parametrize("function", [bev_iou, nearest_bev_iou, paired_bev_iou])
def test_errors_name_the_row(function) -> None:
    good = table((0, 0, 4, 2, 0), (1, 0, 4, 2, 0))
    for column, value in ((0, float("nan")), (4, float("inf")), (3, -1.0)):
        bad = good.clone()
        bad[1, column] = value
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match=r"box 1 of 2 is .*finite and sizes not negative; drop"):
                function(*pair)
    with pytest.raises(ValueError, match=r"\(N, 5\) float x, y, l, w, yaw; got \(2, 4\)"):
        function(good[:, :4], good)
    with pytest.raises(ValueError, match=r"got \(2, 5\) torch.int64"):
        function(good.long(), good)


def test_paired_boxes_need_partners() -> None:
    with pytest.raises(ValueError, match="1 boxes in a and 2 in b"):
        paired_bev_iou(table((0, 0, 4, 2, 0)), table((0, 0, 4, 2, 0), (1, 0, 4, 2, 0)))

"""Metric, losses and learning rate against the golden vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lima_core.data.frame import IGNORE
from lima_core.metrics.segmentation import EDGES_M, ConfusionMatrix, DistanceBins
from lima_core.training.loss import lovasz_per_class, lovasz_softmax, segmentation_loss
from lima_core.training.optim import one_cycle


def filled(cells: list[list[int]]) -> ConfusionMatrix:
    """The confusion matrix of as many points as the cells say, added in two parts."""
    counts = np.array(cells)
    truth, prediction = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    confusion = ConfusionMatrix(len(cells))
    for part in (slice(0, 40), slice(40, None)):
        confusion.update(truth[part].astype(np.uint8), prediction[part].astype(np.uint8))
    return confusion


@pytest.mark.parametrize("case", ["A", "B"])
def test_iou_matches_the_golden_vector(vectors: dict, case: str) -> None:
    cells, expected = vectors["miou"]["inputs"][case], vectors["miou"]["expected"][case]
    confusion = filled(cells)
    assert confusion.matrix.tolist() == cells
    np.testing.assert_allclose(confusion.iou(), np.array(expected["per_class"], float), rtol=1e-9)
    assert confusion.miou() == pytest.approx(expected["nanmean (devkit lidarseg, mmdet3d)"], rel=1e-9)


def test_prediction_of_no_class_is_a_false_negative(vectors: dict) -> None:
    vector = vectors["mmdet3d_17_logit_spill"]
    truth, prediction = (np.array(vector["inputs"][k]) for k in ("gt", "pred"))
    confusion = ConfusionMatrix(3)
    confusion.update(np.where(truth < 0, 255, truth).astype(np.uint8), prediction.astype(np.uint8))
    np.testing.assert_allclose(confusion.iou(), vector["expected"]["fn_counting_iou"])


def test_accuracies_are_those_of_the_counts(vectors: dict) -> None:
    confusion = filled(vectors["miou"]["inputs"]["A"])
    assert confusion.accuracy() == pytest.approx(100 / 117)
    assert confusion.mean_accuracy() == pytest.approx(np.mean([50 / 55, 30 / 35, 20 / 27]))
    assert confusion.classes_counted() == 3
    assert filled(vectors["miou"]["inputs"]["B"]).classes_counted() == 4  # predicted once: it occurs


def test_accuracy_counts_predictions_of_no_class_as_wrong() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([0, 0, 1, 1, 255], np.uint8), np.array([0, 255, 1, 1, 0], np.uint8))
    assert confusion.accuracy() == 0.75
    assert confusion.mean_accuracy() == 0.75
    assert confusion.points_of_class().tolist() == [2, 2]


def test_nothing_seen_gives_nan() -> None:
    confusion = ConfusionMatrix(3)
    assert np.isnan([confusion.accuracy(), confusion.mean_accuracy(), confusion.miou()]).all()
    assert confusion.classes_counted() == 0


labels = st.lists(st.sampled_from([0, 1, 2, 3, IGNORE]), min_size=1, max_size=60)


@given(labels, st.integers(0, 60), st.randoms())
def test_sum_of_parts_is_the_whole_and_equals_counting_by_hand(truth: list[int], cut: int, random: object) -> None:
    prediction = [random.choice([0, 1, 2, 3, IGNORE]) for _ in truth]
    t, p = np.array(truth, np.uint8), np.array(prediction, np.uint8)
    whole, first, second = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(t, p)
    first.update(t[:cut], p[:cut])
    second.update(t[cut:], p[cut:])
    total = first + second
    np.testing.assert_array_equal(total.matrix, whole.matrix)
    np.testing.assert_array_equal(total.missed, whole.missed)
    for c in range(4):
        counted = t != IGNORE
        hit, union = ((t == c) & (p == c)).sum(), (counted & ((t == c) | (p == c))).sum()
        np.testing.assert_equal(whole.iou()[c], hit / union if union else np.nan)


def test_matrices_of_other_classes_are_not_added() -> None:
    with pytest.raises(ValueError, match="2 classes and of 3"):
        ConfusionMatrix(2) + ConfusionMatrix(3)


def test_points_count_in_the_range_of_their_horizontal_distance() -> None:
    x = np.array([0, 9.99, 10, 25, 30, 49.9, 50, 3000, np.nan])
    points = np.stack([x, np.zeros(9), np.full(9, 1e6)], 1)  # far up, not far away
    bins = DistanceBins(2)
    bins.update(points, np.zeros(9, np.uint8), np.array([0, 1, 0, 0, 0, 0, 0, 1, 255], np.uint8))
    np.testing.assert_array_equal(EDGES_M, [0, 10, 20, 30, 50, np.inf])
    assert [m.points_of_class().sum() for m in bins.matrices] == [2, 1, 1, 2, 3]
    np.testing.assert_allclose([m.iou()[0] for m in bins.matrices], [1 / 2, 1, 1, 1, 1 / 3])
    assert bins.total().points_of_class().tolist() == [9, 0]
    with pytest.raises(ValueError, match="2 points, 9 true labels"):
        bins.update(points[:2], np.zeros(9, np.uint8), np.zeros(9, np.uint8))


def test_distance_is_measured_in_both_directions() -> None:
    bins = DistanceBins(1)
    bins.update(np.array([[6.0, -8.0], [0.0, -19.0]]), np.zeros(2, np.uint8), np.zeros(2, np.uint8))
    assert [m.points_of_class()[0] for m in bins.matrices] == [0, 2, 0, 0, 0]


def test_ignored_truth_counts_nowhere() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([255, 255], np.uint8), np.array([0, 1], np.uint8))
    assert np.isnan(confusion.iou()).all()
    assert np.isnan(confusion.miou())


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 to 3; there are 3 classes"):
        ConfusionMatrix(3).update(np.array([3], np.uint8), np.array([0], np.uint8))
    with pytest.raises(ValueError, match="true labels for"):
        ConfusionMatrix(3).update(np.zeros(2, np.uint8), np.zeros(3, np.uint8))


def test_lovasz_matches_the_brute_force_vector(vectors: dict) -> None:
    inputs, expected = (vectors["lovasz_softmax"][k] for k in ("inputs", "expected"))
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(inputs["labels"])
    valid = labels != inputs["ignore"]
    probability, truth = logits[valid].softmax(1), labels[valid]
    present = lovasz_softmax(probability, truth)
    per_class = lovasz_per_class(probability, truth)
    assert present.item() == pytest.approx(expected["present"], abs=1e-11)
    assert per_class.mean().item() == pytest.approx(expected["all"], abs=1e-11)
    for index, value in expected["per_class_all"].items():
        assert per_class[int(index)].item() == pytest.approx(value, abs=1e-11)
    (gradient,) = torch.autograd.grad(present, logits, retain_graph=True)
    np.testing.assert_allclose(gradient, expected["grad_of_present_lovasz_wrt_logits"], atol=1e-11)
    loss = segmentation_loss(logits, labels)
    assert loss.total.item() == pytest.approx(expected["superflow_total_ce_plus_2_lovasz"], abs=1e-10)
    assert loss.parts["cross_entropy"].item() == pytest.approx(expected["ce_mean_over_valid"], abs=1e-11)


def test_lovasz_of_hard_predictions_is_one_minus_iou(vectors: dict) -> None:
    inputs, expected = (vectors["lovasz_hard_equals_1_minus_iou"][k] for k in ("inputs", "expected"))
    probability, labels = torch.tensor(inputs["prob"], dtype=torch.float64), torch.tensor(inputs["labels"])
    per_class = lovasz_per_class(probability, labels)
    np.testing.assert_allclose(per_class, [expected["per_class"][str(c)] for c in range(3)], rtol=1e-9)
    assert lovasz_softmax(probability, labels).item() == pytest.approx(expected["mean"], rel=1e-9)


def test_lovasz_of_a_single_point(vectors: dict) -> None:
    inputs, expected = (vectors["lovasz_single_point"][k] for k in ("inputs", "expected"))
    probability, labels = torch.tensor(inputs["prob"], dtype=torch.float64), torch.tensor(inputs["labels"])
    assert lovasz_softmax(probability, labels).item() == pytest.approx(expected["present"])
    assert lovasz_per_class(probability, labels).mean().item() == pytest.approx(expected["all"])


def test_batch_without_labels_moves_nothing() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    segmentation_loss(logits, torch.full((5,), 255)).total.backward()
    assert logits.grad.abs().sum() == 0


def test_learning_rate_matches_the_golden_vector(vectors: dict) -> None:
    inputs, expected = (vectors["onecycle_superflow"][k] for k in ("inputs", "expected"))
    for step, rate in expected.items():
        assert one_cycle(int(step), inputs["total"], inputs["max_lr"]) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 5])
def test_learning_rate_of_a_very_short_run_stays_in_its_bounds(total: int) -> None:
    for step in range(total):
        assert 1e-3 / 2500 <= one_cycle(step, total, 1e-3) <= 1e-3

"""Metric, losses and learning rate against the golden vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lima_core.metrics.segmentation import ConfusionMatrix
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

"""Segmentation metrics: one confusion matrix over a whole validation set (spec/datasets.md 1.3)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lima_core.data.frame import IGNORE

EDGES_M = (0.0, 10.0, 20.0, 30.0, 50.0, np.inf)


class ConfusionMatrix:
    """Counts of (truth, prediction) over points; IoU = TP / (TP + FP + FN).

    `matrix` (C, C) int64, rows truth; `missed` (C,) int64 points predicted as none of the C classes: they count as
    false negatives. Points whose truth is 255 count nowhere.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.missed = np.zeros(num_classes, np.int64)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The counts of both, as if one had seen all points. Raises ValueError on another number of classes."""
        if len(self.matrix) != len(other.matrix):
            raise ValueError(f"confusion of {len(self.matrix)} classes and of {len(other.matrix)} cannot be added")
        total = ConfusionMatrix(len(self.matrix))
        total.matrix, total.missed = self.matrix + other.matrix, self.missed + other.missed
        return total

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Adds (N,) train ids. Raises ValueError on different lengths or a truth that is no class."""
        classes = len(self.matrix)
        if truth.shape != prediction.shape:
            raise ValueError(f"{truth.shape} true labels for {prediction.shape} predictions")
        counted = truth != IGNORE
        truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        if len(truth) and not 0 <= truth.min() <= truth.max() < classes:
            raise ValueError(f"true labels span {truth.min()} to {truth.max()}; there are {classes} classes")
        known = (prediction >= 0) & (prediction < classes)
        cells = truth[known] * classes + prediction[known]
        self.matrix += np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        self.missed += np.bincount(truth[~known], minlength=classes)

    def points_of_class(self) -> np.ndarray:
        """(C,) int64 points whose truth is each class."""
        return self.matrix.sum(1) + self.missed

    def iou(self) -> np.ndarray:
        """(C,) float64; nan where a class is neither in the truth nor predicted."""
        hit = np.diag(self.matrix)
        return _ratio(hit, self.matrix.sum(0) + self.points_of_class() - hit)

    def miou(self) -> float:
        """Mean over the classes that occur, as in the nuScenes devkit; nan when none does."""
        return _mean(self.iou())

    def classes_counted(self) -> int:
        """How many classes `miou` is the mean of: say it beside the number."""
        return int(np.count_nonzero(~np.isnan(self.iou())))

    def accuracy(self) -> float:
        """Share of the points that are right; nan without points."""
        return float(_ratio(np.trace(self.matrix), self.points_of_class().sum()))

    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of the share of their points that is right; nan when there are none."""
        return _mean(_ratio(np.diag(self.matrix), self.points_of_class()))


class DistanceBins:
    """One ConfusionMatrix per range of horizontal distance to the sensor, EDGES_M[i] <= distance < EDGES_M[i + 1].

    A point that is not finite counts in the last range, so that the sum of all ranges is the whole.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrices = [ConfusionMatrix(num_classes) for _ in EDGES_M[1:]]

    def update(self, points: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Adds (N, >=2) points in m and their (N,) train ids. Raises ValueError as ConfusionMatrix does."""
        if not len(points) == len(truth) == len(prediction):
            raise ValueError(f"{len(points)} points, {len(truth)} true labels, {len(prediction)} predictions")
        bin_of_point = np.digitize(np.hypot(points[:, 0], points[:, 1]), EDGES_M[1:-1])
        for index, matrix in enumerate(self.matrices):
            chosen = bin_of_point == index
            matrix.update(truth[chosen], prediction[chosen])

    def total(self) -> ConfusionMatrix:
        """All distances together."""
        return sum(self.matrices[1:], self.matrices[0])


def range_names() -> list[str]:
    """The ranges of distance in words, m."""
    return [f"{a:g}-{b:g} m" if np.isfinite(b) else f">= {a:g} m" for a, b in pairwise(EDGES_M)]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, float64, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan when all are."""
    return float(np.nanmean(values)) if np.any(~np.isnan(values)) else float("nan")

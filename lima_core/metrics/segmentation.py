"""Segmentation metrics: one confusion matrix over a whole validation set (spec/datasets.md 1.3)."""

from __future__ import annotations

import numpy as np

from lima_core.data.frame import IGNORE


class ConfusionMatrix:
    """Counts of (truth, prediction) over points; IoU = TP / (TP + FP + FN).

    `matrix` (C, C) int64, rows truth; `missed` (C,) int64 points predicted as none of the C classes: they count as
    false negatives. Points whose truth is 255 count nowhere.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.missed = np.zeros(num_classes, np.int64)

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

    def iou(self) -> np.ndarray:
        """(C,) float64; nan where a class is neither in the truth nor predicted."""
        hit = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(0) + self.matrix.sum(1) + self.missed - hit
        return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean over the classes that occur, as in the nuScenes devkit; nan when none does."""
        iou = self.iou()
        return float(np.mean(iou[~np.isnan(iou)])) if np.any(~np.isnan(iou)) else float("nan")

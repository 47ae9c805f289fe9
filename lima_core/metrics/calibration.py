"""How far confidences can be believed: expected calibration error and temperature scaling.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: bins of equal width, section 2; T, section 4.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lima_core.data.frame import IGNORE

BINS = 15
TEMPERATURES = (0.01, 100.0)  # what fit_temperature may answer; a network without errors would go to 0
HALVINGS = 40


class Calibration:
    """Confidence and accuracy in BINS bins of confidence, ((b - 1) / BINS, b / BINS], added up over any stream.

    `count` and `correct` (BINS,) int64 points; `confidence` (BINS,) float64 the sum of their confidences.
    """

    def __init__(self) -> None:
        self.count = np.zeros(BINS, np.int64)
        self.correct = np.zeros(BINS, np.int64)
        self.confidence = np.zeros(BINS, np.float64)

    def __add__(self, other: Calibration) -> Calibration:
        """The bins of both, as if one had seen all points."""
        total = Calibration()
        total.count, total.correct = self.count + other.count, self.correct + other.correct
        total.confidence = self.confidence + other.confidence
        return total

    def update(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Adds (N,) probabilities of the predicted class and (N,) bool whether it was right. Raises ValueError."""
        if confidence.shape != correct.shape:
            raise ValueError(f"{confidence.shape} confidences for {correct.shape} answers")
        confidence = confidence.astype(np.float64)
        if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-5):  # float32 softmax rounds
            raise ValueError(f"confidences span {confidence.min()} to {confidence.max()}; they are probabilities")
        bin_of_point = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.count += np.bincount(bin_of_point, minlength=BINS)
        self.correct += np.bincount(bin_of_point[correct], minlength=BINS)
        self.confidence += np.bincount(bin_of_point, confidence, minlength=BINS)

    def accuracy(self) -> np.ndarray:
        """(BINS,) share that is right; nan in an empty bin."""
        return np.divide(self.correct, self.count, out=np.full(BINS, np.nan), where=self.count > 0)

    def mean_confidence(self) -> np.ndarray:
        """(BINS,) mean confidence; nan in an empty bin."""
        return np.divide(self.confidence, self.count, out=np.full(BINS, np.nan), where=self.count > 0)

    def ece(self) -> float:
        """sum_b n_b / N |accuracy_b - confidence_b|, in [0, 1]; nan without points."""
        total = self.count.sum()
        return float(np.abs(self.correct - self.confidence).sum() / total) if total else float("nan")


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """(N, C) float logits, (N,) int64 labels with 255 = ignored -> T > 0 of least -log softmax(logits / T)[label].

    The loss is convex in 1 / T, so its slope has one root; bisection in log T finds it, the same on every machine.
    The answer stays inside TEMPERATURES. Raises ValueError without a labelled point, or with a logit not finite.
    """
    counted = labels != IGNORE
    logits, labels = logits[counted].detach().double(), labels[counted].long()
    if not len(labels):
        raise ValueError("no temperature can be fitted: every label is 255, ignored")
    if not logits.isfinite().all():
        raise ValueError("no temperature can be fitted: some logits are not finite; leave those points out")
    low, high = np.log(TEMPERATURES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(logits, labels, float(np.exp(-middle))) < 0:
            high = middle  # a larger 1 / T lowers the loss
        else:
            low = middle
    return float(np.exp((low + high) / 2))


def _slope(logits: Tensor, labels: Tensor, scale: float) -> float:
    """Derivative of the loss by scale = 1 / T: mean over the points of E_p[logit] - logit of the label."""
    expected = (torch.softmax(logits * scale, 1) * logits).sum(1)
    return float((expected - logits.gather(1, labels[:, None])[:, 0]).mean())

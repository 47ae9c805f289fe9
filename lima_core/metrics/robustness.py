"""Mean corruption error and mean resilience rate of Robo3D (Kong et al. 2023; spec/datasets.md 5).

CE_i = sum_l (100 - mIoU_il) / sum_l (100 - baseline_il)     mCE = 100 mean_i CE_i; less is better; 100 of the baseline
RR_i = mean_l mIoU_il / mIoU_clean                           mRR = 100 mean_i RR_i; more is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lima_core.data.corruptions import KINDS

# MinkUNet-18, mIoU in percent: clean, then the mean over severities in the order of KINDS.
# Source: README of github.com/ldkong1205/Robo3D at eb81d5c.
_BASELINES = {
    "nuscenes": (75.76, 53.64, 73.91, 40.35, 73.39, 68.54, 26.58, 63.83, 50.95),
    "semantickitti": (62.76, 55.87, 53.99, 53.28, 32.92, 56.32, 58.34, 54.43, 46.05),
    "waymo": (69.06, 66.99, 60.99, 57.75, 68.92, 64.15, 65.37, 63.36, 56.44),
}


@dataclass(frozen=True)
class Scores:
    """mIoU in percent on clean sweeps, and by corruption at each severity, or one mean over severities."""

    clean: float
    corrupted: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Robustness:
    """`ce` and `rr` by corruption and their means, all in percent."""

    ce: dict[str, float]
    rr: dict[str, float]
    mce: float
    mrr: float


BASELINES = {
    name: Scores(clean, {kind: (score,) for kind, score in zip(KINDS, scores, strict=True)})
    for name, (clean, *scores) in _BASELINES.items()
}


def robustness(scores: Scores, baseline: Scores) -> Robustness:
    """mCE against a baseline and mRR. Raises ValueError on a corruption that is missing, or numbers not in percent."""
    model, base = _means(scores), _means(baseline)
    ce = {kind: 100 * ((100 - model[kind]) / (100 - base[kind])) for kind in KINDS}
    rr = {kind: 100 * model[kind] / scores.clean for kind in KINDS}
    return Robustness(ce, rr, float(np.mean(list(ce.values()))), float(np.mean(list(rr.values()))))


def _means(scores: Scores) -> dict[str, float]:
    """Mean over severities of each corruption: as good as their sum where all have equally many."""
    if set(scores.corrupted) != set(KINDS):
        wrong = sorted(set(scores.corrupted) ^ set(KINDS))
        raise ValueError(f"scores of each of {', '.join(KINDS)} are wanted; missing or unknown: {', '.join(wrong)}")
    given = {kind: np.asarray(values, float) for kind, values in scores.corrupted.items()}
    for kind, values in {"clean": np.array([scores.clean]), **given}.items():
        if not len(values) or not ((values >= 0) & (values < 100)).all():
            raise ValueError(f"{kind}: {values.tolist()} is no mIoU in percent, 0 to below 100")
    if not scores.clean > 1:
        raise ValueError(f"clean mIoU is {scores.clean}; it is wanted in percent, as 75.8 and not 0.758")
    return {kind: float(values.mean()) for kind, values in given.items()}

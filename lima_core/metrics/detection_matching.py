"""Matching of detections to truth and the curves that follow: steps 3 to 5 of spec/datasets.md section 2.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lima_core.data.attributes import NO_ATTRIBUTE
from lima_core.data.frame import Boxes

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
ERRORS = ("translation", "scale", "orientation", "velocity", "attribute")
ERRORS_AT = DISTANCES_M.index(2.0)  # the five errors are those of matches within 2 m
RECALLS = np.linspace(0, 1, 101)
FIRST = 11  # of RECALLS: precision and errors count above 10 % recall
MIN_PRECISION = 0.1


@dataclass(frozen=True)
class Matches:
    """P detections of one class: `score` (P,), `hit` (P, 4) bool within each of DISTANCES_M, `errors` (P, 5) at 2 m.

    `errors` are in the order of ERRORS: m, 1 - IoU, rad, m/s, 0 or 1; nan without a match or where truth is unknown.
    """

    score: np.ndarray
    hit: np.ndarray
    errors: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """Those of several frames, in their order."""
        empty = cls(np.zeros(0), np.zeros((0, len(DISTANCES_M)), bool), np.zeros((0, len(ERRORS))))
        score, hit, errors = zip(*((p.score, p.hit, p.errors) for p in (empty, *parts)), strict=True)
        return cls(np.concatenate(score), np.concatenate(hit), np.concatenate(errors))

    def ranked(self) -> Matches:
        """Best score first; of equal scores the later one, as the official evaluator has it."""
        order = np.lexsort((np.arange(len(self.score)), self.score))[::-1]
        return Matches(self.score[order], self.hit[order], self.errors[order])


def match_frame(truth: Boxes, found: Boxes, score: np.ndarray, period: float) -> Matches:
    """Truth and detections of one class in one frame, in a frame with z up; `period` of the heading, rad."""
    rows = nearest_free(truth.center[:, :2], found.center[:, :2], score)
    hit, at = rows >= 0, rows[:, ERRORS_AT]
    errors = np.full((len(found), len(ERRORS)), np.nan)
    matched = at >= 0
    errors[matched] = errors_of(truth.take(at[matched]), found.take(matched), period)
    return Matches(np.asarray(score, np.float64), hit, errors)


def nearest_free(truth: np.ndarray, found: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(G, 2) and (P, 2) centres in m, (P,) scores -> (P, 4) int64 row of the truth each takes per distance, or -1.

    By falling score each takes the nearest truth that is still free; if that is too far away it takes none.
    """
    rows = np.full((len(found), len(DISTANCES_M)), -1)
    distance = np.linalg.norm(found[:, None] - truth[None], axis=2)
    reach, each = np.array(DISTANCES_M), np.arange(len(DISTANCES_M))
    free = np.ones((len(reach), len(truth)), bool)
    order = np.lexsort((np.arange(len(score)), score))[::-1]
    near = distance.min(axis=1, initial=np.inf) < reach[-1]  # the others match nothing, whatever is free
    for row in order[near[order]]:
        left = np.where(free, distance[row], np.inf)
        nearest = left.argmin(axis=1)
        hit = left[each, nearest] < reach
        free[each[hit], nearest[hit]] = False
        rows[row, hit] = nearest[hit]
    return rows


def errors_of(truth: Boxes, found: Boxes, period: float) -> np.ndarray:
    """B pairs of boxes -> (B, 5) float64 errors in the order of ERRORS; nan where the truth is unknown."""
    smaller = np.minimum(truth.size, found.size).prod(axis=1)
    union = truth.size.prod(axis=1) + found.size.prod(axis=1) - smaller
    columns = (
        np.linalg.norm(found.center[:, :2] - truth.center[:, :2], axis=1),
        1 - smaller / union,
        np.abs(angle_difference(truth.yaw, found.yaw, period)),
        np.linalg.norm(found.velocity - truth.velocity, axis=1),
        _attribute_error(truth, found),
    )
    return np.stack(columns, axis=1).astype(np.float64)


def angle_difference(a: np.ndarray, b: np.ndarray, period: float) -> np.ndarray:
    """a - b in radians, taken to [-period / 2, period / 2)."""
    return (np.asarray(a) - b + period / 2) % period - period / 2


def _attribute_error(truth: Boxes, found: Boxes) -> np.ndarray:
    """(B,) 1 where the attribute is wrong, nan where the truth has none."""
    if truth.attribute is None:
        return np.full(len(truth), np.nan)
    wrong = np.ones(len(truth)) if found.attribute is None else (found.attribute != truth.attribute).astype(float)
    return np.where(truth.attribute == NO_ATTRIBUTE, np.nan, wrong)


def curves(ranked: Matches, truths: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and score (101,) over RECALLS at one of DISTANCES_M; zero beyond the recall that was reached."""
    hit = ranked.hit[:, distance]
    if not hit.any():
        return np.zeros(len(RECALLS)), np.zeros(len(RECALLS))
    right = np.cumsum(hit)
    recall = right / truths
    precision = np.interp(RECALLS, recall, right / np.arange(1, len(hit) + 1), right=0)
    return precision, np.interp(RECALLS, recall, ranked.score, right=0)


def average_precision(precision: np.ndarray) -> float:
    """(101,) precision over RECALLS -> the mean above 10 % recall and 10 % precision, scaled to [0, 1]."""
    return float(np.maximum(precision[FIRST:] - MIN_PRECISION, 0).mean() / (1 - MIN_PRECISION))


def mean_errors(ranked: Matches, score: np.ndarray) -> np.ndarray:
    """(5,) running means of the errors, averaged from 10 % recall to the last reached; 1 where 10 % is not reached.

    `score` (101,) over RECALLS at 2 m.
    """
    reached = np.flatnonzero(score)
    if not len(reached) or reached[-1] < FIRST:
        return np.ones(len(ERRORS))
    hit = ranked.hit[:, ERRORS_AT]
    means = running_means(ranked.errors[hit])
    rising, scores = score[::-1], ranked.score[hit][::-1]
    over_recall = [np.interp(rising, scores, column[::-1])[::-1] for column in means.T]
    return np.array([column[FIRST : reached[-1] + 1].mean() for column in over_recall])


def running_means(errors: np.ndarray) -> np.ndarray:
    """(M, 5) -> (M, 5) means of the rows so far without nan; 0 before the first value, 1 for a column of nan alone."""
    known = ~np.isnan(errors)
    count = np.cumsum(known, axis=0)
    means = np.nancumsum(errors, axis=0) / np.maximum(count, 1)
    return np.where(known.any(axis=0), means, 1.0)

"""mAP and NDS of nuScenes' detection task, as its official evaluator computes them (spec/datasets.md section 2.5).

One rule is missing: the evaluator also drops bicycles and motorcycles inside bike racks, on both sides. Racks are
annotated in nuScenes only and are no class of ours; there the official number is lima_core.tools.nuscenes_results'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lima_core.data.attributes import NO_ATTRIBUTE, attributes_by_speed
from lima_core.data.frame import Boxes, Detections
from lima_core.metrics.detection_matching import (
    DISTANCES_M,
    ERRORS,
    ERRORS_AT,
    RECALLS,
    Matches,
    average_precision,
    curves,
    match_frame,
    mean_errors,
)

RANGE_M = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0, "pedestrian": 40.0,
    "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip
EXCLUDED = {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")}
MAX_BOXES = 500  # of a frame; the detection heads give no more
MAP_WEIGHT = 5  # mAP counts as much as the five errors together


@dataclass(frozen=True)
class DetectionResult:
    """Scores of C classes.

    `label_aps` (C, 4) AP at DISTANCES_M; `label_tp` (C, 5) errors in the order of ERRORS, nan where the class has no
    such error; `precision` (C, 4, 101) over RECALLS; `truths` and `detections` (C,) boxes that were counted.
    A class without truth has AP 0 and errors 1, as in the official evaluator, and so has every class an attribute
    error of 1 where the truth tells no attributes: `attributes` says whether it does.
    """

    class_names: tuple[str, ...]
    label_aps: np.ndarray
    label_tp: np.ndarray
    precision: np.ndarray
    truths: np.ndarray
    detections: np.ndarray
    attributes: bool

    @property
    def mean_ap(self) -> float:
        """Mean over distances and all classes, in [0, 1]."""
        return float(self.label_aps.mean())

    @cached_property
    def tp(self) -> np.ndarray:
        """(5,) mean of each error over the classes that have it; nan where none has."""
        known = ~np.isnan(self.label_tp)
        total, count = np.nansum(self.label_tp, axis=0), known.sum(axis=0)
        return np.divide(total, count, out=np.full(len(ERRORS), np.nan), where=count > 0)

    @property
    def nds(self) -> float:
        """nuScenes detection score in [0, 1]; an error of 1 or more adds nothing, one that no class has neither."""
        scores = np.maximum(1 - np.nan_to_num(self.tp, nan=1.0), 0)
        return float((MAP_WEIGHT * self.mean_ap + scores.sum()) / (MAP_WEIGHT + len(ERRORS)))

    def map_at(self, distance_m: float) -> float:
        """Not nuScenes' mAP: mean AP at one of DISTANCES_M over the classes that have truth; nan if none has."""
        aps = self.label_aps[self.truths > 0, DISTANCES_M.index(distance_m)]
        return float(aps.mean()) if len(aps) else float("nan")


class DetectionMetric:
    """Collects frames and scores them; with `keep` the last so many. Raises ValueError on a class without a range."""

    def __init__(self, class_names: Sequence[str], keep: int | None = None) -> None:
        unknown = [name for name in class_names if name not in RANGE_M]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no class of nuScenes' detection task; it has {', '.join(RANGE_M)}")
        self.class_names = tuple(class_names)
        self._range_m = np.array([RANGE_M[name] for name in self.class_names])
        self._frames: deque[tuple[dict[int, Matches], np.ndarray]] = deque(maxlen=keep)  # by class, and (C,) truths
        self._attributes = False

    def update(self, truth: Boxes, found: Detections, ego_xy: np.ndarray) -> None:
        """One frame, both in the same frame with z up, the vehicle at `ego_xy` (2,) m in it.

        The official number is that of the world frame: it is the same in the LiDAR frame where that is level. Truth
        with `points` 0 does not count. Of `found` the best 500 count; without attributes it gets those of
        `attributes_by_speed`. Raises ValueError on a class id or a value that makes no sense.
        """
        _check(truth, found, len(self.class_names))
        found = strongest(found)
        boxes = found.boxes
        if boxes.attribute is None:
            boxes = replace(boxes, attribute=attributes_by_speed(boxes, self.class_names))
        self._attributes |= truth.attribute is not None and bool((truth.attribute != NO_ATTRIBUTE).any())
        if truth.points is not None:
            truth = truth.take(truth.points > 0)
        inside = self._within(boxes, ego_xy)
        boxes, score, truth = boxes.take(inside), found.score[inside], truth.take(self._within(truth, ego_xy))
        matches: dict[int, Matches] = {}
        for class_id in np.unique(boxes.class_id).tolist():
            rows, of_truth = boxes.class_id == class_id, truth.class_id == class_id
            period = np.pi if self.class_names[class_id] == "barrier" else 2 * np.pi  # a barrier has no front
            matches[class_id] = match_frame(truth.take(of_truth), boxes.take(rows), score[rows], period)
        self._frames.append((matches, np.bincount(truth.class_id, minlength=len(self.class_names))))

    def result(self) -> DetectionResult:
        """The scores of all frames so far."""
        classes = len(self.class_names)
        aps, tp = np.zeros((classes, len(DISTANCES_M))), np.ones((classes, len(ERRORS)))
        precision, found = np.zeros((classes, len(DISTANCES_M), len(RECALLS))), np.zeros(classes, np.int64)
        truths = sum((truth for _, truth in self._frames), np.zeros(classes, np.int64))
        for class_id, name in enumerate(self.class_names):
            parts = [matches[class_id] for matches, _ in self._frames if class_id in matches]
            ranked = Matches.joined(parts).ranked()
            found[class_id] = len(ranked.score)
            for distance in range(len(DISTANCES_M)):
                precision[class_id, distance], score = curves(ranked, int(truths[class_id]), distance)
                aps[class_id, distance] = average_precision(precision[class_id, distance])
                if distance == ERRORS_AT:
                    tp[class_id] = mean_errors(ranked, score)
            tp[class_id, [ERRORS.index(error) for error in EXCLUDED.get(name, ())]] = np.nan
        return DetectionResult(self.class_names, aps, tp, precision, truths, found, self._attributes)

    def _within(self, boxes: Boxes, ego_xy: np.ndarray) -> np.ndarray:
        """(B,) bool: nearer to the vehicle than the range of the class."""
        away = np.linalg.norm(boxes.center[:, :2] - np.asarray(ego_xy), axis=1)
        return away < self._range_m[boxes.class_id]


def strongest(found: Detections) -> Detections:
    """The best 500, best first; equal scores keep their order."""
    order = np.argsort(-np.asarray(found.score, np.float64), kind="stable")[:MAX_BOXES]
    return Detections(found.boxes.take(order), found.score[order])


def _check(truth: Boxes, found: Detections, classes: int) -> None:
    for what, boxes in (("truth", truth), ("detections", found.boxes)):
        if len(boxes) and boxes.class_id.max() >= classes:
            raise ValueError(f"{what}: class id {boxes.class_id.max()}, but there are {classes} classes, from 0")
        if not np.isfinite(np.column_stack([boxes.center, boxes.size, boxes.yaw])).all():
            raise ValueError(f"{what}: a centre, size or heading is not finite")
    if not np.isfinite(found.boxes.velocity).all():  # in the truth nan means unknown
        raise ValueError("detections: a velocity is not finite; a detector must answer with a number")
    if len(found.boxes) != len(found.score) or not np.isfinite(found.score).all():
        raise ValueError(f"detections: {len(found.boxes)} boxes need as many finite scores, got {found.score.shape}")

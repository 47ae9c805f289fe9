"""Scores of a detector while it runs: nuScenes' AP over the last frames, by class and by range, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lima_core.data.frame import Boxes, Detections
from lima_core.metrics.detection import DetectionMetric, DetectionResult
from lima_core.metrics.segmentation import EDGES_M

KEPT = 2000  # frames: at most 500 boxes each, less than 200 MB with the rings; a quarter of an hour at 2 Hz


class LiveBoxes:
    """Boxes and truth of the last KEPT frames.

    Rings have the edges of the segmentation's distances; a box belongs to the ring of its own centre, so that a pair
    that lies across an edge counts as a miss and a false alarm there, and as a match in `overall`.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.overall = DetectionMetric(class_names, KEPT)
        self._rings = [DetectionMetric(class_names, KEPT) for _ in EDGES_M[1:]]

    def update(self, truth: Boxes, found: Detections, ego_xy: np.ndarray) -> None:
        """One frame; the vehicle at `ego_xy` (2,) m in the frame of the boxes. Raises ValueError as DetectionMetric."""
        self.overall.update(truth, found, ego_xy)
        ring_of_truth, ring_of_found = _rings(truth, ego_xy), _rings(found.boxes, ego_xy)
        for ring, metric in enumerate(self._rings):
            chosen = ring_of_found == ring
            metric.update(
                truth.take(ring_of_truth == ring), Detections(found.boxes.take(chosen), found.score[chosen]), ego_xy
            )

    def by_distance(self) -> list[DetectionResult]:
        """One result for each ring."""
        return [metric.result() for metric in self._rings]


def mean_ap(result: DetectionResult) -> float:
    """Mean AP over the classes that have truth, nan where none has; nuScenes' own counts the others as 0."""
    there = result.truths > 0
    return float(result.label_aps[there].mean()) if there.any() else float("nan")


def class_aps(result: DetectionResult) -> np.ndarray:
    """(C,) AP of each class, the mean over the matching distances; nan for a class without truth."""
    return np.where(result.truths > 0, result.label_aps.mean(axis=1), np.nan)


def _rings(boxes: Boxes, ego_xy: np.ndarray) -> np.ndarray:
    return np.digitize(np.linalg.norm(boxes.center[:, :2] - np.asarray(ego_xy), axis=1), EDGES_M[1:-1])

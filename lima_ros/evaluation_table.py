"""What the evaluator knows at a moment, as rows: for the terminal, for topics and for evaluation.json. No rclpy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lima_core.metrics.detection import DetectionResult
from lima_core.metrics.live import class_aps, mean_ap
from lima_core.metrics.segmentation import DistanceBins, range_names


@dataclass(frozen=True)
class Column:
    """IoU or AP: the mean, and one value for each class, overall and by distance; nan where there is nothing."""

    measure: str
    names: tuple[str, ...]
    mean: float
    by_class: np.ndarray
    mean_by_distance: tuple[float, ...]
    by_class_and_distance: np.ndarray  # (distances, C)


def iou_column(names: Sequence[str], distances: DistanceBins) -> Column:
    """IoU of all points, and of those at each distance."""
    total, means = distances.total(), tuple(matrix.miou() for matrix in distances.matrices)
    each = np.stack([matrix.iou() for matrix in distances.matrices])
    return Column("IoU", tuple(names), total.miou(), total.iou(), means, each)


def ap_column(overall: DetectionResult, by_distance: Sequence[DetectionResult]) -> Column:
    """AP of detections, and of those in each ring."""
    each = np.stack([class_aps(result) for result in by_distance])
    means = tuple(mean_ap(result) for result in by_distance)
    return Column("AP", overall.class_names, mean_ap(overall), class_aps(overall), means, each)


def lines(columns: Sequence[Column]) -> Iterator[str]:
    """A table for the terminal, percent: a row per class that occurs, a column per distance."""
    for column in columns:
        yield f"{column.measure + ' %':22}{'all':>7}" + "".join(f"{name:>11}" for name in range_names())
        rows = [(f"m{column.measure}", column.mean, np.array(column.mean_by_distance))]
        rows += [
            (name, column.by_class[index], column.by_class_and_distance[:, index])
            for index, name in enumerate(column.names)
            if not np.isnan(column.by_class[index])
        ]
        for name, overall, distances in rows:
            yield f"{name:22}{_percent(overall):>7}" + "".join(f"{_percent(value):>11}" for value in distances)


def values(column: Column) -> dict[str, float]:
    """Dotted names -> values that are known: mean, <class>, mean.<distance>, <class>.<distance>."""
    found = {"mean": column.mean, **dict(zip(column.names, column.by_class.tolist(), strict=True))}
    for at, distance in enumerate(range_names()):
        found[f"mean.{distance}"] = column.mean_by_distance[at]
        for index, name in enumerate(column.names):
            found[f"{name}.{distance}"] = float(column.by_class_and_distance[at, index])
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def topic_of(measure: str, name: str) -> str:
    """Where a mean, or the value of a class, is published: ~/miou, ~/iou/traffic_sign.

    Names of topics have letters, digits and underscores alone; those of classes have dashes and strokes too.
    """
    return f"~/m{measure.lower()}" if name == "mean" else f"~/{measure.lower()}/{re.sub('[^a-zA-Z0-9]+', '_', name)}"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"

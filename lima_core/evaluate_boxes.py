"""Evaluation of a detector on every annotated sweep of a split; `python -m lima_core.evaluate` calls it.

The rules are those of nuScenes' detection task (spec/datasets.md 2.5). On nuScenes itself the numbers are the official
evaluator's, where its interpreter is given; ours stand beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from lima_core.config import ConfigError
from lima_core.data.boxed import BoxedFrames, StoredSweeps, open_boxed
from lima_core.data.datasets import Dataset
from lima_core.data.frame import Detections
from lima_core.data.labelled import DataConfig, open_frames, taxonomy_of
from lima_core.files import write_whole
from lima_core.metrics.detection import DetectionMetric, DetectionResult
from lima_core.metrics.detection_matching import ERRORS
from lima_core.metrics.plain import latency_summary, number
from lima_core.predictor import Predictor
from lima_core.tools.nuscenes_results import Row, result_rows, run_devkit, write_results
from lima_core.viz.detection import markdown, write_page

RESULTS = "results_nusc.json"


@dataclass(frozen=True)
class BoxEvaluation:
    """`result` by our evaluator, `official` by nuScenes' where it ran, `latency_ms` (S,) of each sweep."""

    result: DetectionResult
    latency_ms: np.ndarray
    official: dict[str, Any] | None = None


def evaluate_boxes(
    predictor: Predictor, data: DataConfig, split: str, workers: int, devkit: str | None, folder: Path
) -> BoxEvaluation:
    """Runs the detector on the sweeps of a split; for nuScenes' val split it writes RESULTS into `folder`.

    Raises ConfigError where network and data do not fit, or the official evaluator is asked for and fails.
    """
    check_boxes(predictor, data, split, devkit)
    sweeps = open_boxed(data, split, predictor.sweeps, workers)
    if not len(sweeps):
        raise ConfigError(f"{data.name} has no sweeps of split {split}; choose another split or more seeds")
    source = open_frames(data, split) if _makes_results(data, split) else None
    evaluation, rows = _evaluate(predictor, sweeps, source, f"{data.name} {split}")
    if rows is not None:
        write_results(folder / RESULTS, rows)
    if devkit is not None:
        official = _official(devkit, source, folder)
        evaluation = BoxEvaluation(evaluation.result, evaluation.latency_ms, official)
    return evaluation


def check_boxes(predictor: Predictor, data: DataConfig, split: str, devkit: str | None) -> None:
    """Raises ConfigError where the classes differ, or where the official evaluator has nothing to say."""
    wanted = taxonomy_of(data).detection_names
    if predictor.detection_names != wanted:
        raise ConfigError(
            f"the checkpoint finds {', '.join(predictor.detection_names) or 'no boxes'}; {data.name} has "
            f"{', '.join(wanted) or 'no boxes'}; evaluate a detector that was finetuned on {data.name}"
        )
    if devkit is not None and not _makes_results(data, split):
        raise ConfigError("devkit is nuScenes' evaluator; use it with --data.name nuscenes --split val")


def _makes_results(data: DataConfig, split: str) -> bool:
    """The official evaluator wants every sample of a split."""
    return data.name == "nuscenes" and split == "val"


def _evaluate(
    predictor: Predictor, sweeps: BoxedFrames | StoredSweeps, source: Dataset | None, what: str
) -> tuple[BoxEvaluation, dict[str, list[Row]] | None]:
    metric, latency_ms = DetectionMetric(predictor.detection_names), []
    rows: dict[str, list[Row]] | None = None if source is None else {}
    for index, sweep in enumerate(tqdm(sweeps, desc=what, unit="sweep", dynamic_ncols=True)):
        start = perf_counter()
        found = predictor.detect(sweep.points)
        latency_ms.append(1000 * (perf_counter() - start))
        metric.update(sweep.boxes, found, sweeps.ego_xy)
        if rows is not None:
            token, answers = _rows(source, index, found, predictor.detection_names)
            rows[token] = answers
    return BoxEvaluation(metric.result(), np.array(latency_ms)), rows


def _rows(source: Dataset, index: int, found: Detections, names: tuple[str, ...]) -> tuple[str, list[Row]]:
    """The detections of a keyframe as the official evaluator wants them."""
    token = source.tokens(index)[0]
    return token, result_rows(token, found, source.world_from_lidar(index), names)


def _official(devkit: str, source: Dataset, folder: Path) -> dict[str, Any]:
    """Raises ConfigError naming what the interpreter lacks."""
    split = "mini_val" if source.version == "v1.0-mini" else "val"
    try:
        return run_devkit(devkit, source.root, source.version, folder / RESULTS, split, folder / "devkit")
    except RuntimeError as error:
        raise ConfigError(f"devkit: {error}") from error


def table(evaluation: BoxEvaluation, title: str) -> str:
    """Ours, and one line of the official numbers where there are any."""
    text = markdown(evaluation.result, title, evaluation.latency_ms)
    if evaluation.official is None:
        return text
    official = evaluation.official
    scores = f"mAP {100 * official['mean_ap']:.2f} %, NDS {100 * official['nd_score']:.2f} %"
    return f"{text}\nofficial evaluator: {scores}\n"


def summary(evaluation: BoxEvaluation) -> dict[str, Any]:
    """All numbers as plain values, null where nothing could be measured."""
    result, latency = evaluation.result, evaluation.latency_ms
    names = result.class_names
    return {
        "sweeps": len(latency),
        "mean_ap": result.mean_ap,
        "nds": result.nds,
        "label_aps": {name: aps.tolist() for name, aps in zip(names, result.label_aps, strict=True)},
        "label_errors": {
            name: {error: number(v) for error, v in zip(ERRORS, row, strict=True)}
            for name, row in zip(names, result.label_tp, strict=True)
        },
        "errors": {error: number(v) for error, v in zip(ERRORS, result.tp, strict=True)},
        "true_boxes": dict(zip(names, result.truths.tolist(), strict=True)),
        "found_boxes": dict(zip(names, result.detections.tolist(), strict=True)),
        "latency_ms": latency_summary(latency),
        "official": evaluation.official,
    }


def write_report(evaluation: BoxEvaluation, title: str, about: dict[str, Any], folder: Path) -> str:
    """Writes evaluation.json (the numbers, and what made them), .md and .html; returns the table, as in the .md."""
    text = table(evaluation, title)
    write_whole(folder / "evaluation.json", json.dumps({**summary(evaluation), **about}, indent=2) + "\n")
    write_whole(folder / "evaluation.md", text)
    write_page(evaluation.result, title, evaluation.latency_ms, folder / "evaluation.html")
    return text

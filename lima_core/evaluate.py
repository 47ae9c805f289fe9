"""Evaluation of a checkpoint on every labelled point, or on every annotated box, of a split.

python -m lima_core.evaluate --checkpoint runs/street/checkpoint.safetensors --data.name street
python -m lima_core.evaluate --checkpoint FILE --data.name semantickitti --data.root DATA/semantickitti
python -m lima_core.evaluate --checkpoint FILE --data.name nuscenes --data.root DATA/nuscenes --tta --out runs/eval
python -m lima_core.evaluate --task detection --checkpoint FILE --data.name nuscenes --data.root DATA/nuscenes
    --devkit devkit/bin/python                                   # the official numbers; extra `eval` in its own place
python -m lima_core.evaluate --help

Writes evaluation.json, evaluation.md (also printed) and evaluation.html into --out. Metrics: spec/datasets.md 1.3.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lima_core.checkpoint import CheckpointError
from lima_core.config import ConfigError, option, plain, read_config
from lima_core.data.boxed import LabelledClouds, open_boxed
from lima_core.data.frame import IGNORE, DatasetError
from lima_core.data.labelled import DataConfig, LabelledFrames, Sweep, open_labelled, taxonomy_of
from lima_core.evaluate_boxes import BoxEvaluation, evaluate_boxes, write_report
from lima_core.files import write_whole
from lima_core.metrics.calibration import Calibration
from lima_core.metrics.plain import latency_summary, number
from lima_core.metrics.segmentation import EDGES_M, ConfusionMatrix, DistanceBins, range_names
from lima_core.paths import STREET_CHECKPOINT
from lima_core.predictor import Predictor
from lima_core.training.run_folder import revision, versions
from lima_core.viz.evaluation import Evaluation, write_page


@dataclass(frozen=True)
class EvaluateConfig:
    """All there is to set."""

    checkpoint: str = option(str(STREET_CHECKPOINT), "file that python -m lima_core.finetune wrote")
    task: Literal["segmentation", "detection"] | None = option(
        None, "which head of the network; null: the one there is, of two segmentation"
    )
    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["train", "val"] = option("val", "which sweeps; of train only data.share")
    tta: bool = option(False, "test-time augmentation: mean of the probabilities of 8 rotated and mirrored sweeps")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    precision: Literal["auto", "fp32", "fp16"] = option("auto", "auto: fp16 on a GPU, fp32 on a CPU")
    backend: Literal["auto", "torch", "spconv"] = option("auto", "of the sparse convolutions")
    threads: int = option(1, "CPU threads of the network")
    workers: int = option(2, "processes that simulate streets")
    predictions: str | None = option(None, "folder for predictions in the form of nuScenes' lidarseg challenge")
    devkit: str | None = option(None, "python with nuscenes-devkit, for the official numbers of detection on nuScenes")
    out: str = option("runs/evaluate", "folder of the results")


def main(argv: Sequence[str]) -> None:
    """The command line."""
    try:
        config = read_config(EvaluateConfig, argv, "python -m lima_core.evaluate", __doc__.splitlines()[0])
        run(config, ["python", "-m", "lima_core.evaluate", *argv])
    except (ConfigError, CheckpointError, DatasetError) as error:
        sys.exit(f"error: {error}")


def run(config: EvaluateConfig, command: list[str]) -> Evaluation | BoxEvaluation:
    """Evaluates, writes the three files and prints the table. Raises ConfigError, CheckpointError, DatasetError."""
    predictor = open_predictor(config)
    if config.task == "detection" or (config.task is None and not predictor.class_names):
        return run_boxes(config, command, predictor)
    if config.devkit is not None:
        raise ConfigError("devkit is for boxes; use it with --task detection")
    sweeps = open_sweeps(config, predictor)
    keep = None
    if config.predictions is not None:
        if config.data.name != "nuscenes":
            raise ConfigError("predictions are files for nuScenes' challenge; use them with --data.name nuscenes")
        keep = partial(_keep, Path(config.predictions), config.split, sweeps)
    evaluation = evaluate(predictor, sweeps, config.tta, f"{config.data.name} {config.split}", keep)
    folder = Path(config.out)
    table = markdown(evaluation)
    record = {**summary(evaluation), **about(config, command, predictor)}
    write_whole(folder / "evaluation.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    write_whole(folder / "evaluation.md", table)
    write_page(evaluation, folder / "evaluation.html")
    print(table)
    print(f"wrote {folder}/evaluation.json, .md and .html")
    return evaluation


def run_boxes(config: EvaluateConfig, command: list[str], predictor: Predictor) -> BoxEvaluation:
    """The same for boxes."""
    if config.tta or config.predictions is not None:
        raise ConfigError("tta and predictions are for segmentation; leave them out for --task detection")
    folder = Path(config.out)
    evaluation = evaluate_boxes(predictor, config.data, config.split, config.workers, config.devkit, folder)
    title = f"{config.data.name} {config.split}"
    print(write_report(evaluation, title, about(config, command, predictor), folder))
    print(f"wrote {folder}/evaluation.json, .md and .html")
    return evaluation


def about(config: EvaluateConfig, command: list[str], predictor: Predictor) -> dict[str, Any]:
    """How the numbers came about."""
    made_by = {"command": " ".join(command), "revision": revision(), "versions": versions()}
    return {"device": str(predictor.device), "config": plain(config), **made_by}


def open_inputs(config: EvaluateConfig) -> tuple[Predictor, Sequence[Sweep]]:
    """The network and the sweeps to try it on. Raises ConfigError, CheckpointError, DatasetError."""
    predictor = open_predictor(config)
    return predictor, open_sweeps(config, predictor)


def open_predictor(config: EvaluateConfig) -> Predictor:
    """The network. Raises ConfigError, CheckpointError."""
    torch.set_num_threads(config.threads)
    try:
        return Predictor(config.checkpoint, config.device, config.precision, config.backend)
    except RuntimeError as error:
        raise ConfigError(str(error)) from error


def open_sweeps(config: EvaluateConfig, predictor: Predictor) -> Sequence[Sweep]:
    """The labelled sweeps of the split. Raises ConfigError where they do not fit the network, DatasetError."""
    check_classes(predictor, config)
    if predictor.detection_names:  # it segments with past sweeps in view
        if config.predictions is not None:
            raise ConfigError("predictions are of networks that take one sweep; leave them out for one of both tasks")
        sweeps = LabelledClouds(open_boxed(config.data, config.split, predictor.sweeps, config.workers))
    else:
        sweeps = open_labelled(config.data, config.split, config.workers)
    if not len(sweeps):
        raise ConfigError(
            f"{config.data.name} has no sweeps of split {config.split}; choose another split or more seeds"
        )
    return sweeps


def check_classes(predictor: Predictor, config: EvaluateConfig) -> None:
    """Raises ConfigError where the network's classes are not those of the data set, in the same order."""
    wanted, found = taxonomy_of(config.data).names, predictor.class_names
    if found == wanted:
        return
    differ = [f"{i} {a!r} for {b!r}" for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b]
    raise ConfigError(
        f"{config.checkpoint} has {len(found)} classes, {config.data.name} has {len(wanted)}"
        + (f"; classes {', '.join(differ[:3])}{', ...' if len(differ) > 3 else ''}" if differ else "")
        + f"; evaluate a checkpoint that was finetuned on {config.data.name}, or choose its data set by --data.name"
    )


def evaluate(
    predictor: Predictor,
    sweeps: Sequence[Sweep],
    tta: bool,
    what: str,
    keep: Callable[[int, np.ndarray], object] | None = None,
) -> Evaluation:
    """Runs the network on every sweep and counts all its points; `what` names the data, for bar and title.

    `keep(index, labels)` is given the (N,) uint8 labels of each sweep.
    """
    distances = DistanceBins(len(predictor.class_names))
    raw, scaled, latency_ms = Calibration(), Calibration(), []
    for index, sweep in enumerate(tqdm(sweeps, desc=what, unit="sweep", dynamic_ncols=True)):
        start = perf_counter()
        logits = [torch.from_numpy(predictor.logits(view)) for view in views(sweep.points, tta)]
        latency_ms.append(1000 * (perf_counter() - start))
        labels, before, after = decide(logits, predictor.temperature)
        distances.update(sweep.points, sweep.labels, labels)
        if keep is not None:
            keep(index, labels)
        counted = (sweep.labels != IGNORE) & (labels != IGNORE)  # a point without an answer has no confidence either
        right = (labels == sweep.labels)[counted]
        raw.update(before[counted], right)
        scaled.update(after[counted], right)
    return Evaluation(
        title=f"{what}{', test-time augmentation' if tta else ''}",
        class_names=predictor.class_names,
        colors=predictor.colors,
        distances=distances,
        raw=raw,
        scaled=scaled,
        temperature=predictor.temperature,
        latency_ms=np.array(latency_ms),
    )


def views(points: np.ndarray, tta: bool) -> list[np.ndarray]:
    """The (N, 4) sweep itself and, with `tta`, turned by 90, 180, 270 degrees, each of them mirrored too."""
    if not tta:
        return [points]
    x, y, rest = points[:, 0], points[:, 1], points[:, 2:]
    turned = [(x, y), (-y, x), (-x, -y), (y, -x)]
    return [np.column_stack([a, sign * b, rest]) for a, b in turned for sign in (1, -1)]


def decide(logits: list[Tensor], temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, C) logits of each view -> labels (N,) uint8, their probability (N,) before and at the temperature.

    Probabilities are the mean of the views' softmax. 255 and nan where logits are nan. No label
    depends on the temperature.
    """
    before = mean_softmax(logits, 1.0)
    labels = before.argmax(1)
    pick = labels[:, None]
    after = mean_softmax(logits, temperature).gather(1, pick)[:, 0].numpy()
    known = ~before.isnan().any(1)
    labels = torch.where(known, labels, IGNORE).to(torch.uint8).numpy()
    return labels, before.gather(1, pick)[:, 0].numpy(), after


def mean_softmax(logits: list[Tensor], temperature: float) -> Tensor:
    """(N, C) probabilities: mean over the views of softmax(logits / temperature)."""
    return sum(torch.softmax(view / temperature, 1) for view in logits) / len(logits)


def _keep(folder: Path, split: str, sweeps: LabelledFrames, index: int, labels: np.ndarray) -> None:
    write_submission(folder, split, sweeps.lidar_token(index), labels)


def write_submission(folder: str | Path, split: str, token: str, labels: np.ndarray) -> Path:
    """One sweep's (N,) train ids as nuScenes-lidarseg wants them: uint8 train id + 1.

    `token` is that of the sweep's LIDAR_TOP sample_data. A point without an answer, 255, becomes 1, because
    0 is refused. Layout: <folder>/lidarseg/<split>/<token>_lidarseg.bin.
    """
    content = np.where(labels == IGNORE, 0, labels).astype(np.uint8) + np.uint8(1)
    return write_whole(Path(folder) / "lidarseg" / split / f"{token}_lidarseg.bin", content.tobytes())


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """All numbers as plain values, null where nothing could be measured; shares in [0, 1]."""
    confusion, latency = evaluation.confusion, evaluation.latency_ms
    names = [{"from_m": low, "to_m": number(high)} for low, high in pairwise(EDGES_M)]
    return {
        "sweeps": len(latency),
        **_scores(confusion),
        "iou": {name: number(v) for name, v in zip(evaluation.class_names, confusion.iou(), strict=True)},
        "by_distance": [name | _scores(m) for name, m in zip(names, evaluation.distances.matrices, strict=True)],
        "temperature": evaluation.temperature,
        "ece_before_temperature": number(evaluation.raw.ece()),
        "ece": number(evaluation.scaled.ece()),
        "reliability_before_temperature": _bins(evaluation.raw),
        "reliability": _bins(evaluation.scaled),
        "latency_ms": latency_summary(latency),
        "confusion": {"matrix": confusion.matrix.tolist(), "missed": confusion.missed.tolist()},
    }


def markdown(evaluation: Evaluation) -> str:
    """The table for terminal and page: classes, then distances, then confidence and latency."""
    confusion, latency = evaluation.confusion, evaluation.latency_ms
    points = confusion.points_of_class()
    width = max(map(len, evaluation.class_names))
    lines = [
        f"# {evaluation.title}",
        "",
        f"| {'class':{width}} |  IoU % | points % |",
        f"|{'-' * (width + 2)}|-------:|---------:|",
    ]
    for name, iou, count in zip(evaluation.class_names, confusion.iou(), points, strict=True):
        lines.append(f"| {name:{width}} | {_percent(iou)} | {_percent(count / max(1, points.sum())):>8} |")
    counted = f"{confusion.classes_counted()} of {len(points)} classes"
    lines += [
        "",
        f"mIoU {_percent(confusion.miou()).strip()} % over {counted}, {len(latency)} sweeps, {points.sum()} points",
        f"accuracy {100 * confusion.accuracy():.2f} %, mean class accuracy {100 * confusion.mean_accuracy():.2f} %",
        "",
        "| distance | mIoU % | classes | points % |",
        "|----------|-------:|--------:|---------:|",
    ]
    for name, matrix in zip(range_names(), evaluation.distances.matrices, strict=True):
        share = matrix.points_of_class().sum() / max(1, points.sum())
        lines.append(f"| {name:8} | {_percent(matrix.miou())} | {matrix.classes_counted():7} | {_percent(share):>8} |")
    ece = f"{100 * evaluation.raw.ece():.2f} % before, {100 * evaluation.scaled.ece():.2f} % at"
    lines += [
        "",
        f"expected calibration error {ece} temperature {evaluation.temperature:.3f}",
        f"latency p50 {np.percentile(latency, 50):.1f} ms, p95 {np.percentile(latency, 95):.1f} ms",
    ]
    return "\n".join(lines) + "\n"


def _scores(confusion: ConfusionMatrix) -> dict[str, Any]:
    return {
        "miou": number(confusion.miou()),
        "classes_counted": confusion.classes_counted(),
        "accuracy": number(confusion.accuracy()),
        "mean_class_accuracy": number(confusion.mean_accuracy()),
        "points": int(confusion.points_of_class().sum()),
    }


def _bins(calibration: Calibration) -> list[dict[str, Any]]:
    rows = zip(calibration.count, calibration.mean_confidence(), calibration.accuracy(), strict=True)
    return [{"points": int(n), "confidence": number(c), "accuracy": number(a)} for n, c, a in rows]


def _percent(share: float) -> str:
    return "absent" if np.isnan(share) else f"{100 * share:6.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])

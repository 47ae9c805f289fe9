"""The checkpoints that a finetuning run leaves, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lima_core.checkpoint import FORMAT, load_segmenter, save_checkpoint
from lima_core.config import plain
from lima_core.data.labelled import STREET, DataConfig, Sweep, taxonomy_of
from lima_core.metrics.calibration import fit_temperature
from lima_core.models.heads import Segmenter
from lima_core.training.input_statistics import input_statistics
from lima_core.training.run_folder import revision, versions
from lima_core.training.sweeps import evaluate

LAST, BEST = "checkpoint.safetensors", "best.safetensors"
STATISTICS_SWEEPS, TEMPERATURE_POINTS = 100, 200_000


class RunConfig(Protocol):
    """What is read of the config of a run."""

    model: str
    data: DataConfig
    epochs: int
    half: bool


class Finished:
    """Writes checkpoints that explain themselves; without dates, so that equal runs give equal files."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        command: Sequence[str],
        training: Sequence[Sweep],
        device: torch.device,
    ) -> None:
        self._config, self._folder, self._device = config, folder, device
        taxonomy = taxonomy_of(config.data)
        chosen = np.linspace(0, len(training) - 1, min(STATISTICS_SWEEPS, len(training))).astype(int)
        self._meta = {
            "format": FORMAT,
            "model": config.model,
            "classes": {"names": list(taxonomy.names), "colors": taxonomy.colors.tolist()},
            "config": plain(config),
            "inputs": input_statistics([training[int(index)] for index in chosen]),
            "temperature": 1.0,
            "versions": versions(),
            "provenance": {
                "command": " ".join(part for part in command if part != "--resume"),
                "revision": revision(),
                "data": describe(config.data, training),
            },
        }

    def save(self, network: Segmenter, name: str, metrics: dict[str, Any]) -> Path:
        """Writes the network as it stands, with what is known of it."""
        return save_checkpoint(self._folder / name, network, {**self._meta, "metrics": metrics}, self._config.half)

    def close(self, network: Segmenter, validation: Sequence[Sweep]) -> Path:
        """Writes the last network and measures both files, as stored, on the validation sweeps; prints the last's."""
        self.save(network, LAST, {"epoch": self._config.epochs})
        measured = {name: self._measured(self._folder / name, validation) for name in (LAST, BEST)}
        metrics, best = (measured[name][1]["metrics"] for name in (LAST, BEST))
        metrics |= {f"best_{key}": best[key] for key in ("epoch", "val_miou")}
        for name, (stored, meta) in measured.items():
            save_checkpoint(self._folder / name, stored, meta, self._config.half)
        report(self._folder / LAST, metrics)
        return self._folder / LAST

    def _measured(self, path: Path, validation: Sequence[Sweep]) -> tuple[Segmenter, dict[str, Any]]:
        """A written network, and its metadata with metrics and temperature."""
        network, voxels, meta = load_segmenter(path)
        names, sample = meta["classes"]["names"], LogitSample(validation)
        confusion = evaluate(network.to(self._device), validation, voxels, len(names), sample)
        metrics = {
            "val_miou": round(confusion.miou(), 4),
            "val_iou": {
                name: None if np.isnan(value) else round(float(value), 4)
                for name, value in zip(names, confusion.iou(), strict=True)
            },
            "val_accuracy": round(confusion.accuracy(), 4),
            "val_sweeps": len(validation),
            "epoch": meta["metrics"]["epoch"],
        }
        if self._config.data.name == STREET:
            metrics["val_seeds"] = list(self._config.data.street.val_seeds)
        return network, {**meta, "metrics": metrics, "temperature": round(fit_temperature(*sample.rows()), 4)}


class LogitSample:
    """Logits and labels of points spread evenly over all sweeps, about TEMPERATURE_POINTS of them."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self._step = max(1, sum(len(sweep.labels) for sweep in sweeps) // TEMPERATURE_POINTS)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __call__(self, sweep: Sweep, logits: Tensor, voxel_of_point: Tensor) -> None:
        """Keeps every n-th point of a sweep, as `evaluate` shows it."""
        self._logits.append(logits[voxel_of_point[:: self._step]].float())
        self._labels.append(torch.from_numpy(sweep.labels[:: self._step].astype(np.int64)))

    def rows(self) -> tuple[Tensor, Tensor]:
        """(N, C) float32 logits and (N,) int64 labels."""
        return torch.cat(self._logits), torch.cat(self._labels)


def describe(data: DataConfig, training: Sequence[Sweep]) -> str:
    """What the labels came from; of real drives, the sequences by name, so that a share can be drawn again."""
    if data.name == STREET:
        return f"simulated street, seeds {list(data.street.train_seeds)} (end excluded), {data.share} % of them"
    names = list(dict.fromkeys(training.sequences))
    shown = ", ".join(names) if len(names) <= 200 else f"{len(names)} sequences"
    return f"{data.name}, {data.share} % of the labels: {len(training)} sweeps of {shown}"


def report(path: Path, metrics: dict[str, Any]) -> None:
    """IoU of each class, the mean, and the best epoch beside the last."""
    for name, iou in metrics["val_iou"].items():
        print(f"{name:22s} {'   absent' if iou is None else f'{100 * iou:8.2f}%'}")
    counted = sum(iou is not None for iou in metrics["val_iou"].values())
    print(f"val mIoU {100 * metrics['val_miou']:.2f}% over {counted} classes and {metrics['val_sweeps']} sweeps ")
    print(f"(last epoch); best epoch {metrics['best_epoch']}: {100 * metrics['best_val_miou']:.2f}%")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB), and beside it {BEST}")

"""The checkpoints that a finetuning run leaves, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lima_core.checkpoint import FORMAT, load_checkpoint, load_segmenter, save_checkpoint
from lima_core.config import plain
from lima_core.data.labelled import STREET, DataConfig, Sweep, taxonomy_of
from lima_core.metrics.calibration import fit_temperature
from lima_core.models.heads import Segmenter
from lima_core.training.collate import collate
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
        last = self.save(network, LAST, {})
        best = self._folder / BEST
        found = {}
        for path in (last, best):
            metrics = load_checkpoint(path)[1]["metrics"]
            found[path] = self._measure(path, metrics.get("epoch", self._config.epochs), validation)
        meta = found[last]["metrics"]
        meta |= {f"best_{key}": found[best]["metrics"][key] for key in ("epoch", "val_miou")}
        for path, facts in found.items():
            segmenter, _, stored = load_segmenter(path)
            save_checkpoint(path, segmenter, {**stored, **facts}, self._config.half)
        report(last, meta)
        return last

    def _measure(self, path: Path, epoch: int, validation: Sequence[Sweep]) -> dict[str, Any]:
        """Metrics and temperature of a written file."""
        network, voxels, meta = load_segmenter(path)
        network.to(self._device)
        confusion = evaluate(network, validation, voxels, len(meta["classes"]["names"]))
        temperature = round(fit_temperature(*sampled_logits(network, validation, voxels)), 4)
        iou = zip(meta["classes"]["names"], confusion.iou(), strict=True)
        metrics = {
            "val_miou": round(confusion.miou(), 4),
            "val_iou": {name: None if np.isnan(value) else round(float(value), 4) for name, value in iou},
            "val_accuracy": round(confusion.accuracy(), 4),
            "val_sweeps": len(validation),
            "epoch": epoch,
        }
        if self._config.data.name == STREET:
            metrics["val_seeds"] = list(self._config.data.street.val_seeds)
        return {"metrics": metrics, "temperature": temperature}


@torch.inference_mode()
def sampled_logits(network: Segmenter, sweeps: Sequence[Sweep], voxels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) and labels (N,) of points spread evenly over all sweeps, some hundred thousand at most."""
    step = max(1, sum(len(sweep.labels) for sweep in sweeps) // TEMPERATURE_POINTS)
    device = next(network.parameters()).device
    logits, labels = [], []
    for sweep in sweeps:
        batch = collate([(sweep.points, sweep.labels)], voxels)
        rows = network(batch.voxels.to(device)).float().cpu()[batch.voxel_of_point[::step]]
        logits.append(rows)
        labels.append(torch.from_numpy(sweep.labels[::step].astype(np.int64)))
    return torch.cat(logits), torch.cat(labels)


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

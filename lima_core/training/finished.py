"""The checkpoints that a finetuning run leaves, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from lima_core.checkpoint import FORMAT, load_network, save_checkpoint
from lima_core.config import plain
from lima_core.data.labelled import STREET, DataConfig, Sweep
from lima_core.models.loss import Loss
from lima_core.training.finetune_config import FinetuneConfig
from lima_core.training.input_statistics import input_statistics
from lima_core.training.run_folder import revision, versions

LAST, BEST = "checkpoint.safetensors", "best.safetensors"
STATISTICS_SWEEPS = 100


class Batches(Protocol):
    """Batches by step."""

    steps_per_epoch: int

    def __len__(self) -> int: ...


class Task(Protocol):
    """What finetuning learns: network, batches, loss, and the metric `score` that chooses the best epoch."""

    score: str
    network: nn.Module
    batches: Batches
    training: Sequence[Any]

    def loss(self, batch: Any) -> Loss:
        """Of one batch, in training mode."""
        ...

    def validate(self) -> dict[str, Any]:
        """Metrics of the network as it stands, `score` among them."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the network's answers: `classes`, for detection also `task` and `detection`."""
        ...

    def sweep(self, index: int) -> Sweep:
        """A training sweep, for the statistics of the input."""
        ...

    def measure(self, network: nn.Module) -> tuple[dict[str, Any], float]:
        """Metrics and temperature of a stored network on all validation sweeps."""
        ...

    def summary(self, metrics: dict[str, Any]) -> str:
        """What the terminal shows of `measure`: each class, and the mean."""
        ...


class Finished:
    """Writes checkpoints that explain themselves; without dates, so that equal runs give equal files."""

    def __init__(
        self, config: FinetuneConfig, folder: Path, command: Sequence[str], task: Task, device: torch.device
    ) -> None:
        self._config, self._folder, self._task, self._device = config, folder, task, device
        chosen = np.linspace(0, len(task.training) - 1, min(STATISTICS_SWEEPS, len(task.training))).astype(int)
        self._meta = {
            "format": FORMAT,
            "model": config.model,
            **task.facts(),
            "config": plain(config),
            "inputs": input_statistics([task.sweep(int(index)) for index in chosen]),
            "temperature": 1.0,
            "versions": versions(),
            "provenance": {
                "command": " ".join(part for part in command if part != "--resume"),
                "revision": revision(),
                "data": describe(config.data, task.training),
            },
        }

    def save(self, network: nn.Module, name: str, metrics: dict[str, Any]) -> Path:
        """Writes the network as it stands, with what is known of it."""
        return save_checkpoint(self._folder / name, network, {**self._meta, "metrics": metrics}, self._config.half)

    def close(self, network: nn.Module) -> Path:
        """Writes the last network and measures both files, as stored, on the validation sweeps; prints the last's."""
        self.save(network, LAST, {"epoch": self._config.epochs})
        measured = {name: self._measured(self._folder / name) for name in (LAST, BEST)}
        metrics, best = (measured[name][1]["metrics"] for name in (LAST, BEST))
        metrics |= {f"best_{key}": best[key] for key in ("epoch", self._task.score)}
        for name, (stored, meta) in measured.items():
            save_checkpoint(self._folder / name, stored, meta, self._config.half)
        path = self._folder / LAST
        print(self._task.summary(metrics))
        print(f"(last epoch); best epoch {metrics['best_epoch']}: {100 * metrics[f'best_{self._task.score}']:.2f}%")
        print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB), and beside it {BEST}")
        return path

    def _measured(self, path: Path) -> tuple[nn.Module, dict[str, Any]]:
        """A written network, and its metadata with metrics and temperature."""
        network, _, meta = load_network(path)
        metrics, temperature = self._task.measure(network.to(self._device))
        metrics["epoch"] = meta["metrics"]["epoch"]
        return network, {**meta, "metrics": metrics, "temperature": temperature}


def describe(data: DataConfig, training: Sequence[Any]) -> str:
    """What the labels came from; of real drives, the sequences by name, so that a share can be drawn again."""
    if data.name == STREET:
        seeds = list(data.street.train_seeds)
        return f"simulated street, seeds {seeds} (end excluded), {data.share} % of the labels: {len(training)} sweeps"
    names = list(dict.fromkeys(training.sequences))
    shown = ", ".join(names) if len(names) <= 200 else f"{len(names)} sequences"
    return f"{data.name}, {data.share} % of the labels: {len(training)} sweeps of {shown}"

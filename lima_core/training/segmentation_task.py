"""Finetuning for semantic segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from lima_core.config import ConfigError
from lima_core.data.frame import IGNORE
from lima_core.data.labelled import STREET, Sweep, open_labelled, taxonomy_of
from lima_core.metrics.calibration import fit_temperature
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.backbones import inputs_of
from lima_core.models.heads import Segmenter, build_segmenter
from lima_core.models.inputs import InputConfig
from lima_core.models.loss import Loss
from lima_core.training.collate import Batch
from lima_core.training.finetune_config import FinetuneConfig
from lima_core.training.initial import load_backbone
from lima_core.training.loss import segmentation_loss
from lima_core.training.sweeps import TrainingSweeps, evaluate

TEMPERATURE_POINTS = 200_000


class SegmentationTask:
    """Labelled sweeps, a Segmenter and their score, mIoU; of several processes each has its share."""

    score = "val_miou"

    def __init__(self, config: FinetuneConfig, fabric: Fabric) -> None:
        self._config, self._fabric = config, fabric
        self.network, self._inputs = build_network(config)
        training, self._validation = (
            open_labelled(config.data, split, max(1, config.workers)) for split in ("train", "val")
        )
        try:
            self.batches = TrainingSweeps(
                training, config.batch_size, self._inputs, config.augment, config.seed, config.epochs, config.mixing,
                fabric.global_rank, fabric.world_size,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.training = training

    def loss(self, batch: Batch) -> Loss:
        """Of one batch, in training mode."""
        self.network.backbone.train(not self._config.linear_probe)  # frozen means its normalisation too
        device = self._fabric.device
        return segmentation_loss(self.network(batch.voxels.to(device)), batch.labels.to(device))

    def validate(self) -> dict[str, Any]:
        """mIoU over all validation sweeps, of which each process takes its share."""
        fabric, every = self._fabric, self._validation
        share = [every[index] for index in range(fabric.global_rank, len(every), fabric.world_size)]
        confusion = evaluate(self.network, share, self._inputs, self.network.head.out_features)
        if fabric.world_size > 1:
            for counts in (confusion.matrix, confusion.missed):
                total = fabric.all_reduce(torch.from_numpy(counts).to(fabric.device), reduce_op="sum")
                counts[...] = total.cpu().numpy()
        return {self.score: confusion.miou()}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the network's answers."""
        taxonomy = taxonomy_of(self._config.data)
        return {"classes": {"names": list(taxonomy.names), "colors": taxonomy.colors.tolist()}}

    def sweep(self, index: int) -> Sweep:
        """A training sweep, for the statistics of the input."""
        return self.training[index]

    def measure(self, network: Segmenter) -> tuple[dict[str, Any], float]:
        """Metrics and temperature of a stored network on all validation sweeps."""
        names, sample = taxonomy_of(self._config.data).names, LogitSample(self._validation)
        confusion = evaluate(network.to(self._fabric.device), self._validation, self._inputs, len(names), sample)
        metrics = segmentation_metrics(self._config, names, confusion)
        return metrics | {"val_sweeps": len(self._validation)}, round(fit_temperature(*sample.rows()), 4)

    def summary(self, metrics: dict[str, Any]) -> str:
        """IoU of each class, and the mean."""
        return iou_table(metrics)


def build_network(config: FinetuneConfig) -> tuple[Segmenter, InputConfig]:
    """The network to train, from `init` where there is one, and the voxels it takes."""
    inputs = inputs_of(config.model, config.voxels, config.bounds)
    network = build_segmenter(config.model, len(taxonomy_of(config.data).names), inputs)
    if config.init is not None:
        print(load_backbone(config.init, config.model, network.backbone, inputs))
    network.backbone.requires_grad_(not config.linear_probe)
    return network, inputs


def segmentation_metrics(config: FinetuneConfig, names: tuple[str, ...], confusion: ConfusionMatrix) -> dict[str, Any]:
    """As a checkpoint keeps them."""
    ious = zip(names, confusion.iou(), strict=True)
    metrics = {
        "val_miou": round(confusion.miou(), 4),
        "val_iou": {name: None if np.isnan(value) else round(float(value), 4) for name, value in ious},
        "val_accuracy": round(confusion.accuracy(), 4),
    }
    if config.data.name == STREET:
        metrics["val_seeds"] = list(config.data.street.val_seeds)
    return metrics


def iou_table(metrics: dict[str, Any]) -> str:
    """IoU of each class, and the mean, for the terminal."""
    ious = metrics["val_iou"]
    lines = [f"{name:22s} {'   absent' if iou is None else f'{100 * iou:8.2f}%'}" for name, iou in ious.items()]
    counted = sum(iou is not None for iou in ious.values())
    mean = f"val mIoU {100 * metrics['val_miou']:.2f}% over {counted} classes and {metrics['val_sweeps']} sweeps"
    return "\n".join([*lines, mean])


class LogitSample:
    """Logits and labels of labelled points spread evenly over all sweeps, about TEMPERATURE_POINTS of them."""

    def __init__(self, sweeps: list[Sweep]) -> None:
        labelled = sum(int(np.count_nonzero(sweep.labels != IGNORE)) for sweep in sweeps)
        self._step = max(1, labelled // TEMPERATURE_POINTS)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __call__(self, sweep: Sweep, logits: Tensor, voxel_of_point: Tensor) -> None:
        """Keeps every n-th point of a sweep that has a label and a voxel, as `evaluate` shows it."""
        rows = np.flatnonzero((sweep.labels != IGNORE) & (voxel_of_point.numpy() >= 0))[:: self._step]
        self._logits.append(logits[voxel_of_point[rows]].float())
        self._labels.append(torch.from_numpy(sweep.labels[rows].astype(np.int64)))

    def rows(self) -> tuple[Tensor, Tensor]:
        """(N, C) float32 logits and (N,) int64 labels."""
        return torch.cat(self._logits), torch.cat(self._labels)

"""Finetuning for 3D detection, and for detection and segmentation by one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from lima_core.config import ConfigError
from lima_core.data.boxed import BoxedSweep, LabelledClouds, open_boxed
from lima_core.data.frame import Detections
from lima_core.data.gt_sampling import GtDatabase
from lima_core.data.labelled import STREET, Sweep, taxonomy_of
from lima_core.metrics.calibration import fit_temperature
from lima_core.metrics.detection import DetectionMetric, DetectionResult
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.detections import to_detections
from lima_core.models.detector import Detector
from lima_core.models.loss import Loss
from lima_core.models.voxelize_range import RangeConfig
from lima_core.training.boxed_batches import BoxedBatch, TrainingBoxes, collate_boxed
from lima_core.training.finetune_config import FinetuneConfig
from lima_core.training.initial import load_backbone
from lima_core.training.loss import segmentation_loss
from lima_core.training.segmentation_task import LogitSample, iou_table, segmentation_metrics
from lima_core.training.sweeps import point_classes


class DetectionTask:
    """Sweeps with boxes, a Detector and its score, mAP; with task `both` labels and mIoU as well."""

    score = "val_map"

    def __init__(self, config: FinetuneConfig, fabric: Fabric) -> None:
        self._config, self._fabric = config, fabric
        self._taxonomy = taxonomy_of(config.data)
        if not self._taxonomy.detection_names:
            raise ConfigError(f"data.name={config.data.name} has no classes of boxes; nuscenes and street have")
        self._segments = config.task == "both"
        self.network = build_detector(config)
        with fabric.rank_zero_first():  # the first process simulates, the others read what it kept
            self.training, self._validation = (
                open_boxed(config.data, split, config.detector.sweeps, max(1, config.workers))
                for split in ("train", "val")
            )
        database = None
        if config.boxes.gt_database is not None:
            database = GtDatabase(config.boxes.gt_database)
            database.check(config.data, config.detector.sweeps, len(self.training))
        try:
            self.batches = TrainingBoxes(
                self.training, config.batch_size, config.bounds, config.augment, config.seed, config.epochs,
                len(self._taxonomy.detection_names), config.boxes.balance, database,
                fabric.global_rank, fabric.world_size,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def loss(self, batch: BoxedBatch) -> Loss:
        """Of one batch, in training mode: heatmap or class, box, and cross-entropy with Lovasz where it segments."""
        device = self._fabric.device
        outputs, logits = self.network(batch.voxels.to(device), len(batch.boxes))
        loss = self.network.box_head.loss(outputs, [boxes.to(device) for boxes in batch.boxes])
        if logits is None:
            return loss
        labels = segmentation_loss(logits, batch.labels.to(device))
        return Loss(loss.total + labels.total, loss.parts | labels.parts)

    def validate(self) -> dict[str, Any]:
        """mAP, NDS and with task `both` mIoU over all validation sweeps, on every process alike."""
        result, confusion = self._evaluate(self.network)
        metrics = {self.score: result.mean_ap, "val_nds": result.nds}
        return metrics | ({"val_miou": confusion.miou()} if self._segments else {})

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the network's answers."""
        names = list(self._taxonomy.names) if self._segments else []
        colors = self._taxonomy.colors.tolist() if self._segments else []
        boxes = {"names": list(self._taxonomy.detection_names), "colors": self._taxonomy.box_colors().tolist()}
        return {"task": self._config.task, "classes": {"names": names, "colors": colors}, "detection": boxes}

    def sweep(self, index: int) -> Sweep:
        """The current sweep of a training cloud, for the statistics of the input."""
        boxed = self.training[index]
        return Sweep(boxed.points[: boxed.current, :4], np.zeros(0, np.uint8), boxed.beams)

    def measure(self, network: Detector) -> tuple[dict[str, Any], float]:
        """Metrics and temperature of a stored network on all validation sweeps."""
        sample = LogitSample(LabelledClouds(self._validation)) if self._segments else None
        result, confusion = self._evaluate(network, sample)
        metrics = {
            "val_map": round(result.mean_ap, 4),
            "val_nds": round(result.nds, 4),
            "val_ap": {
                n: round(float(ap), 4) for n, ap in zip(result.class_names, result.label_aps.mean(1), strict=True)
            },
            "val_sweeps": len(self._validation),
        }
        if sample is None:
            if self._config.data.name == STREET:
                metrics["val_seeds"] = list(self._config.data.street.val_seeds)
            return metrics, 1.0
        metrics |= segmentation_metrics(self._config, self._taxonomy.names, confusion)
        return metrics, round(fit_temperature(*sample.rows()), 4)

    def summary(self, metrics: dict[str, Any]) -> str:
        """AP of each class, mAP and NDS, and with task `both` the IoUs."""
        lines = [f"{name:22s} {100 * ap:8.2f}%" for name, ap in metrics["val_ap"].items()]
        mean = f"val mAP {100 * metrics['val_map']:.2f}%, NDS {100 * metrics['val_nds']:.2f}%"
        table = [iou_table(metrics)] if self._segments else []
        return "\n".join([*table, *lines, f"{mean} over {metrics['val_sweeps']} sweeps"])

    def _evaluate(self, network: Detector, look: LogitSample | None = None) -> tuple[DetectionResult, ConfusionMatrix]:
        metric = DetectionMetric(self._taxonomy.detection_names)
        confusion = ConfusionMatrix(len(self._taxonomy.names))
        for sweep, found, logits, voxel_of_point in answers(network, self._validation, self._config.bounds):
            metric.update(sweep.boxes, found, self._validation.ego_xy)
            if logits is not None:
                labels = sweep.point_labels()
                confusion.update(labels, point_classes(logits, voxel_of_point))
                if look is not None:
                    look(Sweep(sweep.points, labels, sweep.beams), logits, voxel_of_point)
        return metric.result(), confusion


def build_detector(config: FinetuneConfig) -> Detector:
    """The network to train, its backbone from `init` where there is one. Raises ConfigError, CheckpointError."""
    taxonomy = taxonomy_of(config.data)
    classes = len(taxonomy.names) if config.task == "both" else 0
    try:
        network = Detector(config.model, config.bounds, config.detector, taxonomy.detection_names, classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.init is not None:
        print(load_backbone(config.init, config.model, network.backbone, config.bounds))
    return network


@torch.inference_mode()
def answers(
    network: Detector, sweeps: Sequence[BoxedSweep], bounds: RangeConfig
) -> Iterator[tuple[BoxedSweep, Detections, Tensor | None, Tensor]]:
    """Each sweep with what the network finds in it, its voxels' (M, C) logits where it segments, on the CPU, and the
    voxel (N,) of its points, -1 out of range."""
    network.eval()
    device = next(network.parameters()).device
    for sweep in sweeps:
        batch = collate_boxed([sweep], bounds)
        outputs, logits = network(batch.voxels.to(device), 1)
        found = to_detections(network.box_head.decode(outputs)[0])
        yield sweep, found, None if logits is None else logits.cpu(), batch.voxel_of_point

"""Labelled sweeps as batches, and their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lima_core.data.augment import AugmentConfig, augment
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.voxelize import VoxelConfig
from lima_core.training.collate import Batch, collate


@dataclass(frozen=True)
class Sweep:
    """`points` (N, 4) float32 x, y, z in m, intensity in [0, 1]; `labels` (N,) uint8, 255 = ignore; `beams` of it."""

    points: np.ndarray
    labels: np.ndarray
    beams: int


class TrainingSweeps:
    """Batches of augmented sweeps; the batch of a step depends on (seed, step) alone."""

    def __init__(
        self, sweeps: Sequence[Sweep], batch_size: int, voxels: VoxelConfig, augmentation: AugmentConfig, seed: int
    ) -> None:
        if len(sweeps) < batch_size:
            raise ValueError(f"{len(sweeps)} training sweeps do not fill a batch of {batch_size}")
        self._sweeps, self._voxels, self._augmentation = sweeps, voxels, augmentation
        self._batch_size, self._seed = batch_size, seed
        self.steps_per_epoch = len(sweeps) // batch_size

    def batch(self, step: int) -> Batch:
        """The batch of one step; each epoch has its own order and drops the remainder."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sweeps))
        chosen = order[place * self._batch_size : (place + 1) * self._batch_size]
        return collate([self._augmented(int(index), epoch) for index in chosen], self._voxels)

    def _augmented(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, epoch, index])
        sweep = self._sweeps[index]
        return augment(sweep.points, rng, self._augmentation), sweep.labels


@torch.inference_mode()
def evaluate(network: nn.Module, sweeps: Sequence[Sweep], voxels: VoxelConfig, num_classes: int) -> ConfusionMatrix:
    """Point-level confusion matrix over all sweeps, batch-free, in eval mode."""
    network.eval()
    confusion = ConfusionMatrix(num_classes)
    for sweep in sweeps:
        batch = collate([(sweep.points, sweep.labels)], voxels)
        prediction = network(batch.voxels).argmax(1)[batch.voxel_of_point]
        confusion.update(sweep.labels, prediction.numpy())
    return confusion

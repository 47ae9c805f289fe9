"""Labelled sweeps as batches, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lima_core.data.augment import AugmentConfig, augment
from lima_core.data.frame import IGNORE
from lima_core.data.labelled import Sweep
from lima_core.data.mixing import mix
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.inputs import InputConfig
from lima_core.training.collate import Batch, collate

Mixing = Literal["none", "lasermix", "polarmix", "frustummix"]
MIX_SEED = 1  # keeps the draws of mixing apart from those of augmentation


class TrainingSweeps(Dataset):
    """Batches of augmented sweeps; the batch of a step depends on (seed, step) alone.

    Of several processes, `process` takes its share of each batch. With `mixing` half of the sweeps are mixed with
    another one, drawn at random.
    """

    def __init__(
        self,
        sweeps: Sequence[Sweep],
        batch_size: int,
        voxels: InputConfig,
        augmentation: AugmentConfig,
        seed: int,
        epochs: int = 1,
        mixing: Mixing = "none",
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if len(sweeps) < batch_size:
            raise ValueError(f"{len(sweeps)} training sweeps do not fill a batch of {batch_size}; set --batch_size")
        self._sweeps, self._voxels, self._augmentation = sweeps, voxels, augmentation
        self._batch_size, self._seed, self._epochs, self._mixing = batch_size, seed, epochs, mixing
        self._share = slice(process, None, processes)
        self.steps_per_epoch = len(sweeps) // batch_size

    def __len__(self) -> int:
        return self._epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step; each epoch has its own order and drops the remainder."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sweeps))
        chosen = order[place * self._batch_size : (place + 1) * self._batch_size][self._share]
        return collate([self._mixed(int(index), epoch) for index in chosen], self._voxels)

    def _mixed(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        own = self._augmented(index, epoch)
        if self._mixing == "none":
            return own.points, own.labels
        rng = np.random.default_rng([self._seed, epoch, index, MIX_SEED])
        if rng.random() < 0.5:
            return own.points, own.labels
        return mix(own, self._augmented(int(rng.integers(len(self._sweeps))), epoch), rng, self._mixing)

    def _augmented(self, index: int, epoch: int) -> Sweep:
        rng = np.random.default_rng([self._seed, epoch, index])
        sweep = self._sweeps[index]
        return replace(sweep, points=augment(sweep.points, rng, self._augmentation))


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    sweeps: Sequence[Sweep],
    voxels: InputConfig,
    num_classes: int,
    look: Callable[[Sweep, Tensor, Tensor], None] | None = None,
) -> ConfusionMatrix:
    """Point-level confusion matrix over all sweeps, batch-free, in eval mode, where the network is.

    `look(sweep, logits, voxel_of_point)` is shown each sweep's (M, C) logits and the voxel of each point, on the CPU.
    """
    network.eval()
    device = next(network.parameters()).device
    confusion = ConfusionMatrix(num_classes)
    for sweep in sweeps:
        batch = collate([(sweep.points, sweep.labels)], voxels)
        logits = network(batch.voxels.to(device)).cpu()
        confusion.update(sweep.labels, point_classes(logits, batch.voxel_of_point))
        if look is not None:
            look(sweep, logits, batch.voxel_of_point)
    return confusion


def point_classes(logits: Tensor, voxel_of_point: Tensor) -> np.ndarray:
    """(M, C) logits of voxels, (N,) voxel of each point -> (N,) classes; 255 for a point without a voxel, -1."""
    classes = torch.cat([logits.argmax(1), torch.tensor([IGNORE])])
    return classes[voxel_of_point].numpy()  # -1 takes the last

"""Sweeps with boxes as batches of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lima_core.data.augment import AugmentConfig, augment_boxed
from lima_core.data.boxed import BoxedSweep
from lima_core.data.class_balance import balanced
from lima_core.data.frame import IGNORE, Boxes
from lima_core.data.gt_sampling import GtDatabase
from lima_core.models.inputs import batch_column, encode
from lima_core.models.voxelize_range import RangeConfig
from lima_core.sparse.tensor import SparseTensor

PASTE_SEED, BALANCE_SEED = 2, 3  # keep these draws apart from those of augmentation and order


@dataclass(frozen=True)
class BoxedBatch:
    """`voxels` (M, 5) of all scenes; `boxes` (B_i, 10) float32 of each scene as the heads take them; `labels` (M,)
    int64 of each voxel's first point of the current sweep, 255 = ignore or none; `voxel_of_point` (N,) int64."""

    voxels: SparseTensor
    boxes: tuple[Tensor, ...]
    labels: Tensor
    voxel_of_point: Tensor


def collate_boxed(sweeps: Sequence[BoxedSweep], bounds: RangeConfig) -> BoxedBatch:
    """Sweeps -> one batch; boxes with their centre out of range are no targets (`AnchorHead`, `CenterHead`)."""
    points = torch.from_numpy(np.concatenate([sweep.points for sweep in sweeps]))
    labels = torch.from_numpy(np.concatenate([_labels(sweep) for sweep in sweeps]))
    found = encode(points, bounds, batch_column([len(sweep.points) for sweep in sweeps]))
    boxes = tuple(targets(sweep.boxes) for sweep in sweeps)
    return BoxedBatch(found.voxels, boxes, labels[found.first_point].long(), found.voxel_of_point)


def targets(boxes: Boxes) -> Tensor:
    """Boxes -> (B, 10) float32 x, y, z, l, w, h, yaw, velocity x, y, class."""
    columns = [boxes.center, boxes.size, boxes.yaw[:, None], boxes.velocity, boxes.class_id[:, None]]
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))


def _labels(sweep: BoxedSweep) -> np.ndarray:
    """(N,) uint8; past sweeps come last, so a voxel's first point is a labelled one if any is."""
    return np.full(len(sweep.points), IGNORE, np.uint8) if sweep.labels is None else sweep.point_labels()


class TrainingBoxes(Dataset):
    """Batches of augmented sweeps with boxes; the batch of a step depends on (seed, step) alone.

    With `balance` an epoch's sweeps are drawn so that all classes occur about equally often (CBGS); objects of
    `database` are pasted before augmentation. Of several processes, `process` takes its share of each batch. Raises
    ValueError where an epoch does not fill a batch.
    """

    def __init__(
        self,
        sweeps: Sequence[BoxedSweep],
        batch_size: int,
        bounds: RangeConfig,
        augmentation: AugmentConfig,
        seed: int,
        epochs: int,
        num_classes: int,
        balance: bool,
        database: GtDatabase | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._sweeps, self._bounds, self._augmentation, self._database = sweeps, bounds, augmentation, database
        self._batch_size, self._seed, self._epochs, self._num_classes = batch_size, seed, epochs, num_classes
        self._share = slice(process, None, processes)
        self._classes = [sweeps.classes(index).tolist() for index in range(len(sweeps))] if balance else None
        self._orders: dict[int, np.ndarray] = {}
        self.steps_per_epoch = len(self._order(0)) // batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{len(self._order(0))} sweeps of an epoch do not fill a batch of {batch_size}; set --batch_size"
            )

    def __len__(self) -> int:
        return self._epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> BoxedBatch:
        """The batch of one step; each epoch has its own order and drops the remainder."""
        epoch, place = divmod(step, self.steps_per_epoch)
        places = np.arange(place * self._batch_size, (place + 1) * self._batch_size)[self._share]
        return collate_boxed([self._changed(epoch, int(place)) for place in places], self._bounds)

    def _order(self, epoch: int) -> np.ndarray:
        """Sweep of each place of an epoch."""
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, epoch, BALANCE_SEED])
            drawn = range(len(self._sweeps))
            if self._classes is not None:
                drawn = balanced(self._classes, self._num_classes, rng)
            self._orders = {epoch: rng.permutation(drawn)}
        return self._orders[epoch]

    def _changed(self, epoch: int, place: int) -> BoxedSweep:
        """A sweep may come twice in an epoch, so that its draws depend on its place."""
        sweep = self._sweeps[int(self._order(epoch)[place])].trainable()
        if self._database is not None:
            sweep = self._database.paste(sweep, np.random.default_rng([self._seed, epoch, place, PASTE_SEED]))
        return augment_boxed(sweep, np.random.default_rng([self._seed, epoch, place]), self._augmentation)

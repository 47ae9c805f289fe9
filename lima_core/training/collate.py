"""Sweeps to one batch of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lima_core.models.inputs import InputConfig, batch_column, encode
from lima_core.sparse.tensor import SparseTensor


@dataclass(frozen=True)
class Batch:
    """Voxels of several sweeps: `voxels` (M, 4) input features; `labels` (M,) int64 of each voxel's first point,
    255 = ignore; `voxel_of_point` (N,) int64 rows of all sweeps' points, one sweep after the other, -1 out of range."""

    voxels: SparseTensor
    labels: Tensor
    voxel_of_point: Tensor


def collate(sweeps: Sequence[tuple[np.ndarray, np.ndarray]], config: InputConfig) -> Batch:
    """[(points (N_i, 4) float32, labels (N_i,) uint8), ...] -> Batch."""
    points = torch.from_numpy(np.concatenate([points for points, _ in sweeps]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in sweeps]))
    found = encode(points, config, batch_column([len(points) for points, _ in sweeps]))
    return Batch(found.voxels, labels[found.first_point].long(), found.voxel_of_point)

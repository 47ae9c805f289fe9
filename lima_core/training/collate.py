"""Sweeps to one batch of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lima_core.models.voxelize import VoxelConfig, network_input, voxelize
from lima_core.sparse.tensor import SparseTensor


@dataclass(frozen=True)
class Batch:
    """Voxels of several sweeps: `voxels` (M, 4) input features; `labels` (M,) int64 of each voxel's first point,
    255 = ignore; `voxel_of_point` (N,) int64 rows of all sweeps' points, one sweep after the other."""

    voxels: SparseTensor
    labels: Tensor
    voxel_of_point: Tensor


def collate(sweeps: Sequence[tuple[np.ndarray, np.ndarray]], config: VoxelConfig) -> Batch:
    """[(points (N_i, 4) float32, labels (N_i,) uint8), ...] -> Batch."""
    points = torch.from_numpy(np.concatenate([points for points, _ in sweeps]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in sweeps]))
    sizes = torch.tensor([len(points) for points, _ in sweeps])
    batch = torch.repeat_interleave(torch.arange(len(sweeps), dtype=torch.int32), sizes)
    voxels = voxelize(points, config, batch)
    features = network_input(points[voxels.first_point])
    return Batch(SparseTensor(features, voxels.coords), labels[voxels.first_point].long(), voxels.voxel_of_point)

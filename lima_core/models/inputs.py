"""A cloud as a network takes it, whatever its voxels: MinkUNet's unbounded grid or VoxelNet's bounded one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lima_core.models.voxelize import VoxelConfig, network_input, voxelize
from lima_core.models.voxelize_range import RangeConfig, voxelize_range
from lima_core.sparse.kernel_map import Maps
from lima_core.sparse.tensor import SparseTensor

InputConfig = VoxelConfig | RangeConfig
LAG_S = 0.5  # ten sweeps at 20 Hz: the time lag, too, is of order one


@dataclass(frozen=True)
class Input:
    """`voxels` (M, C) features of one or more clouds; `voxel_of_point` (N,) int64, -1 for points out of range;
    `first_point` (M,) int64 the first point in input order of each voxel."""

    voxels: SparseTensor
    voxel_of_point: Tensor
    first_point: Tensor


def encode(points: Tensor, config: InputConfig, batch: Tensor | None = None) -> Input:
    """(N, 4) x, y, z in m, intensity [0, 1], and a fifth column time lag in s where VoxelNet has sweeps -> Input.

    `batch` (N,) int32 tells the clouds of a batch apart. MinkUNet's voxels take the features of their first point and
    have no time; VoxelNet's take the mean of their points, as the detectors do (spec/datasets.md 1.5, 3.1).
    """
    if isinstance(config, VoxelConfig):
        voxels = voxelize(points, config, batch)
        features = network_input(points[voxels.first_point])
        return Input(SparseTensor(features, voxels.coords), voxels.voxel_of_point, voxels.first_point)
    cells = voxelize_range(points, config, batch)
    features = torch.cat([network_input(cells.features), cells.features[:, 4:] / LAG_S], 1)
    maps = Maps(cells.coords, config.shape)
    return Input(SparseTensor(features, cells.coords, maps=maps), cells.voxel_of_point, cells.first_point)


def batch_column(sizes: Sequence[int]) -> Tensor:
    """Points of each cloud -> (N,) int32 the cloud of each point."""
    return torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), torch.tensor(list(sizes)))

"""Points to voxels and back (spec/datasets.md 1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lima_core.config import option
from lima_core.sparse.kernel_map import pack, unpack

FARTHEST_M = 1000.0  # no LiDAR returns from farther; keeps voxel indices in range whatever a driver sends

Rounding = Literal["round", "floor"]


@dataclass(frozen=True)
class VoxelConfig:
    """Shape and size of the voxels."""

    kind: Literal["cylinder", "cartesian"] = option("cylinder", "axes of the voxels: (radius, azimuth, z) or (x, y, z)")
    size: tuple[float, float, float] = option((0.1, 1.0, 0.1), "m, degrees, m for cylinder; m, m, m for cartesian")
    rounding: Literal["round", "floor"] = option(
        "round", "voxel index of a coordinate; round as SuperFlow, floor as SLidR"
    )


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels of one or more clouds, in ascending order of their coordinates.

    `coords` (M, 4) int32 [batch, index...]; `first_point` (M,) int64 the first point in input order of each voxel;
    `voxel_of_point` (N,) int64. A voxel takes feature and label of its first point, as in SuperFlow and LiMoE: exact
    and deterministic on every device, where a mean is neither.
    """

    coords: Tensor
    first_point: Tensor
    voxel_of_point: Tensor


def voxelize(points: Tensor, config: VoxelConfig, batch: Tensor | None = None) -> Voxels:
    """(N, >=3) finite points in m -> occupied voxels; `batch` (N,) int32 tells the clouds of a batch apart.

    The grid stays fixed to the sensor: subtracting the least index of each scan, as SuperFlow does, would let one
    stray point shift every coarser level. There is no wrap-around at +-180 degrees of azimuth.
    """
    index = {"cylinder": cylinder_index, "cartesian": cartesian_index}[config.kind]
    coords = index(points, config.size, config.rounding)
    column = coords.new_zeros(len(coords)) if batch is None else batch
    return merge(torch.cat([column[:, None], coords], 1))


def merge(coords: Tensor) -> Voxels:
    """(N, 4) int32 [batch, index...] of points -> voxels without duplicates."""
    keys, order = torch.sort(pack(coords), stable=True)
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = keys[1:] != keys[:-1]
    voxel_of_point = torch.empty_like(order)
    voxel_of_point[order] = starts.cumsum(0) - 1
    return Voxels(unpack(keys[starts]), order[starts], voxel_of_point)


def cylinder_index(points: Tensor, size: tuple[float, float, float], rounding: Rounding = "round") -> Tensor:
    """(N, >=3) x, y, z in m -> (N, 3) int32 index of (radius, azimuth, z); `size` in m, degrees, m."""
    x, y, z = points[:, :3].double().unbind(1)
    return _index(torch.stack([torch.hypot(x, y), torch.rad2deg(torch.atan2(y, x)), z], 1), size, rounding)


def cartesian_index(points: Tensor, size: tuple[float, float, float], rounding: Rounding = "floor") -> Tensor:
    """(N, >=3) x, y, z in m -> (N, 3) int32 index; `size` in m."""
    return _index(points[:, :3].double(), size, rounding)


def _index(coords: Tensor, size: tuple[float, float, float], rounding: Rounding) -> Tensor:
    cells = coords / coords.new_tensor(size)
    return (cells.round() if rounding == "round" else cells.floor()).int()


def network_input(points: Tensor) -> Tensor:
    """(N, 4) x, y, z in m, intensity in [0, 1] -> (N, 4) float32 of order one.

    The root keeps the weak returns apart (a LiDAR's mean intensity is below 0.1) and halves, in the exponent, the
    unknown factor between two sensors' scales.
    """
    scale = points.new_tensor([1 / 50, 1 / 50, 1 / 5])
    return torch.cat([points[:, :3] * scale, points[:, 3:4].clamp(0, 1).sqrt()], 1).float()

"""Points to the detectors' voxels: a bounded grid, each voxel the mean of its points (spec/datasets.md 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lima_core.config import option
from lima_core.sparse.kernel_map import Triple, pack, unpack


@dataclass(frozen=True)
class RangeConfig:
    """Extent and size of the voxels. Raises ValueError when the range is not a whole number of them."""

    low: tuple[float, float, float] = option((-51.2, -51.2, -5.0), "least x, y, z in m, inside the range")
    high: tuple[float, float, float] = option((51.2, 51.2, 3.0), "greatest x, y, z in m, outside the range")
    size: tuple[float, float, float] = option((0.1, 0.1, 0.2), "of a voxel in x, y, z, in m")
    points_per_voxel: int = option(10, "a voxel is the mean of its first so many points in input order")

    def __post_init__(self) -> None:
        if self.points_per_voxel < 1:
            raise ValueError(f"points_per_voxel is {self.points_per_voxel}; a voxel needs at least 1 point")
        for axis, low, high, size in zip("xyz", self.low, self.high, self.size, strict=True):
            if size <= 0 or high <= low or abs((high - low) / size - round((high - low) / size)) > 1e-3:
                raise ValueError(f"{axis}: {low} to {high} m is not a whole number of voxels of {size} m")

    @property
    def grid(self) -> Triple:
        """Voxels in x, y, z that points can fall into."""
        return tuple(round((b - a) / s) for a, b, s in zip(self.low, self.high, self.size, strict=True))

    @property
    def shape(self) -> Triple:
        """The volume of VoxelNet: the grid and, as in OpenPCDet and mmdet3d, an empty layer on top."""
        x, y, z = self.grid
        return x, y, z + 1


@dataclass(frozen=True)
class RangeVoxels:
    """Occupied voxels of one or more clouds, in ascending order of their coordinates.

    `coords` (M, 4) int32 [batch, x, y, z]; `features` (M, C) means of the points' columns; `voxel_of_point` (N,) int64,
    -1 for points out of range; points beyond the first `points_per_voxel` have their voxel, but no part in its mean.
    `first_point` (M,) int64 the first point in input order of each voxel.
    """

    coords: Tensor
    features: Tensor
    voxel_of_point: Tensor
    first_point: Tensor


def voxelize_range(points: Tensor, config: RangeConfig, batch: Tensor | None = None) -> RangeVoxels:
    """(N, C >= 3) x, y, z in m and further columns -> voxels; `batch` (N,) int32 tells the clouds of a batch apart.

    The detectors' columns are x, y, z, intensity, time lag. The number of voxels is not capped (60k to 120k in
    OpenPCDet and mmdet3d): a cap keeps the voxels met first, so the result would depend on the order of the points.
    """
    inside, coords = _inside(points, config)
    column = coords.new_zeros(len(coords)) if batch is None else batch[inside]
    keys, order = torch.sort(pack(torch.cat([column[:, None], coords], 1)), stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    order = inside[order]
    voxel = torch.repeat_interleave(torch.arange(len(keys), device=keys.device), counts)
    voxel_of_point = order.new_full((len(points),), -1)
    voxel_of_point[order] = voxel
    means = _means(points, order, counts, config.points_per_voxel)
    return RangeVoxels(unpack(keys), means, voxel_of_point, order[counts.cumsum(0) - counts])


def _inside(points: Tensor, config: RangeConfig) -> tuple[Tensor, Tensor]:
    """Rows (P,) of the points in range, and their voxels (P, 3) int32: floor((p - low) / size).

    The limits are rounded to the points' type first: a float32 point at -51.2 lies on the border, not below it.
    """
    low, high = (points.new_tensor(limit) for limit in (config.low, config.high))
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(1).nonzero().squeeze(1)
    size = torch.tensor(config.size, dtype=torch.float64, device=points.device)
    cells = ((points[inside, :3].double() - low.double()) / size).floor().int()
    return inside, torch.minimum(cells, cells.new_tensor(config.grid) - 1)


def _means(points: Tensor, order: Tensor, counts: Tensor, limit: int) -> Tensor:
    """Means (M, C) of the first `limit` of each voxel's points; `order` (P,) lists the points voxel by voxel.

    Every voxel sums its own points in turn: unlike atomic additions, deterministic on every device.
    """
    rank = torch.arange(len(order), device=order.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    taken = counts.clamp(max=limit)
    return functional.embedding_bag(order[rank < limit], points, taken.cumsum(0) - taken, mode="mean")

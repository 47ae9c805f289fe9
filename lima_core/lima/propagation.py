"""Long-Term Feature Propagation (LiMA section 4.2): what earlier frames saw, moved into the current one and fused.

X'_{t-i} = (T_t)^-1 T_{t-i} X_{t-i}                      ego-motion alignment, features ride along
F_d(v)   = mean of {F_u at X_t in v} and {F_u^{t-i} at X'_{t-i} in v, i = 1..k}    for every voxel v
F_d(p)   = F_d(voxel of p)                               for every point of the current sweep

The paper names alignment and "feature pooling"; one shared Cartesian grid with a mean is the default of spec/lima.md
section 6. Points that no camera sees now but that were seen earlier get a target too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lima_core.lima.memory import Memory
from lima_core.sparse.kernel_map import pack

VOXEL_M = 0.1


def propagate(
    points: Tensor,
    current: Memory,
    past: Sequence[Memory],
    voxel_m: float = VOXEL_M,
    gate: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Fuses the memories into the current frame.

    `points` (N, 3) of the sweep at t; `current` the memory of that same sweep; `past` earlier ones, in any order.
    Returns F_d (R, C) and the rows (R,) int64 of the points that have a target, ascending. `gate`: past features whose
    cosine to the current feature of their voxel is lower are left out (moving objects; ours, not the paper's).
    """
    grid = _Grid(points, voxel_m)
    now = torch.zeros(len(grid.voxels), current.features.shape[1]).to(current.features)
    count = torch.zeros(len(grid.voxels)).to(now)
    _pool(now, count, current.features, *grid.place(current.points))
    total, seen_now = (now, None) if gate is None else (now.clone(), count > 0)
    for memory in past:
        rows, voxel = grid.place(aligned(memory, current.world_from_lidar))
        if gate is not None:
            agrees = functional.cosine_similarity(memory.features[rows], now[voxel], dim=1) >= gate
            agrees |= ~seen_now[voxel]
            rows, voxel = rows[agrees], voxel[agrees]
        _pool(total, count, memory.features, rows, voxel)
    rows = (count > 0)[grid.voxel_of_point].nonzero().squeeze(1)
    return (total / count.clamp(min=1)[:, None])[grid.voxel_of_point[rows]], rows


def aligned(memory: Memory, world_from_now: Tensor) -> Tensor:
    """(M, 3) float64 points of a memory in the LiDAR frame of the pose `world_from_now` (4, 4)."""
    now_from_then = torch.linalg.solve(world_from_now.double(), memory.world_from_lidar.double())
    return memory.points.double() @ now_from_then[:3, :3].T + now_from_then[:3, 3]


class _Grid:
    """The voxels that hold a point of the current sweep: only there can a feature become a target."""

    def __init__(self, points: Tensor, voxel_m: float) -> None:
        self._voxel_m = voxel_m
        edge = points.double() if len(points) else points.new_full((1, 3), torch.nan)  # nan: nothing is near
        self._low, self._high = edge.amin(0) - voxel_m, edge.amax(0) + voxel_m
        self.voxels, self.voxel_of_point = torch.unique(self._keys(points), return_inverse=True)

    def place(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(M, 3) m -> rows (R,) of the points that fall into a voxel of the sweep, and these voxels (R,)."""
        near = ((points >= self._low) & (points <= self._high)).all(dim=1).nonzero().squeeze(1)
        if len(near) == 0:
            return near, near
        keys = self._keys(points[near])
        voxel = torch.searchsorted(self.voxels, keys).clamp(max=len(self.voxels) - 1)
        hit = self.voxels[voxel] == keys
        return near[hit], voxel[hit]

    def _keys(self, points: Tensor) -> Tensor:
        """(N, 3) m -> (N,) int64 key of each point's voxel."""
        index = torch.floor(points.double() / self._voxel_m).int()
        return pack(torch.cat([index.new_zeros(len(index), 1), index], 1))


def _pool(total: Tensor, count: Tensor, features: Tensor, rows: Tensor, voxel: Tensor) -> None:
    """Adds the features of `rows` to the sums (V, C) and counts (V,) of their voxels."""
    total.index_add_(0, voxel, features[rows])
    count += torch.bincount(voxel, minlength=len(count))

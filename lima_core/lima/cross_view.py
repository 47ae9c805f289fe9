"""Cross-View Aggregation (LiMA section 4.1): one image feature per LiDAR point, whatever the number of cameras.

f_u(p) = mean over the cameras v that see p of  f_v(pi_v(p)) / |f_v(pi_v(p))|

f_v is the teacher's patch grid of camera v, sampled bilinearly at the projection pi_v(p); the dense upsampled map is
never built. A patch's feature sits at the patch's centre, where SuperFlow's align_corners=True would shift features by
up to half a patch towards the border. The paper does not name the operator: `mean` is the default of spec/lima.md
section 6, `max` (per channel) its ablation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lima_core.data.frame import Frame

Operator = Literal["mean", "max"]


@dataclass(frozen=True)
class Sightings:
    """Where the cameras of one frame see its points.

    For each of the S (camera, point) pairs: `camera` (S,) int64, `point` (S,) int64 row of the sweep, `uv` (S, 2)
    float32 position in the picture, 0..1 from its left/top to its right/bottom edge.
    """

    camera: Tensor
    point: Tensor
    uv: Tensor

    def to(self, device: str | torch.device) -> Sightings:
        """A copy on a device."""
        return Sightings(self.camera.to(device), self.point.to(device), self.uv.to(device))

    def of(self, camera: int) -> Sightings:
        """Those of one camera."""
        chosen = self.camera == camera
        return Sightings(self.camera[chosen], self.point[chosen], self.uv[chosen])


def sightings(frame: Frame) -> Sightings:
    """Projects every point into every camera (depth > 1 m, inside the picture, no occlusion test)."""
    cameras, points, positions = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)], []
    for index, view in enumerate(frame.cameras):
        where = view.project(frame.points)
        seen = torch.from_numpy(where.visible.nonzero()[0])
        # pixel centres lie at integers (OpenCV), so the left edge of the picture is at -0.5
        uv = torch.from_numpy((where.uv[where.visible] + 0.5) / view.size)
        cameras.append(torch.full_like(seen, index))
        points.append(seen)
        positions.append(uv.float())
    return Sightings(torch.cat(cameras), torch.cat(points), torch.cat([torch.empty(0, 2), *positions]))


def aggregate(grids: Tensor, seen: Sightings, operator: Operator = "mean") -> tuple[Tensor, Tensor]:
    """(V, C, h, w) patch grids -> features (N_v, C) of the points seen by any camera, and their rows (N_v,) int64.

    Rows are in ascending order.
    """
    rows, slot, count = torch.unique(seen.point, return_inverse=True, return_counts=True)
    unit = functional.normalize(sample(grids, seen), dim=1)
    fused = unit.new_zeros(len(rows), unit.shape[1])
    if operator == "mean":
        return fused.index_add_(0, slot, unit) / count[:, None], rows
    if operator == "max":
        return fused.scatter_reduce_(0, slot[:, None].expand_as(unit), unit, "amax", include_self=False), rows
    raise ValueError(f"cross-view operator {operator!r} is unknown; use mean or max")


def sample(grids: Tensor, seen: Sightings) -> Tensor:
    """(V, C, h, w) patch grids at S sightings -> (S, C), bilinear between patch centres, flat beyond the outermost.

    A weighted sum of four rows: several times faster on a CPU than grid_sample, whose channels lie far apart.
    """
    _, channels, height, width = grids.shape
    extent = seen.uv.new_tensor([width, height])
    xy = torch.minimum((seen.uv * extent - 0.5).clamp(min=0), extent - 1)
    left, top = xy.long().unbind(1)
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    fx, fy = (xy - xy.floor()).to(grids.dtype).unbind(1)
    row = seen.camera * height
    corners = [(row + y) * width + x for y in (top, bottom) for x in (left, right)]
    weights = [wy * wx for wy in (1 - fy, fy) for wx in (1 - fx, fx)]
    table = grids.permute(0, 2, 3, 1).reshape(-1, channels)
    if len(seen.point) == 0:
        return table.new_empty(0, channels)
    return functional.embedding_bag(
        torch.stack(corners, 1), table, mode="sum", per_sample_weights=torch.stack(weights, 1)
    )

"""Which input voxel meets which output voxel under which kernel offset.

Coordinates are packed into one int64 key, sorted once and searched; maps are built once per (coordinates, kernel,
stride) and shared by every layer of a level and by the inverse convolution (spec/sparse.md, "What made the pure
PyTorch form fast").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AXIS_BITS = 18
REACH = 2 ** (AXIS_BITS - 1) - 16  # the margin keeps a neighbour's key from running into the next axis
MAX_BATCH = 2 ** (63 - 3 * AXIS_BITS)


class CoordinateError(ValueError):
    """Voxel coordinates are malformed, duplicate or out of range."""


@dataclass(frozen=True)
class KernelMap:
    """Pairs of voxels that one convolution joins, sorted by kernel offset.

    `source` (P,) int64 input rows, `target` (P,) int64 output rows, `counts` pairs of each of the K offsets.
    `identity` is the offset under which every row meets itself; it has no pairs. None where there is no such offset.
    """

    source: Tensor
    target: Tensor
    counts: tuple[int, ...]
    n_source: int
    n_target: int
    identity: int | None = None

    def transposed(self) -> KernelMap:
        """The same pairs seen from the outputs: the map of the inverse convolution."""
        return KernelMap(self.target, self.source, self.counts, self.n_target, self.n_source, self.identity)


class Maps:
    """Coordinates of one level and the kernel maps built on them so far. `coords` (M, 4) int32 [batch, x, y, z]."""

    def __init__(self, coords: Tensor) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32:
            got = f"{tuple(coords.shape)} {coords.dtype}"
            raise CoordinateError(f"coords must be (M, 4) int32 [batch, x, y, z], got {got}")
        self.coords = coords
        self._sorted: tuple[Tensor, Tensor] | None = None
        self._submanifold: dict[int, KernelMap] = {}
        self._strided: dict[tuple[int, int], tuple[KernelMap, Maps]] = {}

    def submanifold(self, kernel: int) -> KernelMap:
        """Map of a convolution whose outputs are the inputs' own voxels; `kernel` is odd."""
        if kernel not in self._submanifold:
            self._submanifold[kernel] = self._build_submanifold(kernel)
        return self._submanifold[kernel]

    def strided(self, kernel: int, stride: int) -> tuple[KernelMap, Maps]:
        """Map of a strided convolution padded by (kernel - 1) // 2, and the level of its outputs.

        An output voxel exists where the kernel meets at least one input. The volume has no border.
        """
        if (kernel, stride) not in self._strided:
            self._strided[kernel, stride] = self._build_strided(kernel, stride)
        return self._strided[kernel, stride]

    def _keys(self) -> tuple[Tensor, Tensor]:
        """Sorted keys and the row of each."""
        if self._sorted is None:
            keys, rows = torch.sort(pack(self.coords))
            repeated = (keys[1:] == keys[:-1]).nonzero()
            if len(repeated):
                where = self.coords[rows[repeated[0, 0]]].tolist()
                raise CoordinateError(
                    f"{len(repeated)} duplicate voxels, e.g. [batch, x, y, z] = {where}; merge points with voxelize()"
                )
            self._sorted = keys, rows
        return self._sorted

    def _build_submanifold(self, kernel: int) -> KernelMap:
        """Finds half of the neighbours and mirrors them: if b is at +offset of a, then a is at -offset of b."""
        keys, rows = self._keys()
        centre = kernel**3 // 2
        sources, targets = _neighbours(keys, rows, kernel)
        none = rows[:0]
        sources, targets = [*sources, none, *targets[::-1]], [*targets, none, *sources[::-1]]
        counts = tuple(len(s) for s in sources)
        return KernelMap(torch.cat(sources), torch.cat(targets), counts, len(keys), len(keys), identity=centre)

    def _build_strided(self, kernel: int, stride: int) -> tuple[KernelMap, Maps]:
        """in = stride * out + offset - padding, solved for out."""
        self._keys()
        axis = torch.arange(kernel, dtype=torch.int32, device=self.coords.device)
        offsets = torch.cartesian_prod(axis, axis, axis).reshape(-1, 1, 3)
        reached = self.coords[None, :, 1:] + (kernel - 1) // 2 - offsets
        offset, source = (reached % stride == 0).all(-1).nonzero(as_tuple=True)
        coarse = reached[offset, source].div(stride, rounding_mode="floor")
        keys, target = torch.unique(pack(torch.cat([self.coords[source, :1], coarse], 1)), return_inverse=True)
        level = Maps(unpack(keys))
        level._sorted = keys, torch.arange(len(keys), device=keys.device)
        counts = tuple(torch.bincount(offset, minlength=kernel**3).tolist())
        return KernelMap(source, target, counts, len(self.coords), len(keys)), level


def pack(coords: Tensor) -> Tensor:
    """(M, 4) int32 [batch, x, y, z] -> (M,) int64 keys that sort as the coordinates do.

    Raises CoordinateError outside |x|, |y|, |z| <= REACH and 0 <= batch < MAX_BATCH.
    """
    if len(coords):
        low, high = coords.amin(0).tolist(), coords.amax(0).tolist()
        if low[0] < 0 or high[0] >= MAX_BATCH or min(low[1:]) < -REACH or max(high[1:]) > REACH:
            raise CoordinateError(
                f"voxel coordinates [batch, x, y, z] span {low} to {high}; allowed are batch 0 to {MAX_BATCH - 1} "
                f"and +-{REACH} voxels: remove far points or use larger voxels"
            )
    batch, x, y, z = coords.long().unbind(1)
    half = 1 << (AXIS_BITS - 1)
    return (((batch << AXIS_BITS | (x + half)) << AXIS_BITS) | (y + half)) << AXIS_BITS | (z + half)


def unpack(keys: Tensor) -> Tensor:
    """The inverse of `pack`."""
    half, mask = 1 << (AXIS_BITS - 1), (1 << AXIS_BITS) - 1
    axes = [(keys >> shift & mask) - half for shift in (2 * AXIS_BITS, AXIS_BITS, 0)]
    return torch.stack([keys >> 3 * AXIS_BITS, *axes], 1).int()


def _neighbours(keys: Tensor, rows: Tensor, kernel: int) -> tuple[list[Tensor], list[Tensor]]:
    """Source and target rows for each offset before the central one.

    z is the lowest axis of a key, so the neighbours of one (dx, dy) column lie side by side: one search per column.
    """
    radius, half = kernel // 2, kernel**3 // 2
    steps = torch.arange(-radius, radius + 1, device=keys.device)
    columns = torch.cartesian_prod(steps, steps)[: kernel**2 // 2 + 1]
    first = keys + ((columns[:, :1] << 2 * AXIS_BITS) + (columns[:, 1:] << AXIS_BITS) - radius)
    position = torch.searchsorted(keys, first)
    padded = torch.cat([keys, keys.new_full((1,), -1)])
    hits = []
    for dz in range(kernel):
        hit = padded[position] == first + dz
        hits.append((hit, position))
        position = position + hit
    sources, targets = [], []
    for offset in range(half):
        hit, position = hits[offset % kernel]
        row = hit[offset // kernel].nonzero().squeeze(1)
        sources.append(rows[position[offset // kernel, row]])
        targets.append(rows[row])
    return sources, targets

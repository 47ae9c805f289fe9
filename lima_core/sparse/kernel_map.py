"""Which input voxel meets which output voxel under which kernel offset.

Coordinates are packed into one int64 key, sorted once and searched; maps are built once per (coordinates, kernel,
stride) and shared by every layer of a level and by the inverse convolution (spec/sparse.md, "What made the pure
PyTorch form fast").
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

AXIS_BITS = 18
REACH = 2 ** (AXIS_BITS - 1) - 16  # the margin keeps a neighbour's key from running into the next axis
MAX_BATCH = 2 ** (63 - 3 * AXIS_BITS)


Triple = tuple[int, int, int]


class CoordinateError(ValueError):
    """Voxel coordinates are malformed, duplicate or out of range."""


class KernelMap:
    """Pairs of voxels that one convolution joins, sorted by kernel offset.

    `source` (P,) int64 input rows, `target` (P,) int64 output rows, `counts` pairs of each of the K offsets.
    `identity` is the offset under which every row meets itself; it has no pairs. None where there is no such offset.
    A map with an identity is symmetric: if s is at offset k of t, then t is at offset K - 1 - k of s.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        counts: tuple[int, ...],
        n_source: int,
        n_target: int,
        identity: int | None = None,
    ) -> None:
        self.source, self.target, self.counts = source, target, counts
        self.n_source, self.n_target, self.identity = n_source, n_target, identity
        self.derived: dict[Hashable, Any] = {}  # what a backend has made of the map, kept for the next layer
        self._transposed: KernelMap | None = None
        # weak, for a cycle would keep the tensors until the next garbage collection
        self._origin: weakref.ref[KernelMap] | None = None

    def transposed(self) -> tuple[KernelMap, int]:
        """The pairs seen from the outputs, and whether its offsets run as here (1) or backwards (-1)."""
        if self.identity is not None:
            return self, -1
        origin = self._origin and self._origin()
        if origin is not None:
            return origin, 1
        if self._transposed is None:
            self._transposed = KernelMap(self.target, self.source, self.counts, self.n_target, self.n_source)
            self._transposed._origin = weakref.ref(self)
        return self._transposed, 1


class Maps:
    """Coordinates of one level and the kernel maps built on them so far.

    `coords` (M, 4) int32 [batch, x, y, z]; `shape` size of the volume in voxels, whose first voxel is (0, 0, 0): a
    strided convolution has no output beyond what its padding reaches, as in dense networks. None: no border.
    """

    def __init__(self, coords: Tensor, shape: Triple | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32:
            got = f"{tuple(coords.shape)} {coords.dtype}"
            raise CoordinateError(f"coords must be (M, 4) int32 [batch, x, y, z], got {got}")
        self.coords, self.shape = coords, shape
        self._sorted: tuple[Tensor, Tensor | None] | None = None
        self._submanifold: dict[int, KernelMap] = {}
        self._strided: dict[tuple[Triple, Triple, Triple], tuple[KernelMap, Maps]] = {}

    def submanifold(self, kernel: int) -> KernelMap:
        """Map of a convolution whose outputs are the inputs' own voxels; `kernel` is odd."""
        if kernel not in self._submanifold:
            self._submanifold[kernel] = self._build_submanifold(kernel)
        return self._submanifold[kernel]

    def strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[KernelMap, Maps]:
        """Map of a strided convolution, and the level of its outputs, in ascending order of their coordinates.

        in = stride * out + offset - padding; an output voxel exists where the kernel meets at least one input.
        """
        key = kernel, stride, padding
        if key not in self._strided:
            self._strided[key] = self._build_strided(*key)
        return self._strided[key]

    def rows_of(self, coords: Tensor) -> Tensor:
        """(K, 4) int32 voxels of this level -> (K,) int64 rows. Raises CoordinateError where one is not occupied."""
        keys, rows = self._keys()
        wanted = pack(coords)
        found = _search(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        if len(wanted) and (not len(keys) or (keys[found] != wanted).any()):
            raise CoordinateError(f"some of {len(wanted)} voxels are not among the {len(keys)} of this level")
        return found if rows is None else rows[found]

    def _keys(self) -> tuple[Tensor, Tensor | None]:
        """Sorted keys and the row of each; no rows where the voxels are in this order already."""
        if self._sorted is None:
            self._check_shape()
            keys, rows = pack(self.coords), None
            if not (keys[1:] > keys[:-1]).all():
                keys, rows = torch.sort(keys)
                repeated = (keys[1:] == keys[:-1]).nonzero()
                if len(repeated):
                    where = self.coords[rows[repeated[0, 0]]].tolist()
                    raise CoordinateError(
                        f"{len(repeated)} duplicate voxels, e.g. [batch, x, y, z] = {where}; "
                        "merge points with voxelize()"
                    )
            self._sorted = keys, rows
        return self._sorted

    def _build_submanifold(self, kernel: int) -> KernelMap:
        """Finds half of the neighbours and mirrors them: if b is at +offset of a, then a is at -offset of b."""
        keys, rows = self._keys()
        sources, targets = _neighbours(keys, kernel)
        none = keys[:0]
        source = torch.cat([*sources, none, *targets[::-1]])
        target = torch.cat([*targets, none, *sources[::-1]])
        if rows is not None:
            source, target = rows[source], rows[target]
        counts = [len(s) for s in sources]
        counts = (*counts, 0, *counts[::-1])
        return KernelMap(source, target, counts, len(keys), len(keys), identity=kernel**3 // 2)

    def _check_shape(self) -> None:
        if self.shape is None or not len(self.coords):
            return
        low, high = self.coords[:, 1:].amin(0).tolist(), self.coords[:, 1:].amax(0).tolist()
        if min(low) < 0 or any(h >= size for h, size in zip(high, self.shape, strict=True)):
            raise CoordinateError(
                f"voxels span {low} to {high}, outside the volume {self.shape}; crop the points first"
            )

    def _build_strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[KernelMap, Maps]:
        """Solves in = stride * out + offset - padding for out."""
        self._keys()
        find = self._tiles if kernel == stride else self._reached
        offset, source, coarse = find(kernel, stride, padding)
        shape = None
        if self.shape is not None:
            shape = output_shape(self.shape, kernel, stride, padding)
            inside = ((coarse >= 0) & (coarse < coarse.new_tensor(shape))).all(1)
            offset, source, coarse = offset[inside], source[inside], coarse[inside]
        keys, target = torch.unique(pack(torch.cat([self.coords[source, :1], coarse], 1)), return_inverse=True)
        level = Maps(unpack(keys), shape)
        level._sorted = keys, None
        counts = tuple(torch.bincount(offset, minlength=math.prod(kernel)).tolist())
        return KernelMap(source, target, counts, len(self.coords), len(keys)), level

    def _reached(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Tensor, Tensor, Tensor]:
        """Offset (P,), input row (P,) and output coordinates (P, 3) of every pair, sorted by offset."""
        axes = [
            _along(self.coords[:, 1 + axis] + padding[axis], kernel[axis], stride[axis]) for axis in range(len(kernel))
        ]
        sources, coarse = [], []
        for (x, fits_x), (y, fits_y), (z, fits_z) in itertools.product(*axes):
            row = (fits_x & fits_y & fits_z).nonzero().squeeze(1)
            sources.append(row)
            coarse.append(torch.stack([x[row], y[row], z[row]], 1))
        counts = torch.tensor([len(row) for row in sources], device=self.coords.device)
        offset = torch.repeat_interleave(torch.arange(len(sources), device=counts.device), counts)
        return offset, torch.cat(sources), torch.cat(coarse)

    def _tiles(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Tensor, Tensor, Tensor]:
        """As `_reached`, for kernels that do not overlap: every voxel lies in one output, under one offset."""
        place, steps = self.coords[:, 1:] + self.coords.new_tensor(padding), self.coords.new_tensor(stride)
        coarse = place.div(steps, rounding_mode="floor")
        x, y, z = (place - coarse * steps).unbind(1)
        offset, source = torch.sort((x * kernel[1] + y) * kernel[2] + z, stable=True)
        return offset, source, coarse[source]


def output_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """The volume of a strided convolution's outputs, as in dense networks."""
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))


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


def _along(place: Tensor, kernel: int, stride: int) -> list[tuple[Tensor, Tensor]]:
    """For each offset along one axis: the output coordinate (M,) and whether there is one (M,)."""
    reached = [place - offset for offset in range(kernel)]
    return [(r.div(stride, rounding_mode="floor"), r % stride == 0) for r in reached]


def _neighbours(keys: Tensor, kernel: int) -> tuple[list[Tensor], list[Tensor]]:
    """Positions among the sorted `keys` of source and target, for each offset before the central one.

    z is the lowest axis of a key, so the neighbours of one (dx, dy) column lie side by side: one search per column,
    and none for the voxel's own.
    """
    radius = kernel // 2
    padded = torch.cat([keys, keys.new_full((1,), -1)])
    sources, targets = [], []
    for column in range(kernel**2 // 2 + 1):
        dx, dy = column // kernel - radius, column % kernel - radius
        wanted = keys + ((dx << 2 * AXIS_BITS) + (dy << AXIS_BITS) - radius)
        own = dx == dy == 0
        position = _below(keys, radius) if own else _search(keys, wanted)
        for _ in range(radius if own else kernel):
            hit = padded.index_select(0, position) == wanted
            row = hit.nonzero().squeeze(1)
            sources.append(position.index_select(0, row))
            targets.append(row)
            position, wanted = position + hit, wanted + 1
    return sources, targets


def _below(keys: Tensor, radius: int) -> Tensor:
    """Position of the first of the sorted, different `keys` that is at most `radius` less, for each of them."""
    position = torch.arange(len(keys), device=keys.device)
    for step in range(1, min(radius, len(keys) - 1) + 1):
        position[step:] -= (keys[:-step] >= keys[step:] - radius).long()
    return position


def _search(keys: Tensor, wanted: Tensor) -> Tensor:
    """As torch.searchsorted; on a CPU NumPy's, twice as fast where `wanted` ascends: it goes on where it was."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.searchsorted(keys.numpy(), wanted.numpy()))
    return torch.searchsorted(keys, wanted)

"""A kernel map cut into pieces of bounded size, as the torch backend works through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lima_core.sparse.kernel_map import KernelMap


@dataclass(frozen=True)
class Block:
    """Targets `start` to `stop` of a kernel map and their pairs, sorted by offset.

    `offsets` those that occur, with `counts` pairs each; of each offset, `sources` (P_k,) int64 input rows and
    `targets` (P_k,) int64 output rows. Products of the pairs are rows of a buffer, offset by offset, below those of
    the targets with themselves where the map has an identity; `products` (Q,) int32 lists the rows that each target
    adds up, target by target in ascending order of offset, `firsts` (stop - start + 1,) int32 where each target's
    list begins.
    """

    start: int
    stop: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    products: Tensor
    firsts: Tensor


def blocks(kernel_map: KernelMap, products: int) -> tuple[Block, ...]:
    """The map in blocks of consecutive targets with about `products` products each, at most K more."""
    key = "blocks", products
    if key not in kernel_map.derived:
        kernel_map.derived[key] = _cut(kernel_map, products)
    return kernel_map.derived[key]


def _cut(kernel_map: KernelMap, products: int) -> tuple[Block, ...]:
    """The blocks of a map: targets in order, cut where the number of products reaches a multiple of `products`."""
    own = kernel_map.identity is not None
    source, target, n_target = kernel_map.source, kernel_map.target, kernel_map.n_target
    if n_target == 0:
        return ()
    total = len(source) + own * n_target
    if total <= products:
        return (_block(source, target, kernel_map.counts, 0, n_target, own),)
    ends = (torch.bincount(target, minlength=n_target) + int(own)).cumsum(0)
    block_of_target = ((ends - 1).clamp(min=0) // products).int()
    n_blocks = int(block_of_target[-1]) + 1
    block, order = torch.sort(block_of_target[target], stable=True)
    source, target = source[order], target[order]
    kernel = len(kernel_map.counts)
    counts = torch.tensor(kernel_map.counts, device=source.device)
    offset = torch.repeat_interleave(torch.arange(kernel, device=source.device), counts)[order]
    counts = torch.bincount(block * kernel + offset, minlength=n_blocks * kernel).view(n_blocks, kernel).tolist()
    stops = torch.bincount(block_of_target, minlength=n_blocks).cumsum(0).tolist()
    blocks, first, start = [], 0, 0
    for stop, own_counts in zip(stops, counts, strict=True):
        last = first + sum(own_counts)
        blocks.append(_block(source[first:last], target[first:last], own_counts, start, stop, own))
        first, start = last, stop
    return tuple(block for block in blocks if block.stop > block.start)


def _block(source: Tensor, target: Tensor, counts: Sequence[int], start: int, stop: int, own: bool) -> Block:
    """One block; `own`: every target meets itself too."""
    size = stop - start
    kind = torch.int16 if size < 2**15 else torch.int32  # NumPy sorts 16 bits by radix
    local = (target - start).to(kind)
    if own:
        local = torch.cat([torch.arange(size, dtype=kind, device=local.device), local])
    products = _order(local)
    firsts = torch.zeros(size + 1, dtype=torch.int32, device=local.device)
    firsts[1:] = torch.bincount(local, minlength=size).cumsum(0)
    offsets = tuple(offset for offset, count in enumerate(counts) if count)
    present = tuple(counts[offset] for offset in offsets)
    return Block(start, stop, offsets, present, source.split(present), target.split(present), products, firsts)


def _order(values: Tensor) -> Tensor:
    """int32 indices of a stable sort; on a CPU NumPy's, up to ten times as fast for these short runs."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), kind="stable").astype(np.int32))
    return torch.sort(values, stable=True).indices.int()

"""Sparse convolution in plain PyTorch, for every device: gather, multiply, sum.

y[t] = sum over the pairs (s, t, k) of x[s] W_k

For each kernel offset k: gather the source rows into a small buffer that stays in the cache, multiply it by W_k into
its place in one buffer of products. Then each target adds up its own products: a segmented sum over a list made once
per kernel map. Nothing is scattered: every output row is written once, in an order that does not depend on threads, so
results are deterministic on every device. A block of targets bounds the memory whatever the cloud's size. Backward
saves X and W only and gathers once for both gradients. Measured choices: spec/sparse.md, `python bench/sparse.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lima_core.sparse.blocks import Block, blocks
from lima_core.sparse.kernel_map import KernelMap

CPU_PRODUCTS = 1 << 16  # rows of the product buffer: bounds the memory, and keeps a block near the cache
GPU_PRODUCTS = 1 << 19  # large enough to fill the device
CPU_COLUMNS = 128  # MKL multiplies by 256 columns more slowly than twice by 128

Matrices = list[tuple[Tensor, ...]]  # of each offset, W_k (Cin, Cout) cut into groups of columns


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """(M, Cin) features, (Cout, kx, ky, kz, Cin) weight, (Cout,) bias -> (M', Cout)."""
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):  # products into a given buffer must not be cast a second time
        return _Convolve.apply(features, weight.flatten(1, 3), bias, kernel_map)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
        """`weight` (Cout, K, Cin)."""
        features = features.contiguous()
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        matrices = _matrices(weight.permute(1, 2, 0))
        done = [_outputs(features, matrices, kernel_map.identity, block, bias) for block in _cut(kernel_map, features)]
        return _joined(done, features, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Input gradient: the transposed map with transposed weights; weight gradient: one product per offset."""
        features, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wants_features, wants_weight, wants_bias, _ = ctx.needs_input_grad
        kernel_map, order = ctx.kernel_map.transposed()
        matrices = _matrices(weight.transpose(0, 1))[::order] if wants_features else None
        sums = _WeightGradient(features, weight, order) if wants_weight else None
        done = [_gradients(grad, matrices, sums, kernel_map.identity, block) for block in _cut(kernel_map, grad)]
        return (
            _joined(done, grad, weight.shape[2]) if wants_features else None,
            sums.total() if wants_weight else None,
            grad.sum(0) if wants_bias else None,
            None,
        )


def _matrices(weight: Tensor) -> Matrices:
    """(K, Cin, Cout), any strides -> K tuples of views (Cin, <= CPU_COLUMNS)."""
    columns = CPU_COLUMNS if weight.device.type == "cpu" else max(1, weight.shape[2])
    return list(zip(*(group.unbind(0) for group in weight.split(columns, 2)), strict=True))


def _cut(kernel_map: KernelMap, rows: Tensor) -> tuple[Block, ...]:
    return blocks(kernel_map, CPU_PRODUCTS if rows.device.type == "cpu" else GPU_PRODUCTS)


def _joined(parts: list[Tensor], like: Tensor, width: int) -> Tensor:
    if not parts:
        return like.new_empty(0, width)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _outputs(rows: Tensor, matrices: Matrices, identity: int | None, block: Block, bias: Tensor | None) -> Tensor:
    """(T, Cout) of a block of T targets; `rows` (M, Cin) contiguous."""
    products = _Products(rows, matrices, identity, block, bias)
    gathered = _Gathered(rows, block)
    for number, source in enumerate(block.sources):
        products.multiply(number, gathered(source, block.counts[number]))
    return products.summed()


def _gradients(
    grad: Tensor, matrices: Matrices | None, sums: _WeightGradient | None, identity: int | None, block: Block
) -> Tensor | None:
    """(S, Cin) input gradient of a block of the transposed map where `matrices` are given; adds to `sums`."""
    products = None if matrices is None else _Products(grad, matrices, identity, block, None)
    if sums is not None and identity is not None:
        own = slice(block.start, block.stop)
        sums.add(identity, grad[own], sums.features[own])
    gathered = _Gathered(grad, block)
    xs = None if sums is None else _Gathered(sums.features, block)
    for number, source in enumerate(block.sources):
        part = gathered(source, block.counts[number])
        if products is not None:
            products.multiply(number, part)
        if sums is not None:
            sums.add(block.offsets[number], part, xs(block.targets[number], block.counts[number]))
    return None if products is None else products.summed()


class _Gathered:
    """Rows by index, a block's offset at a time, in one buffer that stays in the cache."""

    def __init__(self, rows: Tensor, block: Block) -> None:
        self._rows = rows
        self._buffer = rows.new_empty(max(block.counts, default=0), rows.shape[1])

    def __call__(self, index: Tensor, count: int) -> Tensor:
        """(count, C), until the next call."""
        part = self._buffer.narrow(0, 0, count)
        torch.index_select(self._rows, 0, index, out=part)
        return part


class _Products:
    """Products of a block's pairs, one below the other, under those of the targets with themselves."""

    def __init__(
        self, rows: Tensor, matrices: Matrices, identity: int | None, block: Block, bias: Tensor | None
    ) -> None:
        self._block, self._bias = block, bias
        self._matrices = [matrices[offset] for offset in block.offsets]
        widths = [columns.shape[1] for columns in matrices[0]]
        self._own = block.stop - block.start if identity is not None else 0
        self._rows = rows.new_empty(self._own + sum(block.counts), sum(widths))
        if self._own:
            own = rows[block.start : block.stop]
            biases = [None] * len(widths) if bias is None else bias.split(widths)
            for columns, place, shift in zip(
                matrices[identity], self._rows[: self._own].split(widths, 1), biases, strict=True
            ):
                torch.mm(own, columns, out=place) if shift is None else torch.addmm(shift, own, columns, out=place)
        self._places = [group.split(block.counts) for group in self._rows[self._own :].split(widths, 1)]

    def multiply(self, number: int, part: Tensor) -> None:
        """`part` (P_k, Cin) are the rows of the block's offset `number`."""
        for columns, places in zip(self._matrices[number], self._places, strict=True):
            torch.mm(part, columns, out=places[number])

    def summed(self) -> Tensor:
        """(T, Cout): each target's products, and the bias."""
        block = self._block
        if not block.counts and self._own:
            return self._rows
        if not block.counts:
            out = self._rows.new_zeros(block.stop - block.start, self._rows.shape[1])
        else:
            out = functional.embedding_bag(
                block.products, self._rows, block.firsts, mode="sum", include_last_offset=True
            )
        return out if self._bias is None or self._own else out.add_(self._bias)


class _WeightGradient:
    """dW_k = sum over the pairs of dY[t]^T x[s], offset by offset; `order` that of the transposed map's offsets."""

    def __init__(self, features: Tensor, weight: Tensor, order: int) -> None:
        c_out, kernel, c_in = weight.shape
        # laid out in memory as the weight is
        self._total = weight.new_empty(kernel, c_in, c_out)
        self._places = _matrices(self._total.transpose(1, 2))[::order]
        self._widths = [place.shape[1] for place in self._places[0]]
        self._empty = set(range(kernel))
        self.features = features

    def add(self, offset: int, dy: Tensor, x: Tensor) -> None:
        """`dy` (P, Cout) and `x` (P, Cin) of the offset's pairs."""
        first = offset in self._empty
        self._empty.discard(offset)
        for place, columns in zip(self._places[offset], x.split(self._widths, 1), strict=True):
            torch.mm(dy.T, columns, out=place) if first else place.addmm_(dy.T, columns)

    def total(self) -> Tensor:
        """(Cout, K, Cin)."""
        for offset in self._empty:
            for place in self._places[offset]:
                place.zero_()
        return self._total.permute(2, 0, 1)

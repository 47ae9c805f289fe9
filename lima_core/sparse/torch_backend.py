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

CPU_PRODUCTS = 1 << 17  # rows of the product buffer: bounds the memory
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
    buffer = _buffer(rows, block)
    for source, count, columns, places in zip(
        block.sources, block.counts, products.matrices, products.places, strict=True
    ):
        part = buffer[:count]
        torch.index_select(rows, 0, source, out=part)
        for matrix, place in zip(columns, places, strict=True):
            torch.mm(part, matrix, out=place)
    return products.summed()


def _gradients(
    grad: Tensor, matrices: Matrices | None, sums: _WeightGradient | None, identity: int | None, block: Block
) -> Tensor | None:
    """(S, Cin) input gradient of a block of the transposed map where `matrices` are given; adds to `sums`."""
    products = None if matrices is None else _Products(grad, matrices, identity, block, None)
    if sums is not None:
        sums.enter(block, identity, grad)
    buffer = _buffer(grad, block)
    for number, (source, count) in enumerate(zip(block.sources, block.counts, strict=True)):
        part = buffer[:count]
        torch.index_select(grad, 0, source, out=part)
        if products is not None:
            for matrix, place in zip(products.matrices[number], products.places[number], strict=True):
                torch.mm(part, matrix, out=place)
        if sums is not None:
            sums.add(number, part)
    return None if products is None else products.summed()


def _buffer(rows: Tensor, block: Block) -> Tensor:
    """Room for the rows of one offset at a time: allocated once, it stays in the cache."""
    return rows.new_empty(max(block.counts, default=0), rows.shape[1])


class _Products:
    """Products of a block's pairs, one below the other, under those of the targets with themselves.

    For each of the block's offsets, `matrices` by groups of columns, and `places` for their products.
    """

    def __init__(
        self, rows: Tensor, matrices: Matrices, identity: int | None, block: Block, bias: Tensor | None
    ) -> None:
        self._block, self._bias = block, bias
        self.matrices = [matrices[offset] for offset in block.offsets]
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
        groups = self._rows[self._own :].split(widths, 1)
        self.places = list(zip(*(group.split(block.counts) for group in groups), strict=True))

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
    """dW_k = sum over the pairs of x[s]^T dY[t], offset by offset; `order` that of the transposed map's offsets."""

    def __init__(self, features: Tensor, weight: Tensor, order: int) -> None:
        c_out, kernel, c_in = weight.shape
        self._features = features
        self._total = weight.new_empty(kernel, c_in, c_out)  # laid out in memory as the weight is
        self._places = _matrices(self._total)[::order]
        self._widths = [place.shape[1] for place in self._places[0]]
        self._empty = set(range(kernel))

    def enter(self, block: Block, identity: int | None, grad: Tensor) -> None:
        """Turns to the next block, and adds the products of its rows with themselves."""
        self._block = block
        self._buffer = _buffer(self._features, block)
        if identity is not None:
            self._sum(identity, self._features[block.start : block.stop], grad[block.start : block.stop])

    def add(self, number: int, dy: Tensor) -> None:
        """`dy` (P, Cout) of the pairs of the block's offset `number`."""
        x = self._buffer[: self._block.counts[number]]
        torch.index_select(self._features, 0, self._block.targets[number], out=x)
        self._sum(self._block.offsets[number], x, dy)

    def _sum(self, offset: int, x: Tensor, dy: Tensor) -> None:
        first, x = offset in self._empty, x.T
        self._empty.discard(offset)
        for columns, place in zip(dy.split_with_sizes(self._widths, 1), self._places[offset], strict=True):
            torch.mm(x, columns, out=place) if first else place.addmm_(x, columns)

    def total(self) -> Tensor:
        """(Cout, K, Cin)."""
        for offset in self._empty:
            for place in self._places[offset]:
                place.zero_()
        return self._total.permute(2, 0, 1)

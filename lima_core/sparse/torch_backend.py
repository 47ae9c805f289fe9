"""Sparse convolution in plain PyTorch, for every device.

For each kernel offset k: gather the source rows, multiply by W_k, add to the target rows. Pairs are taken in chunks
that stay in the cache; backward saves X and W only and gathers again (spec/sparse.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lima_core.sparse.kernel_map import KernelMap

CPU_CHUNK_BYTES = 2 << 20  # about one core's share of the cache
GPU_CHUNK_BYTES = 256 << 20  # bounds the memory, large enough to fill the device


def convolve(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """(M, Cin) features, (Cout, k, k, k, Cin) weight -> (M', Cout): y[t] = sum of W_k x[s] over the pairs (s, t, k)."""
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):  # products into a given buffer must not be cast a second time
        return _Convolve.apply(features, weight.flatten(1, 3), kernel_map)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """`weight` (Cout, K, Cin)."""
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return _product(features, weight.permute(1, 2, 0), kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Input gradient by the transposed map and weights, weight gradient offset by offset."""
        features, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_features = _product(grad, weight.transpose(0, 1), ctx.kernel_map.transposed())
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(features, grad, ctx.kernel_map).transpose(0, 1)
        return grad_features, grad_weight, None


def _product(rows: Tensor, weights: Tensor, kernel_map: KernelMap) -> Tensor:
    """y[t] = sum of x[s] @ weights[k]; `rows` (M, C), `weights` (K, C, C')."""
    width = weights.shape[2]
    if kernel_map.identity is None:
        out = rows.new_zeros(kernel_map.n_target, width)
    else:
        out = rows @ weights[kernel_map.identity]
    size = min(_chunk_rows(rows, max(rows.shape[1], width)), len(kernel_map.source))
    gathered, product = rows.new_empty(size, rows.shape[1]), rows.new_empty(size, width)
    for start, stop, segments in _chunks(kernel_map.counts, size):
        part = gathered[: stop - start]
        torch.index_select(rows, 0, kernel_map.source[start:stop], out=part)
        for offset, low, high in segments:
            torch.mm(part[low:high], weights[offset], out=product[low:high])
        out.index_add_(0, kernel_map.target[start:stop], product[: stop - start])
    return out


def _weight_gradient(features: Tensor, grad: Tensor, kernel_map: KernelMap) -> Tensor:
    """(K, Cout, Cin): dW_k = sum over the pairs of dY[t] x[s]^T."""
    out = features.new_zeros(len(kernel_map.counts), grad.shape[1], features.shape[1])
    if kernel_map.identity is not None:
        torch.mm(grad.T, features, out=out[kernel_map.identity])
    size = min(_chunk_rows(features, max(features.shape[1], grad.shape[1])), len(kernel_map.source))
    sources, targets = (x.new_empty(size, x.shape[1]) for x in (features, grad))
    for start, stop, segments in _chunks(kernel_map.counts, size):
        source, target = sources[: stop - start], targets[: stop - start]
        torch.index_select(features, 0, kernel_map.source[start:stop], out=source)
        torch.index_select(grad, 0, kernel_map.target[start:stop], out=target)
        for offset, low, high in segments:
            out[offset].addmm_(target[low:high].T, source[low:high])
    return out


def _chunk_rows(rows: Tensor, width: int) -> int:
    limit = CPU_CHUNK_BYTES if rows.device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, limit // (width * rows.element_size()))


def _chunks(counts: tuple[int, ...], size: int) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Cuts pairs sorted by offset into runs of at most `size`: (start, stop, [(offset, low, high) inside the run])."""
    start = used = 0
    segments: list[tuple[int, int, int]] = []
    for offset, count in enumerate(counts):
        while count:
            take = min(count, size - used)
            segments.append((offset, used, used + take))
            used, count = used + take, count - take
            if used == size:
                yield start, start + used, segments
                start, used, segments = start + used, 0, []
    if used:
        yield start, start + used, segments

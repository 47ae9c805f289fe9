"""Sparse convolution by spconv 2.3: its arithmetic on our kernel maps, and nothing else of it.

Pairs, order of rows and checks come from KernelMap, so they are the same for every backend; spconv's modules and its
own search for neighbours are not used.

CPU   gather, multiply, scatter (`indice_conv`); inference only, because spconv's backward asks for a CUDA stream
GPU   implicit GEMM, forward and backward, on tables of the rows that meet under each offset

What spconv cannot do (empty maps, kernels above 32 offsets on a GPU, bfloat16) falls to the torch backend.

Unproven: the GPU path has never run. Its tables follow the source of the wheel 2.3.8 and are tested against an
emulation of that reading; test/cuda compares it with the torch backend on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lima_core.sparse import torch_backend
from lima_core.sparse.kernel_map import KernelMap

# spconv has no bfloat16 at all, no float64 kernels on a GPU, and multiplies float16 on a CPU through numpy
DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16)}
MASK_BITS = 32  # offsets in one word of a mask; larger kernels take another, slower path in spconv
HALF_CHANNELS = 8  # the fast float16 kernels read 8 channels at once


@cache
def has_cuda() -> bool:
    """Whether convolutions on a GPU can go through spconv: a GPU, and a build of spconv with CUDA."""
    if not torch.cuda.is_available():
        return False
    try:
        return not _load()[1].CPU_ONLY_BUILD
    except RuntimeError:
        return False


def require() -> None:
    """Raises RuntimeError, with what to install, when spconv cannot be imported."""
    _load()


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap) -> Tensor:
    """(M, Cin) features, (Cout, kx, ky, kz, Cin) weight, (Cout,) bias -> (M', Cout).

    Raises RuntimeError without spconv, and when gradients are wanted on a CPU.
    """
    _load()
    device = features.device.type
    if device == "cpu" and _wants_gradient(features, weight, bias):
        raise RuntimeError("spconv cannot train on a CPU; use backend='torch', or torch.no_grad() for inference")
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else features.dtype
    too_large = device == "cuda" and len(kernel_map.counts) > MASK_BITS
    # without pairs there is nothing, or one plain product, to compute: spconv fails on the first
    if too_large or not len(kernel_map.source) or dtype not in DTYPES.get(device, ()):
        return torch_backend.convolve(features, weight, bias, kernel_map)
    if autocast:
        features, weight = features.to(dtype), weight.to(dtype)
    run = _on_gpu if device == "cuda" else _on_cpu
    with torch.autocast(device, enabled=False):  # in it spconv would cast to float16, whatever the type asked for
        out = run(features, weight.flatten(1, 3), kernel_map)
    return out if bias is None else out.add_(bias.to(out.dtype))  # spconv gives a bias no gradient


def pair_table(kernel_map: KernelMap) -> Tensor:
    """(K, n_target) int32: the input row that each output row meets under each offset, -1 for none."""
    table = kernel_map.source.new_full((len(kernel_map.counts), kernel_map.n_target), -1, dtype=torch.int32)
    table[_offsets(kernel_map), kernel_map.target] = kernel_map.source.int()
    if kernel_map.identity is not None:
        table[kernel_map.identity] = torch.arange(kernel_map.n_target, dtype=torch.int32, device=table.device)
    return table


def sorted_masks(table: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) int32 masks of a (K, N) pair table in ascending order, and (N,) int32 the column of each.

    Bit k of a mask says that the column has a row under offset k. A GPU tile works through consecutive masks and the
    offsets of their union, so columns with like masks belong side by side.
    """
    bits = 1 << torch.arange(len(table), dtype=torch.int32, device=table.device)
    masks = torch.where(table >= 0, bits[:, None], 0).sum(0, dtype=torch.int32)
    masks, order = torch.sort(masks, stable=True)
    return masks[:, None], order.int()


def pair_lists(kernel_map: KernelMap) -> tuple[Tensor, Tensor]:
    """(2, K, P) int32 input and output rows of each offset's pairs, padded with -1, and (K,) int32 their number."""
    counts = torch.tensor(kernel_map.counts)
    offsets = _offsets(kernel_map)
    place = torch.arange(len(offsets)) - (counts.cumsum(0) - counts)[offsets]
    lists = torch.full((2, len(counts), max(kernel_map.counts)), -1, dtype=torch.int32)
    lists[:, offsets, place] = torch.stack([kernel_map.source, kernel_map.target]).int()
    return lists, counts.int()


class _Lookup(NamedTuple):
    """A pair table and its sorted masks."""

    table: Tensor
    masks: Tensor
    order: Tensor


def _lookup(kernel_map: KernelMap) -> _Lookup:
    table = pair_table(kernel_map)
    return _Lookup(table, *sorted_masks(table))


def _on_cpu(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """`weight` (Cout, K, Cin), any strides. `subm` adds the product with the central offset, which has no pairs."""
    pairs, counts = _kept(kernel_map, "pairs", pair_lists)
    subm = kernel_map.identity is not None
    return _load()[1].indice_conv(features, weight, pairs, counts, kernel_map.n_target, subm=subm)


def _on_gpu(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """`weight` (Cout, K, Cin), any strides."""
    modules = _load()
    if modules[1].CPU_ONLY_BUILD:
        raise RuntimeError(f"this spconv is built for CPUs only: {_installation()}")
    out_channels = len(weight)
    if features.dtype == torch.float16:
        more_in, more_out = -weight.shape[2] % HALF_CHANNELS, -out_channels % HALF_CHANNELS
        features = functional.pad(features, (0, more_in)) if more_in else features
        weight = functional.pad(weight, (0, more_in, 0, 0, 0, more_out)) if more_in or more_out else weight
    training, subm = _wants_gradient(features, weight), kernel_map.identity is not None
    forward = _kept(kernel_map, "lookup", _lookup)
    if training and subm:
        # the pairs of a symmetric map seen from the inputs are those of the outputs under mirrored offsets; spconv
        # mirrors the masks itself
        back = _Lookup(_kept(kernel_map, "mirrored", lambda _: forward.table.flip(0)), forward.masks, forward.order)
    else:
        back = _kept(kernel_map.transposed()[0], "lookup", _lookup) if training else forward
    with torch.cuda.device(features.get_device()):  # spconv launches on the current device, not on the tensors'
        out = modules[0].implicit_gemm(
            features,
            weight.contiguous(),
            forward.table,
            back.table,
            [forward.masks],
            [back.masks],
            [forward.order],
            [back.order],
            kernel_map.n_target,
            [np.array([0xFFFFFFFF], np.uint32)],  # one pass over all offsets
            training,
            subm,
        )
    return out[:, :out_channels]


def _offsets(kernel_map: KernelMap) -> Tensor:
    """(P,) int64 offset of each pair."""
    counts = torch.tensor(kernel_map.counts, device=kernel_map.source.device)
    every = torch.arange(len(counts), device=counts.device)
    return every.repeat_interleave(counts, output_size=len(kernel_map.source))


@torch.inference_mode(False)  # a table made during inference must serve a backward pass later
def _kept(kernel_map: KernelMap, name: str, make: Callable[[KernelMap], Any]) -> Any:
    """What `make` gives for the map, made once."""
    key = "spconv", name
    if key not in kernel_map.derived:
        kernel_map.derived[key] = make(kernel_map)
    return kernel_map.derived[key]


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _load() -> tuple[Any, Any]:
    """spconv.pytorch.functional and spconv.pytorch.ops."""
    try:
        from spconv.pytorch import functional as autograd
        from spconv.pytorch import ops
    except Exception as error:  # a missing CUDA library is an OSError, another NumPy something else again
        raise RuntimeError(f"the spconv backend cannot import spconv ({error}): {_installation()}") from error
    return autograd, ops


def _installation() -> str:
    extra = "cuda120" if sys.version_info < (3, 12) else "cuda126"
    return f"pip install 'lima_ros[{extra}]', or use backend='torch'"

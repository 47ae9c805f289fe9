"""Which code computes a sparse convolution: ours in PyTorch, or spconv's kernels; weights and results are the same.

auto    spconv on a GPU where it is installed, else torch
torch   every device, forward and backward
spconv  extras `cuda120` (Python <= 3.11) and `cuda126`; trains on a GPU only
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lima_core.sparse import spconv_backend, torch_backend
from lima_core.sparse.kernel_map import KernelMap

Backend = Literal["auto", "torch", "spconv"]


def convolve(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap, backend: Backend = "auto"
) -> Tensor:
    """(M, Cin) features, (Cout, kx, ky, kz, Cin) weight, (Cout,) bias -> (M', Cout).

    Raises ValueError when features and weight do not fit the map.
    """
    if len(features) != kernel_map.n_source or features.shape[1] != weight.shape[-1]:
        raise ValueError(
            f"features {tuple(features.shape)} do not fit a convolution of {kernel_map.n_source} voxels with "
            f"{weight.shape[-1]} input channels"
        )
    if backend == "auto":
        backend = "spconv" if features.is_cuda and spconv_backend.has_cuda() else "torch"
    module = spconv_backend if backend == "spconv" else torch_backend
    return module.convolve(features, weight, bias, kernel_map)


def check_backend(backend: str) -> None:
    """Raises ValueError on an unknown name, RuntimeError when the backend is not installed."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend {backend!r} is unknown; use auto, torch or spconv")
    if backend == "spconv":
        spconv_backend.require()

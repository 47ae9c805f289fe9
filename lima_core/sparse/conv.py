"""Sparse convolution modules; weights are (Cout, k, k, k, Cin) whatever the backend, axes in the order x, y, z."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lima_core.sparse.backend import Backend, check_backend, convolve
from lima_core.sparse.kernel_map import KernelMap, Maps, Triple
from lima_core.sparse.tensor import SparseTensor


class _Convolution(nn.Module):
    """Weight, bias and their initialisation; `backend` is set by `use_backend`."""

    backend: Backend = "auto"

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        # in memory one (Cin, Cout) matrix after the other, as the products want them
        matrices = torch.empty(*kernel, in_channels, out_channels)
        self.weight = nn.Parameter(matrices.permute(4, 0, 1, 2, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # He et al. 2015 for ReLU, fan-out, as in MinkUNet
        nn.init.normal_(self.weight, std=math.sqrt(2 / (out_channels * math.prod(kernel))))

    def _convolve(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        return convolve(features, self.weight, self.bias, kernel_map, self.backend)

    def extra_repr(self) -> str:
        """Channels and kernel for print(model)."""
        out_channels, *kernel, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={tuple(kernel)}"


class SubMConv3d(_Convolution):
    """Submanifold convolution: outputs on the inputs' voxels only; `kernel` odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, bias: bool = False) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"a submanifold convolution needs an odd kernel, got {kernel}")
        super().__init__(in_channels, out_channels, (kernel,) * 3, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M, Cout) on the same voxels."""
        return x.with_features(self._convolve(x.features, x.maps.submanifold(self.kernel[0])))


class _Strided(_Convolution):
    """`kernel`, `stride` and `padding` for all axes, or (x, y, z); padding None = (kernel - 1) // 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 2,
        stride: int | Triple = 2,
        padding: int | Triple | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, _triple(kernel), bias)
        self.stride = _triple(stride)
        self.padding = tuple((k - 1) // 2 for k in self.kernel) if padding is None else _triple(padding)

    def _level(self, fine: SparseTensor) -> tuple[KernelMap, Maps]:
        return fine.maps.strided(self.kernel, self.stride, self.padding)


class SparseConv3d(_Strided):
    """Strided convolution: outputs wherever the kernel meets an input."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M', Cout) on voxels `stride` times as large."""
        kernel_map, level = self._level(x)
        stride = tuple(a * b for a, b in zip(x.stride, self.stride, strict=True))
        return SparseTensor(self._convolve(x.features, kernel_map), level.coords, stride, level)


class InverseConv3d(_Strided):
    """Takes features of a SparseConv3d's outputs back to its inputs' voxels, by the same pairs."""

    def forward(self, x: SparseTensor, fine: SparseTensor) -> SparseTensor:
        """(M', Cin) -> (M, Cout) on the voxels of `fine`, from which `x` descends."""
        kernel_map, level = self._level(fine)
        if level is not x.maps:
            raise ValueError(
                f"x ({len(x)} voxels) is not a strided convolution of fine ({len(fine)} voxels) with "
                f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}"
            )
        return fine.with_features(self._convolve(x.features, kernel_map.transposed()[0]))


def use_backend(model: nn.Module, backend: Backend) -> nn.Module:
    """Sets the backend of every sparse convolution in `model`, and returns it.

    Raises ValueError on an unknown name, RuntimeError when the backend is not installed.
    """
    check_backend(backend)
    for module in model.modules():
        if isinstance(module, _Convolution):
            module.backend = backend
    return model


def _triple(value: int | Triple) -> Triple:
    return (value,) * 3 if isinstance(value, int) else tuple(value)

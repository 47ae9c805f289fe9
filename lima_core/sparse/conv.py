"""Sparse convolution modules; weights are (Cout, k, k, k, Cin) whatever the backend, axes in the order x, y, z."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lima_core.sparse.tensor import SparseTensor
from lima_core.sparse.torch_backend import convolve


class _Convolution(nn.Module):
    """Weight, bias and their initialisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, kernel, kernel, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # He et al. 2015 for ReLU, fan-out, as in MinkUNet
        nn.init.normal_(self.weight, std=math.sqrt(2 / (out_channels * kernel**3)))

    def _biased(self, features: Tensor) -> Tensor:
        return features if self.bias is None else features + self.bias

    def extra_repr(self) -> str:
        """Channels, kernel and stride for print(model)."""
        out_channels, *_, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={self.kernel}, stride={self.stride}"


class SubMConv3d(_Convolution):
    """Submanifold convolution: outputs on the inputs' voxels only; `kernel` odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, bias: bool = False) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"a submanifold convolution needs an odd kernel, got {kernel}")
        super().__init__(in_channels, out_channels, kernel, 1, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M, Cout) on the same voxels."""
        return x.with_features(self._biased(convolve(x.features, self.weight, x.maps.submanifold(self.kernel))))


class SparseConv3d(_Convolution):
    """Strided convolution, padded by (kernel - 1) // 2: outputs wherever the kernel meets an input."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M', Cout) on voxels `stride` times as large."""
        kernel_map, level = x.maps.strided(self.kernel, self.stride)
        features = self._biased(convolve(x.features, self.weight, kernel_map))
        return SparseTensor(features, level.coords, x.stride * self.stride, level)


class InverseConv3d(_Convolution):
    """Takes features of a SparseConv3d's outputs back to its inputs' voxels, by the same pairs."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias)

    def forward(self, x: SparseTensor, fine: SparseTensor) -> SparseTensor:
        """(M', Cin) -> (M, Cout) on the voxels of `fine`, from which `x` descends."""
        kernel_map, level = fine.maps.strided(self.kernel, self.stride)
        if level is not x.maps:
            raise ValueError(f"x (stride {x.stride}) is not a strided convolution of fine (stride {fine.stride})")
        return fine.with_features(self._biased(convolve(x.features, self.weight, kernel_map.transposed())))

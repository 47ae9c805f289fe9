"""MinkUNet: a sparse residual U-Net (Choy et al. 2019, Res16UNet; plan of spec/lima.md section 3)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import nn

from lima_core.sparse.conv import InverseConv3d, SparseConv3d, SubMConv3d
from lima_core.sparse.tensor import SparseTensor


class ConvNorm(nn.Module):
    """y <- [ReLU](BatchNorm(conv(x)))."""

    def __init__(self, conv: SubMConv3d | SparseConv3d | InverseConv3d, momentum: float, relu: bool = True) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu
        self.norm = nn.BatchNorm1d(conv.weight.shape[0], momentum=momentum)

    def forward(self, x: SparseTensor, *fine: SparseTensor) -> SparseTensor:
        """Arguments of the convolution -> (M', Cout)."""
        y = self.conv(x, *fine)
        features = self.norm(y.features)
        return y.with_features(features.relu_() if self.relu else features)

    @torch.no_grad()
    def fold(self) -> None:
        """Merges the normalisation, as it stands in eval mode, into the convolution; training is over then."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        self.conv.weight *= scale[:, None, None, None, None]
        self.conv.bias = nn.Parameter(self.norm.bias - self.norm.running_mean * scale)
        self.norm = nn.Identity()


class BasicBlock(nn.Module):
    """y <- ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, momentum: float) -> None:
        super().__init__()
        self.first = ConvNorm(SubMConv3d(in_channels, out_channels), momentum)
        self.second = ConvNorm(SubMConv3d(out_channels, out_channels), momentum, relu=False)
        shortcut = ConvNorm(SubMConv3d(in_channels, out_channels, kernel=1), momentum, relu=False)
        self.shortcut = nn.Identity() if in_channels == out_channels else shortcut

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M, Cout) on the same voxels."""
        y = self.second(self.first(x))
        return y.with_features(y.features.add_(self.shortcut(x).features).relu_())


class Down(nn.Module):
    """Halves the resolution, then residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, momentum: float) -> None:
        super().__init__()
        self.down = ConvNorm(SparseConv3d(in_channels, in_channels), momentum)
        self.blocks = _blocks(in_channels, out_channels, blocks, momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, Cin) -> (M', Cout) on voxels twice as large."""
        return self.blocks(self.down(x))


class Up(nn.Module):
    """Doubles the resolution, concatenates the skip connection, then residual blocks."""

    def __init__(self, in_channels: int, skip: int, out_channels: int, blocks: int, momentum: float) -> None:
        super().__init__()
        self.up = ConvNorm(InverseConv3d(in_channels, out_channels), momentum)
        self.blocks = _blocks(out_channels + skip, out_channels, blocks, momentum)

    def forward(self, x: SparseTensor, fine: SparseTensor) -> SparseTensor:
        """(M', Cin) and the encoder's (M, Cskip) -> (M, Cout)."""
        y = self.up(x, fine)
        return self.blocks(y.with_features(torch.cat([y.features, fine.features], 1)))


def _blocks(in_channels: int, out_channels: int, blocks: int, momentum: float) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * blocks
    return nn.Sequential(*(BasicBlock(a, b, momentum) for a, b in pairwise(widths)))


class MinkUNet(nn.Module):
    """Stem of two 3^3 convolutions, half the stages down, half up; one feature vector per voxel.

    `planes` and `blocks` width and number of residual blocks of each stage, encoder first; `out_channels` is the
    width of the features.
    """

    def __init__(
        self,
        in_channels: int = 4,
        *,
        stem: int,
        planes: tuple[int, ...],
        blocks: tuple[int, ...],
        norm_momentum: float = 0.02,
    ) -> None:
        super().__init__()
        depth = len(planes) // 2
        self.out_channels = planes[-1]
        self.stem = nn.Sequential(
            ConvNorm(SubMConv3d(in_channels, stem), norm_momentum), ConvNorm(SubMConv3d(stem, stem), norm_momentum)
        )
        widths = [stem, *planes]
        self.encoder = nn.ModuleList(Down(widths[i], widths[i + 1], blocks[i], norm_momentum) for i in range(depth))
        self.decoder = nn.ModuleList(
            Up(widths[i], widths[2 * depth - 1 - i], widths[i + 1], blocks[i], norm_momentum)
            for i in range(depth, 2 * depth)
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, in_channels) -> (M, out_channels) on the same voxels."""
        levels = [self.stem(x)]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        y = levels.pop()
        for stage in self.decoder:
            y = stage(y, levels.pop())
        return y


MODELS = {
    "minkunet34": partial(
        MinkUNet, stem=32, planes=(32, 64, 128, 256, 256, 128, 96, 96), blocks=(2, 3, 4, 6, 2, 2, 2, 2)
    ),
    "minkunet18": partial(
        MinkUNet, stem=32, planes=(32, 64, 128, 256, 256, 128, 96, 96), blocks=(2, 2, 2, 2, 2, 2, 2, 2)
    ),
    # for one CPU core: the width sits in the coarse levels, where voxels are few
    "minkunet_tiny": partial(
        MinkUNet, stem=16, planes=(24, 32, 64, 96, 64, 48, 32, 32), blocks=(1, 1, 1, 1, 1, 1, 1, 1)
    ),
}

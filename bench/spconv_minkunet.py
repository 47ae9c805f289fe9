"""MinkUNet wired from spconv's own modules, with the weights of one of ours: the peer of bench/sparse.py.

Kernel maps, gathering and products are all spconv's. 1 x 1 convolutions are plain products, as spconv 2.3.8 views
their weight untransposed.
"""

from __future__ import annotations

import spconv.pytorch as spconv
import torch
from torch import Tensor, nn

from lima_core.models.minkunet import BasicBlock, ConvNorm, MinkUNet
from lima_core.sparse.conv import InverseConv3d, SparseConv3d

STRIDE = 16  # of the coarsest level: volumes start and end at a multiple of it


class SpconvMinkUNet(nn.Module):
    """The same network as `ours`, folded or not."""

    def __init__(self, ours: MinkUNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(_Conv(layer, 0) for layer in ours.stem))
        depth = len(ours.encoder)
        self.encoder = nn.ModuleList(
            nn.Sequential(_Conv(stage.down, level), *(_Block(block, level + 1) for block in stage.blocks))
            for level, stage in enumerate(ours.encoder)
        )
        levels = list(zip(range(depth - 1, -1, -1), ours.decoder, strict=True))
        self.up = nn.ModuleList(_Conv(stage.up, level) for level, stage in levels)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_Block(block, level) for block in stage.blocks)) for level, stage in levels
        )

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        """(M, C) features, (M, 4) int32 [batch, x, y, z] -> (M, C')."""
        low, high = coords[:, 1:].amin(0), coords[:, 1:].amax(0)
        low = low.div(STRIDE, rounding_mode="floor") * STRIDE
        shape = ((high - low) // STRIDE + 1) * STRIDE
        moved = torch.cat([coords[:, :1], coords[:, 1:] - low], 1).contiguous()
        levels = [self.stem(spconv.SparseConvTensor(features, moved, shape.tolist(), int(coords[:, 0].max()) + 1))]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        y = levels.pop()
        for up, stage in zip(self.up, self.decoder, strict=True):
            fine = levels.pop()
            y = up(y)
            y = stage(y.replace_feature(torch.cat([y.features, fine.features], 1)))
        return y.features


class _Conv(nn.Module):
    def __init__(self, ours: ConvNorm, level: int) -> None:
        super().__init__()
        conv = ours.conv
        c_out, *kernel, c_in = conv.weight.shape
        self.pointwise = max(kernel) == 1
        key = {"bias": False, "indice_key": f"{'strided' if hasattr(conv, 'stride') else 'submanifold'}{level}"}
        if isinstance(conv, SparseConv3d):
            self.conv = spconv.SparseConv3d(c_in, c_out, kernel, conv.stride, conv.padding, **key)
        elif isinstance(conv, InverseConv3d):
            self.conv = spconv.SparseInverseConv3d(c_in, c_out, kernel, **key)
        else:
            self.conv = spconv.SubMConv3d(c_in, c_out, kernel, **key)
        self.conv.weight = nn.Parameter(conv.weight.detach().clone(memory_format=torch.contiguous_format))
        self.bias, self.norm, self.relu = conv.bias, ours.norm, ours.relu

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        if self.pointwise:
            y = x.replace_feature(x.features @ self.conv.weight.flatten(1).T)
        else:
            y = self.conv(x)
        features = y.features if self.bias is None else y.features.add_(self.bias)
        features = self.norm(features)
        return y.replace_feature(features.relu_() if self.relu else features)


class _Block(nn.Module):
    def __init__(self, ours: BasicBlock, level: int) -> None:
        super().__init__()
        self.first, self.second = _Conv(ours.first, level), _Conv(ours.second, level)
        self.shortcut = _Conv(ours.shortcut, level) if isinstance(ours.shortcut, ConvNorm) else nn.Identity()

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        y = self.second(self.first(x))
        return y.replace_feature(y.features.add_(self.shortcut(x).features).relu_())

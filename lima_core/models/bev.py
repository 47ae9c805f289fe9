"""The detectors' bird's-eye view: its grid, and the dense network on it (spec/datasets.md 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPS, MOMENTUM = 1e-3, 0.01


@dataclass(frozen=True)
class BevGrid:
    """Where a map (B, C, Y, X) lies in the LiDAR frame: row = y, column = x.

    `low` (x, y) m corner of the first cell, `cell` (x, y) m size of a cell, `size` (X, Y) number of cells.
    """

    low: tuple[float, float]
    cell: tuple[float, float]
    size: tuple[int, int]

    @property
    def high(self) -> tuple[float, float]:
        """(x, y) m: the far corner of the last cell."""
        x, y = (low + cell * size for low, cell, size in zip(self.low, self.cell, self.size, strict=True))
        return x, y

    def check(self, bev: Tensor) -> None:
        """Raises ValueError when a map (B, C, Y, X) does not cover this grid."""
        if bev.ndim != 4 or tuple(bev.shape[:1:-1]) != tuple(self.size):
            x, y = self.size
            raise ValueError(f"the map is {tuple(bev.shape)}, this head was built for (B, C, {y}, {x})")


class BevBackbone(nn.Module):
    """Two stages of one and `layers` 3x3 convolutions, the second at half resolution; both brought back and joined.

    Width `width` at stride 1 and 2 * `width` at stride 2; `out_channels` = 4 * `width`, half from each stage.
    """

    def __init__(self, in_channels: int, width: int = 128, layers: int = 5) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.fine = _stage(in_channels, width, 1, layers)
        self.coarse = _stage(width, 2 * width, 2, layers)
        self.from_fine = _normed(nn.Conv2d(width, 2 * width, 1, bias=False))
        self.from_coarse = _normed(nn.ConvTranspose2d(2 * width, 2 * width, 2, stride=2, bias=False))

    def forward(self, bev: Tensor) -> Tensor:
        """(B, in_channels, Y, X) -> (B, out_channels, Y, X). Raises ValueError when Y or X is odd."""
        if bev.shape[2] % 2 or bev.shape[3] % 2:
            raise ValueError(
                f"a map of {bev.shape[2]} x {bev.shape[3]} cells (Y x X) cannot be halved; "
                "choose a range that gives even numbers of cells"
            )
        fine = self.fine(bev)
        return torch.cat([self.from_fine(fine), self.from_coarse(self.coarse(fine))], 1)


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """ReLU(BatchNorm(conv3x3(x))): (B, in_channels, Y, X) -> (B, out_channels, Y / stride, X / stride)."""
    return _normed(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False))


def _normed(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, EPS, MOMENTUM), nn.ReLU(inplace=True))


def _stage(in_channels: int, width: int, stride: int, layers: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(in_channels, width, stride), *(conv_norm(width, width) for _ in range(layers)))

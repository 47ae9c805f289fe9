"""Heads on a backbone's voxel features."""

from __future__ import annotations

from torch import Tensor, nn

from lima_core.models.backbones import build_backbone
from lima_core.models.inputs import InputConfig
from lima_core.models.voxelize import VoxelConfig
from lima_core.sparse.tensor import SparseTensor


class Segmenter(nn.Module):
    """logits <- Linear(backbone(x)): C logits for C classes, none for 'ignore' (spec/datasets.md, trap 4)."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.out_channels, num_classes)

    def forward(self, x: SparseTensor) -> Tensor:
        """(M, in_channels) voxels -> (M, C) logits."""
        return self.head(self.backbone(x).features)


def build_segmenter(model: str, num_classes: int, inputs: InputConfig = VoxelConfig()) -> Segmenter:
    """An untrained Segmenter of voxels of `inputs`. Raises ValueError naming the models there are."""
    return Segmenter(build_backbone(model, inputs), num_classes)

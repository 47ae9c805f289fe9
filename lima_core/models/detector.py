"""The LiDAR detector: VoxelNet, a bird's-eye-view network and a head; with a second head it segments as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lima_core.config import option
from lima_core.models.anchor_head import AnchorHead
from lima_core.models.backbones import POINT_COLUMNS, build_backbone
from lima_core.models.bev import BevBackbone, BevGrid
from lima_core.models.center_head import CenterHead
from lima_core.models.voxelize_range import RangeConfig
from lima_core.models.voxelnet import ENCODERS, bev_map
from lima_core.sparse.tensor import SparseTensor

HEADS = ("center", "anchor")


@dataclass(frozen=True)
class DetectorConfig:
    """What comes after the encoder."""

    head: Literal["center", "anchor"] = option("center", "center: CenterPoint; anchor: SECOND")
    bev_width: int = option(128, "channels of the bird's-eye-view network's first stage, half of the second's")
    head_channels: int = option(64, "channels of the head's shared convolution and of its branches")
    nms: Literal["rotated", "circle"] = option(
        "rotated", "what suppresses a center head's boxes: IoU > 0.2, or the distance of the centres, which is faster"
    )
    norm_momentum: float = option(0.01, "of the normalisation's running statistics; short runs want 0.1, or they lag")
    sweeps: int = option(10, "LiDAR sweeps in one cloud, the current one among them")


class Detector(nn.Module):
    """Boxes from a bird's-eye-view map and, with `segment_classes`, C logits for every voxel of the same encoder.

    `backbone` carries the names of a pretrained VoxelNet's weights; its features feed the segmentation `head`, which
    is None where there is none. Raises ValueError on an unknown model, and for a range the maps of which are odd.
    """

    def __init__(
        self,
        model: str,
        bounds: RangeConfig,
        config: DetectorConfig,
        class_names: tuple[str, ...],
        segment_classes: int = 0,
    ) -> None:
        super().__init__()
        if model not in ENCODERS:
            raise ValueError(f"model {model!r} has no bird's-eye view; detectors are built on {', '.join(ENCODERS)}")
        self.backbone = build_backbone(model, bounds, POINT_COLUMNS + 1)
        encoder = self.backbone.network
        if any(size % 2 for size in encoder.bev_size):
            raise ValueError(
                f"bounds of {bounds.grid} voxels give an odd map of {encoder.bev_size} cells, which cannot be halved; "
                "choose numbers of voxels in x and y that 16 divides"
            )
        cells = zip(bounds.low[:2], bounds.high[:2], encoder.bev_size, strict=True)
        cell = tuple((high - low) / size for low, high, size in cells)
        self.bev = BevBackbone(encoder.out_channels, config.bev_width)
        grid, channels = BevGrid(bounds.low[:2], cell, encoder.bev_size), config.head_channels
        if config.head == "center":
            self.box_head = CenterHead(self.bev.out_channels, grid, class_names, channels, config.nms)
        elif config.nms == "rotated":
            self.box_head = AnchorHead(self.bev.out_channels, grid, class_names, channels)
        else:
            raise ValueError("detector.nms=circle is for head center; SECOND suppresses by overlap")
        self.head = nn.Linear(self.backbone.out_channels, segment_classes) if segment_classes else None
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = config.norm_momentum

    def forward(self, x: SparseTensor, scenes: int) -> tuple[Sequence, Tensor | None]:
        """(M, 5) voxels of `scenes` clouds -> outputs of the box head, and (M, C) logits where it segments."""
        stages = self.backbone.network.stages(x)
        return self.boxes(stages, scenes), self.logits(x, stages)

    def boxes(self, stages: list[SparseTensor], scenes: int) -> Sequence:
        """Outputs of the encoder's stages -> outputs of the box head, for its `loss` and `decode`."""
        return self.box_head(self.bev(bev_map(stages[-1], scenes)))

    def logits(self, x: SparseTensor, stages: list[SparseTensor]) -> Tensor | None:
        """(M, C) logits of the voxels; None where there is no head for them."""
        return None if self.head is None else self.head(self.backbone.gather(x, stages).features)

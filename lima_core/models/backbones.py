"""Every network that gives features of points, by name."""

from __future__ import annotations

from torch import nn

from lima_core.models.inputs import InputConfig
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.models.voxelnet import ENCODERS, Hypercolumn

BACKBONES = (*MODELS, *ENCODERS)
POINT_COLUMNS = 4  # x, y, z, intensity


def build_backbone(
    model: str, inputs: InputConfig, in_channels: int = POINT_COLUMNS, norm_momentum: float | None = None
) -> nn.Module:
    """Untrained; takes voxels of `inputs` and has `out_channels`. VoxelNet keeps its own `norm_momentum`.

    Raises ValueError naming the models there are.
    """
    check_backbone(model)
    if model in ENCODERS:
        return Hypercolumn(ENCODERS[model](in_channels, volume=inputs.shape))
    return MODELS[model](in_channels, **({} if norm_momentum is None else {"norm_momentum": norm_momentum}))


def check_backbone(model: str) -> None:
    """Raises ValueError naming the models there are."""
    if model not in BACKBONES:
        raise ValueError(f"no model {model!r}; there are {', '.join(BACKBONES)}")


def inputs_of(model: str, voxels: VoxelConfig, bounds: RangeConfig) -> InputConfig:
    """Which of the two kinds of voxels a model takes. Raises ValueError naming the models there are."""
    check_backbone(model)
    return bounds if model in ENCODERS else voxels

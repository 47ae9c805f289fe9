"""A network that starts from a pretrained backbone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lima_core.checkpoint import CheckpointError, load_checkpoint, load_weights, part
from lima_core.config import plain
from lima_core.models.voxelize import VoxelConfig


def load_backbone(path: str | Path, model: str, backbone: nn.Module, voxels: VoxelConfig) -> None:
    """Copies the backbone of a pretrained or finetuned checkpoint into `backbone`, the one of `model`.

    Raises CheckpointError for another model, or for other voxels than those it has learned on.
    """
    weights, meta = load_checkpoint(path)
    if meta["model"] != model:
        raise CheckpointError(f"{path} is a {meta['model']}, not a {model}; set --model={meta['model']}")
    learned, asked = meta["config"]["voxels"], plain(voxels)
    if learned != asked:
        raise CheckpointError(f"{path} was trained on voxels {learned}, this run asks for {asked}; make them equal")
    load_weights(backbone, part(weights, "backbone."), str(path))

"""A network that starts from a pretrained backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lima_core.checkpoint import CheckpointError, load_checkpoint, load_weights, part, stored_inputs
from lima_core.config import plain
from lima_core.models.inputs import InputConfig


def load_backbone(path: str | Path, model: str, backbone: nn.Module, inputs: InputConfig) -> str:
    """Copies the backbone of a pretrained or finetuned checkpoint into `backbone`, that of `model`.

    Where `backbone` takes further input columns, the time lag of a detector, their weights are zero: it starts as
    the pretrained one that never saw them (spec/datasets.md 3.7). Returns a report of what was copied and what was
    not. Raises CheckpointError for another model, or for other voxels than those it has learned on.
    """
    weights, meta = load_checkpoint(path)
    if meta["model"] != model:
        raise CheckpointError(f"{path} is a {meta['model']}, not a {model}; set --model={meta['model']}")
    learned, asked = plain(stored_inputs(meta)), plain(inputs)
    if learned != asked:
        raise CheckpointError(f"{path} was trained on voxels {learned}, this run asks for {asked}; make them equal")
    copied = part(weights, "backbone.")
    wanted = backbone.state_dict()
    padded = [name for name in copied if name in wanted and _columns_short(copied[name], wanted[name])]
    copied |= {name: _padded(copied[name], wanted[name]) for name in padded}
    load_weights(backbone, copied, str(path))
    return _report(path, backbone, weights, padded)


def _columns_short(given: Tensor, wanted: Tensor) -> bool:
    """Whether all that differs is that input columns are missing at the end."""
    return given.ndim == 5 and given.shape[:-1] == wanted.shape[:-1] and given.shape[-1] < wanted.shape[-1]


def _padded(given: Tensor, wanted: Tensor) -> Tensor:
    zeros = given.new_zeros(*given.shape[:-1], wanted.shape[-1] - given.shape[-1])
    return torch.cat([given, zeros], -1)


def _report(path: str | Path, backbone: nn.Module, weights: dict[str, Tensor], padded: list[str]) -> str:
    """One line for what was copied, one each for what was padded and for what was not."""
    tensors, numbers = len(backbone.state_dict()), sum(value.numel() for value in backbone.parameters())
    unused = sorted(name for name in weights if not name.startswith("backbone."))
    lines = [f"backbone from {path}: all {tensors} tensors, {numbers} parameters; the rest starts at random"]
    lines += [f"  {name}: zeros for input columns that the checkpoint has not" for name in padded]
    lines += [f"  of the checkpoint not used: {', '.join(unused)}"] if unused else []
    return "\n".join(lines)

"""Optimiser and learning rate of the recipe (spec/datasets.md 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lima_core.config import option

WARM_UP, START_DIVISOR, END_DIVISOR = 0.2, 25.0, 100.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW under a one-cycle learning rate."""

    peak_lr: float = option(1e-3, "highest learning rate, reached after 20 % of the steps")
    weight_decay: float = option(0.01, "decoupled weight decay, per step and learning rate")
    clip_norm: float | None = option(None, "largest norm of the gradient; null: not clipped, as in the recipe")


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """One group for all parameters: SuperFlow's tenfold head rate is inert (spec/datasets.md, trap 2)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, config.peak_lr, (0.9, 0.999), 1e-6, config.weight_decay)


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of a step: cosine from peak/25 to peak, then to peak/2500, as torch's OneCycleLR.

    A function of the step alone, so that resuming needs no scheduler state.
    """
    start, turn = peak / START_DIVISOR, WARM_UP * total - 1
    if step < turn:
        return _cosine(start, peak, step / turn)
    return _cosine(peak, start / END_DIVISOR, (step - turn) / max(total - 1 - turn, 1e-9))


def _cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2

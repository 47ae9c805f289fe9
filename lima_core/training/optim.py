"""Optimisers and learning rates of the recipes (spec/datasets.md 4.1, 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lima_core.config import option

WARM_UP, START_DIVISOR, END_DIVISOR = 0.2, 25.0, 100.0
# OpenPCDet's adam_onecycle (spec/datasets.md 3.6): turn, divisors of the lowest rates, first beta's extremes
CYCLE_TURN, CYCLE_START, CYCLE_END, CYCLE_BETAS = 0.4, 10.0, 1e4, (0.95, 0.85)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW under a one-cycle learning rate (SuperFlow, OpenPCDet), or SGD under a cosine (SLidR)."""

    peak_lr: float = option(1e-3, "highest learning rate; of adamw reached after 20 % of the steps")
    weight_decay: float = option(0.01, "decoupled (adamw) or added to the gradient (sgd; SLidR: 1e-4)")
    clip_norm: float | None = option(None, "largest norm of the gradient; null: not clipped, as in the recipes")
    kind: Literal["adamw", "sgd", "adam_onecycle"] = option(
        "adamw",
        "adamw: one cycle over all steps; sgd: cosine, a value per epoch; adam_onecycle: of the detectors, where the "
        "first beta falls as the rate rises",
    )
    head_lr_factor: float = option(1.0, "learning rate of the head over that of the backbone")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of all parameters that are trained; each group's `factor` multiplies its learning rate.

    One group by default: SuperFlow's tenfold head rate is inert (spec/datasets.md, trap 2).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    head = [parameter for name, parameter in trained if name.startswith("head.")]
    rest = [parameter for name, parameter in trained if not name.startswith("head.")]
    groups = [{"params": [parameter for _, parameter in trained], "factor": 1.0}]
    if config.head_lr_factor != 1.0 and head:
        groups = [{"params": rest, "factor": 1.0}, {"params": head, "factor": config.head_lr_factor}]
    groups = [group for group in groups if group["params"]]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, config.peak_lr, momentum=0.9, dampening=0.1, weight_decay=config.weight_decay)
    if config.kind == "adam_onecycle":
        return torch.optim.AdamW(groups, config.peak_lr, (CYCLE_BETAS[0], 0.99), 1e-8, config.weight_decay)
    return torch.optim.AdamW(groups, config.peak_lr, (0.9, 0.999), 1e-6, config.weight_decay)


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """Of a step; a function of the step alone, so that resuming needs no scheduler state."""
    if config.kind == "adamw":
        return one_cycle(step, steps, config.peak_lr)
    if config.kind == "adam_onecycle":
        low = config.peak_lr / CYCLE_START
        return _cycle(step, steps, low, config.peak_lr, low / CYCLE_END)
    epochs = math.ceil(steps / steps_per_epoch)
    return _cosine(config.peak_lr, 0.0, step // steps_per_epoch / epochs)


def first_beta(step: int, steps: int, config: OptimConfig) -> float | None:
    """Of Adam at a step; None where it stays as it is."""
    high, low = CYCLE_BETAS
    return _cycle(step, steps, high, low, high) if config.kind == "adam_onecycle" else None


def _cycle(step: int, steps: int, first: float, turn: float, last: float) -> float:
    """Cosine from `first` to `turn` over CYCLE_TURN of the steps, then to `last`."""
    up = int(steps * CYCLE_TURN)
    if step < up:
        return _cosine(first, turn, step / up)
    return _cosine(turn, last, (step - up) / (steps - up))


def one_cycle(step: int, total: int, peak: float) -> float:
    """Cosine from peak/25 to peak, then to peak/2500, as torch's OneCycleLR."""
    start, turn = peak / START_DIVISOR, WARM_UP * total - 1
    if step < turn:
        return _cosine(start, peak, step / turn)
    return _cosine(peak, start / END_DIVISOR, (step - turn) / max(total - 1 - turn, 1e-9))


def _cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2

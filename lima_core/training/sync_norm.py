"""Batch normalisation over the voxels of all processes, so that two processes compute what one would.

torch.nn.SyncBatchNorm does not run on the CPU. Sums are shared, not means: processes hold different numbers of voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d whose statistics in training are those of all processes; the plain one without a process group."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, C) -> (M, C); every process must call it, with M >= 0."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        count = _Sum.apply(x.new_tensor([float(len(x))]))
        mean = _Sum.apply(x.sum(0)) / count
        centred = x - mean
        variance = _Sum.apply(centred.square().sum(0)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def synchronise(model: nn.Module) -> None:
    """Replaces every BatchNorm1d, in place, by a SyncBatchNorm of the same state."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm1d:
                shared = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
                shared.load_state_dict(norm.state_dict())
                setattr(parent, name, shared)


class _Sum(torch.autograd.Function):
    """Sum over the processes; each of them depends on every input, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total

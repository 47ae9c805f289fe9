"""Batch normalisation over the voxels of all processes, so that two processes compute what one would.

torch.nn.SyncBatchNorm does not run on the CPU. Sums are shared, not means: processes hold different numbers of voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the statistics of all processes in training; the plain one without a process group."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, C) rows with M >= 0, or maps (B, C, Y, X) -> the same shape; every process must call it."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._shared(x.float()).to(x.dtype)  # a count of voxels does not fit half precision

    def _shared(self, x: Tensor) -> Tensor:
        """The same in float32."""
        others = [axis for axis in range(x.ndim) if axis != 1]
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        count = _Sum.apply(x.new_tensor([float(x.numel() // x.shape[1])]))
        mean = _Sum.apply(x.sum(others)) / count
        centred = x - mean.view(per_channel)
        variance = _Sum.apply(centred.square().sum(others)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return centred * scale.view(per_channel) + self.bias.view(per_channel)

    def _check_input_dim(self, x: Tensor) -> None:
        """Maps too, which BatchNorm1d refuses."""


def synchronise(model: nn.Module) -> None:
    """Replaces every BatchNorm1d and BatchNorm2d, in place, by a SyncBatchNorm of the same state."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
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

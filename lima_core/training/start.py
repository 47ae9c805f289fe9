"""What every training run does first."""

from __future__ import annotations

import os

import cv2
import torch
from lightning_fabric import Fabric
from torch import nn

from lima_core.config import ConfigError
from lima_core.sparse.backend import Backend
from lima_core.sparse.conv import use_backend
from lima_core.training.allocator import keep_freed_memory
from lima_core.training.loop import Device, Precision, open_fabric


def start(device: Device, precision: Precision, threads: int, seed: int, deterministic: bool) -> Fabric:
    """Processes, threads and seeds; every process starts from the same weights. Raises ConfigError."""
    try:
        fabric = open_fabric(device, precision)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    keep_freed_memory()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return fabric


def choose_backend(network: nn.Module, backend: Backend, deterministic: bool) -> nn.Module:
    """Sets the backend of the sparse convolutions, `torch` where results must repeat. Raises ConfigError."""
    try:
        return use_backend(network, "torch" if deterministic else backend)
    except RuntimeError as error:
        raise ConfigError(str(error)) from error

"""The trained network as one object: all that a ROS node or a script needs.

predictor = Predictor("street.safetensors")
result = predictor.segment(points)  # (N, 4) float32 x, y, z in m, intensity in [0, 1]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lima_core.checkpoint import CheckpointError, load_segmenter
from lima_core.data.frame import IGNORE
from lima_core.models.minkunet import ConvNorm
from lima_core.models.voxelize import FARTHEST_M, network_input, voxelize
from lima_core.sparse.backend import Backend
from lima_core.sparse.conv import use_backend
from lima_core.sparse.tensor import SparseTensor
from lima_core.training.allocator import keep_freed_memory

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "fp16"]


@dataclass(frozen=True)
class Segmentation:
    """Per point: `labels` (N,) uint8 train id, 255 where the point is invalid; `probability` (N,) float32 of it."""

    labels: np.ndarray
    probability: np.ndarray


class Predictor:
    """Segments sweeps, one at a time, for one caller.

    Normalisation is folded into the convolutions and the network is run once on construction, so that the first
    sweep is as fast as the next. `precision` auto = fp16 on a GPU, fp32 on a CPU. On a CPU with glibc the process keeps
    freed memory from then on: mapping the large tensors anew costs a tenth of every sweep. `temperature` is the
    checkpoint's, 1 where it has none: probabilities are softmax(logits / temperature).
    Raises CheckpointError, or RuntimeError when the device or the backend is not there.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: Device = "auto",
        precision: Precision = "auto",
        backend: Backend = "auto",
    ) -> None:
        self.device = choose_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        half = precision == "fp16" or (precision == "auto" and self.device.type == "cuda")
        self._dtype = torch.float16 if half else torch.float32
        network, self._voxels, self.meta = load_segmenter(checkpoint)
        self.temperature = _temperature(self.meta, checkpoint)
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self._network = use_backend(network.to(self.device, self._dtype), backend)
        self.class_names = tuple(self.meta["classes"]["names"])
        self.colors = np.array(self.meta["classes"]["colors"], np.uint8)
        self.segment(_warm_up_cloud())

    def segment(self, points: np.ndarray) -> Segmentation:
        """(N, 4) points -> a label and its probability per point; 255 and 0 where a point is not finite or > 1 km."""
        valid = _valid(points)
        labels = np.full(len(points), IGNORE, np.uint8)
        probability = np.zeros(len(points), np.float32)
        if valid.any():
            logits, voxel_of_point = self._voxel_logits(points[valid])
            index = logits.argmax(1)  # of the logits: rounding at a high temperature must not change a label
            best = (logits / self.temperature).softmax(1).gather(1, index[:, None])[:, 0]
            labels[valid] = index.to(torch.uint8)[voxel_of_point].cpu().numpy()
            probability[valid] = best[voxel_of_point].cpu().numpy()
        return Segmentation(labels, probability)

    def logits(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) points -> (N, C) float32 before temperature and softmax; nan where not finite or > 1 km."""
        valid = _valid(points)
        out = np.full((len(points), len(self.class_names)), np.nan, np.float32)
        if valid.any():
            logits, voxel_of_point = self._voxel_logits(points[valid])
            out[valid] = logits[voxel_of_point].cpu().numpy()
        return out

    def features(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) points -> (N, C) float32 features of the backbone; nan where a point is not finite or > 1 km."""
        valid = _valid(points)
        out = np.full((len(points), self._network.backbone.out_channels), np.nan, np.float32)
        if valid.any():
            features, voxel_of_point = self._voxel_features(points[valid])
            out[valid] = features[voxel_of_point].float().cpu().numpy()
        return out

    @torch.inference_mode()
    def _voxel_logits(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        """(M, C) float32 logits of the voxels, and the voxel of each point."""
        features, voxel_of_point = self._voxel_features(points)
        return self._network.head(features).float(), voxel_of_point

    @torch.inference_mode()
    def _voxel_features(self, points: np.ndarray) -> tuple[Tensor, Tensor]:
        """Backbone features of the voxels, and the voxel of each point."""
        cloud = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(self.device)
        voxels = voxelize(cloud, self._voxels)
        x = SparseTensor(network_input(cloud[voxels.first_point]).to(self._dtype), voxels.coords)
        return self._network.backbone(x).features, voxels.voxel_of_point


def choose_device(device: Device) -> torch.device:
    """auto = cuda where there is one. Raises RuntimeError when cuda is asked for and absent."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RuntimeError(
            "device is cuda, but PyTorch finds no GPU; use device: auto or cpu, or install lima[cuda126]"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}; use auto, cpu or cuda")
    return torch.device("cuda" if device != "cpu" and available else "cpu")


def _temperature(meta: dict[str, Any], checkpoint: str | Path) -> float:
    """Raises CheckpointError where it is no positive number."""
    temperature = meta.get("temperature", 1.0)
    if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise CheckpointError(f"{checkpoint}: temperature {temperature!r} is no positive number; finetune again")
    return float(temperature)


def _valid(points: np.ndarray) -> np.ndarray:
    """(N,) bool: finite and within reach. Raises ValueError on another shape."""
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points must be (N, 4) [x, y, z, intensity], got {points.shape}")
    with np.errstate(invalid="ignore"):
        return np.isfinite(points).all(1) & (np.abs(points[:, :3]) <= FARTHEST_M).all(1)


def _warm_up_cloud() -> np.ndarray:
    """(30000, 4) points on rings of a flat ground, about the size of a 32-beam sweep."""
    azimuth = np.linspace(0, 60 * np.pi, 30000, endpoint=False)
    radius = 3 + 40 * (np.arange(30000) // 1000) / 30
    columns = radius * np.cos(azimuth), radius * np.sin(azimuth), np.full(30000, -1.8), np.full(30000, 0.1)
    return np.stack(columns, 1).astype(np.float32)

"""The trained network as one object: all that a ROS node or a script needs.

predictor = Predictor("street.safetensors")
result = predictor.segment(points)  # (N, 4) float32 x, y, z in m, intensity in [0, 1]
boxes = Predictor("detector.safetensors").detect(points, past)  # the sweeps before it: `data/multisweep.py`
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lima_core.checkpoint import CheckpointError, load_network
from lima_core.data.frame import IGNORE, Detections
from lima_core.data.multisweep import PastSweep, aggregate
from lima_core.models.detections import to_detections
from lima_core.models.detector import Detector
from lima_core.models.inputs import Input, encode
from lima_core.models.minkunet import ConvNorm
from lima_core.models.voxelize import FARTHEST_M
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


class Perception(NamedTuple):
    """What one forward pass gives; None for the head that the network lacks."""

    segmentation: Segmentation | None
    detections: Detections | None


class Predictor:
    """Segments sweeps, finds objects in them, or both, one sweep at a time, for one caller.

    Normalisation is folded into the sparse convolutions and the network is run once on construction, so that the first
    sweep is as fast as the next. `precision` auto = fp16 on a GPU, fp32 on a CPU. On a CPU with glibc the process keeps
    freed memory from then on: mapping the large tensors anew costs a tenth of every sweep. `temperature` is the
    checkpoint's, 1 where it has none: probabilities are softmax(logits / temperature). `class_names` and `colors` are
    those of segmentation, `detection_names` and `detection_colors` those of boxes, each empty where there is no such
    head; `sweeps` in all are what a detector was trained on, 1 for a segmenter.
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
        network, self._inputs, self.meta = load_network(checkpoint)
        self.temperature = _temperature(self.meta, checkpoint)
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self._network = use_backend(network.to(self.device, self._dtype), backend)
        self._detects = isinstance(network, Detector)
        self.class_names = tuple(self.meta["classes"]["names"])
        self.colors = np.array(self.meta["classes"]["colors"], np.uint8).reshape(-1, 3)
        boxes = self.meta["detection"] if self._detects else {"names": [], "colors": []}
        if len(boxes.get("colors", ())) != len(boxes["names"]):
            raise CheckpointError(
                f"{checkpoint}: a detector needs a colour for each of {boxes['names']}; finetune again"
            )
        self.detection_names = tuple(boxes["names"])
        self.detection_colors = np.array(boxes["colors"], np.uint8).reshape(-1, 3)
        self.sweeps = self.meta["config"]["detector"]["sweeps"] if self._detects else 1
        self._checkpoint = checkpoint
        self.perceive(_warm_up_cloud())

    def perceive(self, points: np.ndarray, past: Sequence[PastSweep] = ()) -> Perception:
        """(N, 4) points of a sweep, and the sweeps before it, newest first -> all that the network has to say of it.

        A detector also takes (N, 5) sweeps that are laid over each other already, with their time lag in s. Points
        that are not finite or farther than 1 km are left out. A segmenter has no use for past sweeps.
        """
        valid = self._valid(points)
        if past and points.shape[1] == 5:
            raise ValueError("points with a time lag hold the past sweeps already; give them or `past`, not both")
        with torch.inference_mode():
            given = self._encode(points[valid], past)
            segmentation = detections = None
            if self._detects:
                stages = self._network.backbone.network.stages(given.voxels)
                detections = to_detections(self._network.box_head.decode(self._network.boxes(stages, 1))[0])
                logits = self._network.logits(given.voxels, stages)
            else:
                logits = self._network(given.voxels)
            if logits is not None:
                segmentation = self._segmentation(valid, logits.float(), given.voxel_of_point)
        return Perception(segmentation, detections)

    def segment(self, points: np.ndarray, past: Sequence[PastSweep] = ()) -> Segmentation:
        """(N, 4) points -> a label and its probability per point; 255 and 0 where the network does not look.

        That is where a point is not finite, beyond 1 km, or beyond a VoxelNet's range. Raises ValueError where the
        checkpoint was trained on boxes alone.
        """
        self._needs_classes()
        return self.perceive(points, past).segmentation

    def detect(self, points: np.ndarray, past: Sequence[PastSweep] = ()) -> Detections:
        """(N, 4) points of a sweep, and the `sweeps` - 1 before it, newest first -> boxes in its LiDAR frame.

        Fewer past sweeps are allowed: velocities suffer. Raises ValueError where the checkpoint finds no boxes.
        """
        if not self._detects:
            raise ValueError(
                f"{self._checkpoint} segments and finds no boxes; train a detector with `python -m lima_core.finetune "
                "--task detection`"
            )
        return self.perceive(points, past).detections

    def logits(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) points -> (N, C) float32 before temperature and softmax; nan where the network does not look."""
        self._needs_classes()
        return self._per_point(points, self._voxel_logits, len(self.class_names))

    def features(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) points -> (N, C) float32 features of the backbone; nan where the network does not look."""
        return self._per_point(points, self._voxel_features, self._network.backbone.out_channels)

    def _segmentation(self, valid: np.ndarray, logits: Tensor, voxel_of_point: Tensor) -> Segmentation:
        """From (M, C) logits of the voxels; `voxel_of_point` of the valid points, past ones after them."""
        labels = np.full(len(valid), IGNORE, np.uint8)
        probability = np.zeros(len(valid), np.float32)
        rows, voxel = _seen(valid, voxel_of_point)
        if len(rows):
            index = logits.argmax(1)  # of the logits: rounding at a high temperature must not change a label
            best = (logits / self.temperature).softmax(1).gather(1, index[:, None])[:, 0]
            labels[rows] = index.to(torch.uint8)[voxel].cpu().numpy()
            probability[rows] = best[voxel].cpu().numpy()
        return Segmentation(labels, probability)

    @torch.inference_mode()
    def _per_point(self, points: np.ndarray, of_voxels: Callable[[SparseTensor], Tensor], width: int) -> np.ndarray:
        valid = self._valid(points)
        out = np.full((len(points), width), np.nan, np.float32)
        given = self._encode(points[valid], ())
        rows, voxel = _seen(valid, given.voxel_of_point)
        if len(rows):
            out[rows] = of_voxels(given.voxels).float()[voxel].cpu().numpy()
        return out

    def _voxel_logits(self, voxels: SparseTensor) -> Tensor:
        return self._network.head(self._voxel_features(voxels))

    def _voxel_features(self, voxels: SparseTensor) -> Tensor:
        return self._network.backbone(voxels).features

    def _encode(self, points: np.ndarray, past: Sequence[PastSweep]) -> Input:
        """The voxels of a cloud, on the device; a detector's points get their time lag."""
        cloud = aggregate(points, past) if self._detects and points.shape[1] == 4 else points
        given = encode(torch.from_numpy(np.ascontiguousarray(cloud, np.float32)).to(self.device), self._inputs)
        return replace(given, voxels=given.voxels.with_features(given.voxels.features.to(self._dtype)))

    def _valid(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: finite and within reach. Raises ValueError on another shape."""
        if points.ndim != 2 or points.shape[1] not in ((4, 5) if self._detects else (4,)):
            lag = " or (N, 5) with the time lag" if self._detects else ""
            raise ValueError(f"points must be (N, 4) [x, y, z, intensity]{lag}, got {points.shape}")
        with np.errstate(invalid="ignore"):
            return np.isfinite(points).all(1) & (np.abs(points[:, :3]) <= FARTHEST_M).all(1)

    def _needs_classes(self) -> None:
        if not self.class_names:
            raise ValueError(
                f"{self._checkpoint} finds boxes and has no classes of points; train both with `python -m "
                "lima_core.finetune --task both`"
            )


def free_memory() -> None:
    """Gives back what networks that are no longer referred to still hold, the memory of a GPU too."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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


def _seen(valid: np.ndarray, voxel_of_point: Tensor) -> tuple[np.ndarray, Tensor]:
    """Rows (P,) of the valid points of the sweep that have a voxel, and the voxel of each."""
    rows = np.flatnonzero(valid)
    voxel = voxel_of_point[: len(rows)]
    inside = voxel >= 0
    return rows[inside.cpu().numpy()], voxel[inside]


def _warm_up_cloud() -> np.ndarray:
    """(30000, 4) points on rings of a flat ground, about the size of a 32-beam sweep."""
    azimuth = np.linspace(0, 60 * np.pi, 30000, endpoint=False)
    radius = 3 + 40 * (np.arange(30000) // 1000) / 30
    columns = radius * np.cos(azimuth), radius * np.sin(azimuth), np.full(30000, -1.8), np.full(30000, 0.1)
    return np.stack(columns, 1).astype(np.float32)

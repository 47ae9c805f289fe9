"""Checkpoints for tests that need a network which runs, not one that is right."""

from __future__ import annotations

from pathlib import Path

from lima_core.checkpoint import save_checkpoint
from lima_core.config import plain
from lima_core.data.classes import load_taxonomy
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.heads import build_segmenter
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig


def save_random(path: Path) -> Path:
    """A minkunet_tiny with random weights for the nuScenes classes."""
    taxonomy = load_taxonomy("nuscenes")
    meta = {
        "format": 1,
        "model": "minkunet_tiny",
        "classes": {"names": list(taxonomy.names), "colors": taxonomy.colors.tolist()},
        "config": {"voxels": plain(VoxelConfig())},
        **{key: {} for key in ("inputs", "metrics", "versions", "provenance")},
    }
    return save_checkpoint(path, build_segmenter("minkunet_tiny", len(taxonomy.names)), meta)


def save_detector(
    path: Path, network: Detector, bounds: RangeConfig, config: DetectorConfig, names: list[str] | None = None
) -> Path:
    """A detector with the metadata that finetuning writes."""
    taxonomy, segments = load_taxonomy("nuscenes"), network.head is not None
    meta = {
        "format": 1,
        "model": "voxelnet_tiny",
        "task": "both" if segments else "detection",
        "classes": {"names": list(taxonomy.names), "colors": taxonomy.colors.tolist()}
        if segments
        else {"names": [], "colors": []},
        "detection": {
            "names": names or list(taxonomy.detection_names),
            "colors": taxonomy.box_colors().tolist(),
        },
        "config": {"voxels": plain(VoxelConfig()), "bounds": plain(bounds), "detector": plain(config)},
        **{key: {} for key in ("inputs", "metrics", "versions", "provenance")},
    }
    return save_checkpoint(path, network, meta)

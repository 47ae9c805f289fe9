"""Latency of a detector at batch 1, stage by stage, and of both tasks in one network against two networks.

`OMP_NUM_THREADS=1 python -m bench.detection [--model voxelnet] [--head center] [--rounds 7] [--json FILE]`

The cloud is one sweep of a simulated street with the nine before it. Weights are random: an untrained CenterPoint keeps
about 500 boxes, so that decoding has more to do than a trained one's. Medians of interleaved rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lima_core.checkpoint import save_checkpoint
from lima_core.config import plain
from lima_core.data.classes import load_taxonomy
from lima_core.data.multisweep import aggregate, past_sweeps
from lima_core.data.synthetic.street import Street
from lima_core.files import write_whole
from lima_core.models.detector import HEADS, Detector, DetectorConfig
from lima_core.models.heads import build_segmenter
from lima_core.models.inputs import encode
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.models.voxelnet import ENCODERS, bev_map
from lima_core.predictor import Predictor

SWEEPS = 10
PARTS = {"voxelnet_tiny": (32, 32)}  # channels of bird's-eye view and head; of the others the papers'


def main() -> None:
    """Prints both tables; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ENCODERS, default="voxelnet")
    parser.add_argument("--head", choices=HEADS, default="center")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    street = Street(100_000, frames=SWEEPS, cameras=False)
    frame, past = street[SWEEPS - 1], past_sweeps(street, SWEEPS - 1, SWEEPS - 1)
    bounds = RangeConfig(size=(0.2, 0.2, 0.2)) if options.model == "voxelnet_tiny" else RangeConfig()
    with tempfile.TemporaryDirectory() as folder:
        both, boxes, labels = (Predictor(path, "cpu") for path in checkpoints(Path(folder), options, bounds))
    report = {"points": len(aggregate(frame.points, past))}
    report["stages_ms"] = stages(boxes, frame.points, past, options.rounds)
    ways = {
        "one network, both heads": lambda: both.perceive(frame.points, past),
        "two networks": lambda: (boxes.detect(frame.points, past), labels.segment(frame.points)),
    }
    report["tasks_ms"] = medians(ways, options.rounds)
    show(options, report)
    if options.json:
        write_whole(options.json, json.dumps(report, indent=2) + "\n")


def checkpoints(folder: Path, options: argparse.Namespace, bounds: RangeConfig) -> list[Path]:
    """Untrained networks: both heads, boxes alone, labels alone on the same encoder."""
    taxonomy, made = load_taxonomy("nuscenes"), []
    width, channels = PARTS.get(options.model, (128, 64))
    config = DetectorConfig(head=options.head, bev_width=width, head_channels=channels, sweeps=SWEEPS)
    for task, classes in (("both", 16), ("detection", 0), ("segmentation", 16)):
        torch.manual_seed(0)
        if task == "segmentation":
            network = build_segmenter(options.model, classes, bounds)
        else:
            network = Detector(options.model, bounds, config, taxonomy.detection_names, classes)
        meta: dict[str, Any] = {
            "format": 1, "model": options.model, "task": task,
            "classes": {"names": list(taxonomy.names) if classes else [], "colors": taxonomy.colors.tolist()},
            "detection": {"names": list(taxonomy.detection_names), "colors": taxonomy.box_colors().tolist()},
            "config": {"voxels": plain(VoxelConfig()), "bounds": plain(bounds), "detector": plain(config)},
            **{key: {} for key in ("inputs", "metrics", "versions", "provenance")},
        }  # fmt: skip
        made.append(save_checkpoint(folder / f"{task}.safetensors", network, meta))
    return made


@torch.inference_mode()
def stages(predictor: Predictor, points: np.ndarray, past: list, rounds: int) -> dict[str, float]:
    """Median of each stage of `detect`."""
    network, inputs = predictor._network, predictor._inputs
    steps: dict[str, Callable[[Any], Any]] = {
        "lay ten sweeps over each other": lambda given: aggregate(*given),
        "voxelise": lambda cloud: encode(torch.from_numpy(cloud), inputs),
        "sparse encoder": lambda given: network.backbone.network.stages(given.voxels),
        "dense map": lambda stages: bev_map(stages[-1], 1),
        "bird's-eye view": network.bev,
        "head": network.box_head,
        "decode and NMS": network.box_head.decode,
    }
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        value: Any = (points, past)
        for name, step in steps.items():
            start = time.perf_counter()
            value = step(value)
            found[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in found.items()}  # the first round warms up


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each way, all of them in every round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds", unit="round", leave=False):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def show(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """The two tables."""
    print(f"{options.model}, head {options.head}, {report['points']} points of {SWEEPS} sweeps, one thread, ms")
    total = sum(report["stages_ms"].values())
    for name, value in {**report["stages_ms"], "in all": total}.items():
        print(f"  {name:32s} {value:8.1f}  {100 * value / total:5.1f} %")
    one, two = report["tasks_ms"].values()
    for name, value in report["tasks_ms"].items():
        print(f"  {name:32s} {value:8.1f}")
    print(f"one network takes {one / two:.2f} of the time of two")


if __name__ == "__main__":
    main()

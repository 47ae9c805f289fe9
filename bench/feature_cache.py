"""What the feature cache saves: `python bench/feature_cache.py [--weights FILE] [--frames 6] [--image 448 224]`.

CPU seconds of one pretraining epoch on one thread (reading, teacher, targets, student, both directions, update), same
scenes in one run: without a cache, with a cache that is being filled, and with a full one. Without --weights the
teacher is untrained, which takes as long.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from tempfile import TemporaryDirectory

import cv2
import torch

from lima_core.config import read_config
from lima_core.lima.scenes import SceneBatches, TeacherFeatures
from lima_core.lima.step import Lima
from lima_core.models.teacher import Teacher
from lima_core.pretrain import PretrainConfig, build_objective, build_teacher, open_cache, open_drive
from lima_core.training.allocator import keep_freed_memory
from lima_core.training.feature_cache import FeatureCache
from lima_core.training.optim import OptimConfig, build_optimizer

TARGET = 5.0


def main() -> None:
    """Prints one line per epoch, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--image", type=int, nargs=2, default=[448, 224])
    parser.add_argument("--streets", type=int, default=2)
    parser.add_argument("--sweeps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with TemporaryDirectory() as folder:
        arguments = [
            f"--teacher.weights={options.weights}", f"--teacher.image_size={options.image}",
            f"--teacher.cache={folder}/features", f"--method.frames={options.frames}", "--voxels.size=[0.2,1.0,0.2]",
            f"--data.folder={folder}/streets", f"--data.seeds=[0,{options.streets}]", f"--data.sweeps={options.sweeps}",
            "--data.image_size=[224,112]",
        ]  # fmt: skip
        compare(read_config(PretrainConfig, arguments, "bench"))


def compare(config: PretrainConfig) -> None:
    """Times the three kinds of epoch."""
    drive, teacher = open_drive(config.data, 1), build_teacher(config.teacher)
    objective = build_objective(config, teacher.channels)
    cache = open_cache(config.teacher, teacher)
    print(f"{len(drive)} frames of six cameras, ViT-S at {config.teacher.image_size}, one thread")
    epoch(config, drive, teacher, objective, cache=None, steps=1)  # warm-up
    seconds = [
        epoch(config, drive, teacher, objective, used, name=name)
        for name, used in (("no cache", None), ("cache being filled", cache), ("cached", cache))
    ]
    print(f"cached epoch {seconds[0] / seconds[2]:.1f} x as fast as without cache (target {TARGET:.0f} x),", end=" ")
    print(f"{seconds[1] / seconds[2]:.1f} x as fast as the filling one")


def epoch(
    config: PretrainConfig,
    drive,
    teacher: Teacher,
    objective: Lima,
    cache: FeatureCache | None,
    name: str = "",
    steps: int | None = None,
) -> float:
    """One pass over the frames, always the same one; returns its CPU seconds."""
    optim = replace(OptimConfig(), peak_lr=1e-4)
    optimizer, features = build_optimizer(objective, optim), TeacherFeatures(teacher, cache, torch.device("cpu"))
    frames, size, seed = config.method.frames, config.batch_size, config.seed
    batches = SceneBatches(drive, frames, size, seed, 1 << 20, teacher.prepare, cache)
    start = time.process_time()
    for step in range(steps or batches.steps_per_epoch):
        loss = objective.step([features.scene(loaded) for loaded in batches[step]])
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    seconds = time.process_time() - start
    if cache is not None:
        cache.flush()
    if name:
        counts = f"teacher ran on {features.computed} frames, {features.recalled} from the cache"
        print(f"  {name:20s} {seconds:7.1f} s   {counts}", flush=True)
    return seconds


if __name__ == "__main__":
    main()

"""Does LiMA teach more than one frame does? Linear probe on simulated streets: random, 1 frame (ScaLR), 6 frames.

python bench/pretrain_street.py --weights vit_small_patch14_dinov2.safetensors --out runs/bench_street
About half an hour on one CPU core; --processes 2 pretrains two rows at a time.

Same student, streets, seed, order and number of steps; the probe is one linear layer on the standardised features of
the frozen backbone in eval mode, trained on the labels of the pretraining streets (last epoch, nothing is selected),
and measured on streets that neither has seen. `--rows "1 frame, mixing" "6 frames, no mixing"` tells memory (LTFP)
from mixing (CSMA), which doubles the forward passes of a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lima_core import pretrain
from lima_core.checkpoint import load_checkpoint
from lima_core.config import read_config
from lima_core.data.classes import load_taxonomy
from lima_core.data.drives import Drives, draw_streets
from lima_core.data.synthetic.street import Street
from lima_core.files import write_whole
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.tools import cache_teacher
from lima_core.training.allocator import keep_freed_memory
from lima_core.training.collate import collate
from lima_core.training.initial import load_backbone
from lima_core.training.loss import segmentation_loss
from lima_core.training.optim import OptimConfig, adamw, one_cycle

ROWS = {
    "1 frame": ["--method.frames=1", "--method.mixing=null"],
    "6 frames": ["--method.frames=6"],
    "1 frame, mixing": ["--method.frames=1"],
    "6 frames, no mixing": ["--method.frames=6", "--method.mixing=null"],
}
VALIDATION = range(100_000, 100_010)
PROBE_EPOCHS, PROBE_BATCH, PROBE_LR = 20, 2, 1e-2

Sweep = tuple[np.ndarray, np.ndarray]  # points and labels


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="DINOv2 ViT-S, .safetensors or .pth")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_street"))
    parser.add_argument("--streets", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", nargs="*", default=["1 frame", "6 frames"], choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    arguments = common_arguments(options)
    seconds = {}
    start = time.monotonic()
    config = read_config(pretrain.PretrainConfig, arguments, "bench")
    cache_teacher.fill(config)
    seconds["streets and teacher"] = time.monotonic() - start
    with ThreadPoolExecutor(options.processes) as pool:
        jobs = {name: pool.submit(train, [*arguments, *ROWS[name], f"--out={options.out / name}"])
                for name in options.rows}  # fmt: skip
        seconds.update({name: job.result() for name, job in jobs.items()})
    start = time.monotonic()
    sweeps = list(labelled(config)), list(validation())
    table = {"random": {"loss": None, **probe(None, config, *sweeps)}}
    for name in options.rows:
        path = options.out / name / "checkpoint.safetensors"
        table[name] = {"loss": load_checkpoint(path)[1]["metrics"]["last_epoch_loss"], **probe(path, config, *sweeps)}
    seconds["probes"] = time.monotonic() - start
    print(f"{'pretraining':22s} {'loss':>6s} {'linear probe mIoU':>18s} {'accuracy':>9s}")
    for name, row in table.items():
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        print(f"{name:22s} {loss:>6s} {100 * row['miou']:17.2f}% {100 * row['accuracy']:8.2f}%")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    result = {"arguments": arguments, "rows": table, "seconds": seconds}
    print(f"wrote {write_whole(options.out / 'table.json', json.dumps(result, indent=2))}")


def common_arguments(options: argparse.Namespace) -> list[str]:
    """What all rows share, as options of lima_core.pretrain."""
    return [
        f"--teacher.weights={options.weights}", "--teacher.image_size=[224,112]",
        f"--teacher.cache={options.out / 'features'}", f"--data.folder={options.out / 'streets'}",
        f"--data.seeds=[0,{options.streets}]", "--data.sweeps=10", "--data.stride=5", "--data.image_size=[336,168]",
        "--student=minkunet_tiny", "--voxels.size=[0.4,2.0,0.4]", "--optim.peak_lr=5e-3", "--batch_size=2",
        f"--epochs={options.epochs}", f"--seed={options.seed}", "--workers=0", "--device=cpu",
    ]  # fmt: skip


def train(arguments: Sequence[str]) -> float:
    """Pretrains in a process of its own; returns the seconds it took."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "lima_core.pretrain", *arguments], check=True)
    return time.monotonic() - start


def probe(
    checkpoint: Path | None, config: pretrain.PretrainConfig, training: list[Sweep], validation: list[Sweep]
) -> dict[str, object]:
    """Linear probe of a pretrained backbone, of an untrained one for None."""
    torch.manual_seed(config.seed)
    backbone = MODELS[config.student](norm_momentum=pretrain.NORM_MOMENTUM)
    if checkpoint is not None:
        load_backbone(checkpoint, config.student, backbone, config.voxels)
    backbone.eval()
    taxonomy = load_taxonomy("nuscenes")
    frozen = [frozen_features(backbone, *sweep, config.voxels) for sweep in training]
    head = train_head(frozen, len(taxonomy.names), config.seed)
    confusion = ConfusionMatrix(len(taxonomy.names))
    for points, labels in validation:
        features, _, voxel_of_point = frozen_features(backbone, points, labels, config.voxels)
        confusion.update(labels, head(features).argmax(1)[voxel_of_point].numpy())
    iou = [None if np.isnan(value) else round(float(value), 4) for value in confusion.iou()]
    accuracy = float(np.trace(confusion.matrix) / confusion.matrix.sum())
    return {"miou": confusion.miou(), "accuracy": accuracy, "iou": dict(zip(taxonomy.names, iou, strict=True))}


def labelled(config: pretrain.PretrainConfig):
    """Points and labels of the pretraining streets, read back from disk."""
    data = config.data
    roots = draw_streets(range(*data.seeds), data.sweeps, data.stride, data.image_size, data.folder)
    drive = Drives(roots)
    return ((frame.points, frame.labels) for frame in map(drive.__getitem__, range(len(drive))))


def validation():
    """Points and labels of streets that are used for nothing else."""
    for seed in VALIDATION:
        street = Street(seed, frames=21, cameras=False)
        yield from ((frame.points, frame.labels) for frame in (street[i] for i in (0, 10, 20)))


@torch.no_grad()
def frozen_features(
    backbone: nn.Module, points: np.ndarray, labels: np.ndarray, voxels: VoxelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(M, C) features and (M,) labels of the voxels, (N,) voxel of each point."""
    batch = collate([(points, labels)], voxels)
    return backbone(batch.voxels).features, batch.labels, batch.voxel_of_point


def train_head(sweeps: list[tuple[Tensor, Tensor, Tensor]], classes: int, seed: int) -> nn.Module:
    """A linear layer on standardised features; standardising is linear too and only helps the optimiser."""
    everything = torch.cat([features for features, _, _ in sweeps])
    mean, std = everything.mean(0), everything.std(0).clamp(min=1e-6)
    head = nn.Linear(everything.shape[1], classes)
    optim = OptimConfig(PROBE_LR)
    optimizer, rng = adamw(head, optim), np.random.default_rng(seed)
    per_epoch = len(sweeps) // PROBE_BATCH
    order = np.concatenate([rng.permutation(len(sweeps))[: per_epoch * PROBE_BATCH] for _ in range(PROBE_EPOCHS)])
    for step, chosen in enumerate(order.reshape(-1, PROBE_BATCH)):
        optimizer.param_groups[0]["lr"] = one_cycle(step, PROBE_EPOCHS * per_epoch, optim.peak_lr)
        features = torch.cat([sweeps[i][0] for i in chosen])
        loss = segmentation_loss(head((features - mean) / std), torch.cat([sweeps[i][1] for i in chosen]))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    with torch.no_grad():
        head.weight /= std
        head.bias -= head.weight @ mean
    return head.requires_grad_(False)


if __name__ == "__main__":
    main()

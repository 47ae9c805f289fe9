"""Does LiMA teach more than one frame does? Linear probe on simulated streets: random, 1 frame (ScaLR), 6 frames.

python bench/pretrain_street.py --weights vit_small_patch14_dinov2.safetensors --out runs/bench_street --seeds 0 1 2
About an hour per seed on one CPU core, after half an hour for streets and teacher features, which all seeds share.
Interrupted, it goes on where it was: finished rows are read, a half trained one is resumed.

Every row is config/pretrain/lima_street.yaml with the options of ROWS: same student, streets, order, number of steps.
The probe is one linear layer on the standardised features of the frozen backbone in eval mode, trained on the labels of
the pretraining streets (last epoch, nothing is selected), and measured on streets that neither has seen. `--rows
"1 frame, mixing" "6 frames, no mixing"` tells memory (LTFP) from mixing (CSMA), which doubles the passes of a step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lima_core import pretrain
from lima_core.checkpoint import load_checkpoint
from lima_core.config import config_from_dict, read_config, to_yaml
from lima_core.data.classes import load_taxonomy
from lima_core.data.drives import Drives, draw_streets
from lima_core.data.synthetic.street import Street
from lima_core.files import write_whole
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.paths import config_dir
from lima_core.tools import cache_teacher
from lima_core.training.allocator import keep_freed_memory
from lima_core.training.collate import collate
from lima_core.training.initial import load_backbone
from lima_core.training.loop import STATE
from lima_core.training.loss import segmentation_loss
from lima_core.training.optim import OptimConfig, build_optimizer, one_cycle

ROWS = {
    "1 frame": ["--method.frames=1", "--method.mixing=null"],
    "6 frames": ["--method.frames=6"],
    "1 frame, mixing": ["--method.frames=1"],
    "6 frames, no mixing": ["--method.frames=6", "--method.mixing=null"],
}
VALIDATION, VALIDATION_SWEEPS = range(100_000, 100_030), (0, 20)
PROBE_EPOCHS, PROBE_BATCH, PROBE_LR = 20, 2, 1e-2

Sweep = tuple[np.ndarray, np.ndarray]  # points and labels


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="DINOv2 ViT-S, .safetensors or .pth")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_street"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", default=["1 frame", "6 frames"], choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    config = read_config(pretrain.PretrainConfig, arguments(options, options.seeds[0]), "bench")
    cache_teacher.fill(config)
    sweeps = list(labelled(config)), list(validation())
    table = {}
    for seed in options.seeds:
        for name in ["random", *options.rows]:
            folder = options.out / f"seed{seed}" / name
            path = train([*arguments(options, seed), *ROWS[name], f"--out={folder}"]) if name in ROWS else None
            table[f"{name}, seed {seed}"] = probed(folder, path, replace(config, seed=seed), *sweeps)
    show(table, ["random", *options.rows], options.seeds)
    result = {"arguments": arguments(options, options.seeds[0]), "rows": table}
    print(f"wrote {write_whole(options.out / 'table.json', json.dumps(result, indent=2))}")


def arguments(options: argparse.Namespace, seed: int) -> list[str]:
    """What all rows of a seed share, as options of lima_core.pretrain."""
    return [
        f"--config={config_dir() / 'pretrain' / 'lima_street.yaml'}", f"--teacher.weights={options.weights}",
        f"--teacher.cache={options.out / 'features'}", f"--data.folder={options.out / 'streets'}",
        f"--seed={seed}", "--threads=1", "--workers=0", "--device=cpu",
    ]  # fmt: skip


def train(argv: Sequence[str]) -> Path:
    """The checkpoint of a pretraining run, which is started, resumed, or was finished before."""
    config = read_config(pretrain.PretrainConfig, argv, "bench")
    folder = Path(config.out)
    path = folder / "checkpoint.safetensors"
    if not path.is_file() or replace(config_of(path), out=config.out) != config:
        resume = (folder / STATE).is_file() and (folder / "config.yaml").read_text() == to_yaml(config)
        command = [sys.executable, "-m", "lima_core.pretrain", *argv, *(["--resume"] if resume else [])]
        subprocess.run(command, check=True)
    return path


def config_of(checkpoint: Path) -> pretrain.PretrainConfig:
    """The config of a run; keys that it did not know have their defaults."""
    return config_from_dict(pretrain.PretrainConfig, load_checkpoint(checkpoint)[1]["config"])


def show(table: dict[str, dict], names: Sequence[str], seeds: Sequence[int]) -> None:
    """mIoU by row and seed, in percent, with mean and standard deviation."""
    print(f"linear probe mIoU    {'  '.join(f'seed {seed:<3d}' for seed in seeds)}  mean +- std")
    for name in names:
        values = [100 * table[f"{name}, seed {seed}"]["miou"] for seed in seeds]
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        print(f"{name:20s} {'  '.join(f'{value:8.2f}' for value in values)}  {np.mean(values):.2f} +- {spread:.2f}")


def probed(folder: Path, checkpoint: Path | None, config: pretrain.PretrainConfig, *sweeps: list[Sweep]) -> dict:
    """The probe of a checkpoint, read from its folder where it was made before."""
    content = b"" if checkpoint is None else checkpoint.read_bytes()
    facts = {"of": hashlib.blake2b(content).hexdigest(), "probe": [PROBE_EPOCHS, PROBE_BATCH, PROBE_LR, config.seed]}
    path = folder / "probe.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("facts") != facts:
        known = {"facts": facts, "result": probe(checkpoint, config, *sweeps)}
        write_whole(path, json.dumps(known, indent=2))
    return known["result"]


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
        street = Street(seed, frames=max(VALIDATION_SWEEPS) + 1, cameras=False)
        yield from ((frame.points, frame.labels) for frame in map(street.__getitem__, VALIDATION_SWEEPS))


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
    optimizer, rng = build_optimizer(head, optim), np.random.default_rng(seed)
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

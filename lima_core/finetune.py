"""Supervised segmentation on the simulated street.

python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street
python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street --resume
python -m lima_core.finetune --init runs/lima/checkpoint.safetensors               # from a pretrained backbone
python -m lima_core.finetune --init runs/lima/checkpoint.safetensors --linear_probe
python -m lima_core.finetune --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lima_core.checkpoint import FORMAT, CheckpointError, save_checkpoint
from lima_core.config import ConfigError, option, plain, read_config, to_yaml
from lima_core.data.augment import AugmentConfig
from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.synthetic.street import Street
from lima_core.files import write_whole
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.heads import build_segmenter
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.predict import Predictor
from lima_core.training.initial import load_backbone
from lima_core.training.input_statistics import input_statistics
from lima_core.training.loop import STATE, StoppedError, fit
from lima_core.training.loss import Loss, segmentation_loss
from lima_core.training.optim import OptimConfig
from lima_core.training.run_folder import revision, versions
from lima_core.training.sweeps import Sweep, TrainingSweeps, evaluate

TAXONOMY = "nuscenes"


@dataclass(frozen=True)
class StreetConfig:
    """Which simulated streets to train and validate on."""

    train_seeds: tuple[int, int] = option((0, 200), "first seed and end (excluded) of the training streets")
    val_seeds: tuple[int, int] = option((100000, 100020), "first seed and end (excluded) of the validation streets")
    sweeps_per_street: int = option(2, "labelled sweeps taken from each street")
    sweep_stride: int = option(10, "sweeps from one taken to the next; the LiDAR turns at 10 Hz")


@dataclass(frozen=True)
class FinetuneConfig:
    """All there is to set."""

    model: str = option("minkunet_tiny", "network: minkunet_tiny, minkunet18 or minkunet34")
    street: StreetConfig = field(default_factory=StreetConfig)
    voxels: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: str | None = option(None, "checkpoint whose backbone to start from; null: random weights")
    linear_probe: bool = option(False, "train the last layer only, the backbone frozen in eval mode")
    epochs: int = option(10, "passes over the training sweeps")
    batch_size: int = option(4, "sweeps per step")
    seed: int = option(0, "of weights, order and augmentation")
    threads: int = option(1, "CPU threads of the network; more help only where nothing else runs: waiting threads spin")
    workers: int = option(2, "processes that simulate")
    half: bool = option(False, "store weight matrices as float16")
    out: str = option("runs/finetune", "run folder")
    resume: bool = option(False, "go on with the run in the folder --out")


def main(argv: Sequence[str]) -> None:
    """The command line."""
    try:
        config = read_config(FinetuneConfig, argv, "python -m lima_core.finetune", __doc__.splitlines()[0])
        run(config, ["python", "-m", "lima_core.finetune", *argv])
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except (ConfigError, CheckpointError) as error:
        sys.exit(f"error: {error}")


def run(config: FinetuneConfig, command: list[str]) -> Path:
    """Trains, validates after each epoch, writes <out>/checkpoint.safetensors and prints the IoU of each class."""
    _check(config)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    taxonomy = load_taxonomy(TAXONOMY)
    classes = len(taxonomy.names)
    network = build_segmenter(config.model, classes)
    if config.init is not None:
        load_backbone(config.init, config.model, network.backbone, config.voxels)
    network.backbone.requires_grad_(not config.linear_probe)
    folder = Path(config.out)
    write_whole(folder / "config.yaml", to_yaml(_effective(config)))
    training = simulate(config.street.train_seeds, config.street, config.workers, "training streets")
    validation = simulate(config.street.val_seeds, config.street, config.workers, "validation streets")
    batches = TrainingSweeps(training, config.batch_size, config.voxels, config.augment, config.seed)

    def loss_at(step: int) -> Loss:
        batch = batches.batch(step)
        network.backbone.train(not config.linear_probe)  # frozen means its normalisation too
        return segmentation_loss(network(batch.voxels), batch.labels)

    def validate() -> dict[str, Any]:
        return {"val_miou": evaluate(network, validation, config.voxels, classes).miou()}

    steps = config.epochs * batches.steps_per_epoch
    log = fit(network, loss_at, validate, steps, batches.steps_per_epoch, config.optim, folder, resume=config.resume)
    meta = _metadata(config, taxonomy, command, training)
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, network, meta, config.half)
    meta["metrics"] = _metrics(path, validation, config, log)
    save_checkpoint(path, network, meta, config.half)
    _report(path, meta)
    return path


def simulate(seeds: tuple[int, int], street: StreetConfig, workers: int, what: str) -> list[Sweep]:
    """Labelled sweeps of the streets with these seeds, without cameras, in the order of the seeds."""
    draw = partial(_street_sweeps, street=street)
    progress = partial(tqdm, total=seeds[1] - seeds[0], desc=what, unit="street", dynamic_ncols=True)
    if workers == 1:
        return [sweep for drawn in progress(map(draw, range(*seeds))) for sweep in drawn]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return [sweep for drawn in progress(pool.map(draw, range(*seeds))) for sweep in drawn]


def _street_sweeps(seed: int, street: StreetConfig) -> list[Sweep]:
    """Every `sweep_stride`-th sweep of one street."""
    frames = (street.sweeps_per_street - 1) * street.sweep_stride + 1
    source = Street(seed, frames=frames, cameras=False)
    drawn = (source[index] for index in range(0, frames, street.sweep_stride))
    return [Sweep(frame.points, frame.labels, len(np.unique(frame.extra["ring"]))) for frame in drawn]


def _check(config: FinetuneConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    if config.model not in MODELS:
        raise ConfigError(f"model {config.model!r} is unknown; there are {', '.join(MODELS)}")
    train, val = range(*config.street.train_seeds), range(*config.street.val_seeds)
    if not train or not val:
        raise ConfigError("street.train_seeds and street.val_seeds are [first, end) and must not be empty")
    if max(train[0], val[0]) <= min(train[-1], val[-1]):
        raise ConfigError(f"street.train_seeds {train} and street.val_seeds {val} overlap; keep them apart")
    if config.resume and not (Path(config.out) / STATE).is_file():
        raise ConfigError(f"nothing to resume in {config.out}; start without --resume")


def _effective(config: FinetuneConfig) -> FinetuneConfig:
    """The config as it is recorded: that a run was interrupted is no part of what it computes."""
    return replace(config, resume=False)


def _metadata(config: FinetuneConfig, taxonomy: Taxonomy, command: list[str], training: list[Sweep]) -> dict[str, Any]:
    """All that a checkpoint says of itself but its metrics; without dates, so that equal runs give equal files."""
    return {
        "format": FORMAT,
        "model": config.model,
        "classes": {"names": list(taxonomy.names), "colors": taxonomy.colors.tolist()},
        "config": plain(_effective(config)),
        "inputs": input_statistics(training),
        "metrics": {},
        "versions": versions(),
        "provenance": {
            "command": " ".join(part for part in command if part != "--resume"),
            "revision": revision(),
            "data": f"simulated street, seeds {list(config.street.train_seeds)} (end excluded)",
        },
    }


def _metrics(path: Path, validation: list[Sweep], config: FinetuneConfig, log: list[dict]) -> dict[str, Any]:
    """Validation of the written file by the code that will use it, and the best epoch for comparison."""
    predictor = Predictor(path, "cpu")
    confusion = ConfusionMatrix(len(predictor.class_names))
    for sweep in validation:
        confusion.update(sweep.labels, predictor.segment(sweep.points).labels)
    best = max((record for record in log if "val_miou" in record), key=lambda record: record["val_miou"])
    iou = {n: None if np.isnan(v) else round(v, 4) for n, v in zip(predictor.class_names, confusion.iou(), strict=True)}
    return {
        "val_miou": round(confusion.miou(), 4),
        "val_iou": iou,
        "val_seeds": list(config.street.val_seeds),
        "val_sweeps": len(validation),
        "epoch": config.epochs,
        "best_epoch": best["epoch"],
        "best_epoch_val_miou": round(best["val_miou"], 4),
    }


def _report(path: Path, meta: dict[str, Any]) -> None:
    metrics = meta["metrics"]
    for name, iou in metrics["val_iou"].items():
        print(f"{name:22s} {'   absent' if iou is None else f'{100 * iou:8.2f}%'}")
    counted = sum(iou is not None for iou in metrics["val_iou"].values())
    print(f"val mIoU {100 * metrics['val_miou']:.2f}% over {counted} classes and {metrics['val_sweeps']} sweeps ")
    print(f"(last epoch); best epoch {metrics['best_epoch']}: {100 * metrics['best_epoch_val_miou']:.2f}%")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main(sys.argv[1:])

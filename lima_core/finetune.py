"""Supervised segmentation and detection from a pretrained backbone or from random weights.

python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street
python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street --resume
python -m lima_core.finetune --config config/finetune/seg_nuscenes_1.yaml --data.root DATA/nuscenes --out runs/seg
    --init runs/lima/checkpoint.safetensors                                 # 1 % of the labels, pretrained
python -m lima_core.finetune ... --linear_probe                         # the last layer only
python -m lima_core.finetune --config config/finetune/det_nuscenes_center_5.yaml --data.root DATA/nuscenes
    --init runs/lima_voxelnet/checkpoint.safetensors --out runs/det             # --task detection, CenterPoint
torchrun --nproc-per-node 4 -m lima_core.finetune ...                   # four processes share each batch
python -m lima_core.finetune --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lima_core.checkpoint import CheckpointError, load_checkpoint
from lima_core.config import ConfigError, read_config
from lima_core.data.frame import DatasetError
from lima_core.data.labelled import STREET
from lima_core.models.backbones import BACKBONES
from lima_core.models.loss import Loss
from lima_core.models.voxelnet import ENCODERS
from lima_core.training.detection_task import DetectionTask
from lima_core.training.finetune_config import FinetuneConfig
from lima_core.training.finished import BEST, Finished
from lima_core.training.loader import StepLoader
from lima_core.training.loop import STATE, StoppedError, fit, leave_processes
from lima_core.training.run_folder import describe_run
from lima_core.training.segmentation_task import SegmentationTask
from lima_core.training.start import choose_backend, start
from lima_core.training.sync_norm import synchronise


def main(argv: Sequence[str]) -> None:
    """The command line."""
    try:
        config = read_config(FinetuneConfig, argv, "python -m lima_core.finetune", __doc__.splitlines()[0])
        run(config, ["python", "-m", "lima_core.finetune", *argv])
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except (ConfigError, CheckpointError, DatasetError) as error:
        sys.exit(f"error: {error}")
    finally:
        leave_processes()


def run(config: FinetuneConfig, command: list[str]) -> Path:
    """Trains, validates, writes <out>/checkpoint.safetensors (last) and best.safetensors, prints each class's score."""
    _check(config)
    fabric = start(config.device, config.precision, config.threads, config.seed, config.deterministic)
    if config.batch_size % fabric.world_size:
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared by {fabric.world_size} processes")
    task = (SegmentationTask if config.task == "segmentation" else DetectionTask)(config, fabric)
    network = choose_backend(task.network, config.backend, config.deterministic)
    if fabric.world_size > 1:
        synchronise(network)
    folder = Path(config.out)
    if fabric.is_global_zero and not config.resume:
        describe_run(folder, _effective(config), command)
    loader = StepLoader(task.batches, config.workers)
    # reads sweeps for its statistics: only where files are written
    writer = Finished(_effective(config), folder, command, task, fabric.device) if fabric.is_global_zero else None
    best = best_so_far(folder, task.score) if config.resume else -1.0
    epoch = 0

    def loss_at(step: int) -> Loss:
        nonlocal epoch
        epoch = step // task.batches.steps_per_epoch + 1
        return task.loss(loader.at(step))

    def validate() -> dict[str, Any]:
        nonlocal best
        if epoch % config.validate_every and epoch < config.epochs:
            return {}
        metrics = task.validate()
        score = metrics[task.score]
        if score != score:
            raise ConfigError(
                f"{task.score} is nan: no validation sweep has a label; unpack them, or choose other data"
            )
        if score > best and writer is not None:
            writer.save(network, BEST, {task.score: round(score, 6), "epoch": epoch})
        best = max(best, score)
        return metrics

    fit(
        network, loss_at, validate, len(task.batches), task.batches.steps_per_epoch, config.optim, folder,
        resume=config.resume, fabric=fabric, save_minutes=config.save_minutes,
    )  # fmt: skip
    return folder if writer is None else writer.close(network)


def best_so_far(folder: Path, score: str) -> float:
    """Score of the best checkpoint that an interrupted run has left."""
    path = folder / BEST
    return load_checkpoint(path)[1]["metrics"][score] if path.is_file() else -1.0


def _check(config: FinetuneConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    if config.model not in BACKBONES:
        raise ConfigError(f"model {config.model!r} is unknown; there are {', '.join(BACKBONES)}")
    if config.task != "segmentation":
        _check_detection(config)
    elif config.boxes.gt_database is not None:
        raise ConfigError("boxes.gt_database is for boxes; use it with --task detection or both")
    if config.data.name == STREET:
        train, val = range(*config.data.street.train_seeds), range(*config.data.street.val_seeds)
        if not train or not val:
            raise ConfigError("data.street train_seeds and val_seeds are [first, end) and must not be empty")
        if max(train[0], val[0]) <= min(train[-1], val[-1]):
            raise ConfigError(f"data.street.train_seeds {train} and val_seeds {val} overlap; keep them apart")
    if min(config.epochs, config.batch_size, config.validate_every) < 1:
        raise ConfigError("epochs, batch_size and validate_every must be at least 1")
    if config.resume and not (Path(config.out) / STATE).is_file():
        raise ConfigError(f"nothing to resume in {config.out}; start without --resume")


def _check_detection(config: FinetuneConfig) -> None:
    """Raises ConfigError for what only segmentation has."""
    if config.model not in ENCODERS:
        raise ConfigError(f"task {config.task} needs a model with a bird's-eye view: {', '.join(ENCODERS)}")
    if config.linear_probe or config.mixing != "none":
        raise ConfigError(f"linear_probe and mixing are for task segmentation; leave them out for {config.task}")
    if config.optim.head_lr_factor != 1.0:
        raise ConfigError(f"optim.head_lr_factor is for task segmentation; {config.task} has one learning rate")
    if config.detector.sweeps < 1:
        raise ConfigError("detector.sweeps counts the current sweep too, so it is at least 1")


def _effective(config: FinetuneConfig) -> FinetuneConfig:
    """The config as it is recorded: that a run was interrupted is no part of what it computes."""
    return replace(config, resume=False)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Supervised segmentation from a pretrained backbone or from random weights.

python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street
python -m lima_core.finetune --config config/finetune/street.yaml --out runs/street --resume
python -m lima_core.finetune --config config/finetune/seg_nuscenes_1.yaml --data.root DATA/nuscenes --out runs/seg
    --init runs/lima/checkpoint.safetensors                                 # 1 % of the labels, pretrained
python -m lima_core.finetune ... --linear_probe                         # the last layer only
torchrun --nproc-per-node 4 -m lima_core.finetune ...                   # four processes share each batch
python -m lima_core.finetune --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from lima_core.checkpoint import CheckpointError, load_checkpoint
from lima_core.config import ConfigError, option, read_config
from lima_core.data.augment import AugmentConfig
from lima_core.data.frame import DatasetError
from lima_core.data.labelled import STREET, DataConfig, Sweep, open_labelled, taxonomy_of
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.heads import Segmenter, build_segmenter
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.training.finished import BEST, Finished
from lima_core.training.initial import load_backbone
from lima_core.training.loader import StepLoader
from lima_core.training.loop import STATE, StoppedError, fit, leave_processes
from lima_core.training.loss import Loss, segmentation_loss
from lima_core.training.optim import OptimConfig
from lima_core.training.run_folder import describe_run
from lima_core.training.start import choose_backend, start
from lima_core.training.sweeps import Mixing, TrainingSweeps, evaluate
from lima_core.training.sync_norm import synchronise


@dataclass(frozen=True)
class FinetuneConfig:
    """All there is to set."""

    model: str = option("minkunet_tiny", "network: minkunet_tiny, minkunet18 or minkunet34")
    data: DataConfig = field(default_factory=DataConfig)
    voxels: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: Mixing = option("none", "mix half of the training sweeps with another one, by this operator")
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: str | None = option(None, "checkpoint whose backbone to start from; null: random weights")
    linear_probe: bool = option(False, "train the last layer only, the backbone frozen in eval mode")
    epochs: int = option(10, "passes over the training sweeps")
    batch_size: int = option(4, "sweeps per step, of all processes together")
    validate_every: int = option(1, "epochs from one validation to the next; the last epoch is always validated")
    seed: int = option(0, "of weights, order, augmentation and mixing")
    threads: int = option(1, "CPU threads of the network; more help only where nothing else runs: waiting threads spin")
    workers: int = option(2, "processes that simulate streets, and that read batches ahead; 0: none")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "of the network; less than fp32 on a GPU only")
    backend: Literal["auto", "torch", "spconv"] = option(
        "auto", "of the sparse convolutions; auto: spconv on a GPU where it is installed, else torch"
    )
    deterministic: bool = option(
        False, "refuse operations that are not repeatable on a GPU, spconv too; a CPU always repeats"
    )
    save_minutes: float = option(10.0, "minutes between saved states; one is saved after each epoch too")
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
    except (ConfigError, CheckpointError, DatasetError) as error:
        sys.exit(f"error: {error}")
    finally:
        leave_processes()


def run(config: FinetuneConfig, command: list[str]) -> Path:
    """Trains, validates, writes <out>/checkpoint.safetensors (last) and best.safetensors, prints each class's IoU."""
    _check(config)
    fabric = start(config.device, config.precision, config.threads, config.seed, config.deterministic)
    if config.batch_size % fabric.world_size:
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared by {fabric.world_size} processes")
    network = build_network(config)
    if fabric.world_size > 1:
        synchronise(network)
    training, validation = (open_labelled(config.data, split, max(1, config.workers)) for split in ("train", "val"))
    try:
        batches = TrainingSweeps(
            training, config.batch_size, config.voxels, config.augment, config.seed, config.epochs, config.mixing,
            fabric.global_rank, fabric.world_size,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from error
    folder = Path(config.out)
    if fabric.is_global_zero and not config.resume:
        describe_run(folder, _effective(config), command)
    loader = StepLoader(batches, config.workers)
    # reads sweeps for its statistics: only where files are written
    writer = Finished(_effective(config), folder, command, training, fabric.device) if fabric.is_global_zero else None
    best = best_so_far(folder) if config.resume else -1.0
    epoch = 0

    def loss_at(step: int) -> Loss:
        nonlocal epoch
        epoch = step // batches.steps_per_epoch + 1
        batch = loader.at(step)
        network.backbone.train(not config.linear_probe)  # frozen means its normalisation too
        return segmentation_loss(network(batch.voxels.to(fabric.device)), batch.labels.to(fabric.device))

    def validate() -> dict[str, Any]:
        nonlocal best
        if epoch % config.validate_every and epoch < config.epochs:
            return {}
        miou = validation_matrix(network, validation, config.voxels, fabric).miou()
        if miou > best and writer is not None:
            writer.save(network, BEST, {"val_miou": round(miou, 6), "epoch": epoch})
        best = max(best, miou)
        return {"val_miou": miou}

    fit(
        network, loss_at, validate, len(batches), batches.steps_per_epoch, config.optim, folder,
        resume=config.resume, fabric=fabric, save_minutes=config.save_minutes,
    )  # fmt: skip
    return folder if writer is None else writer.close(network, validation)


def build_network(config: FinetuneConfig) -> Segmenter:
    """The network to train, from `init` where there is one."""
    network = build_segmenter(config.model, len(taxonomy_of(config.data).names))
    if config.init is not None:
        load_backbone(config.init, config.model, network.backbone, config.voxels)
    network.backbone.requires_grad_(not config.linear_probe)
    return choose_backend(network, config.backend, config.deterministic)


def validation_matrix(
    network: Segmenter, validation: Sequence[Sweep], voxels: VoxelConfig, fabric: Fabric
) -> ConfusionMatrix:
    """Over all sweeps, of which each process takes its share."""
    share = [validation[index] for index in range(fabric.global_rank, len(validation), fabric.world_size)]
    confusion = evaluate(network, share, voxels, network.head.out_features)
    if fabric.world_size > 1:
        for counts in (confusion.matrix, confusion.missed):
            total = fabric.all_reduce(torch.from_numpy(counts).to(fabric.device), reduce_op="sum")
            counts[...] = total.cpu().numpy()
    return confusion


def best_so_far(folder: Path) -> float:
    """Validation mIoU of the best checkpoint that an interrupted run has left."""
    path = folder / BEST
    return load_checkpoint(path)[1]["metrics"]["val_miou"] if path.is_file() else -1.0


def _check(config: FinetuneConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    if config.model not in MODELS:
        raise ConfigError(f"model {config.model!r} is unknown; there are {', '.join(MODELS)}")
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


def _effective(config: FinetuneConfig) -> FinetuneConfig:
    """The config as it is recorded: that a run was interrupted is no part of what it computes."""
    return replace(config, resume=False)


if __name__ == "__main__":
    main(sys.argv[1:])

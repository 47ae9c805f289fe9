"""LiMA pretraining: a 3D network learns from what cameras have seen, without any label.

python -m lima_core.pretrain                                                       # a simulated street, no download
python -m lima_core.pretrain --config config/pretrain/lima_street.yaml --teacher.weights=FILE --out runs/lima
python -m lima_core.pretrain --config config/pretrain/lima_vits_nuscenes.yaml --data.root=/data/nuscenes
torchrun --nproc-per-node 8 -m lima_core.pretrain --config config/pretrain/lima_vits_nuscenes.yaml
python -m lima_core.pretrain --config runs/lima/config.yaml --resume               # goes on where it was stopped

Then: python -m lima_core.finetune --init runs/lima/checkpoint.safetensors
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import timm
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import nn

from lima_core.checkpoint import FORMAT, CheckpointError, save_checkpoint
from lima_core.config import ConfigError, option, plain, read_config
from lima_core.data.augment import AugmentConfig
from lima_core.data.drives import DriveError, Drives, draw_streets, validation_scenes
from lima_core.data.frame import DatasetError
from lima_core.data.labelled import Sweep, beams_of
from lima_core.data.recordings import Recordings
from lima_core.lima.scenes import SceneBatches, TeacherFeatures
from lima_core.lima.scenes import steps_per_epoch as count_steps
from lima_core.lima.step import Lima, LimaConfig, Scene
from lima_core.lima.view import ViewError
from lima_core.models.backbones import BACKBONES, build_backbone, inputs_of
from lima_core.models.inputs import encode
from lima_core.models.loss import Loss
from lima_core.models.teacher import NAMES, Teacher, TeacherError
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.training.feature_cache import CacheError, FeatureCache, bytes_per_frame, check_space, teacher_key
from lima_core.training.input_statistics import input_statistics
from lima_core.training.loader import StepLoader
from lima_core.training.loop import STATE, StoppedError, fit, leave_processes
from lima_core.training.optim import OptimConfig
from lima_core.training.run_folder import describe_run, revision, versions
from lima_core.training.start import choose_backend, start
from lima_core.training.sync_norm import synchronise
from lima_core.viz.bev import to_base
from lima_core.viz.features import feature_picture

NORM_MOMENTUM = 0.05  # of pretraining in SuperFlow, spec/lima.md section 3
STATISTICS_FRAMES = 50
RANDOM = "random"
ERRORS = (ConfigError, CheckpointError, TeacherError, CacheError, ViewError, DriveError, DatasetError)

logger = logging.getLogger("lima_core.pretrain")


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen image network."""

    size: Literal["small", "base", "large"] = option("small", "DINOv2 ViT-S, ViT-B or ViT-L, patches of 14 pixels")
    weights: str | None = option(
        RANDOM, "file (.safetensors, .pth); null: download from the timm hub; random: untrained, to try the machinery"
    )
    image_size: tuple[int, int] = option((112, 56), "width and height of its input, pixels, multiples of 14")
    layer: int = option(-1, "block whose output is taken, -1 = the last")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "of its arithmetic on a GPU")
    cache: str | None = option("runs/features", "folder that keeps its features between epochs and runs; null: none")


@dataclass(frozen=True)
class DataConfig:
    """Drives with cameras, LiDAR and poses."""

    kind: Literal["street", "nuscenes", "recording"] = option(
        "street", "simulated streets, a folder in the nuScenes layout, or recordings of one's own robot"
    )
    seeds: tuple[int, int] = option((0, 4), "street: first seed and end (excluded)")
    sweeps: int = option(5, "street: sweeps taken from each")
    stride: int = option(5, "street: sweeps from one taken to the next; the LiDAR turns at 10 Hz")
    image_size: tuple[int, int] = option((112, 56), "street: width and height of the pictures, pixels")
    folder: str = option("runs/streets", "street: where drawn streets are kept")
    root: str = option("", "nuscenes: folder with <version>/ and samples/; recording: folders, comma between")
    version: str | None = option(None, "nuscenes: version folder, e.g. v1.0-trainval; null: the only one")
    split: Literal["train", "all"] = option("train", "nuscenes: train = all but the official validation scenes")


@dataclass(frozen=True)
class PretrainConfig:
    """All there is to set."""

    student: str = option("minkunet_tiny", f"network: {', '.join(BACKBONES)}")
    method: LimaConfig = field(default_factory=LimaConfig)
    voxels: VoxelConfig = field(default_factory=VoxelConfig)
    bounds: RangeConfig = field(default_factory=RangeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    epochs: int = option(3, "passes over the frames")
    batch_size: int = option(2, "scenes per step, of all processes together")
    seed: int = option(0, "of weights, order, augmentation and mixing")
    workers: int = option(1, "processes that read and decode ahead; 0: none")
    threads: int = option(1, "CPU threads of each process, and processes that draw streets")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "of the student; less than fp32 on a GPU only")
    backend: Literal["auto", "torch", "spconv"] = option(
        "auto", "of the sparse convolutions; auto: spconv on a GPU where it is installed, else torch"
    )
    deterministic: bool = option(
        False, "refuse operations that are not repeatable on a GPU, spconv too; a CPU always repeats"
    )
    save_minutes: float = option(10.0, "minutes between saved states; one is saved after each epoch too")
    out: str = option("runs/pretrain", "run folder")
    resume: bool = option(False, "go on with the run in the folder --out")


def main(argv: Sequence[str]) -> None:
    """The command line."""
    log_to_terminal()
    try:
        config = read_config(PretrainConfig, argv, "python -m lima_core.pretrain", __doc__.splitlines()[0])
        run(config, ["python", "-m", "lima_core.pretrain", *argv])
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    finally:
        leave_processes()


def log_to_terminal() -> None:
    """Warnings and facts of a run, one line each."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)


def run(config: PretrainConfig, command: Sequence[str]) -> Path:
    """Pretrains and writes <out>/checkpoint.safetensors: the backbone, and the projection onto the teacher."""
    fabric = start(config.device, config.precision, config.threads, config.seed, config.deterministic)
    folder = _folder(config, fabric, command)
    with fabric.rank_zero_first():
        drive = open_drive(config.data, config.threads)
    teacher = build_teacher(config.teacher).to(fabric.device)
    cache = open_cache(config.teacher, teacher, fabric.global_rank)
    if cache is not None and fabric.is_global_zero:
        missing = max(0, len(drive) - len(cache))
        print(check_space(cache.folder, missing, bytes_per_frame(teacher, len(drive.rig.cameras))), flush=True)
    objective = build_objective(config, teacher.channels)
    if fabric.world_size > 1:
        synchronise(objective)
    steps_per_epoch = count_steps(drive.sequences, config.batch_size)
    steps = config.epochs * steps_per_epoch
    batches = SceneBatches(
        drive, config.method.frames, config.batch_size, config.seed, steps, teacher.prepare, cache,
        fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    loader, features = StepLoader(batches, config.workers), TeacherFeatures(teacher, cache, fabric.device)
    shown = features.scene(batches[0][0])

    def loss_at(step: int) -> Loss:
        return objective.step([features.scene(loaded) for loaded in loader.at(step)])

    def evaluate() -> dict[str, Any]:
        if cache is not None:
            cache.flush()
        counts = features.take_counts()
        return {**counts, "features": student_picture(objective, shown, drive.rig.base_from_lidar)}

    log = fit(
        objective, loss_at, evaluate, steps, steps_per_epoch, config.optim, folder, resume=config.resume,
        fabric=fabric, save_minutes=config.save_minutes,
    )  # fmt: skip
    return _finish(config, command, folder, objective, drive, log) if fabric.is_global_zero else folder


def open_drive(config: DataConfig, processes: int) -> Drives | Recordings:
    """The frames to learn from; missing streets are drawn first, by `processes` processes."""
    if config.kind == "nuscenes":
        without = validation_scenes() if config.split == "train" else set()
        return Drives([config.root], config.version, without)
    if config.kind == "recording":
        drive = Recordings([root.strip() for root in config.root.split(",")])
        if not drive.rig.cameras:
            raise DriveError(
                f"{config.root}: {drive.rig.name} has no cameras to learn from; record with a rig that has"
            )
        return drive
    seeds = range(*config.seeds)
    return Drives(draw_streets(seeds, config.sweeps, config.stride, config.image_size, config.folder, processes))


def build_teacher(config: TeacherConfig) -> Teacher:
    """The frozen teacher. `random` weights are those of an untrained network, the same on every machine."""
    if config.weights != RANDOM:
        return _teacher(config, config.weights)
    logger.warning(
        "teacher.weights=random: an UNTRAINED image network. This run shows that everything works; what it learns is "
        "worth little. For the real DINOv2: --teacher.weights=FILE, or null to download it"
    )
    with TemporaryDirectory() as folder, torch.random.fork_rng([]):
        torch.manual_seed(0)
        path = Path(folder) / "random.safetensors"
        save_file(timm.create_model(NAMES[config.size], pretrained=False, num_classes=0).state_dict(), path)
        return _teacher(config, path)


def _teacher(config: TeacherConfig, weights: str | Path | None) -> Teacher:
    try:
        return Teacher(config.size, config.image_size, weights, config.layer, config.precision)
    except ValueError as error:
        raise TeacherError(str(error)) from error


def open_cache(config: TeacherConfig, teacher: Teacher, process: int = 0) -> FeatureCache | None:
    """The feature cache of this teacher; None where it is switched off."""
    return None if config.cache is None else FeatureCache(config.cache, teacher_key(teacher), process)


def build_objective(config: PretrainConfig, teacher_channels: int) -> Lima:
    """The student with its projection, freshly initialised."""
    inputs = inputs_of(config.student, config.voxels, config.bounds)
    student = build_backbone(config.student, inputs, norm_momentum=NORM_MOMENTUM)
    student = choose_backend(student, config.backend, config.deterministic)
    return Lima(student, teacher_channels, config.method, inputs, config.augment)


@torch.no_grad()
def student_picture(objective: Lima, scene: Scene, base_from_lidar: np.ndarray) -> np.ndarray:
    """Targets and student features of one scene, side by side: (H, W, 3) uint8 RGB."""
    objective.eval()
    target = objective.target(scene)
    points = torch.from_numpy(scene.current.points).to(target.features.device)
    found = encode(points, objective.voxels)
    voxel = found.voxel_of_point[target.rows]
    student = objective.head(objective.student(found.voxels).features)[voxel[voxel >= 0]]
    place = to_base(scene.current.points[target.rows[voxel >= 0].cpu().numpy()], base_from_lidar)
    return feature_picture(place, target.features[voxel >= 0], student)


def _folder(config: PretrainConfig, fabric: Fabric, command: Sequence[str]) -> Path:
    """Checks what the types cannot, then describes the run in its folder."""
    folder, processes = Path(config.out), fabric.world_size
    if config.student not in BACKBONES:
        raise ConfigError(f"student {config.student!r} is unknown; there are {', '.join(BACKBONES)}")
    if config.data.kind != "street" and not config.data.root:
        raise ConfigError(f"data.kind={config.data.kind} needs data.root, the folder of the data")
    if config.batch_size % processes or (processes > 1 and config.method.mixing and config.batch_size // processes % 2):
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes: "
            "each takes the same number of scenes, an even one where scenes are mixed"
        )
    if config.resume and not (folder / STATE).is_file():
        raise ConfigError(f"nothing to resume in {folder}; start without --resume")
    if fabric.is_global_zero and not config.resume:
        describe_run(folder, config, command)
    return folder


def _finish(
    config: PretrainConfig,
    command: Sequence[str],
    folder: Path,
    objective: Lima,
    drive: Drives | Recordings,
    log: list[dict],
) -> Path:
    """Writes the checkpoint and prints where it is."""
    epoch = [record["loss"] for record in log[-(len(log) // config.epochs) :]]
    chosen = np.linspace(0, len(drive) - 1, min(STATISTICS_FRAMES, len(drive))).astype(int)
    frames = [drive[int(index)] for index in chosen]
    sweeps = [Sweep(f.points, np.zeros(0, np.uint8), beams_of(f)) for f in frames]
    meta = {
        "format": FORMAT,
        "model": config.student,
        "classes": {"names": [], "colors": []},
        "config": plain(replace(config, resume=False)),
        "inputs": input_statistics(sweeps),
        "metrics": {"first_loss": log[0]["loss"], "last_epoch_loss": float(np.mean(epoch)), "steps": len(log)},
        "versions": versions(),
        "provenance": {
            "command": " ".join(part for part in command if part != "--resume"),
            "revision": revision(),
            "data": f"{config.data.kind}, {len(drive)} frames of {len(set(drive.sequences))} sequences",
        },
    }
    weights = nn.ModuleDict({"backbone": objective.student, "projection": objective.head})
    path = save_checkpoint(folder / "checkpoint.safetensors", weights, meta)
    print(f"loss {log[0]['loss']:.3f} at the first step, {np.mean(epoch):.3f} over the last epoch; wrote {path}")
    return path


if __name__ == "__main__":
    main(sys.argv[1:])

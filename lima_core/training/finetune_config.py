"""All there is to set of `python -m lima_core.finetune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lima_core.config import option
from lima_core.data.augment import AugmentConfig
from lima_core.data.labelled import DataConfig
from lima_core.models.backbones import BACKBONES
from lima_core.models.detector import DetectorConfig
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.training.optim import OptimConfig
from lima_core.training.sweeps import Mixing


@dataclass(frozen=True)
class BoxTraining:
    """How detection draws its training sweeps."""

    balance: bool = option(True, "repeat sweeps with rare classes (class-balanced resampling, CBGS)")
    gt_database: str | None = option(
        None, "file of python -m lima_core.tools.gt_database, whose objects are pasted into sweeps; null: none"
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Network, data and schedule of one finetuning."""

    task: Literal["segmentation", "detection", "both"] = option(
        "segmentation", "what to learn; both: one encoder with two heads"
    )
    model: str = option("minkunet_tiny", f"network: {', '.join(BACKBONES)}; detection needs a voxelnet")
    data: DataConfig = field(default_factory=DataConfig)
    voxels: VoxelConfig = field(default_factory=VoxelConfig)
    bounds: RangeConfig = field(default_factory=RangeConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    boxes: BoxTraining = field(default_factory=BoxTraining)
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

"""Labelled sweeps of any data set, to finetune on and to evaluate with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from lima_core.config import ConfigError, option
from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.datasets import NAMES, RECORDING, Dataset, open_dataset
from lima_core.data.frame import DatasetError, Frame, FrameSource
from lima_core.data.splits import step_of

STREET = "street"
T = TypeVar("T")


@dataclass(frozen=True)
class Sweep:
    """`points` (N, 4) float32 x, y, z in m, intensity in [0, 1]; `labels` (N,) uint8, 255 = ignore.

    `beams` of the LiDAR, 0 = unknown; `ring` (N,) the beam of each point, where the data set tells.
    """

    points: np.ndarray
    labels: np.ndarray
    beams: int
    ring: np.ndarray | None = None


@dataclass(frozen=True)
class StreetConfig:
    """Which simulated streets to train and validate on."""

    train_seeds: tuple[int, int] = option((0, 200), "first seed and end (excluded) of the training streets")
    val_seeds: tuple[int, int] = option((100000, 100020), "first seed and end (excluded) of the validation streets")
    sweeps_per_street: int = option(2, "labelled sweeps taken from each street")
    sweep_stride: int = option(10, "sweeps from one taken to the next; the LiDAR turns at 10 Hz")

    @property
    def frames(self) -> int:
        """Sweeps of a street from the first that is taken to the last."""
        return (self.sweeps_per_street - 1) * self.sweep_stride + 1

    def seeds(self, split: Literal["train", "val"]) -> range:
        """The streets of a split."""
        return range(*(self.train_seeds if split == "train" else self.val_seeds))


@dataclass(frozen=True)
class DataConfig:
    """A data set with labels, and how many of its training labels to use."""

    name: str = option(STREET, f"street (simulated), recording (one's own), {', '.join(NAMES)}")
    root: str = option("", "folder of the data set; street needs none")
    share: int = option(100, "percent of the training labels: 1, 5, 10, 20, 25, 50 or 100, by the data set's own rule")
    street: StreetConfig = field(default_factory=StreetConfig)


class LabelledFrames(Sequence[Sweep]):
    """Chosen labelled frames of a source as sweeps, each read when asked for; they pickle as their source does."""

    def __init__(self, source: FrameSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, tuple(indices)
        self.sequences = tuple(source.sequences[index] for index in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sweep:
        """The sweep at `index`. Raises DatasetError where the frame has no labels, or a file is broken."""
        frame = self._source[self._indices[index]]
        if frame.labels is None:
            raise DatasetError(f"{frame.where} has no labels; choose another split, or unpack the labels too")
        return as_sweep(frame)

    def lidar_token(self, index: int) -> str:
        """nuScenes' name of the sweep at `index`, which its submissions use; other data sets have none."""
        return self._source.tokens(self._indices[index])[1]


def as_sweep(frame: Frame) -> Sweep:
    """Points, labels and, where the frame tells, the number of beams; else 0."""
    return Sweep(frame.points, frame.labels, beams_of(frame), frame.extra.get("ring"))


def beams_of(frame: Frame) -> int:
    """Beams of the LiDAR that returned something, 0 where the frame does not tell."""
    ring = frame.extra.get("ring")
    return 0 if ring is None else len(np.unique(ring))


def taxonomy_of(config: DataConfig) -> Taxonomy:
    """The classes of the data set; streets and recordings have those of nuScenes."""
    return load_taxonomy("nuscenes" if config.name in (STREET, RECORDING) else config.name)


def open_labelled(config: DataConfig, split: Literal["train", "val"], workers: int) -> Sequence[Sweep]:
    """Sweeps of a split, of `train` only the configured share; streets are simulated first, by `workers` processes.

    Raises ConfigError on a contradiction, DatasetError where the data set is not there or broken.
    """
    if config.name == STREET:
        return _open_streets(config, split, workers)
    source = open_frames(config, split)
    try:
        indices = source.labelled_share(config.share) if split == "train" else range(len(source))
    except ValueError as error:
        raise ConfigError(f"data.share: {error}") from error
    return LabelledFrames(source, indices)


def open_frames(config: DataConfig, split: Literal["train", "val"]) -> Dataset:
    """All frames of a split of a data set on disk. Raises ConfigError, DatasetError."""
    if not config.root:
        raise ConfigError(f"data.name={config.name} needs data.root, its folder")
    if not Path(config.root).is_dir():
        raise DatasetError(
            f"data.root {config.root} is no folder; `python -m lima_core.data.check {config.name} FOLDER` says what "
            "belongs in it"
        )
    return open_dataset(config.name, config.root, split)


def _open_streets(config: DataConfig, split: Literal["train", "val"], workers: int) -> list[Sweep]:
    """A share of the streets is every n-th of them, as of nuScenes' scenes."""
    try:
        step = step_of(config.share) if split == "train" else 1
    except ValueError as error:
        raise ConfigError(f"data.share: {error}") from error
    return simulate(config.street.seeds(split)[::step], config.street, workers, f"{split} streets")


def simulate(seeds: range, street: StreetConfig, workers: int, what: str) -> list[Sweep]:
    """Labelled sweeps of the streets with these seeds, without cameras, in the order of the seeds."""
    drawn = for_each_street(partial(_street_sweeps, street=street), seeds, workers, what)
    return [sweep for sweeps in drawn for sweep in sweeps]


def for_each_street(draw: Callable[[int], T], seeds: Sequence[int], workers: int, what: str) -> list[T]:
    """`draw(seed)` of each, in the order of the seeds, by `workers` processes (0: this one); a bar named `what`."""
    progress = partial(tqdm, total=len(seeds), desc=what, unit="street", dynamic_ncols=True)
    if workers <= 1:
        return list(progress(map(draw, seeds)))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(progress(pool.map(draw, seeds)))


def _street_sweeps(seed: int, street: StreetConfig) -> list[Sweep]:
    """Every `sweep_stride`-th sweep of one street."""
    from lima_core.data.synthetic.street import Street  # Embree, which readers of data sets do not need

    source = Street(seed, frames=street.frames, cameras=False)
    return [as_sweep(source[index]) for index in range(0, street.frames, street.sweep_stride)]

"""Sweeps with boxes, to train detectors on and to evaluate them with: each with the sweeps before it laid over it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from lima_core.config import ConfigError
from lima_core.data.datasets import Dataset
from lima_core.data.frame import IGNORE, Boxes, DatasetError, Frame
from lima_core.data.labelled import STREET, DataConfig, StreetConfig, Sweep, beams_of, for_each_street, open_frames
from lima_core.data.multisweep import PastSweep, aggregate, past_of, past_sweeps
from lima_core.data.nuscenes_index import cache_home
from lima_core.data.rig import Rig
from lima_core.data.splits import share_of_frames
from lima_core.data.synthetic import simulator_version
from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_core.files import write_whole
from lima_core.geometry import se3

WITH_BOXES = ("nuscenes", STREET)
FORMAT = 1  # of the sweeps of streets that are kept; another one wherever they would come out otherwise
BOX = "box."  # before the names of their columns there


@dataclass(frozen=True)
class BoxedSweep:
    """A sweep, those before it laid over it, and its boxes, in the LiDAR frame of the sweep.

    `points` (N, 5) float32 x, y, z m, intensity in [0, 1], seconds older; the first `current` are those of the sweep
    itself. `boxes` are all that are annotated. `labels` (current,) uint8 or None; `beams` of the LiDAR, 0 = unknown.
    """

    points: np.ndarray
    current: int
    boxes: Boxes
    labels: np.ndarray | None
    beams: int

    def __post_init__(self) -> None:
        """Raises ValueError where the columns do not fit each other: never a silent misalignment."""
        if self.points.ndim != 2 or self.points.shape[1] != 5 or self.points.dtype != np.float32:
            raise ValueError(f"points must be (N, 5) float32, got {self.points.shape} {self.points.dtype}")
        if not 0 <= self.current <= len(self.points):
            raise ValueError(f"{self.current} of {len(self.points)} points cannot be those of the current sweep")
        if self.labels is not None and len(self.labels) != self.current:
            raise ValueError(f"{len(self.labels)} labels for {self.current} points of the current sweep")

    def trainable(self) -> BoxedSweep:
        """Without the boxes on which there is no return, where returns are counted (spec/datasets.md 2.3).

        They are no target of training; the metric leaves them out by itself.
        """
        counted = self.boxes.points
        return self if counted is None else replace(self, boxes=self.boxes.take(counted > 0))

    def point_labels(self) -> np.ndarray:
        """(N,) uint8 label of each point; those of past sweeps have none, 255.

        Raises DatasetError where the sweep has no labels at all.
        """
        if self.labels is None:
            raise DatasetError("a sweep with boxes has no labels; task both needs them: unpack lidarseg too")
        labels = np.full(len(self.points), IGNORE, np.uint8)
        labels[: self.current] = self.labels
        return labels


class BoxedSource(Dataset, Protocol):
    """A data set with boxes that tells, without reading points, which classes a frame has."""

    def classes(self, index: int) -> np.ndarray:
        """(n,) uint8 classes of the boxes with a return."""
        ...


class BoxedFrames(Sequence[BoxedSweep]):
    """Chosen frames of a source with boxes, each with up to `past` sweeps before it, read when asked for.

    `sequences` (len,) the sequence of each; `ego_xy` (2,) m where the vehicle is in the LiDAR frame, from which the
    metric measures ranges. They pickle as their source does.
    """

    def __init__(self, source: BoxedSource, indices: Sequence[int], past: int) -> None:
        self._source, self._indices, self._past = source, tuple(indices), past
        self.sequences = tuple(source.sequences[index] for index in self._indices)
        self.ego_xy = _ego_xy(source.rig)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> BoxedSweep:
        """The sweep at `index`. Raises DatasetError where the source has no boxes, or a file is broken."""
        place = self._indices[index]
        return as_boxed(self._source[place], past_sweeps(self._source, place, self._past))

    def classes(self, index: int) -> np.ndarray:
        """(n,) uint8 sorted classes of the trainable boxes of a sweep; no point is read for them."""
        return self._source.classes(self._indices[index])


class StoredSweeps(Sequence[BoxedSweep]):
    """Sweeps of simulated streets in files, each read when asked for.

    `sequences` (len,) the street of each; `ego_xy` as that of `BoxedFrames`.
    """

    def __init__(self, paths: Sequence[Path], sequences: Sequence[str], ego_xy: np.ndarray) -> None:
        self._paths, self.sequences, self.ego_xy = tuple(paths), tuple(sequences), ego_xy

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> BoxedSweep:
        """The sweep at `index`. Raises DatasetError where its file is gone or broken."""
        return read_boxed(self._paths[index])

    def classes(self, index: int) -> np.ndarray:
        """(n,) uint8 sorted classes of the trainable boxes of a sweep; no point is read for them."""
        path = self._paths[index]
        try:
            with safe_open(path, "numpy") as file:
                class_id, points = (file.get_tensor(BOX + name) for name in ("class_id", "points"))
        except (OSError, SafetensorError) as error:
            raise _broken(path, error) from error
        return np.unique(class_id[points > 0])


class LabelledClouds(Sequence[Sweep]):
    """Whole clouds of sweeps with boxes as labelled sweeps (N, 5), for networks that segment with the past in view."""

    def __init__(self, sweeps: Sequence[BoxedSweep]) -> None:
        self._sweeps = sweeps

    def __len__(self) -> int:
        return len(self._sweeps)

    def __getitem__(self, index: int) -> Sweep:
        """The cloud at `index`. Raises DatasetError where it has no labels, or a file is broken."""
        boxed = self._sweeps[index]
        return Sweep(boxed.points, boxed.point_labels(), boxed.beams)


def open_boxed(
    config: DataConfig, split: Literal["train", "val"], sweeps: int, workers: int
) -> BoxedFrames | StoredSweeps:
    """Frames of a split, each with the sweeps before it, `sweeps` in all; they have `sequences` and `classes`.

    Of `train` every n-th frame in order is kept, the configured share (spec/datasets.md 3.7). Streets are simulated
    first, by `workers` processes. Raises ConfigError on a contradiction, DatasetError where files are missing.
    """
    if config.name not in WITH_BOXES:
        raise ConfigError(f"data.name={config.name} has no boxes to detect; there are {', '.join(WITH_BOXES)}")
    if sweeps < 1:
        raise ConfigError(f"{sweeps} sweeps are none; 1 is the current sweep alone, 10 are usual")
    percent = config.share if split == "train" else 100
    if config.name == STREET:
        seeds, numbers = config.street.seeds(split), range(config.street.sweeps_per_street)
        places = [(seed, number) for seed in seeds for number in numbers]
        chosen = [places[index] for index in _share(len(places), percent)]
        return simulate_boxed(chosen, config.street, sweeps, workers, f"{split} streets")
    source = open_frames(config, split)
    return BoxedFrames(source, _share(len(source), percent), sweeps - 1)


def _share(count: int, percent: int) -> list[int]:
    try:
        return share_of_frames(count, percent)
    except ValueError as error:
        raise ConfigError(f"data.share: {error}") from error


def as_boxed(frame: Frame, past: Sequence[PastSweep]) -> BoxedSweep:
    """A frame with boxes and the sweeps before it. Raises DatasetError where it has none."""
    if frame.boxes is None:
        raise DatasetError(f"{frame.where} has no boxes; choose another split, or unpack sample_annotation.json too")
    points = aggregate(frame.points, past)
    return BoxedSweep(points, len(frame.points), frame.boxes, frame.labels, beams_of(frame))


def simulate_boxed(
    chosen: Sequence[tuple[int, int]], street: StreetConfig, sweeps: int, workers: int, what: str
) -> StoredSweeps:
    """The chosen sweeps, (seed, number in that street), in their order; what is not kept yet is simulated.

    They are kept in `street_folder`, 6 MB each with 10 sweeps: ray casting takes a second or two, reading milliseconds.
    """
    folder = street_folder(street, sweeps)
    paths = [folder / f"street-{seed}-{number}.safetensors" for seed, number in chosen]
    missing = defaultdict(dict)
    for (seed, number), path in zip(chosen, paths, strict=True):
        if not path.is_file():
            missing[seed][number] = path
    if missing:
        draw = partial(_draw, missing=dict(missing), street=street, sweeps=sweeps)
        for_each_street(draw, list(missing), workers, what)
    return StoredSweeps(paths, [f"street-{seed}" for seed, _ in chosen], _ego_xy(street_rig()))


def _ego_xy(rig: Rig) -> np.ndarray:
    return se3.inverse(rig.base_from_lidar)[:2, 3]


def street_folder(street: StreetConfig, sweeps: int) -> Path:
    """Where streets' sweeps are kept between runs: in the user's cache, by all that they depend on."""
    kind = f"{sweeps}-{street.sweeps_per_street}x{street.sweep_stride}"
    return cache_home() / f"boxed-{FORMAT}-{kind}-{simulator_version()}"


def _draw(seed: int, missing: dict[int, dict[int, Path]], street: StreetConfig, sweeps: int) -> None:
    """Sweeps of one street, each into its file; the first is taken once there are enough before it."""
    from lima_core.data.synthetic.street import Street  # Embree, which readers of data sets do not need

    source = Street(seed, frames=sweeps - 1 + street.frames, cameras=False)
    for number, path in missing[seed].items():
        index = sweeps - 1 + number * street.sweep_stride
        frame = source[index]
        write_boxed(as_boxed(frame, past_of(frame, source.window(index, sweeps - 1))), path)


def write_boxed(sweep: BoxedSweep, path: Path) -> None:
    """A sweep as one file of named columns, written whole."""
    numbers = np.array([sweep.current, sweep.beams])
    columns = {"points": sweep.points, "numbers": numbers} | {BOX + k: v for k, v in vars(sweep.boxes).items()}
    columns["labels"] = sweep.labels
    kept = {name: np.ascontiguousarray(column) for name, column in columns.items() if column is not None}
    write_whole(path, safetensors.numpy.save(kept))


def read_boxed(path: Path) -> BoxedSweep:
    """The sweep in a file of `write_boxed`. Raises DatasetError naming it where it is gone or broken."""
    try:
        columns = safetensors.numpy.load_file(path)
        boxes = Boxes(**{name.removeprefix(BOX): c for name, c in columns.items() if name.startswith(BOX)})
        current, beams = columns["numbers"].tolist()
        return BoxedSweep(columns["points"], current, boxes, columns.get("labels"), beams)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is no kept sweep ({error}); delete it and start again")

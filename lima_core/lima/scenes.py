"""Which scenes make the batch of a step, and their patch features.

The batch depends on (seed, step) alone, not on workers or processes: a resumed run draws what the uninterrupted one
would have drawn, and two processes share out the batch that one would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lima_core.data.drives import DriveError
from lima_core.data.frame import Frame
from lima_core.data.recordings import SequenceRuns
from lima_core.lima.step import Scene
from lima_core.lima.view import View, frame_view, pictures
from lima_core.models.teacher import Teacher
from lima_core.training.feature_cache import FeatureCache, frame_digest

WINDOW_SEED, SCENE_SEED = 1, 2  # keep the draws of the order and of the scenes apart


class Drive(Protocol):
    """A FrameSource that knows the sequence of each frame without reading it."""

    sequences: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A frame as a worker hands it over: its view, with patch features where the cache had them, else with
    `images` (V, 3, h, w) for the teacher."""

    view: View
    digest: str
    images: Tensor | None


@dataclass(frozen=True)
class LoadedScene:
    """A window of frames, oldest first, the current one last."""

    sequence: str
    index: int
    seed: int
    frames: tuple[Loaded, ...]


class SceneBatches(Dataset):
    """The scenes of each step for one of `processes` processes, `batch_size` in all; item = step."""

    def __init__(
        self,
        drive: Drive,
        frames: int,
        batch_size: int,
        seed: int,
        steps: int,
        prepare: Callable[[list[np.ndarray]], Tensor],
        cache: FeatureCache | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._drive, self._past, self._seed, self._steps = drive, frames - 1, seed, steps
        self._prepare, self._cache = prepare, cache
        share = batch_size // processes
        self._batch_size, self._share = batch_size, slice(process * share, (process + 1) * share)
        self._orders: dict[int, np.ndarray] = {}
        self.steps_per_epoch = steps_per_epoch(drive.sequences, batch_size)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[LoadedScene]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, WINDOW_SEED, epoch])
            self._orders = {epoch: paired_order(self._drive.sequences, rng)}
        chosen = self._orders[epoch][place * self._batch_size : (place + 1) * self._batch_size][self._share]
        return [self._scene(int(index), epoch) for index in chosen]

    def _scene(self, index: int, epoch: int) -> LoadedScene:
        current = self._drive[index]
        frames = [*self._drive.window(index, self._past), current]
        seed = int(np.random.SeedSequence([self._seed, SCENE_SEED, epoch, index]).generate_state(1)[0])
        return LoadedScene(current.sequence, current.index, seed, tuple(map(self._loaded, frames)))

    def _loaded(self, frame: Frame) -> Loaded:
        return load(frame, self._prepare, self._cache)


def load(frame: Frame, prepare: Callable[[list[np.ndarray]], Tensor], cache: FeatureCache | None) -> Loaded:
    """A frame with its features from the cache, or with its pictures. Raises ViewError."""
    view, digest = frame_view(frame), frame_digest(frame)
    grids = None if cache is None else cache.get(digest)
    if grids is None:
        return Loaded(view, digest, prepare(pictures(frame)))
    return Loaded(view.with_grids(grids), digest, None)


def steps_per_epoch(sequences: Sequence[str], batch_size: int) -> int:
    """Batches in one pass. Raises DriveError when there is not one; the remainder is dropped."""
    steps = paired_length(sequences) // batch_size
    if steps == 0:
        raise DriveError(f"{len(sequences)} frames of {len(set(sequences))} sequences fill no batch of {batch_size}")
    return steps


def paired_length(sequences: Sequence[str]) -> int:
    """Frames that paired_order keeps, whatever it draws."""
    others = len(sequences) - int(np.bincount(_numbers(sequences)).max(initial=0))
    if others == 0:
        return len(sequences)
    return 2 * min(others, len(sequences) // 2)


def paired_order(sequences: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """(paired_length,) frames in random order, where 2j and 2j + 1 are of different sequences.

    Neighbours get mixed (cross-sequence alignment), and stay together when a batch is spread over processes. Frames of
    a sequence that outnumbers all others together are left out, at random, where no partner remains. With one sequence
    alone there is nothing to pair.
    """
    names = _numbers(sequences)
    order = rng.permutation(len(names))
    counts = np.bincount(names)
    if np.count_nonzero(counts) < 2:
        return order
    half = paired_length(sequences) // 2
    surplus = order[names[order] == counts.argmax()][: max(0, counts.max() - half)]
    order = order[~np.isin(order, surplus)][: 2 * half]
    # sorted by sequence, frames half of the length apart differ, as no sequence fills more than half
    by_name = order[np.argsort(rng.permutation(names.max() + 1)[names[order]], kind="stable")]
    pairs = np.stack([by_name[:half], by_name[half:]], 1)
    swapped = np.where(rng.random(half)[:, None] < 0.5, pairs[:, ::-1], pairs)
    return swapped[rng.permutation(half)].reshape(-1)


def _numbers(sequences: Sequence[str]) -> np.ndarray:
    """(len,) a number for each sequence."""
    if isinstance(sequences, SequenceRuns):  # knows them without a string for each frame
        return sequences.numbers()
    return np.unique(np.asarray(sequences), return_inverse=True)[1]


class TeacherFeatures:
    """Turns loaded scenes into scenes with patch features; runs the teacher where the cache has none.

    `computed` and `recalled` count frames. Features are float16 either way, so that it makes no difference to a
    resumed run whether they were computed or read.
    """

    def __init__(self, teacher: Teacher, cache: FeatureCache | None, device: torch.device) -> None:
        self._teacher, self._cache, self._device = teacher, cache, device
        self.computed = self.recalled = 0

    def scene(self, loaded: LoadedScene) -> Scene:
        """All frames of a window with their features."""
        views = [self.view(frame) for frame in loaded.frames]
        return Scene(loaded.sequence, loaded.index, views[-1], tuple(views[:-1]), loaded.seed)

    def take_counts(self) -> dict[str, int]:
        """Frames that the teacher computed and that the cache gave, since the last call."""
        counts = {"teacher_computed": self.computed, "teacher_recalled": self.recalled}
        self.computed = self.recalled = 0
        return counts

    def view(self, frame: Loaded) -> View:
        """One frame with its features."""
        if frame.images is None:
            self.recalled += 1
            return frame.view
        # a worker that read ahead may have missed what was computed meanwhile
        grids = None if self._cache is None else self._cache.get(frame.digest)
        if grids is not None:
            self.recalled += 1
            return frame.view.with_grids(grids)
        self.computed += 1
        # one frame at a time: a frame's features must not depend on what else is in the batch
        grids = self._teacher(frame.images.to(self._device))
        return frame.view.with_grids(
            grids.half().cpu() if self._cache is None else self._cache.put(frame.digest, grids)
        )

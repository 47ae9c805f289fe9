"""Which part of a training set keeps its labels (spec/datasets.md 1.1), and frames chosen from a source."""

from __future__ import annotations

from collections.abc import Sequence

from lima_core.data.frame import Frame, FrameSource

STEP = {1: 100, 5: 20, 10: 10, 20: 5, 25: 4, 50: 2, 100: 1}


def share_of_frames(count: int, percent: int) -> list[int]:
    """Indices of every 100th, 20th, 10th, 5th, 4th or 2nd of `count` frames in order.

    SLidR's rule outside nuScenes, and det3d's for detection (spec/datasets.md 3.7). Raises ValueError.
    """
    return list(range(0, count, step_of(percent)))


def share_of_sequences(sequences: Sequence[str], percent: int) -> list[int]:
    """Indices of the frames of every n-th sequence, in order of first appearance: SLidR's rule for nuScenes, which
    begins with the n-th. Raises ValueError where there are fewer than n."""
    step, names = step_of(percent), list(dict.fromkeys(sequences))
    kept = set(names[step - 1 :: step])
    if not kept:
        raise ValueError(f"{percent} % of {len(names)} sequences is none; choose a larger share")
    return [index for index, sequence in enumerate(sequences) if sequence in kept]


def step_of(percent: int) -> int:
    """Frames or scenes from one that keeps its labels to the next. Raises ValueError naming the shares there are."""
    if percent not in STEP:
        raise ValueError(f"a share of {percent} % is not defined; there are {', '.join(map(str, STEP))} %")
    return STEP[percent]


class Chosen:
    """Some frames of a source, in the order of `indices`; windows still reach the frames between them."""

    def __init__(self, source: FrameSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, tuple(indices)
        self.rig = source.rig
        self.sequences = tuple(source.sequences[index] for index in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Frame:
        return self._source[self._indices[index]]

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the source before this one, of the same sequence."""
        return self._source.window(self._indices[index], k)

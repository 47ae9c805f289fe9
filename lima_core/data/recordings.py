"""Many recordings as one source: a folder with a manifest, of which a few recordings are open at a time.

The manifest, recordings.jsonl, has a line for each finished recording: {"recording": folder beside it, "sequences":
frames in each, "bytes", "source": what it was made from}. It is only ever appended to; a line that was cut off is none.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import DatasetError, Frame
from lima_core.data.recording import Recording
from lima_core.data.recording_format import FACTS, RecordingError
from lima_core.data.scans import Split
from lima_core.data.splits import Chosen, share_of_frames
from lima_core.files import inside

MANIFEST = "recordings.jsonl"
OPEN = 16  # recordings whose lines are indexed at a time
HELD_OUT = 5  # every fifth sequence is for validation


class Entry(msgspec.Struct, frozen=True):
    """A line of the manifest; `source` (name, bytes, mtime in ns, digest of the settings) of the bag."""

    recording: str
    sequences: tuple[int, ...]
    bytes: int
    source: tuple[str, int, int, str] | None = None


class SequenceRuns(Sequence[str]):
    """The sequence of each frame, where frames of a sequence follow each other: a number per sequence is kept."""

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self._names, self._counts = tuple(names), np.asarray(counts, np.int64)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> str:
        return self._names[int(np.searchsorted(self._ends, range(len(self))[index], side="right"))]

    def __iter__(self) -> Iterator[str]:
        for name, count in zip(self._names, self._counts.tolist(), strict=True):
            for _ in range(count):
                yield name

    def numbers(self) -> np.ndarray:
        """(len,) int32: frames of one sequence have one number."""
        return np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)


class Recordings:
    """Frames of all recordings below some roots: each a recording itself, or a folder with a manifest.

    `sequences` (len,) the sequence of each frame. Vehicles may differ: `rig` is the first one's, frames carry their own
    geometry. Raises RecordingError where there is none, or a manifest is broken.
    """

    def __init__(self, roots: str | Path | Sequence[str | Path]) -> None:
        single = isinstance(roots, (str, Path))
        self._folders: list[Path] = []
        names: list[str] = []
        counts: list[int] = []
        ends: list[int] = []
        for root in [roots] if single else roots:
            for folder, name, sequences in _shards(Path(root).resolve()):
                prefix = name if single else f"{Path(root).resolve().name}/{name}"
                self._folders.append(folder)
                names += [f"{prefix}/{number}" for number in range(len(sequences))]
                counts += sequences
                ends.append(sum(sequences) + (ends[-1] if ends else 0))
        if not ends or ends[-1] == 0:
            raise RecordingError(f"{roots}: no frame is recorded there; record some, or name another data.root")
        self.sequences = SequenceRuns(names, counts)
        self._ends = np.array(ends, np.int64)
        self._open: OrderedDict[int, Recording] = OrderedDict()
        self.rig = self._recording(0).rig

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises RecordingError where the recording has changed or is broken."""
        index = range(len(self))[index]
        shard, place = self._place(index)
        return replace(self._recording(shard)[place], sequence=self.sequences[index])

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        shard, place = self._place(index)
        return [replace(frame, sequence=self.sequences[index]) for frame in self._recording(shard).window(place, k)]

    def has_labels(self, index: int) -> bool:
        """Whether a frame was recorded with ground truth; only its line is read."""
        shard, place = self._place(index)
        return self._recording(shard).line(place).labels is not None

    def __getstate__(self) -> dict[str, Any]:
        """What is open stays behind: worker processes open their own."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _place(self, index: int) -> tuple[int, int]:
        """Recording and the place in it."""
        shard = bisect_right(self._ends, index)
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _recording(self, shard: int) -> Recording:
        if shard not in self._open:
            recording, expected = Recording(self._folders[shard]), self._ends[shard]
            expected -= self._ends[shard - 1] if shard else 0
            if len(recording) < expected:
                raise RecordingError(
                    f"{self._folders[shard]} has {len(recording)} frames, its manifest says {expected}; record it again"
                )
            self._open[shard] = recording
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


class RecordedSplit(Chosen):
    """Frames with labels of one split: every fifth sequence, in their order, is held out for validation.

    With fewer than five sequences the last one is. The classes are those of nuScenes. Raises DatasetError where no
    frame of the split has labels.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        source = Recordings(root)
        numbers = source.sequences.numbers()
        count = int(numbers[-1]) + 1
        held_out = np.arange(HELD_OUT - 1, count, HELD_OUT) if count >= HELD_OUT else np.array([count - 1])
        of_val = np.isin(numbers, held_out)
        kept = {"train": ~of_val, "val": of_val, "test": np.zeros_like(of_val)}.get(split, np.ones_like(of_val))
        indices = [index for index in np.flatnonzero(kept).tolist() if source.has_labels(index)]
        if not indices:
            raise DatasetError(
                f"{root}: no frame of split {split!r} has labels, of {count} sequences; they come from /gt/segmentation"
            )
        super().__init__(source, indices)
        self.taxonomy: Taxonomy = load_taxonomy("nuscenes")

    def labelled_share(self, percent: int) -> list[int]:
        """Every n-th frame."""
        return share_of_frames(len(self), percent)


def read_manifest(root: Path) -> list[Entry]:
    """Finished recordings of a folder. Raises RecordingError on a line that is broken, but for a last one cut off."""
    path, entries = root / MANIFEST, []
    if not path.is_file():
        return entries
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = msgspec.json.decode(line, type=Entry)
                inside(root, entry.recording)
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                raise RecordingError(
                    f"{path}, line {number}: {error}; restore it, or record into a new folder"
                ) from error
            entries.append(entry)
    return entries


def append_entries(root: Path, entries: Iterable[Entry]) -> None:
    """Adds lines to the manifest, each on the disk before the next; what a killed writer left of a line is cut off."""
    with (root / MANIFEST).open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        for entry in entries:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def sequence_counts(recording: Recording) -> tuple[int, ...]:
    """Frames of each sequence of a recording, in order."""
    return tuple(len(list(frames)) for _, frames in groupby(recording.sequences))


def _shards(root: Path) -> Iterator[tuple[Path, str, list[int]]]:
    """(folder, name, frames of each sequence) of what lies at `root`."""
    if (root / FACTS).is_file():
        recording = Recording(root)
        yield root, root.name, list(sequence_counts(recording))
        return
    entries = {entry.recording: entry for entry in read_manifest(root)}
    if not entries:
        raise RecordingError(f"{root} is neither a recording ({FACTS}) nor has it finished ones ({MANIFEST})")
    for _, entry in sorted(entries.items()):  # by name: in which order they were finished must not matter
        yield root / entry.recording, entry.recording, list(entry.sequences)

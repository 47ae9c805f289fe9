"""Many recordings as one source: a folder with a manifest, of which a few recordings are open at a time.

The manifest, recordings.jsonl, has a line for each finished recording: {"recording": folder beside it, "sequences":
frames in each, "bytes", "source": what it was made from}. It is only ever appended to: of two lines for one recording
the later one holds, and a line that was cut off is none.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import IGNORE, DatasetError, Frame
from lima_core.data.recording import Recording
from lima_core.data.recording_format import FACTS, RIG, RecordingError
from lima_core.data.rig import Rig
from lima_core.data.scans import Split
from lima_core.data.splits import Chosen, share_of_frames
from lima_core.files import hold_alone, inside

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
        return self._names[self.find(range(len(self))[index])[0]]

    def __iter__(self) -> Iterator[str]:
        for name, count in zip(self._names, self._counts.tolist(), strict=True):
            for _ in range(count):
                yield name

    def find(self, index: int) -> tuple[int, int]:
        """The number of a frame's sequence, and the frame's place in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number] - self._counts[number])

    def numbers(self) -> np.ndarray:
        """(len,) int32: frames of one sequence have one number."""
        return np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)


class Recordings:
    """Frames of all recordings below some roots: each a recording itself, or a folder with a manifest.

    `sequences` (len,) the sequence of each frame. Vehicles may differ: `rig` is the first one's, frames carry their own
    geometry; who needs the rig of every frame asks for `one_vehicle`, and reading a frame of another is an error then.
    Raises RecordingError where there is none, or a manifest is broken.
    """

    def __init__(self, roots: str | Path | Sequence[str | Path], one_vehicle: bool = False) -> None:
        single = isinstance(roots, (str, Path))
        folders = [Path(root).resolve() for root in ([roots] if single else roots)]
        self._folders: list[Path] = []
        names: list[str] = []
        counts: list[int] = []
        begins: list[int] = []
        for root, prefix in zip(folders, [""] if single else _prefixes(folders), strict=True):
            for folder, name, sequences in _shards(root):
                self._folders.append(folder)
                begins.append(len(names))
                names += [f"{prefix}{name}/{number}" for number in range(len(sequences))]
                counts += sequences
        if sum(counts) == 0:
            raise RecordingError(f"{roots}: no frame is recorded there; record some, or name another data.root")
        self.sequences = SequenceRuns(names, counts)
        self._counts, self._begins = np.array(counts, np.int64), np.array([*begins, len(names)], np.int64)
        self._open: OrderedDict[int, tuple[Recording, np.ndarray]] = OrderedDict()
        self._one_vehicle = False
        self.rig = self._recording(0)[0].rig
        self._one_vehicle = one_vehicle

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises RecordingError where the recording has changed or is broken."""
        index = range(len(self))[index]
        recording, place = self._place(index)
        return replace(recording[place], sequence=self.sequences[index])

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        recording, place = self._place(index)
        return [replace(frame, sequence=self.sequences[index]) for frame in recording.window(place, k)]

    def has_labels(self, index: int) -> bool:
        """Whether a frame was recorded with ground truth; nothing is read."""
        recording, place = self._place(range(len(self))[index])
        return bool(recording.labelled[place])

    def __getstate__(self) -> dict[str, Any]:
        """What is open stays behind: worker processes open their own."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _place(self, index: int) -> tuple[Recording, int]:
        """The recording of a frame, and the place in it."""
        number, offset = self.sequences.find(index)
        shard = bisect_right(self._begins, number) - 1
        recording, firsts = self._recording(shard)
        return recording, int(firsts[number - self._begins[shard]]) + offset

    def _recording(self, shard: int) -> tuple[Recording, np.ndarray]:
        """An open recording, and the first frame of each of its sequences."""
        if shard not in self._open:
            recording = Recording(self._folders[shard])
            there = recording.counts
            self._check(recording, there, self._counts[slice(*self._begins[shard : shard + 2])])
            self._open[shard] = recording, np.cumsum(there) - there
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _check(self, recording: Recording, there: np.ndarray, wanted: np.ndarray) -> None:
        """Raises RecordingError where frames are gone, or the vehicle is another one; more frames are no harm."""
        if len(there) < len(wanted) or (there[: len(wanted)] < wanted).any():
            raise RecordingError(
                f"{recording.root} has {there.sum()} frames, {there.tolist()} by sequence; its manifest says "
                f"{wanted.sum()}, {wanted.tolist()}; record it again"
            )
        if self._one_vehicle and _sensors(recording.rig) != _sensors(self.rig):
            raise RecordingError(
                f"{recording.root}: the sensors of {recording.rig.name} are not those of {self.rig.name}, the first "
                f"recording's ({RIG}); open one recording at a time"
            )


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
                f"{root}: no frame of split {split!r} has labels. Of its {count} sequences every fifth, or the last of "
                "fewer, is val, the others are train, none is test; labels come from /gt/segmentation"
            )
        super().__init__(source, indices)
        self.taxonomy: Taxonomy = load_taxonomy("nuscenes")

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises DatasetError where a label is none of the classes."""
        frame = super().__getitem__(index)
        wrong = frame.labels[(frame.labels >= len(self.taxonomy.names)) & (frame.labels != IGNORE)]
        if len(wrong):
            raise DatasetError(
                f"{frame.where}: label {wrong[0]} is none of the {len(self.taxonomy.names)} classes of nuScenes; map "
                f"/gt/segmentation to them (config/datasets/nuscenes.yaml; {IGNORE} = ignore), and record again"
            )
        return frame

    def labelled_share(self, percent: int) -> list[int]:
        """Every n-th frame."""
        return share_of_frames(len(self), percent)


def read_manifest(root: Path) -> list[Entry]:
    """Finished recordings of a folder. Raises RecordingError on a line that is broken, but for a last one cut off."""
    path, entries = root / MANIFEST, dict[str, Entry]()
    if not path.is_file():
        return []
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
            entries[entry.recording] = entry
    return list(entries.values())


def append_entries(root: Path, entries: Iterable[Entry]) -> None:
    """Adds lines to the manifest, each on the disk before the next; what a killed writer left of a line is cut off.

    Raises RecordingError where another process does so at the same time.
    """
    with (root / MANIFEST).open("ab+") as file:
        try:
            hold_alone(file.fileno())
        except BlockingIOError as error:
            raise RecordingError(
                f"another process is recording into {root}; let it end, or use another folder"
            ) from error
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        for entry in entries:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _prefixes(roots: Sequence[Path]) -> list[str]:
    """What tells the sequences of several roots apart. Raises RecordingError where a root is given twice."""
    if len(set(roots)) < len(roots):
        raise RecordingError(f"{', '.join(map(str, roots))}: a folder is named twice; its frames would count twice")
    around = os.path.commonpath([root.parent for root in roots]) if roots else ""
    return [f"{root.relative_to(around).as_posix()}/" for root in roots]


def _sensors(rig: Rig) -> dict[str, Any]:
    """What two recordings of one vehicle share: a rig that a bag itself tells has the bag's name and its delays."""
    return replace(rig, name="", cameras=tuple(replace(mount, offset_ms=0.0) for mount in rig.cameras)).plain()


def _shards(root: Path) -> Iterator[tuple[Path, str, list[int]]]:
    """(folder, name, frames of each sequence) of what lies at `root`."""
    if (root / FACTS).is_file():
        yield root, root.name, Recording(root).counts.tolist()
        return
    entries = read_manifest(root)
    if not entries:
        raise RecordingError(f"{root} is neither a recording ({FACTS}) nor has it finished ones ({MANIFEST})")
    for entry in sorted(entries, key=lambda e: e.recording):  # in which order they were finished must not matter
        yield root / entry.recording, entry.recording, list(entry.sequences)

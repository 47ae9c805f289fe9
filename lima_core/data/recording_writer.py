"""Writes a recording frame by frame; what was committed outlives the process, whatever happens (docs/recording.md)."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import yaml

from lima_core import __version__
from lima_core.data.recording import calibrations, lines
from lima_core.data.recording_format import (
    CALIBRATION,
    CAMERA_NAME,
    FACTS,
    FRAMES,
    RIG,
    CalibrationEntry,
    CameraLine,
    FrameLine,
    RecordingError,
    StoredFile,
    check_facts,
    facts,
    numbers,
    sealed,
)
from lima_core.data.rig import Rig
from lima_core.files import hold_alone, write_whole

OURS = re.compile(r"\d{4,}_-?\d+\.(bin|jpg|png)")  # names of files that a writer makes
REMEMBERED = 64  # pictures of a sequence that a further frame may share


class FullError(OSError):
    """There is no room for the next frame: quota, free space, or the disk itself. Nothing of it was kept."""


@dataclass(frozen=True)
class TakenPicture:
    """A picture for a frame: encoded bytes, its calibration, and (4, 4) world_from_base at its stamp."""

    stamp_ns: int
    encoded: bytes
    calibration: CalibrationEntry
    world_from_base: np.ndarray


@dataclass(frozen=True)
class TakenFrame:
    """A frame to commit. `table` (N, C) float32 of `columns`; `world_from_base` (4, 4) at the sweep's stamp."""

    stamp_ns: int
    trigger: str
    world_from_base: np.ndarray
    columns: tuple[str, ...]
    table: np.ndarray
    pictures: dict[str, TakenPicture] = field(default_factory=dict)
    labels: np.ndarray | None = None


class RecordingWriter:
    """Makes or goes on with the recording in `folder`.

    `quota_bytes` of files at most and `min_free_bytes` left on the disk (0 = no limit); every `sync_s` seconds all is
    forced to the disk itself, against a loss of power (0 = when the operating system likes). `resume`: the same drive
    is recorded again from its start, and frames that are already there are passed over. Raises RecordingError where
    the folder is something else.
    """

    def __init__(
        self,
        folder: str | Path,
        rig: Rig,
        quota_bytes: int = 0,
        min_free_bytes: int = 0,
        sync_s: float = 0.0,
        resume: bool = False,
    ) -> None:
        self.root, self._quota, self._min_free, self._sync_s = Path(folder), quota_bytes, min_free_bytes, sync_s
        bad = [mount.name for mount in rig.cameras if not CAMERA_NAME.fullmatch(mount.name)]
        if bad:
            raise RecordingError(
                f"a camera called {bad[0]!r} has no folder; use letters, digits, _ . - in the rig file"
            )
        self._begin(rig)
        self._out = os.open(self.root / FRAMES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.frames = self.bytes = 0
        self._sequence, self._with_frames = -1, set[int]()
        self._done: deque[tuple[int, int]] = deque()
        self._written: deque[tuple[str, StoredFile]] = deque(maxlen=REMEMBERED)
        try:
            self._lock()
            self._take_over(resume)
            self._calibration = calibrations(self.root)
        except BaseException:
            os.close(self._out)
            raise
        self._unsynced: list[Path] = []
        self._synced_s = time.monotonic()

    @property
    def sequences(self) -> int:
        """How many sequences have frames."""
        return len(self._with_frames)

    def start_sequence(self) -> int:
        """The number of a new sequence, for `add`."""
        self._sequence += 1
        return self._sequence

    def add(self, sequence: int, frame: TakenFrame) -> bool:
        """Commits a frame; False where it was there before (resume). Raises FullError, and then keeps nothing of it.

        Raises RecordingError where a resumed drive is another one.
        """
        if self._done:
            there = self._done.popleft()
            if there != (sequence, frame.stamp_ns):
                raise RecordingError(
                    f"{self.root} has a frame of sequence {there[0]} at {there[1]} ns where this drive has one of "
                    f"sequence {sequence} at {frame.stamp_ns} ns: other settings or another bag; take an empty folder"
                )
            return False
        made: list[Path] = []
        try:
            self._check_room(_size(frame))
            line = sealed(self._stored(sequence, frame, made))
            if os.write(self._out, line) != len(line):
                raise OSError("only a part of the line was written")
        except OSError as error:
            self._undo(made)
            raise FullError(f"{self.root}: frame at {frame.stamp_ns} ns not recorded: {error}") from error
        self._with_frames.add(sequence)
        self.frames += 1
        self.bytes += len(line)
        self._end += len(line)
        if self._sync_s:
            self._unsynced += made
            if time.monotonic() - self._synced_s >= self._sync_s:
                self.sync()
        return True

    def sync(self) -> None:
        """Forces everything to the disk itself: files, and the folders that name them."""
        folders = {path.parent for path in self._unsynced} | {self.root, self.root / "cam"}
        whole = [self.root / name for name in (FACTS, RIG, CALIBRATION)]
        for path in [*self._unsynced, *(p for p in (*whole, *sorted(folders)) if p.exists())]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.fsync(self._out)
        self._unsynced, self._synced_s = [], time.monotonic()

    def close(self) -> None:
        """Closes, and syncs before where that was asked for; may be called again."""
        if self._out >= 0:
            if self._sync_s:
                self.sync()
            os.close(self._out)
            self._out = -1

    def _begin(self, rig: Rig) -> None:
        """The files that explain the folder; recording.json last, so that what has it has the others."""
        if (self.root / FACTS).exists():
            check_facts(self.root / FACTS)
            if yaml.safe_load((self.root / RIG).read_text()) != rig.plain():
                raise RecordingError(f"{self.root / RIG} is another rig than {rig.name}; record into another folder")
            return
        if self.root.exists() and any(p for p in self.root.iterdir() if p.name != RIG and not p.name.startswith(".")):
            raise RecordingError(f"{self.root} is not empty and no recording; choose another folder")
        self.root.mkdir(parents=True, exist_ok=True)
        rig.save(self.root / RIG)
        write_whole(self.root / FACTS, facts(__version__))

    def _lock(self) -> None:
        """Raises RecordingError where another process records here; the lock goes with the process, however it ends."""
        try:
            hold_alone(self._out)
        except BlockingIOError as error:
            raise RecordingError(f"{self.root} is being recorded by another process; choose another folder") from error

    def _take_over(self, resume: bool) -> None:
        """Counts what is there, and removes what a killed writer left of the frame that it was at."""
        named, end = set(), 0
        for _, last, frame in lines(self.root):
            self.frames, end = self.frames + 1, last + 1
            self._with_frames.add(frame.sequence)
            named |= {stored.file for stored in _files(frame)}
            # a frame to come may share these, and must never write to a file that a committed one names
            self._written += [(camera.image.file, camera.image) for camera in frame.cameras.values()]
            if resume:
                self._done.append((frame.sequence, frame.stamp_ns))
            else:
                self._sequence = max(self._sequence, frame.sequence)
        os.ftruncate(self._out, end)
        self._end, self.bytes = end, end
        for path in [*self.root.glob("lidar/*"), *self.root.glob("labels/*"), *self.root.glob("cam/*/*")]:
            if path.relative_to(self.root).as_posix() in named:
                self.bytes += path.stat().st_size
            elif OURS.fullmatch(path.name):
                path.unlink()
        for part in self.root.glob(".*.part"):  # of write_whole
            part.unlink()

    def _check_room(self, size: int) -> None:
        """Raises OSError where a frame of so many bytes is one too many."""
        if self._quota and self.bytes + size > self._quota:
            raise OSError(f"the quota of {self._quota / 1e9:.3g} GB is used up; raise disk.quota_gb")
        free = shutil.disk_usage(self.root).free if self._min_free else size
        if free - size < self._min_free:
            raise OSError(f"{free / 1e9:.3g} GB are free, disk.min_free_gb keeps {self._min_free / 1e9:.3g}")

    def _stored(self, sequence: int, frame: TakenFrame, made: list[Path]) -> FrameLine:
        """Writes the files of a frame; `made` gets their paths as they come to be."""
        name = f"{sequence:04d}_{frame.stamp_ns}"
        pictures = {c: self._picture(sequence, c, picture, made) for c, picture in frame.pictures.items()}
        table = np.ascontiguousarray(frame.table, "<f4")
        lidar = self._write(f"lidar/{name}.bin", memoryview(table).cast("B") if table.size else b"", made)
        labels = frame.labels if frame.labels is None else np.ascontiguousarray(frame.labels, np.uint8)
        return FrameLine(
            sequence=sequence,
            stamp_ns=frame.stamp_ns,
            trigger=frame.trigger,
            world_from_base=numbers(frame.world_from_base),
            columns=frame.columns,
            lidar=lidar,
            cameras=pictures,
            labels=None if labels is None else self._write(f"labels/{name}.bin", labels.tobytes(), made),
        )

    def _picture(self, sequence: int, camera: str, picture: TakenPicture, made: list[Path]) -> CameraLine:
        kind = "png" if picture.encoded.startswith(b"\x89PNG") else "jpg"
        name = f"cam/{camera}/{sequence:04d}_{picture.stamp_ns}.{kind}"
        stored = next((known for there, known in self._written if there == name), None)  # shared with the last frame
        if stored is None:
            stored = self._write(name, picture.encoded, made)
            self._written.append((name, stored))
        calibration = self._calibration_index(camera, picture.calibration)
        return CameraLine(picture.stamp_ns, calibration, numbers(picture.world_from_base), stored)

    def _calibration_index(self, camera: str, entry: CalibrationEntry) -> int:
        known = self._calibration.setdefault(camera, [])
        if entry not in known:
            changed = {**self._calibration, camera: [*known, entry]}
            write_whole(self.root / CALIBRATION, msgspec.json.format(msgspec.json.encode(changed), indent=1))
            known.append(entry)
        return known.index(entry)

    def _write(self, name: str, content: bytes | memoryview, made: list[Path]) -> StoredFile:
        path = self.root / name
        made.append(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        self.bytes += len(content)
        return StoredFile.of(name, content)

    def _undo(self, made: Sequence[Path]) -> None:
        """Takes back what was written of a frame, its line too."""
        gone = {path.relative_to(self.root).as_posix() for path in made}
        self._written = deque((item for item in self._written if item[0] not in gone), maxlen=REMEMBERED)
        for path in made:
            self.bytes -= path.stat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
        os.ftruncate(self._out, self._end)


def _size(frame: TakenFrame) -> int:
    """Bytes of a frame's files; its line is 1 % of them at most."""
    labels = 0 if frame.labels is None else frame.labels.size
    return frame.table.size * 4 + labels + sum(len(picture.encoded) for picture in frame.pictures.values())


def _files(frame: FrameLine) -> list[StoredFile]:
    labels = [] if frame.labels is None else [frame.labels]
    return [frame.lidar, *labels, *(camera.image for camera in frame.cameras.values())]

"""A recording of one's own robot as `Frame`s, without conversion: `Recording("drive")`.

python -m lima_core.data.recording FOLDER          what is in it, and whether every checksum holds

The folder's format is lima_core/data/recording_format.py; who writes it is recording_writer.py. While it is still being
written it can be read: what was committed when it was opened is there.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.recording_format import (
    CALIBRATION,
    FACTS,
    FRAMES,
    RIG,
    CalibrationEntry,
    CameraLine,
    FrameLine,
    RecordingError,
    StoredFile,
    check_facts,
    decoded,
    matrix,
    opened,
)
from lima_core.data.rig import Rig
from lima_core.files import inside
from lima_core.geometry import se3
from lima_core.geometry.camera import Distortion

CHUNK = 1 << 22


class Recording:
    """Frames of one recording, sequence by sequence in order of time.

    Only the place of each line is kept in memory, some 40 bytes a frame; lines and files are read when a frame is
    asked for. `sequences` (len,) the name of each frame's sequence, <folder>/<number>; `counts` frames of each, in
    order; `labelled` (len,) bool. Raises RecordingError on a folder that is no recording; on reading, where a file is
    missing, changed or outside of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).resolve()
        check_facts(self.root / FACTS)
        self.rig = Rig.load(self.root / RIG)
        self._calibration: dict[str, list[CalibrationEntry]] | None = None
        places = array("q")
        for at, end, frame in lines(self.root):
            places.extend((at, end, frame.sequence, frame.stamp_ns, frame.labels is not None))
        table = np.frombuffer(places, np.int64).reshape(-1, 5)
        # snapshots are committed between the frames of the drive: by sequence they are in order
        table = table[np.lexsort((table[:, 3], table[:, 2]))]
        self._where, self._sequence = table[:, :2], table[:, 2].astype(np.int32)
        self.counts = np.unique(self._sequence, return_counts=True)[1]
        self.labelled = table[:, 4].astype(bool)
        self._begin = np.searchsorted(self._sequence, self._sequence)  # the first frame of each one's sequence

    @property
    def sequences(self) -> tuple[str, ...]:
        """(len,) the sequence of each frame."""
        names = {number: f"{self.root.name}/{number:04d}" for number in np.unique(self._sequence).tolist()}
        return tuple(names[number] for number in self._sequence.tolist())

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Frame:
        """The frame at `index`. Raises RecordingError."""
        index = range(len(self))[index]
        line = self.line(index)
        table = np.frombuffer(self._content(line.lidar), "<f4").reshape(-1, len(line.columns))
        points = table[:, :4].copy()
        points[:, 3] /= np.float32(self.rig.intensity_scale)
        extra = {name: table[:, at].copy() for at, name in enumerate(line.columns) if at > 3}
        if "ring" in extra:
            extra["ring"] = extra["ring"].astype(np.uint16)
        world_from_lidar = matrix(line.world_from_base) @ self.rig.base_from_lidar
        return Frame(
            stamp_ns=line.stamp_ns,
            sequence=f"{self.root.name}/{line.sequence:04d}",
            index=index - int(self._begin[index]),
            points=points,
            extra=extra,
            world_from_lidar=world_from_lidar,
            cameras=tuple(self._view(n, c, world_from_lidar) for n, c in line.cameras.items()),
            labels=None if line.labels is None else np.frombuffer(self._content(line.labels), np.uint8).copy(),
        )

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first; fewer at its start."""
        index = range(len(self))[index]
        return [self[j] for j in range(max(index - k, int(self._begin[index])), index)]

    def line(self, index: int) -> FrameLine:
        """What frames.jsonl says of a frame. Raises RecordingError where it has changed since it was opened."""
        at, end = self._where[range(len(self))[index]].tolist()
        with (self.root / FRAMES).open("rb") as file:
            file.seek(at)
            found = opened(file.read(end - at))
        if found is None:
            raise RecordingError(f"{self.root / FRAMES}: the line at byte {at} has changed since it was opened")
        return found

    def problems(self) -> Iterator[str]:
        """Reads everything; yields a line for each frame with a broken or missing file."""
        for index in range(len(self)):
            try:
                frame = self[index]
                for view in frame.cameras:
                    view.image.rgb  # noqa: B018  decodes it
            except ValueError as error:
                yield str(error)

    def _view(self, name: str, camera: CameraLine, world_from_lidar: np.ndarray) -> CameraView:
        try:
            mount = self.rig.camera(name)
        except KeyError as error:
            raise RecordingError(f"{self.root / FRAMES}: {error.args[0]}") from error
        known = self._calibrations().get(name, [])
        if not 0 <= camera.calibration < len(known):
            raise RecordingError(f"{self.root / CALIBRATION} has no calibration {camera.calibration} of {name}")
        entry = known[camera.calibration]
        world_from_camera = matrix(camera.world_from_base) @ mount.base_from_camera
        return CameraView(
            name=name,
            stamp_ns=camera.stamp_ns,
            image=Image(encoded=self._content(camera.image), source=str(self.root / camera.image.file)),
            size=entry.size,
            K=np.array(entry.K, np.float64),
            camera_from_lidar=se3.inverse(world_from_camera) @ world_from_lidar,
            distortion=Distortion(entry.model, entry.coefficients),
        )

    def _calibrations(self) -> dict[str, list[CalibrationEntry]]:
        if self._calibration is None:
            self._calibration = calibrations(self.root)
        return self._calibration

    def _content(self, stored: StoredFile) -> bytes:
        """Bytes of a file, checked."""
        try:
            path = inside(self.root, stored.file)
            content = path.read_bytes()
        except (ValueError, OSError) as error:
            raise RecordingError(f"{self.root / FRAMES} names a file that cannot be read: {error}") from error
        if len(content) != stored.bytes or f"{zlib.crc32(content):08x}" != stored.crc32:
            raise RecordingError(
                f"{path}: {len(content)} bytes, not the {stored.bytes} of checksum {stored.crc32} that were recorded: "
                "the disk lost or changed it; remove the frame's line from frames.jsonl, or restore the file"
            )
        return content


def lines(root: Path) -> Iterator[tuple[int, int, FrameLine]]:
    """(first byte, end, frame) of each committed line. Raises RecordingError on a broken line before others."""
    path, at, broken = root / FRAMES, 0, None
    if not path.is_file():
        return
    with path.open("rb", buffering=CHUNK) as file:
        for number, line in enumerate(file, 1):
            if broken is not None:
                raise RecordingError(f"{path}, line {broken}: not whole, though others follow; restore the file")
            frame = opened(line[:-1]) if line.endswith(b"\n") else None
            if frame is None:  # the last one, where the writer was killed
                broken = number
                continue
            yield at, at + len(line) - 1, frame
            at += len(line)


def calibrations(root: Path) -> dict[str, list[CalibrationEntry]]:
    """Calibrations of each camera, oldest first. Raises RecordingError on a broken file."""
    path = root / CALIBRATION
    return decoded(path.read_bytes(), dict[str, list[CalibrationEntry]], path) if path.is_file() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what a recording holds and what is wrong with it; exit code 1 where something is."""
    parser = argparse.ArgumentParser(prog="python -m lima_core.data.recording", description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=Path, nargs="+", help="its folder")
    problems = 0
    for folder in parser.parse_args(argv).recording:
        try:
            recording = Recording(folder)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            problems += 1
            continue
        found = [f for f in tqdm(recording.problems(), desc=folder.name, total=len(recording), unit="frame")]
        print(f"{folder}: {len(recording)} frames, {recording.rig.name}")
        for name, frames in Counter(recording.sequences).items():
            print(f"  {name}: {frames} frames")
        print(*found, sep="\n", end="\n" if found else "")
        problems += len(found)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

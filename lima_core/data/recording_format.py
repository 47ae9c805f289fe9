"""What a recording is on disk (docs/recording.md): the lines of frames.jsonl, calibration.json, recording.json.

A frame exists once its line is whole: the line ends with a checksum of itself, and names files that were written before
it. A line that the writer was killed in is no frame, and is cut off by the next writer.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from lima_core.data.frame import DatasetError
from lima_core.geometry.camera import Distortion

FORMAT, VERSION = "lima-recording", 1
FACTS, FRAMES, CALIBRATION, RIG = "recording.json", "frames.jsonl", "calibration.json", "rig.yaml"
XYZI = ("x", "y", "z", "intensity")
COLUMNS = (*XYZI, "ring", "time_s")
SEAL = re.compile(rb',"line_crc32":"([0-9a-f]{8})"\}')
SEAL_BYTES = len(',"line_crc32":"00000000"}')
CAMERA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

Row = TypeVar("Row")


class RecordingError(DatasetError):
    """A recording is broken or none at all; the message names the file, the line and the fix."""


class StoredFile(msgspec.Struct, frozen=True):
    """A file of the recording: its name relative to the folder, size in bytes, CRC-32 in hex."""

    file: str
    bytes: int
    crc32: str

    @classmethod
    def of(cls, file: str, content: bytes | memoryview) -> StoredFile:
        """A name and what is written to it."""
        return cls(file, len(content), f"{zlib.crc32(content):08x}")


class CameraLine(msgspec.Struct, frozen=True):
    """A picture: `world_from_base` 12 numbers, rows 0-2 of the vehicle's pose at its stamp; `calibration` an index."""

    stamp_ns: int
    calibration: int
    world_from_base: tuple[float, ...]
    image: StoredFile


class FrameLine(msgspec.Struct, frozen=True):
    """One frame. `lidar`: little-endian float32, row by row, of `columns` (intensity is raw); `labels` uint8 each."""

    sequence: int
    stamp_ns: int
    trigger: str
    world_from_base: tuple[float, ...]
    columns: tuple[str, ...]
    lidar: StoredFile
    cameras: dict[str, CameraLine]
    labels: StoredFile | None = None


class CalibrationEntry(msgspec.Struct, frozen=True):
    """Intrinsics of a camera: (3, 3) `K` in pixels, distortion as in geometry/camera.py, `size` width and height."""

    K: tuple[tuple[float, ...], ...]
    model: str
    coefficients: tuple[float, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, K: np.ndarray, distortion: Distortion, size: tuple[int, int]) -> CalibrationEntry:
        """What lima_core.data.ros_image.camera_from_info returns."""
        rows = tuple(tuple(map(float, row)) for row in K)
        return cls(rows, distortion.model, tuple(map(float, distortion.coefficients)), (int(size[0]), int(size[1])))


def sealed(frame: FrameLine) -> bytes:
    """The line of a frame, with its checksum and the end of line."""
    text = msgspec.json.encode(frame)[:-1]
    return text + b',"line_crc32":"%08x"}\n' % zlib.crc32(text)


def opened(line: bytes) -> FrameLine | None:
    """The frame of a line without its end; None where the checksum says that it is not whole.

    Raises RecordingError where it is whole and no frame.
    """
    text, seal = line[:-SEAL_BYTES], SEAL.fullmatch(line[-SEAL_BYTES:])
    if seal is None or int(seal[1], 16) != zlib.crc32(text):
        return None
    frame = decoded(text + b"}", FrameLine, FRAMES)
    _check(frame)
    return frame


def decoded(content: bytes, kind: type[Row], where: str | Path) -> Row:
    """JSON -> typed. Raises RecordingError naming the file and the key."""
    try:
        return msgspec.json.decode(content, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"{where}: {error}; it was made or changed by something else than lima") from error


def facts(lima_version: str) -> str:
    """recording.json. Nothing in it depends on when or where: the same drive gives the same recording."""
    what = "see docs/recording.md of lima: frames.jsonl has a line per frame, rig.yaml the mounts, calibration.json K"
    return json.dumps({"format": FORMAT, "version": VERSION, "lima": lima_version, "what": what}, indent=1) + "\n"


def check_facts(path: Path) -> None:
    """Raises RecordingError where recording.json is missing or of another format or version."""
    if not path.is_file():
        raise RecordingError(f"{path.parent} is no recording: it has no {FACTS}")
    found: dict[str, Any] = decoded(path.read_bytes(), dict[str, Any], path)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise RecordingError(
            f"{path}: format {found.get('format')!r} version {found.get('version')!r}; this lima reads {FORMAT} "
            f"version {VERSION}: update lima"
        )


def matrix(numbers: tuple[float, ...]) -> np.ndarray:
    """12 numbers -> (4, 4)."""
    return np.vstack([np.array(numbers, np.float64).reshape(3, 4), [0, 0, 0, 1]])


def numbers(matrix: np.ndarray) -> tuple[float, ...]:
    """(4, 4) -> the 12 numbers of rows 0-2."""
    return tuple(map(float, np.asarray(matrix, np.float64)[:3].ravel()))


def _check(frame: FrameLine) -> None:
    """Raises RecordingError where the types are right and the values impossible."""
    where = f"{FRAMES}: frame at {frame.stamp_ns} ns"
    if not 0 <= frame.sequence < 2**31 or not 0 <= frame.stamp_ns < 2**63:
        raise RecordingError(f"{where} of sequence {frame.sequence}: neither fits what a recording can hold")
    if (
        frame.columns[:4] != XYZI
        or not set(frame.columns) <= set(COLUMNS)
        or len(set(frame.columns)) < len(frame.columns)
    ):
        raise RecordingError(f"{where}: columns {frame.columns}; they begin with {XYZI}, then {COLUMNS[4:]}")
    if frame.lidar.bytes % (4 * len(frame.columns)):
        raise RecordingError(f"{where}: {frame.lidar.bytes} bytes are no whole points of {len(frame.columns)} float32")
    for name, poses in (("lidar", frame.world_from_base), *((n, c.world_from_base) for n, c in frame.cameras.items())):
        if len(poses) != 12 or not np.isfinite(poses).all():
            raise RecordingError(f"{where}: world_from_base of {name} is no pose of 12 finite numbers")

"""JSON tables of nuScenes, read fast and in bounded memory.

A large table is cut between rows into pieces that are decoded in parallel processes and reduced there to numpy
columns, so that no process ever holds more than one piece as Python objects. Rows are decoded by msgspec into typed
structs: it skips unknown fields unread, checks types, and was the fastest way from these tables to Python values
(`bench/nuscenes_index.py` has the figures; orjson and json build every field, pyarrow.json wants one row a line).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from tqdm import tqdm

from lima_core.data.frame import DatasetError

PIECE_BYTES = 4 << 20  # larger ones leave the processor's cache, and are slower
MAX_PROCESSES = 8
BETWEEN_ROWS = re.compile(rb"\}\s*(,)\s*\{")
SEARCH_BYTES = 1 << 20  # a row is never as long
FAR = np.iinfo(np.int32).min
NONE, LOST = -1, -2  # no row, and a row that the tables name and lack

Columns = dict[str, np.ndarray]
Reduce = Callable[[list[Any], Any], Columns]
Row = TypeVar("Row", bound=msgspec.Struct)


class NuScenesError(DatasetError):
    """The data set on disk is incomplete or broken; the message names the file and the fix."""


class Scene(msgspec.Struct, gc=False):
    """A drive of 20 s."""

    token: str
    name: str
    first_sample_token: str


class Sample(msgspec.Struct, gc=False):
    """A keyframe; `timestamp` in microseconds."""

    token: str
    timestamp: int
    next: str


class SampleData(msgspec.Struct, gc=False):
    """One file of one sensor."""

    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    is_key_frame: bool
    filename: str
    prev: str
    height: int = 0
    width: int = 0


class EgoPose(msgspec.Struct, gc=False):
    """world_from_ego; its numbers are parsed for the wanted rows only, a fifth of them."""

    token: str
    rotation: msgspec.Raw
    translation: msgspec.Raw


class CalibratedSensor(msgspec.Struct, gc=False):
    """ego_from_sensor of one sensor in one scene."""

    token: str
    sensor_token: str
    rotation: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera_intrinsic: list[tuple[float, float, float]]


class Sensor(msgspec.Struct, gc=False):
    """A channel such as LIDAR_TOP."""

    token: str
    channel: str


class Lidarseg(msgspec.Struct, gc=False):
    """The file of point labels of one LIDAR_TOP keyframe."""

    sample_data_token: str
    filename: str


class Category(msgspec.Struct, gc=False):
    """A class of objects."""

    token: str
    name: str


class Instance(msgspec.Struct, gc=False):
    """One object over time."""

    token: str
    category_token: str


class Attribute(msgspec.Struct, gc=False):
    """What an object does, such as vehicle.parked."""

    token: str
    name: str


class Annotation(msgspec.Struct, gc=False):
    """One box in one keyframe, in the world; size is width, length, height."""

    token: str
    sample_token: str
    instance_token: str
    translation: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    attribute_tokens: list[str]
    num_lidar_pts: int
    num_radar_pts: int
    prev: str
    next: str


def read_table(path: Path, row: type[Row]) -> list[Row]:
    """All rows of a table, at once. Raises NuScenesError where it is missing or broken."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[row])
    except FileNotFoundError as error:
        version, root = path.parent.name, path.parents[1]
        raise NuScenesError(f"{path} is missing; unpack the metadata of {version} into {root}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NuScenesError(f"{path} is not a nuScenes table: {error}; unpack the metadata again") from error


def read_optional(path: Path, row: type[Row]) -> list[Row]:
    """All rows of a table, none where it is missing. Raises NuScenesError where it is broken."""
    return read_table(path, row) if path.is_file() else []


def read_columns(path: Path, row: type[Row], reduce: Reduce, given: Any) -> Columns:
    """The columns that `reduce(rows, given)` makes of pieces of a table, joined in table order.

    Large tables are reduced in as many processes as there are cores, at most 8. Raises NuScenesError.
    """
    if not path.is_file():
        read_table(path, row)  # says what is wrong
    pieces = list(pairwise(_cuts(path)))
    try:
        parts = list(_reduced(path, row, reduce, given, pieces))
    except (msgspec.DecodeError, UnicodeDecodeError):
        # broken, or cut inside a string that looks like the gap between two rows: the whole table tells
        parts = [reduce(read_table(path, row), given)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def strings(values: Sequence[str]) -> np.ndarray:
    """(N,) fixed-width bytes, utf-8."""
    width = max(map(len, values), default=0)
    joined = "".join([value.ljust(width, "\0") for value in values])  # thrice as fast as numpy's own conversion
    if width and joined.isascii():
        return np.frombuffer(joined.encode(), f"S{width}")
    return np.array([value.encode() for value in values], "S")


def links(tokens: list[str], references: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many rows on, in the same piece, the row is that each row refers to, and the references that lead out of it.

    Returns (N,) int32, 0 where there is none and FAR where it is in no row of the piece, and (L,) bytes, the references
    of the latter. Rows that refer to each other are neighbours in the tables, so that few are left for `follow`.
    """
    place = {token: i for i, token in enumerate(tokens)}
    place[""] = -1
    target = np.array([place.get(token, -2) for token in references], np.int32)
    steps = np.select([target >= 0, target == -2], [target - np.arange(len(target)), FAR], 0)
    return steps.astype(np.int32), strings([references[i] for i in np.flatnonzero(target == -2)])


def follow(tokens: np.ndarray, steps: np.ndarray, far: np.ndarray, lost: int) -> np.ndarray:
    """(N,) int64: the row that each row refers to, its own where it refers to none, `lost` where there is no such."""
    target, leaving = np.arange(len(steps)) + steps, np.flatnonzero(steps == FAR)
    wanted = set(far.tolist())
    place = {token: i for i, token in enumerate(tokens.tolist()) if token in wanted} if wanted else {}
    target[leaving] = [place.get(token, lost) for token in far.tolist()]
    return target


def _cuts(path: Path) -> list[int]:
    """Offsets of commas between rows where the file is cut, from 0 to its size."""
    size, cuts = path.stat().st_size, [0]
    with path.open("rb") as file:
        for place in range(PIECE_BYTES, size, PIECE_BYTES):
            file.seek(place)
            gap = BETWEEN_ROWS.search(file.read(SEARCH_BYTES))
            if gap is not None and place + gap.start(1) > cuts[-1]:
                cuts.append(place + gap.start(1))
    return [*cuts, size]


def _reduced(
    path: Path, row: type[Row], reduce: Reduce, given: Any, pieces: list[tuple[int, int]]
) -> Iterator[Columns]:
    task = (path, row, reduce, given)
    processes = min(len(pieces), len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if processes < 2:
        yield from (_reduce_piece(*piece, *task) for piece in pieces)
        return
    # forked: what is given is shared and not sent, and the caller's script needs no guard against being run again
    with ProcessPoolExecutor(processes, get_context("fork"), _start, (task,)) as pool:
        yield from tqdm(pool.map(_reduce_shared, pieces), path.name, len(pieces), leave=False)


_task: tuple[Any, ...] = ()  # of this helper process


def _start(task: tuple[Any, ...]) -> None:
    global _task
    _task = task


def _reduce_shared(piece: tuple[int, int]) -> Columns:
    return _reduce_piece(*piece, *_task)


def _reduce_piece(start: int, end: int, path: Path, row: type[Row], reduce: Reduce, given: Any) -> Columns:
    """Decodes the rows between two commas and reduces them; the commas become the brackets of a list."""
    is_last = end == path.stat().st_size
    content = bytearray(end - start + (not is_last))
    with path.open("rb") as file:
        file.seek(start)
        file.readinto(content)
    if start:
        content[0] = ord("[")
    if not is_last:
        content[-1] = ord("]")
    return reduce(msgspec.json.decode(content, type=list[row]), given)

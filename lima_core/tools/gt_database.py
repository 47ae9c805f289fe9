"""Collects the objects of a training set into one file, to paste them into other sweeps of a detection training.

python -m lima_core.tools.gt_database --data.name nuscenes --data.root DATA/nuscenes --data.share 5 --out runs/gt5
python -m lima_core.tools.gt_database --data.name street --sweeps 1 --out runs/gt_street
python -m lima_core.tools.gt_database --help

Only the frames of the share are read: labels of other frames would leak into the training (spec/datasets.md 3.7).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from lima_core.config import ConfigError, option, read_config
from lima_core.data.boxed import BoxedSweep, open_boxed
from lima_core.data.frame import DatasetError
from lima_core.data.gt_sampling import FORMAT, GROUPS, made_with
from lima_core.data.labelled import DataConfig
from lima_core.geometry.boxes import box_table, points_in_boxes
from lima_core.training.loader import StepLoader

MIN_POINTS = 5  # of all sweeps (spec/datasets.md 3.6)
FILE = "objects.safetensors"
HEADER_BYTES = 16384  # reserved before the points, whose number is known at the end only


@dataclass(frozen=True)
class GtDatabaseConfig:
    """All there is to set."""

    data: DataConfig = field(default_factory=DataConfig)
    sweeps: int = option(10, "sweeps of a frame, the current one included; as in the training")
    workers: int = option(2, "processes that simulate streets, and that read frames ahead; 0: none")
    out: str = option("runs/gt_database", "folder of the file")


@dataclass(frozen=True)
class Objects:
    """B objects of a sweep: `points` (P, 5), `count`, `boxes`, `class_id` (B,) as `gt_sampling` describes them."""

    points: np.ndarray
    count: np.ndarray
    boxes: np.ndarray
    class_id: np.ndarray


def main(argv: Sequence[str]) -> None:
    """The command line."""
    prog = "python -m lima_core.tools.gt_database"
    try:
        path, counts = build(read_config(GtDatabaseConfig, argv, prog, __doc__.splitlines()[0]))
    except (ConfigError, DatasetError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{name:20s} {count:8d}" for name, count in counts.items()))
    print(f"wrote {path}")


def build(config: GtDatabaseConfig) -> tuple[Path, dict[str, int]]:
    """Writes <out>/objects.safetensors; returns its path and the objects of each class. Raises ConfigError,
    DatasetError."""
    sweeps = open_boxed(config.data, "train", config.sweeps, max(1, config.workers))
    meta = {"format": FORMAT, "made_with": made_with(config.data, config.sweeps), "frames": len(sweeps)}
    loader = StepLoader(_ObjectsOf(sweeps), config.workers)
    steps = tqdm(range(len(sweeps)), desc="objects", unit="frame", dynamic_ncols=True)
    return write_database(Path(config.out) / FILE, (loader.at(step) for step in steps), meta)


class _ObjectsOf(Dataset):
    """The objects of each sweep, found where the sweep is read; boxes without a return are no target."""

    def __init__(self, sweeps: Sequence[BoxedSweep]) -> None:
        self._sweeps = sweeps

    def __len__(self) -> int:
        return len(self._sweeps)

    def __getitem__(self, index: int) -> Objects:
        return objects_of(self._sweeps[index].trainable())


def objects_of(sweep: BoxedSweep) -> Objects:
    """The boxes of a sweep with at least `MIN_POINTS` points, and those points relative to the centre."""
    table = box_table(sweep.boxes)
    inside = points_in_boxes(sweep.points, table)
    kept = [box for box, rows in enumerate(inside) if len(rows) >= MIN_POINTS]
    points = [np.zeros((0, 5), np.float32)]
    for box in kept:
        own = sweep.points[inside[box]]
        points.append(np.column_stack([own[:, :3] - table[box, :3], own[:, 3:]]).astype(np.float32))
    boxes = np.column_stack([table, sweep.boxes.velocity])[kept].astype(np.float32)
    count = np.array([len(inside[box]) for box in kept], np.int32)
    return Objects(np.concatenate(points), count, boxes, sweep.boxes.class_id[kept].astype(np.uint8))


def write_database(path: Path, parts: Iterable[Objects], meta: dict[str, Any]) -> tuple[Path, dict[str, int]]:
    """Writes the file whole or not at all; returns its path and the objects of each class. Raises DatasetError.

    Points go to the disk as they come, since those of a large data set do not fit in memory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            counts = _write(file, parts, meta)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path, counts


def _write(file: BinaryIO, parts: Iterable[Objects], meta: dict[str, Any]) -> dict[str, int]:
    """The layout of safetensors, with the header filled in last: points, then the other columns."""
    file.write(b" " * HEADER_BYTES)
    kept = []
    for objects in parts:
        file.write(objects.points.tobytes())
        kept.append((objects.count, objects.boxes, objects.class_id))
    count, boxes, class_id = map(np.concatenate, zip(*kept, strict=True)) if kept else (np.zeros(0, np.int32),) * 3
    if len(count) == 0:
        raise DatasetError(f"no object in {len(kept)} frames has {MIN_POINTS} points or more; use a larger data.share")
    for column in (boxes, count, class_id):
        file.write(column.tobytes())
    counts = dict(zip(GROUPS, np.bincount(class_id, minlength=len(GROUPS)).tolist(), strict=True))
    shapes = {
        "points": ("F32", (int(count.sum()), 5)),
        "boxes": ("F32", boxes.shape),
        "count": ("I32", count.shape),
        "class_id": ("U8", class_id.shape),
    }
    file.seek(0)
    file.write(_header(shapes, {**meta, "class_names": list(GROUPS), "counts": counts}))
    return counts


def _header(shapes: dict[str, tuple[str, tuple[int, ...]]], meta: dict[str, Any]) -> bytes:
    """`HEADER_BYTES` bytes: the length of the JSON, the JSON, spaces. Columns follow each other in this order."""
    header: dict[str, Any] = {"__metadata__": {"lima": json.dumps(meta)}}
    start = 0
    for name, (dtype, shape) in shapes.items():
        end = start + int(np.prod(shape)) * {"F32": 4, "I32": 4, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    length = HEADER_BYTES - 8
    return length.to_bytes(8, "little") + json.dumps(header).encode().ljust(length)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Objects of other sweeps pasted into a sweep, as SECOND does (spec/datasets.md 3.6).

One .safetensors file, made by `python -m lima_core.tools.gt_database`:
  points    (P, 5) float32   x, y, z in m from the centre of the box, intensity in [0, 1], time lag in s
  count     (B,)   int32     points of each box, in their order
  boxes     (B, 9) float32   x, y, z, l, w, h in m, yaw in rad, velocity x, y in m/s; nan = unknown
  class_id  (B,)   uint8     index into the class names of the header
Header key `lima`: format, made_with (data set, share, sweeps), class_names, frames, counts. Nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lima_core.config import ConfigError, plain
from lima_core.data.boxed import BoxedSweep
from lima_core.data.frame import IGNORE, Boxes, DatasetError
from lima_core.data.labelled import STREET, DataConfig
from lima_core.geometry.boxes import BEV, box_table, points_in_boxes
from lima_core.geometry.overlap import bev_iou

FORMAT = 1
# objects of each class in a sweep after pasting (nuscenes_detection.yaml, gt_sampling)
GROUPS = {
    "car": 2, "truck": 3, "construction_vehicle": 7, "bus": 4, "trailer": 6,
    "barrier": 2, "motorcycle": 6, "bicycle": 6, "pedestrian": 2, "traffic_cone": 2,
}  # fmt: skip
COLUMNS = {"points": ("F32", 5), "count": ("I32",), "boxes": ("F32", 9), "class_id": ("U8",)}


def made_with(data: DataConfig, sweeps: int) -> dict[str, Any]:
    """What the objects depend on, as plain values by dotted option; the folder of the data set may move."""
    street = {f"data.street.{name}": value for name, value in plain(data.street).items() if name != "val_seeds"}
    return {
        "data.name": data.name,
        "data.share": data.share,
        "sweeps": sweeps,
        **(street if data.name == STREET else {}),
    }


class GtDatabase:
    """The objects of a file; their points are read when pasted. It pickles as its path, so each process opens it.

    Raises DatasetError where the file is missing, broken or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="np")
            self.meta: dict[str, Any] = json.loads((self._file.metadata() or {})["lima"])
            self._check_header()
            self._boxes, count, self._class_id = map(self._file.get_tensor, ("boxes", "count", "class_id"))
            self._ends = np.cumsum(count, dtype=np.int64)
            self._points = self._file.get_slice("points")
            self._check_rows(count)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.path} is no database of objects: {type(error).__name__}: {error}; "
                "make it again with `python -m lima_core.tools.gt_database`"
            ) from error
        self._count = count
        self._rows = [np.flatnonzero(self._class_id == class_id) for class_id in range(len(GROUPS))]

    def __len__(self) -> int:
        return len(self._class_id)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return GtDatabase, (self.path,)

    def check(self, data: DataConfig, sweeps: int, frames: int) -> None:
        """Raises ConfigError where the objects are of other labels than those that a training on `data` may use.

        The number of `frames` of the training tells versions of a data set apart, mini and trainval.
        """
        made, wanted = self.meta["made_with"], made_with(data, sweeps)
        for name, value in wanted.items():
            if made.get(name) != value:
                raise ConfigError(
                    f"{self.path} was made with {name}={made.get(name)}, this training has {name}={value}; "
                    f"make another with `python -m lima_core.tools.gt_database --{name}={value} ...`"
                )
        if self.meta.get("frames") != frames:
            raise ConfigError(
                f"{self.path} was made of {self.meta.get('frames')} frames, this training has {frames}: of another "
                "version of the data set; make another with `python -m lima_core.tools.gt_database`"
            )

    def paste(self, sweep: BoxedSweep, rng: np.random.Generator) -> BoxedSweep:
        """A copy with as many objects more as each class lacks of its group, where they were recorded.

        An object whose BEV box overlaps one of the sweep, or one pasted before it, is left out. Points of the sweep
        inside a pasted box go. Pasted points without time lag join the current sweep, as ignored where it has labels.
        """
        rows = self._drawn(sweep.boxes.class_id, rng)
        rows = rows[_free(self._boxes[rows][:, BEV], box_table(sweep.boxes)[:, BEV])]
        if len(rows) == 0:
            return sweep
        added = self._boxes_of(rows)
        points = np.concatenate([self._points_of(row) for row in rows])
        bare = _cleared(sweep, points_in_boxes(sweep.points, box_table(added)))
        return replace(_with_points(bare, points), boxes=Boxes.joined([sweep.boxes, added]))

    def _drawn(self, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of the objects to try, class after class, none twice."""
        drawn = [np.zeros(0, np.int64)]
        for class_id, (rows, size) in enumerate(zip(self._rows, GROUPS.values(), strict=True)):
            lacking = max(0, size - int((present == class_id).sum()))
            drawn.append(rows[rng.choice(len(rows), min(lacking, len(rows)), replace=False)])
        return np.concatenate(drawn)

    def _boxes_of(self, rows: np.ndarray) -> Boxes:
        table = self._boxes[rows].astype(np.float64)
        return Boxes(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:9], self._class_id[rows], self._count[rows])

    def _points_of(self, row: int) -> np.ndarray:
        """(P, 5) float32 of one object, back in the LiDAR frame."""
        points = np.array(self._points[int(self._ends[row] - self._count[row]) : int(self._ends[row])])
        points[:, :3] += self._boxes[row, :3]
        return points

    def _check_header(self) -> None:
        if self.meta["format"] != FORMAT:
            raise ValueError(f"format {self.meta['format']}, this lima reads {FORMAT}")
        if self.meta["class_names"] != list(GROUPS) or not isinstance(self.meta["made_with"], dict):
            raise ValueError(f"its classes are {self.meta['class_names']}, not {', '.join(GROUPS)}")
        for name, (dtype, *width) in COLUMNS.items():
            column = self._file.get_slice(name)
            if column.get_dtype() != dtype or column.get_shape()[1:] != width:
                got = f"{column.get_shape()} {column.get_dtype()}"
                raise ValueError(f"{name} is {got}, expected rows of {width} {dtype}")

    def _check_rows(self, count: np.ndarray) -> None:
        """The columns belong together."""
        boxes, points = len(self._class_id), self._points.get_shape()[0]
        if len(self._boxes) != boxes or len(count) != boxes or boxes == 0:
            raise ValueError(f"{len(self._boxes)} boxes, {len(count)} counts, {boxes} classes")
        if count.min() < 1 or self._ends[-1] != points:
            raise ValueError(f"the counts give {self._ends[-1]} points, there are {points}")
        if self._class_id.max() >= len(GROUPS):
            raise ValueError(f"class {self._class_id.max()}; there are {len(GROUPS)}, counted from 0")


def _free(candidates: np.ndarray, existing: np.ndarray) -> np.ndarray:
    """(K, 5) and (B, 5) BEV boxes -> indices of the candidates that overlap no box, and no candidate kept before."""
    tried = torch.from_numpy(candidates.astype(np.float64))
    others = torch.cat([tried, torch.from_numpy(existing.astype(np.float64))])
    overlap = (bev_iou(tried, others) > 0).numpy()
    blocked = overlap[:, len(candidates) :].any(1)
    kept: list[int] = []
    for index in range(len(candidates)):
        if not blocked[index] and not overlap[index, kept].any():
            kept.append(index)
    return np.array(kept, np.int64)


def _cleared(sweep: BoxedSweep, inside: list[np.ndarray]) -> BoxedSweep:
    """The sweep without the points of these rows."""
    keep = np.ones(len(sweep.points), bool)
    keep[np.concatenate(inside)] = False
    current = keep[: sweep.current]
    labels = None if sweep.labels is None else sweep.labels[current]
    return replace(sweep, points=sweep.points[keep], current=int(current.sum()), labels=labels)


def _with_points(sweep: BoxedSweep, points: np.ndarray) -> BoxedSweep:
    """The sweep with more points: those without time lag at the end of the current part, the others at the end."""
    now = points[points[:, 4] == 0]
    own, past = sweep.points[: sweep.current], sweep.points[sweep.current :]
    labels = sweep.labels
    if labels is not None:
        labels = np.concatenate([labels, np.full(len(now), IGNORE, np.uint8)])
    return replace(
        sweep,
        points=np.concatenate([own, now, past, points[points[:, 4] != 0]]),
        current=len(own) + len(now),
        labels=labels,
    )

"""What a live LiDAR looks like lately, measured as cheaply as a running node can afford: a sample of each sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lima_core.training.input_statistics import ground_height

COLUMNS = ("x", "y", "z", "range", "intensity", "raw")
PERCENT = (1.0, 5.0, 50.0, 75.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class SweepPicture:
    """One sweep: valid `returns`, `table` (6, 7) float64 of COLUMNS x PERCENT, `ground` z m, `rings` seen.

    `table` and `ground` are nan where no return is valid; `rings` None = the cloud does not tell.
    """

    returns: int
    table: np.ndarray
    ground: float
    rings: np.ndarray | None


@dataclass(frozen=True)
class Picture:
    """Several sweeps: the median over them of `returns`, `table` and `ground`, and `beams` that any of them saw.

    `beams` 0 = unknown: no ring field, or one that is the same for all points.
    """

    sweeps: int
    returns: float
    table: np.ndarray
    ground: float
    beams: int

    def at(self, column: str, *percent: float) -> np.ndarray:
        """Values of a column at some of PERCENT; x, y, z, range in m."""
        return self.table[COLUMNS.index(column), [PERCENT.index(p) for p in percent]]


def picture_of_sweep(
    points: np.ndarray, raw: np.ndarray, rings: np.ndarray | None, sample: int, rng: np.random.Generator
) -> SweepPicture:
    """(N, 4) x, y, z m, intensity [0, 1]; (N,) raw intensity; (N,) rings or None -> from `sample` random points.

    Random, because every n-th point of a cloud in the order of its beams is of few beams only. Points that are not
    finite or at the origin are no returns.
    """
    total = len(points)
    if sample < total:
        rows = rng.integers(0, total, sample)
        points, raw, rings = points[rows], raw[rows], None if rings is None else rings[rows]
    with np.errstate(over="ignore", invalid="ignore"):  # inf and nan are looked for in the next line
        distance = np.linalg.norm(points[:, :3], axis=1)
    valid = np.isfinite(distance) & (distance > 0) & np.isfinite(points[:, 3]) & np.isfinite(raw)
    if not valid.any():
        return SweepPicture(0, np.full((len(COLUMNS), len(PERCENT)), np.nan), np.nan, None)
    kept = points[valid]
    values = np.sort(np.stack([*kept[:, :3].T, distance[valid], kept[:, 3], raw[valid]]), axis=1)
    index = np.rint((values.shape[1] - 1) * np.array(PERCENT) / 100).astype(int)
    seen = None if rings is None else np.unique(rings[valid])
    return SweepPicture(round(total * valid.mean()), values[:, index].astype(np.float64), ground_height(kept), seen)


def picture_of(sweeps: Sequence[SweepPicture]) -> Picture:
    """At least one sweep -> all of them together; sweeps without a return count in `returns` alone."""
    filled = [sweep for sweep in sweeps if sweep.returns] or sweeps
    grounds = [sweep.ground for sweep in filled if np.isfinite(sweep.ground)]
    rings = [sweep.rings for sweep in filled if sweep.rings is not None]
    beams = len(np.unique(np.concatenate(rings))) if rings else 0
    return Picture(
        sweeps=len(sweeps),
        returns=float(np.median([sweep.returns for sweep in sweeps])),
        table=np.median([sweep.table for sweep in filled], axis=0),
        ground=float(np.median(grounds)) if grounds else float("nan"),
        beams=beams if beams > 1 else 0,
    )

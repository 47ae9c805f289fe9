"""Past sweeps laid over the current one: what detectors see (spec/datasets.md 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lima_core.data.frame import DatasetError, Frame, FrameSource
from lima_core.geometry import se3

# points (N, 4) float32 in the sweep's own frame, lidar_from_sweep (4, 4) float64, seconds that it is older
PastSweep = tuple[np.ndarray, np.ndarray, float]
CLOSE_M = 1.0  # echoes of the vehicle itself


@runtime_checkable
class SweepSource(Protocol):
    """A source with sweeps between its frames, as nuScenes has."""

    def sweeps(self, index: int, count: int) -> list[PastSweep]:
        """The `count` sweeps before frame `index`, newest first."""
        ...


def past_sweeps(source: FrameSource, index: int, count: int) -> list[PastSweep]:
    """The `count` sweeps before frame `index`, newest first; fewer where the sequence begins.

    They are those of `source.sweeps` where it has one, else the frames of its window. Nothing is padded: repeating the
    last sweep, as OpenPCDet does, adds points that are there already. Raises DatasetError where poses are missing.
    """
    if isinstance(source, SweepSource):
        return source.sweeps(index, count)
    return past_of(source[index], source.window(index, count))


def past_of(frame: Frame, window: Sequence[Frame]) -> list[PastSweep]:
    """The frames of a window, oldest first, as sweeps before `frame`, newest first.

    Raises DatasetError where a frame has no pose, or is newer than `frame`.
    """
    past = []
    for older in reversed(window):
        seconds = (frame.stamp_ns - older.stamp_ns) / 1e9
        if seconds < 0:
            raise DatasetError(f"{older.where} is {-seconds:.6f} s newer than {frame.where}, which follows it")
        lidar_from_world, world_from_sweep = se3.inverse(_pose(frame)), _pose(older)
        past.append((older.points, lidar_from_world @ world_from_sweep, seconds))
    return past


def aggregate(points: np.ndarray, past: Sequence[PastSweep]) -> np.ndarray:
    """(N, 4) float32 points of the current sweep, and those before it -> (N', 5) float32.

    Columns are x, y, z m in the current LiDAR frame, intensity in [0, 1], and the seconds a point is older. The current
    sweep comes first and complete; of past ones the points with |x| < 1 m and |y| < 1 m in their own frame are dropped,
    as OpenPCDet does (nuScenes' devkit drops them from the current one too), and those that are not finite: one of them
    would make its voxel nan, and the convolutions the whole map.
    """
    return np.concatenate([_timed(points, 0.0), *(_moved(*sweep) for sweep in past)])


def _moved(points: np.ndarray, lidar_from_sweep: np.ndarray, seconds: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        kept = points[~(np.abs(points[:, :2]) < CLOSE_M).all(1) & np.isfinite(points).all(1)]
    timed = _timed(kept, seconds)
    timed[:, :3] = se3.apply(lidar_from_sweep, kept)
    return timed


def _timed(points: np.ndarray, seconds: float) -> np.ndarray:
    return np.column_stack([points, np.full(len(points), seconds, np.float32)])


def _pose(frame: Frame) -> np.ndarray:
    """world_from_lidar. Raises DatasetError where it is not known."""
    if not np.isfinite(frame.world_from_lidar).all():
        raise DatasetError(f"{frame.where} has no pose, so that sweeps cannot be laid over each other; use 1 sweep")
    return frame.world_from_lidar

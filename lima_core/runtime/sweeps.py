"""Sweeps of the last moments, laid over the current one by the vehicle's motion, and the motion inside a sweep.

Per sweep: `deskewed` where the driver sends a time per point, then `history.past(stamp)`, then `history.add(stamp,
points)`. No tf2, no rclpy.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Protocol

import numpy as np

from lima_core.data.multisweep import PastSweep
from lima_core.geometry import se3
from lima_core.runtime.transforms import PoseError

# reasons of SweepHistory.counts
STALE = "stale"  # not newer than the newest remembered sweep: not remembered
JUMP = "jump"  # older than the newest remembered one by more than max_age_s: everything before it was forgotten
OLD = "old"  # a past sweep older than max_age_s was left out
NO_POSE = "no_pose"  # a past sweep was left out because no pose is known at its stamp
NO_CURRENT_POSE = "no_current_pose"  # all past sweeps were left out because no pose is known at the current stamp

LONGEST_S = 1.0  # a sweep of a spinning LiDAR takes 0.05 to 0.2 s
KNOT_S = 0.005  # longest time between two poses that `deskewed` looks up


class SweepTimeError(ValueError):
    """The times of a sweep's points cannot be used; the message says what they look like and what is expected."""


class Trajectory(Protocol):
    """Where the vehicle was: transforms.PoseBuffer, or anything else that knows."""

    def world_from_base(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) float64 pose at a stamp. Raises PoseError where it is not known."""
        ...


class SweepHistory:
    """The last `count` - 1 sweeps of a LiDAR, for a detector that was trained on `count` sweeps.

    `poses` and `base_from_lidar` (4, 4) are needed where `count` > 1. Methods belong to one thread; `reset`, `counts`
    and `problem` to any.

    Poses are looked up at each use and never kept. At reception the pose may be late. A kept one would outlive a reset
    of `poses`, after which the world may be another: the sweep would land somewhere, silently. Looked up anew it is
    left out and counted. `poses` must therefore reach back `max_age_s`.

    Raises ValueError when an argument is missing or out of range.
    """

    def __init__(
        self, poses: Trajectory | None, base_from_lidar: np.ndarray | None, count: int, max_age_s: float
    ) -> None:
        if count < 1 or not max_age_s > 0:
            raise ValueError(f"a history takes 1 or more sweeps and a positive age: {count} sweeps, {max_age_s} s")
        if count > 1 and (poses is None or base_from_lidar is None):
            raise ValueError(f"{count} sweeps need poses and base_from_lidar: give a rig and odometry, or use 1 sweep")
        self._poses, self._base_from_lidar = poses, base_from_lidar
        self.count = count
        self.epoch = 0  # how often the past was forgotten
        self._max_age_ns = round(max_age_s * 1e9)
        self._lock = threading.Lock()
        self._sweeps: deque[tuple[int, np.ndarray]] = deque(maxlen=count - 1)
        self._counts: Counter[str] = Counter()
        self._problem: str | None = None

    def __len__(self) -> int:
        return len(self._sweeps)

    @property
    def counts(self) -> dict[str, int]:
        """How often each reason applied (STALE ... NO_CURRENT_POSE); past sweeps count once per use."""
        with self._lock:
            return dict(self._counts)

    @property
    def problem(self) -> str | None:
        """Which pose the last `past` lacked, and why; None where it lacked none."""
        return self._problem

    def add(self, stamp_ns: int, points: np.ndarray, epoch: int | None = None) -> None:
        """Remembers (N, 4) float32 points in the LiDAR frame at `stamp_ns`; they are kept, not copied.

        `epoch` when the sweep was received: one that was worked on while the past was forgotten is of the old time.
        """
        with self._lock:
            if epoch is not None and epoch != self.epoch:
                self._counts[JUMP] += 1
                return
            behind_ns = self._sweeps[-1][0] - stamp_ns if self._sweeps else -1
            if behind_ns > self._max_age_ns:
                # a looped bag. `reset` clears it, but a sweep of the old time that was being worked on then comes
                # after it, and would make every sweep of the new time stale
                self._sweeps.clear()
                self._counts[JUMP] += 1
            elif behind_ns >= 0:
                self._counts[STALE] += 1
                return
            self._sweeps.append((stamp_ns, points))

    def past(self, stamp_ns: int) -> list[PastSweep]:
        """The remembered sweeps before `stamp_ns`, newest first, moved to the LiDAR frame of that stamp."""
        self._problem = None
        recent = self._recent(stamp_ns)
        if not recent:
            return []
        try:
            lidar_from_world = se3.inverse(_world_from_lidar(self._poses, self._base_from_lidar, stamp_ns))
        except PoseError as error:
            self._leave_out(NO_CURRENT_POSE, f"no pose at the current sweep: {error}")
            return []
        found = []
        for older_ns, points in recent:
            seconds = (stamp_ns - older_ns) / 1e9
            try:
                world_from_sweep = _world_from_lidar(self._poses, self._base_from_lidar, older_ns)
            except PoseError as error:
                self._leave_out(NO_POSE, f"no pose at the sweep {seconds:.3f} s before: {error}")
            else:
                found.append((points, lidar_from_world @ world_from_sweep, seconds))
        return found

    def reset(self) -> None:
        """Forgets every sweep; the counts stay."""
        with self._lock:
            self._sweeps.clear()
            self.epoch += 1

    def _recent(self, stamp_ns: int) -> list[tuple[int, np.ndarray]]:
        """Sweeps before a stamp, newest first, without those that are too old, which are counted."""
        with self._lock:
            before = [sweep for sweep in reversed(self._sweeps) if sweep[0] < stamp_ns]
            recent = [sweep for sweep in before if stamp_ns - sweep[0] <= self._max_age_ns]
            if len(recent) < len(before):
                self._counts[OLD] += len(before) - len(recent)
        return recent

    def _leave_out(self, reason: str, problem: str) -> None:
        with self._lock:
            self._counts[reason] += 1
        self._problem = problem


def deskewed(
    points: np.ndarray, time_s: np.ndarray, stamp_ns: int, poses: Trajectory, base_from_lidar: np.ndarray
) -> np.ndarray:
    """(N, 4) float32 points, each in the LiDAR frame of its own time -> the same in the LiDAR frame at `stamp_ns`.

    `time_s` (N,) seconds after the stamp, negative before it. Returns `points` themselves where all times are equal:
    they tell no motion. Points that are not finite, or are at the origin (no echo), stay as they are.

    Poses are looked up every 5 ms or less, and positions are linear in time between two of them. At speed v, turn rate
    w and range r that adds at most (v w + w^2 r) (5 ms)^2 / 8 to the error of `poses`: 0.4 mm at 30 m/s, 1 rad/s and
    100 m. Raises PoseError where the trajectory is not known, SweepTimeError where the times are not those of a sweep.
    """
    if len(time_s) != len(points):
        raise SweepTimeError(f"{len(time_s)} times for {len(points)} points")
    x, y, z = points[:, :3].T
    echo = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & ((x != 0) | (y != 0) | (z != 0))
    rows = np.flatnonzero(echo)
    if len(rows) == 0:
        return points
    times = np.asarray(time_s, np.float64)[rows]
    first_s, last_s = _span(times)
    if first_s == last_s:
        return points
    knots = _knots(first_s, last_s, stamp_ns, poses, base_from_lidar)
    place = (times - first_s) * ((len(knots) - 1) / (last_s - first_s))
    return _blended(points, rows, place, knots)


def _span(times: np.ndarray) -> tuple[float, float]:
    """First and last of (N,) seconds. Raises SweepTimeError where they are no times of a sweep, relative to it."""
    first_s, last_s = float(times.min()), float(times.max())  # nan where one is nan
    if not np.isfinite([first_s, last_s]).all():
        raise SweepTimeError(f"{np.count_nonzero(~np.isfinite(times))} of {len(times)} points have no finite time")
    if max(-first_s, last_s) > LONGEST_S:
        raise SweepTimeError(
            f"times of the points reach from {first_s:g} to {last_s:g} s after the stamp, more than {LONGEST_S:g} s "
            "from it: they are absolute, or in another unit; expected are seconds relative to the stamp"
        )
    if last_s - first_s > LONGEST_S:
        raise SweepTimeError(f"times of the points span {last_s - first_s:g} s: no sweep lasts over {LONGEST_S:g} s")
    return first_s, last_s


def _knots(first_s: float, last_s: float, stamp_ns: int, poses: Trajectory, base_from_lidar: np.ndarray) -> np.ndarray:
    """(K, 3, 4) lidar(stamp)_from_lidar(t) at K >= 2 evenly spaced times from first to last. Raises PoseError."""
    count = 1 + int(np.ceil((last_s - first_s) / KNOT_S))
    times = np.linspace(first_s, last_s, max(count, 2))
    stamps = [stamp_ns + round(t * 1e9) for t in times.tolist()]
    try:
        lidar_from_world = se3.inverse(_world_from_lidar(poses, base_from_lidar, stamp_ns))
        return np.stack([(lidar_from_world @ _world_from_lidar(poses, base_from_lidar, ns))[:3] for ns in stamps])
    except PoseError as error:
        where = f"from {first_s * 1e3:.1f} to {last_s * 1e3:.1f} ms after its stamp"
        raise PoseError(f"the motion inside the sweep, {where}, is not known: {error}") from error


def _blended(points: np.ndarray, rows: np.ndarray, place: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """(N, 4) points with those of `rows` (M,) moved by the blend of the two of (K, 3, 4) knots around (M,) `place`."""
    start = np.minimum(place.astype(np.intp), len(knots) - 2)
    weight = place - start
    x, y, z = points[rows, :3].astype(np.float64).T
    change = np.diff(knots, axis=0)
    moved = points.copy()
    # entry by entry of the matrices: a (M, 3, 4) array of them does not fit the processor's caches
    for axis in range(3):
        entry = [np.take(knots[:, axis, j], start) + weight * np.take(change[:, axis, j], start) for j in range(4)]
        with np.errstate(over="ignore"):  # a coordinate that float32 only just holds may become inf
            moved[rows, axis] = entry[0] * x + entry[1] * y + entry[2] * z + entry[3]
    return moved


def _world_from_lidar(poses: Trajectory, base_from_lidar: np.ndarray, stamp_ns: int) -> np.ndarray:
    return poses.world_from_base(stamp_ns) @ base_from_lidar

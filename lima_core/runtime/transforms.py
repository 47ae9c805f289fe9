"""Vehicle poses by time, and where a LiDAR point lies for a camera that fired at another moment. No tf2, no rclpy."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Protocol

import numpy as np

from lima_core.geometry import se3


class PoseError(ValueError):
    """No pose is known for a stamp; the message says which stamps are."""


class Poses(Protocol):
    """Where the vehicle was: `PoseBuffer`, `tf_node.TfPoses` or `EitherPoses`. Safe for several threads."""

    frame_id: str  # the world that the poses are in; empty while it is not known

    def world_from_base(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) float64 pose at a stamp. Raises PoseError where it is not known."""

    def reset(self) -> None:
        """Forgets every pose."""


class PoseBuffer:
    """Poses world_from_base of the last `history_s` seconds, fed in order of time; safe for two threads.

    `max_gap_ms`: longest time between two poses that is interpolated across. `max_extrapolation_ms`: how far beyond
    the newest pose its motion is continued. A stamp that goes backwards starts over. `frame_id`: the world they are in.
    """

    def __init__(self, max_gap_ms: float = 600.0, max_extrapolation_ms: float = 50.0, history_s: float = 10.0) -> None:
        self._gap_ns, self._ahead_ns = round(max_gap_ms * 1e6), round(max_extrapolation_ms * 1e6)
        self._history_ns = round(history_s * 1e9)
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []
        self._lock = threading.Lock()
        self.resets = 0
        self.frame_id = ""

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, stamp_ns: int, world_from_base: np.ndarray) -> None:
        """Takes the (4, 4) pose of the vehicle at `stamp_ns`; a second pose of the same stamp is ignored."""
        with self._lock:
            if self._stamps and stamp_ns < self._stamps[-1]:
                self._clear()
            if self._stamps and stamp_ns == self._stamps[-1]:
                return
            self._stamps.append(stamp_ns)
            self._poses.append(np.asarray(world_from_base, np.float64))
            old = bisect_left(self._stamps, stamp_ns - self._history_ns)
            del self._stamps[:old], self._poses[:old]

    def reset(self) -> None:
        """Forgets every pose."""
        with self._lock:
            self._clear()

    def world_from_base(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) pose at a stamp, interpolated (translation linear, rotation slerp). Raises PoseError."""
        with self._lock:
            stamps, poses = list(self._stamps), list(self._poses)
        if not stamps:
            raise PoseError("no odometry has been received")
        if stamp_ns > stamps[-1]:
            return self._continued(stamps, poses, stamp_ns)
        return self._between(stamps, poses, stamp_ns)

    def _clear(self) -> None:
        self._stamps, self._poses = [], []
        self.resets += 1

    def _between(self, stamps: list[int], poses: list[np.ndarray], stamp_ns: int) -> np.ndarray:
        after = bisect_left(stamps, stamp_ns)
        if stamps[after] == stamp_ns:
            return poses[after]
        if after == 0:
            raise PoseError(f"{(stamps[0] - stamp_ns) / 1e6:.1f} ms before the oldest odometry")
        start, end = stamps[after - 1], stamps[after]
        if end - start > self._gap_ns:
            raise PoseError(f"odometry has a gap of {(end - start) / 1e6:.0f} ms around this stamp")
        return se3.interpolate(poses[after - 1], poses[after], (stamp_ns - start) / (end - start))

    def _continued(self, stamps: list[int], poses: list[np.ndarray], stamp_ns: int) -> np.ndarray:
        """Motion of the last `max_extrapolation_ms` continued: a longer base than the last two, noisy, poses."""
        ahead = stamp_ns - stamps[-1]
        if ahead > self._ahead_ns:
            raise PoseError(f"{ahead / 1e6:.1f} ms after the newest odometry")
        before = self._between(stamps, poses, stamps[-1] - self._ahead_ns)
        return se3.interpolate(before, poses[-1], 1.0 + ahead / self._ahead_ns)


class EitherPoses:
    """`first` where it knows the stamp, else `second`; only `first`, once it has poses, where their worlds differ.

    Two poses of one computation may come from both: in different worlds (odom, map) they would not fit together.
    """

    def __init__(self, first: PoseBuffer, second: Poses) -> None:
        self._first, self._second = first, second

    @property
    def frame_id(self) -> str:
        """World of the one that is asked first."""
        return self._first.frame_id if len(self._first) else self._second.frame_id

    def world_from_base(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) pose at a stamp. Raises PoseError with both reasons."""
        try:
            return self._first.world_from_base(stamp_ns)
        except PoseError as error:
            if len(self._first) and self._first.frame_id != self._second.frame_id:
                raise PoseError(
                    f"{error}; tf is not asked, its world is {self._second.frame_id!r}, the odometry's "
                    f"{self._first.frame_id!r}: make world_frame of the rig the same, or choose transforms: tf"
                ) from error
            reason = error
        try:
            return self._second.world_from_base(stamp_ns)
        except PoseError as error:
            raise PoseError(f"{reason}; {error}") from error

    def reset(self) -> None:
        """Forgets every pose of both."""
        self._first.reset()
        self._second.reset()


def static_camera_from_lidar(base_from_camera: np.ndarray, base_from_lidar: np.ndarray) -> np.ndarray:
    """(4, 4) camera_from_lidar of a vehicle that stands still: the mounting alone."""
    return se3.inverse(base_from_camera) @ base_from_lidar


def camera_from_lidar(
    poses: Poses, base_from_camera: np.ndarray, base_from_lidar: np.ndarray, camera_ns: int, lidar_ns: int
) -> np.ndarray:
    """(4, 4): a point of the sweep at `lidar_ns` -> the camera at its own stamp, ego-motion between them included.

    camera_from_base @ base(t_camera)_from_world @ world_from_base(t_lidar) @ base_from_lidar. Raises PoseError.
    """
    base_from_world = se3.inverse(poses.world_from_base(camera_ns))
    return se3.inverse(base_from_camera) @ base_from_world @ poses.world_from_base(lidar_ns) @ base_from_lidar

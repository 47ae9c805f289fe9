"""Where the vehicle was, for a recording: known between two poses only, never beyond them, and never across a reset."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from lima_core.geometry import se3

KEPT_NS = 60_000_000_000


class PoseTrack:
    """Poses world_from_base in order of their stamps.

    `max_gap_ms`: longest time that is interpolated across. A pose that `max_speed_m_s` does not explain, or that is in
    another frame, begins a new `generation`: odometry was reset, and what was before says nothing about what comes now.
    """

    def __init__(self, max_gap_ms: float, max_speed_m_s: float) -> None:
        self._gap_ns, self._speed = round(max_gap_ms * 1e6), max_speed_m_s
        self._generation, self._frame_id = 0, ""
        self._stamps: list[int] = []
        self._poses: list[tuple[int, np.ndarray]] = []

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest pose."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp_ns: int, world_from_base: np.ndarray, frame_id: str) -> None:
        """Takes a (4, 4) pose; one that comes late is put in its place, a second one of a stamp is left out."""
        at = bisect_left(self._stamps, stamp_ns)
        if at < len(self._stamps) and self._stamps[at] == stamp_ns:
            return  # the first may have served already: which of the two a sweep gets must not depend on arrival
        if at == len(self._stamps) and self._jumped(stamp_ns, world_from_base, frame_id):
            self._generation += 1
        self._frame_id = frame_id
        generation = self._generation if at == len(self._stamps) else self._poses[at][0]
        self._stamps.insert(at, stamp_ns)
        self._poses.insert(at, (generation, np.asarray(world_from_base, np.float64)))
        old = bisect_left(self._stamps, self._stamps[-1] - KEPT_NS)
        del self._stamps[:old], self._poses[:old]

    def at(self, stamp_ns: int) -> tuple[int, np.ndarray] | None:
        """Generation and (4, 4) pose at a stamp; None where it is not known."""
        after = bisect_left(self._stamps, stamp_ns)
        if after == len(self._stamps):
            return None
        if self._stamps[after] == stamp_ns:
            return self._poses[after]
        if after == 0:
            return None
        begin_ns, end_ns = self._stamps[after - 1], self._stamps[after]
        (begin, start), (end, stop) = self._poses[after - 1], self._poses[after]
        if begin != end or end_ns - begin_ns > self._gap_ns:
            return None
        return end, se3.interpolate(start, stop, (stamp_ns - begin_ns) / (end_ns - begin_ns))

    def start_over(self) -> None:
        """Forgets every pose; those that come are of a new generation."""
        self._stamps, self._poses = [], []
        self._generation += 1

    def _jumped(self, stamp_ns: int, world_from_base: np.ndarray, frame_id: str) -> bool:
        if not self._stamps:
            return False
        seconds = (stamp_ns - self._stamps[-1]) / 1e9
        metres = float(np.linalg.norm(world_from_base[:3, 3] - self._poses[-1][1][:3, 3]))
        return frame_id != self._frame_id or metres > self._speed * max(seconds, 0.05)  # stamps may jitter

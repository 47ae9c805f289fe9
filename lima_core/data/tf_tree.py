"""The transform tree of a recording: what /tf, /tf_static and odometry say about frames over time."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from lima_core.geometry import se3

MAX_GAP_NS = 2_000_000_000


class TransformError(ValueError):
    """A frame is unknown or its pose is not known at a time; the message names both. Never identity instead."""


class TransformTree:
    """Poses of frames in their parents, fixed or over time; between two stamps poses are interpolated."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._fixed: dict[str, np.ndarray] = {}
        self._moving: dict[str, dict[int, np.ndarray]] = {}
        self._stamps: dict[str, list[int]] = {}

    def add_fixed(self, parent: str, child: str, parent_from_child: np.ndarray) -> None:
        """A transform that holds at all times."""
        self._parent[child], self._fixed[child] = parent, parent_from_child

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray) -> None:
        """A transform at one time."""
        self._parent[child] = parent
        self._moving.setdefault(child, {})[stamp_ns] = parent_from_child
        self._stamps.pop(child, None)

    def moves(self, frame: str) -> bool:
        """Whether the frame's pose in its parent changes with time."""
        return frame in self._moving

    def ancestors(self, frame: str) -> list[str]:
        """The frame and those above it, up to the root."""
        chain = [frame]
        while chain[-1] in self._parent:
            chain.append(self._up(chain[-1], frame))
        return chain

    def fixed_root(self, frame: str) -> tuple[str, np.ndarray]:
        """The furthest ancestor over fixed transforms alone, and (4, 4) ancestor_from_frame."""
        root, root_from_frame = frame, np.eye(4)
        while root in self._fixed:
            root_from_frame = self._fixed[root] @ root_from_frame
            root = self._up(root, frame)
        return root, root_from_frame

    def root_from(self, frame: str, stamp_ns: int) -> np.ndarray:
        """(4, 4) root_from_frame at a time. Raises TransformError when a link is not known at that time."""
        here, root_from_frame = frame, np.eye(4)
        while here in self._parent:
            link = self._fixed[here] if here in self._fixed else self._at(here, stamp_ns)
            root_from_frame = link @ root_from_frame
            here = self._up(here, frame)
        return root_from_frame

    def knows(self, frame: str, stamp_ns: int) -> bool:
        """Whether `root_from` has an answer."""
        try:
            self.root_from(frame, stamp_ns)
        except TransformError:
            return False
        return True

    def _up(self, here: str, start: str) -> str:
        parent = self._parent[here]
        if parent == start:
            raise TransformError(f"frame {start!r} is its own ancestor, through {here!r}")
        return parent

    def _at(self, child: str, stamp_ns: int) -> np.ndarray:
        poses = self._moving[child]
        if stamp_ns in poses:
            return poses[stamp_ns]
        stamps = self._stamps.setdefault(child, sorted(poses))
        after = bisect_left(stamps, stamp_ns)
        if after in (0, len(stamps)):
            raise TransformError(
                f"{child!r} in {self._parent[child]!r} is not known at {stamp_ns} ns, "
                f"only from {stamps[0]} to {stamps[-1]}"
            )
        start, end = stamps[after - 1], stamps[after]
        if end - start > MAX_GAP_NS:
            raise TransformError(f"{child!r} has a gap of {(end - start) / 1e9:.1f} s at {stamp_ns} ns")
        return se3.interpolate(poses[start], poses[end], (stamp_ns - start) / (end - start))

"""The pose of one frame from the messages of /tf, as they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lima_core.data.bag_poses import pose_of
from lima_core.data.ros_header import stamp_ns


class TfChain:
    """Follows the links above `base_frame`: its pose in the topmost frame, each time the lowest moving link is sent.

    Links above that one (map to odom) are taken as they last were: they correct, rarely and a little.
    """

    def __init__(self, base_frame: str) -> None:
        self._base = base_frame
        self._up: dict[str, tuple[str, np.ndarray, bool]] = {}  # child -> parent, parent_from_child, moves

    def add(self, msg: Any, fixed: bool) -> Iterator[tuple[int, np.ndarray, str]]:
        """Takes a TFMessage; yields (stamp in ns, (4, 4) top_from_base, top frame) of each new pose of the base.

        Transforms that are no rigid motion are left out.
        """
        for item in msg.transforms:
            child = item.child_frame_id.lstrip("/")
            matrix = pose_of(item.transform.translation, item.transform.rotation)
            if matrix is None:
                continue
            self._up[child] = (item.header.frame_id.lstrip("/"), matrix, not fixed)
            if not fixed and child == self._lowest_moving():
                top, pose = self._pose()
                yield stamp_ns(item.header.stamp), pose, top

    def _chain(self) -> list[str]:
        """Frames with a parent, from the base up."""
        frames, here = [], self._base
        while here in self._up and here not in frames:
            frames.append(here)
            here = self._up[here][0]
        return frames

    def _lowest_moving(self) -> str | None:
        return next((frame for frame in self._chain() if self._up[frame][2]), None)

    def _pose(self) -> tuple[str, np.ndarray]:
        pose, top = np.eye(4), self._base
        for frame in self._chain():
            top, matrix, _ = self._up[frame]
            pose = matrix @ pose
        return top, pose

"""Where the frames of a rosbag2 are over time, by its /tf, /tf_static and odometry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from lima_core.data.ros_header import stamp_ns
from lima_core.data.tf_tree import TransformTree
from lima_core.geometry import se3


class BagPoses:
    """Fills `tree` from messages; `lost` counts the poses left out of each frame: not finite, or without a rotation."""

    def __init__(self) -> None:
        self.tree = TransformTree()
        self.lost: Counter[str] = Counter()
        self._odometry: dict[str, list[Any]] = {}

    def add_transforms(self, message: Any, fixed: bool) -> None:
        """A TFMessage; `fixed` where it holds for all time."""
        for item in message.transforms:
            parent, child = item.header.frame_id.lstrip("/"), item.child_frame_id.lstrip("/")
            parent_from_child = pose_of(item.transform.translation, item.transform.rotation)
            if parent_from_child is None:
                self.lost[child] += 1
            elif fixed:
                self.tree.add_fixed(parent, child, parent_from_child)
            else:
                self.tree.add(parent, child, stamp_ns(item.header.stamp), parent_from_child)

    def add_odometry(self, message: Any) -> None:
        """An Odometry message, which waits for `join_odometry`."""
        self._odometry.setdefault(message.child_frame_id or "base_link", []).append(message)

    def join_odometry(self) -> None:
        """After the last message: odometry counts where /tf says nothing about the same frame."""
        for child, messages in self._odometry.items():
            if self.tree.moves(child):
                continue
            for message in messages:
                pose = pose_of(message.pose.pose.position, message.pose.pose.orientation)
                if pose is None:
                    self.lost[child] += 1
                else:
                    self.tree.add(message.header.frame_id, child, stamp_ns(message.header.stamp), pose)


def pose_of(translation: Any, rotation: Any) -> np.ndarray | None:
    """(4, 4) parent_from_child, None where a number is not finite or the quaternion is zero."""
    t = np.array([translation.x, translation.y, translation.z])
    q = np.array([rotation.w, rotation.x, rotation.y, rotation.z])
    return se3.transform(q, t) if np.isfinite([*t, *q]).all() and q.any() else None

"""Vehicle poses from /tf, where tf2_ros is installed. The only file that imports it; no node of its own."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from lima_core.data.rig import Rig
from lima_core.geometry import se3
from lima_core.runtime.transforms import PoseError

try:
    import tf2_ros

    MISSING = ""
except ImportError as error:  # no registry but the ROS one has it
    MISSING = (
        f"tf2_ros cannot be imported ({error}): apt install ros-$ROS_DISTRO-tf2-ros-py and source ROS 2 before the "
        "node starts (pip has no such package), or set transforms: odometry"
    )


class TfPoses:
    """Poses of `base_frame` in `fixed_frame`, from a tf2_ros.Buffer (or what looks like it). Safe for two threads.

    Nothing waits here: what tf2 does not know at once is an error, and the caller goes on without.
    """

    def __init__(self, buffer: tf2_ros.Buffer, fixed_frame: str, base_frame: str) -> None:
        self._buffer, self.frame_id, self._base_frame = buffer, fixed_frame, base_frame

    def world_from_base(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) pose at a stamp, interpolated by tf2. Raises PoseError with tf2's own words."""
        if stamp_ns <= 0:
            raise PoseError(f"the stamp is {stamp_ns} ns, and tf2 takes 0 for 'the latest': let the driver set it")
        try:
            # the core's: Buffer.lookup_transform makes a clock and waits, even if for no time
            found = self._buffer.lookup_transform_core(self.frame_id, self._base_frame, Time(nanoseconds=stamp_ns))
        except tf2_ros.TransformException as error:
            raise PoseError(f"tf {self.frame_id} <- {self._base_frame}: {error}") from error
        return _matrix(found.transform)

    def reset(self) -> None:
        """Forgets every transform but the static ones."""
        self._buffer.clear()


class TfListener:
    """Hears /tf and /tf_static for a node from construction to `close`; `poses` may be asked from any thread.

    The buffer empties itself where the node's clock jumps back.
    """

    def __init__(self, node: Node, fixed_frame: str, base_frame: str) -> None:
        self._node = node
        # with the node: a buffer without it watches a clock of its own, which never jumps (geometry2 #606, #608)
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self.poses = TfPoses(self._buffer, fixed_frame, base_frame)

    def close(self) -> None:
        """Stops listening; may be called once."""
        self._listener.unregister()
        self._buffer.jump_handle.unregister()
        self._node.destroy_service(self._buffer.srv)


def listen(node: Node, transforms: str, rig: Rig | None) -> TfListener | None:
    """What the parameter `transforms` (auto, odometry, tf) asks for; None = no tf.

    Raises ValueError, with what to install or set, where tf is asked for and cannot be had; auto says it in the log.
    """
    if transforms == "odometry" or (transforms == "auto" and rig is None):
        return None
    if rig is None:
        raise ValueError("transforms: tf takes world_frame and base_frame from the rig: set the parameter rig")
    if not MISSING:
        return TfListener(node, rig.world_frame, rig.base_frame)
    if transforms == "tf":
        raise ValueError(f"transforms: tf cannot work: {MISSING}")
    node.get_logger().info(f"poses come from odometry alone: {MISSING}")
    return None


def _matrix(transform: object) -> np.ndarray:
    """geometry_msgs/Transform -> (4, 4)."""
    t, q = transform.translation, transform.rotation
    return se3.transform(np.array([q.w, q.x, q.y, q.z]), np.array([t.x, t.y, t.z]))

"""Does a rosbag2 say where its sensors sit and how the vehicle moved?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from lima_core.data.bag import ODOMETRY
from lima_core.data.bag_check import FEW, CameraTopics, Check
from lima_core.data.bag_log import Recording
from lima_core.data.rig import Rig

MAX_GAP_MS = 600.0  # odometry.max_gap_ms of config/perception.yaml


def mount_checks(bag: Recording, cameras: list[CameraTopics], lidar: str) -> Iterator[Check]:
    """Without a rig, /tf_static must lead from each camera to the LiDAR."""
    root = bag.fixed_root(bag.logs[lidar].frame_id)
    for camera in cameras:
        frame = bag.logs[camera.image].frame_id
        if bag.fixed_root(frame) != root:
            text = f"/tf_static has no way from {frame!r} to {bag.logs[lidar].frame_id!r}"
            fix = f"record /tf_static, or give a rig file (--rig) with cameras.{camera.name}.base_from_camera"
            yield Check(f"mount {camera.name}", "bad", text, fix)


def motion_check(bag: Recording, rig: Rig | None, lidar: str) -> Check:
    """Is the pose known at the stamps of the sweeps? By the odometry of the rig, else /tf, else any odometry."""
    there = bag.of_type(ODOMETRY)
    if rig and there and rig.odometry_topic not in there:
        fix = f"set odometry_topic in the rig to {' or '.join(there)}"
        return Check("motion", "look", f"no Odometry on {rig.odometry_topic}; there are: {', '.join(there)}", fix)
    frame = rig.base_frame if rig else bag.logs[lidar].frame_id
    moving = {f"/tf of {f}": sorted(bag.moving[f]) for f in bag.chain(frame) if f in bag.moving}
    poses = {topic: sorted(bag.logs[topic].stamps_ns) for topic in there[:1] if rig or not moving} or moving
    if not poses:
        fix = "record nav_msgs/Odometry or /tf; one sweep alone needs neither: sweeps.count: 1"
        return Check("motion", "look", "no Odometry and no moving frame in /tf: poses are unknown", fix)
    sweeps = bag.logs[lidar].stamps_ns
    share = float(np.mean([all(_covered(stamps, sweep) for stamps in poses.values()) for sweep in sweeps]))
    text = f"{share:.0%} of {len(sweeps)} sweeps have a pose from {', '.join(poses)}"
    if share < FEW:
        return Check("motion", "look", text, _motion_fix(poses))
    if rig and not there:
        fix = f"the node reads {rig.odometry_topic}: record it too; training takes /tf"
        return Check("motion", "look", f"{text}; no Odometry", fix)
    return Check("motion", "ok", text)


def _motion_fix(poses: dict[str, list[int]]) -> str:
    """The longest gap, and what to do about it."""
    name, stamps = max(poses.items(), key=lambda item: max(np.diff(item[1]), default=0))
    longest_ms = max(np.diff(stamps), default=0) / 1e6
    if longest_ms <= MAX_GAP_MS:
        return "record it from before the first sweep until after the last, stamped by the LiDAR's clock"
    return (
        f"{name} has a gap of {longest_ms:.0f} ms: record all of it, or set odometry.max_gap_ms: "
        f"{np.ceil(longest_ms):.0f} (10000 at most) where so long a gap may be interpolated"
    )


def _covered(stamps_ns: list[int], at_ns: int) -> bool:
    """Whether poses at `stamps_ns`, in order, are close enough around a time to interpolate."""
    after = bisect_left(stamps_ns, at_ns)
    if after < len(stamps_ns) and stamps_ns[after] == at_ns:
        return True
    return 0 < after < len(stamps_ns) and stamps_ns[after] - stamps_ns[after - 1] <= 1e6 * MAX_GAP_MS

"""A frame as the messages that a robot's drivers would have sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lima_core.data.bag import BOXES_TOPIC, TRUTH_TOPIC
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import CameraView, Detections, Frame
from lima_core.data.rig import Rig
from lima_core.data.ros_cloud import pack_cloud
from lima_core.geometry import se3
from lima_core.runtime.detections import marker_array
from lima_core.runtime.messages import Messages


@dataclass(frozen=True)
class Outgoing:
    """One message, or the CDR bytes of one, due at a stamp of the recording."""

    stamp_ns: int
    topic: str
    message: Any


def frame_messages(frame: Frame, rig: Rig, messages: Messages, transport: str = "compressed") -> tuple[Outgoing, ...]:
    """A frame as ROS messages on the rig's topics, at each sensor's own stamp, in that order, odometry first.

    Extrinsics are the rig's and fixed, so that every sensor's pose gives the pose of the base at its stamp.
    """
    found = []
    for view in frame.cameras:
        found += _camera_messages(view, frame, rig, messages, transport)
    world_from_base = frame.world_from_lidar @ se3.inverse(rig.base_from_lidar)
    found.append(_odometry(world_from_base, frame.stamp_ns, rig, messages))
    found.append(Outgoing(frame.stamp_ns, rig.lidar_topic, _cloud(frame, rig, messages)))
    if frame.labels is not None:
        columns = {**_xyz(frame.points), "label": frame.labels}
        truth = messages.cloud(pack_cloud(columns), frame.stamp_ns, rig.lidar_frame)
        found.append(Outgoing(frame.stamp_ns, TRUTH_TOPIC, truth))
    if frame.boxes is not None:
        found.append(Outgoing(frame.stamp_ns, BOXES_TOPIC, _boxes(frame, rig, messages)))
    return tuple(sorted(found, key=lambda m: m.stamp_ns))


def _camera_messages(view: CameraView, frame: Frame, rig: Rig, messages: Messages, transport: str) -> list[Outgoing]:
    mount = rig.camera(view.name)
    world_from_camera = frame.world_from_lidar @ se3.inverse(view.camera_from_lidar)
    world_from_base = world_from_camera @ se3.inverse(mount.base_from_camera)
    if transport == "raw":
        image = messages.image(view.image.rgb, view.stamp_ns, mount.frame_id)
    else:
        image = messages.compressed(view.image.jpeg(), view.stamp_ns, mount.frame_id)
    return [
        _odometry(world_from_base, view.stamp_ns, rig, messages),
        Outgoing(view.stamp_ns, mount.info_topic, messages.camera_info(view, mount.frame_id)),
        Outgoing(view.stamp_ns, mount.image_topic, image),
    ]


def _odometry(world_from_base: np.ndarray, stamp_ns: int, rig: Rig, messages: Messages) -> Outgoing:
    message = messages.odometry(world_from_base, stamp_ns, rig.world_frame, rig.base_frame)
    return Outgoing(stamp_ns, rig.odometry_topic, message)


def _cloud(frame: Frame, rig: Rig, messages: Messages) -> Any:
    """The sweep as drivers send it: raw intensity, ring u16, time in seconds after the stamp."""
    columns = {**_xyz(frame.points), "intensity": frame.points[:, 3] * np.float32(rig.intensity_scale)}
    if "ring" in frame.extra:
        columns["ring"] = frame.extra["ring"].astype(np.uint16)
    if "time_s" in frame.extra:
        columns["time"] = frame.extra["time_s"].astype(np.float32)
    return messages.cloud(pack_cloud(columns), frame.stamp_ns, rig.lidar_frame)


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    return {axis: points[:, index] for index, axis in enumerate("xyz")}


def _boxes(frame: Frame, rig: Rig, messages: Messages) -> Any:
    """The boxes as the perception node sends them, all of them certain."""
    taxonomy = load_taxonomy("nuscenes")
    certain = Detections(frame.boxes, np.ones(len(frame.boxes), np.float32))
    header = messages.header(frame.stamp_ns, rig.lidar_frame)
    return marker_array(certain, taxonomy.detection_names, taxonomy.box_colors(), header, 0.0, "truth", messages)

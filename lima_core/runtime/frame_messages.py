"""A frame as the messages that a robot's drivers would have sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima_core.data.bag import BOXES_TOPIC, TRUTH_TOPIC
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Detections, Frame
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


@dataclass(frozen=True)
class Batch:
    """Messages in stamp order that belong together; time runs on only within one `sequence`."""

    sequence: str
    messages: tuple[Outgoing, ...]


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
    found += truth_messages(frame, rig.lidar_frame, messages)
    return tuple(sorted(found, key=lambda m: m.stamp_ns))


def truth_messages(frame: Frame, frame_id: str, messages: Messages) -> list[Outgoing]:
    """Labels and boxes of a frame, as far as it has them; boxes as the perception node sends them, all certain."""
    header, found = messages.header(frame.stamp_ns, frame_id), []
    if frame.labels is not None:
        columns = {**_xyz(frame.points), "label": frame.labels}
        found.append(Outgoing(frame.stamp_ns, TRUTH_TOPIC, messages.cloud_of(pack_cloud(columns), header)))
    if frame.boxes is not None:
        taxonomy = load_taxonomy("nuscenes")
        boxes = marker_array(
            certain(frame.boxes), taxonomy.detection_names, taxonomy.box_colors(), header, 0.0, "truth", messages
        )
        found.append(Outgoing(frame.stamp_ns, BOXES_TOPIC, boxes))
    return found


def certain(boxes: Boxes) -> Detections:
    """Ground truth as detections of score 1."""
    return Detections(boxes, np.ones(len(boxes), np.float32))


def merged(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of one sequence merged in stamp order: a camera of the next frame may come before this sweep."""
    pending: list[Outgoing] = []
    sequence = ""
    for batch in batches:
        if batch.sequence != sequence:
            if pending:
                yield Batch(sequence, tuple(pending))
            pending, sequence = [], batch.sequence
        begin_ns = batch.messages[0].stamp_ns
        ready = tuple(m for m in pending if m.stamp_ns < begin_ns)
        if ready:
            yield Batch(sequence, ready)
        pending = sorted([*pending[len(ready) :], *batch.messages], key=lambda m: m.stamp_ns)
    if pending:
        yield Batch(sequence, tuple(pending))


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

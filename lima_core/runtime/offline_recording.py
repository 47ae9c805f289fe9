"""A bag recorded without ROS: what the recorder node would have recorded of it, at full speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lima_core.data.bag import ODOMETRY, TRANSFORMS, TRUTH_TOPIC, Bag, BagError, BagMessages
from lima_core.data.recording_writer import RecordingWriter
from lima_core.data.rig import Rig
from lima_core.runtime.bag_messages import LazyMessage, MessageError
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.recorder import Recorder
from lima_core.runtime.recorder_parameters import disk_limits
from lima_core.runtime.triggers import Features

Hear = Callable[[Any], None]


def record_bag(
    bag: str | Path,
    folder: str | Path,
    settings: Resolved,
    rig: Rig | None = None,
    features: Features | None = None,
    warn: Callable[[str], None] = print,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Records a rosbag2 into `folder` and returns the recorder's counts; goes on where it was interrupted.

    `rig` None = the bag's own; `progress` is called after each message. Raises BagError where the bag cannot be read or
    lacks what the rig names, RecordingError on another recording in `folder`, FullError where the disk takes no more.
    """
    messages = BagMessages(bag)
    rig = rig or Bag(bag).rig
    check_topics(bag, messages, rig, settings)
    writer = RecordingWriter(folder, rig, *disk_limits(settings), resume=True)
    recorder = Recorder(rig, settings, writer, warn, features, stop_when_full=True)
    try:
        hear = listeners(recorder, rig, use_tf(messages, rig, settings))
        for _, topic, raw in messages:
            if topic in hear:
                try:
                    hear[topic](LazyMessage(raw, messages.types[topic]))
                except MessageError as error:
                    warn(f"message left out: {topic}: {error}")
                    recorder.counts["undecodable"] += 1
            progress()
        recorder.close()
    finally:
        writer.close()  # and no more: what waits when it is interrupted has not got all that belongs to it
    return dict(recorder.counts)


def listeners(recorder: Recorder, rig: Rig, tf: bool) -> dict[str, Hear]:
    """What hears each topic; poses come from /tf or from odometry, never from both."""
    hear: dict[str, Hear] = {rig.lidar_topic: recorder.on_cloud, TRUTH_TOPIC: recorder.on_truth}
    for mount in rig.cameras:
        hear[mount.image_topic] = partial(recorder.on_image, mount.name)
        hear[mount.info_topic] = partial(recorder.on_info, mount.name)
    if tf:
        hear["/tf"] = partial(recorder.on_transforms, fixed=False)
        hear["/tf_static"] = partial(recorder.on_transforms, fixed=True)
    else:
        hear[rig.odometry_topic] = recorder.on_odometry
    return hear


def use_tf(messages: BagMessages, rig: Rig, settings: Resolved) -> bool:
    """Whether poses come from /tf: where it is asked for, or where there is no odometry."""
    if settings["poses"] == "auto":
        return messages.types.get(rig.odometry_topic) != ODOMETRY
    return settings["poses"] == "tf"


def check_topics(bag: str | Path, messages: BagMessages, rig: Rig, settings: Resolved) -> None:
    """Raises BagError naming what is missing, with the topics that are there and their types."""
    wanted = [rig.lidar_topic, *(topic for m in rig.cameras for topic in (m.image_topic, m.info_topic))]
    poses = "/tf" if use_tf(messages, rig, settings) else rig.odometry_topic
    kind = TRANSFORMS if poses == "/tf" else ODOMETRY
    missing = [topic for topic in wanted if not messages.counts.get(topic)]
    missing += [] if messages.types.get(poses) == kind else [f"{poses} ({kind}, for poses)"]
    if missing:
        raise BagError(
            f"{bag} has no messages on {', '.join(missing)}; correct the rig file. Its topics:{messages.listing}"
        )

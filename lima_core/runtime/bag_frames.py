"""Any source of frames as a rosbag2: what its sensors would have sent, with /tf, odometry and ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lima_core.data.frame import FrameSource
from lima_core.data.rig import Rig
from lima_core.runtime.bag_messages import bag_messages
from lima_core.runtime.bag_writer import BagWriter, Storage
from lima_core.runtime.frame_messages import Batch, frame_messages, merged
from lima_core.runtime.messages import Messages, pose_from_odometry


def write_frames(
    source: FrameSource, path: str | Path, storage: Storage = "mcap", progress: Callable[[], None] = lambda: None
) -> Path:
    """Writes all frames of one sequence, whole or not at all, in order of stamps; `progress` is called after each.

    Bag time is the sensors' own. Raises ValueError on an empty source, FileExistsError where `path` is there already.
    """
    if len(source) == 0:
        raise ValueError(f"{path}: the source has no frames")
    messages = bag_messages()

    def batches() -> Iterator[Batch]:
        for index in range(len(source)):
            frame = source[index]
            yield Batch(frame.sequence, frame_messages(frame, source.rig, messages))
            progress()

    with BagWriter(path, storage) as bag:
        for number, batch in enumerate(merged(batches())):
            if number == 0:
                begin_ns = batch.messages[0].stamp_ns
                bag.write("/tf_static", mounts(source.rig, messages, begin_ns), begin_ns, latched=True)
            _write(bag, batch, source.rig, messages)
    return Path(path)


def mounts(rig: Rig, messages: Messages, stamp_ns: int) -> object:
    """Where the sensors sit, as a TFMessage for /tf_static."""
    links = [(rig.base_frame, rig.lidar_frame, rig.base_from_lidar)]
    links += [(rig.base_frame, mount.frame_id, mount.base_from_camera) for mount in rig.cameras]
    return messages.transforms(stamp_ns, *links)


def _write(bag: BagWriter, batch: Batch, rig: Rig, messages: Messages) -> None:
    """Messages, and with each odometry the same pose on /tf."""
    for out in batch.messages:
        if out.topic == rig.odometry_topic:
            link = (rig.world_frame, rig.base_frame, pose_from_odometry(out.message))
            bag.write("/tf", messages.transforms(out.stamp_ns, link), out.stamp_ns)
        bag.write(out.topic, out.message, out.stamp_ns)

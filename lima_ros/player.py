"""What the player sends and when; no rclpy.

A frame becomes messages at the stamps of its sensors; `merged` puts the messages of consecutive frames in stamp
order, `Prefetch` prepares them ahead of time in a thread, `Pacer` says when each is due.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lima_core.data.bag import TRUTH_TOPIC, BagMessages
from lima_core.data.frame import CameraView, Frame, FrameSource
from lima_core.data.rig import Rig
from lima_core.data.ros_cloud import pack_cloud
from lima_core.geometry import se3
from lima_ros import convert
from lima_ros.parameters import Parameter

MAX_GAP_S = 5.0
MAX_LATE_S = 0.5
PAUSE_S = 0.2

PARAMETERS = (
    Parameter("source", "", "street:<seed>, a folder in the nuScenes layout, or a rosbag2 folder"),
    Parameter("frames", 0, "Length of a simulated street, frames; 0 = its default", 0, 1e6),
    Parameter("messages", False, "A rosbag2's messages as they were recorded, instead of frames made of them"),
    Parameter("rate", 1.0, "Speed, times real time", 0.001, 1000.0),
    Parameter("loops", 1, "How often to play; 0 = until stopped", 0, 1e9),
    Parameter("start_offset_s", 0.0, "Leave out so many seconds at the start", 0.0, 1e9),
    Parameter("transport", "compressed", "How frames' pictures are sent", choices=("compressed", "raw")),
    Parameter("clock", True, "Publish the recording's time on /clock"),
    Parameter("prefetch", 40, "Frames (or 1/20 of recorded messages) prepared ahead, before the first is sent", 1, 1e6),
    Parameter("wait_for", "", "Topics, separated by commas, that need a subscriber before the first message"),
    Parameter("wait_timeout_s", 60.0, "How long to wait for them", 0.0, 1e9),
    Parameter("linger_s", 1.0, "How long to stay after the last message, for receivers to fetch it", 0.0, 600.0),
    Parameter("summary_file", "", "JSON file for what was sent; empty = none"),
)

T = TypeVar("T")


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


def frame_messages(frame: Frame, rig: Rig, transport: str) -> Batch:
    """A frame as ROS messages on the rig's topics, at each sensor's own stamp, odometry first.

    Extrinsics are the rig's and fixed, so that every sensor's pose gives the pose of the base at its stamp.
    """
    messages = []
    for view in frame.cameras:
        messages += _camera_messages(view, frame, rig, transport)
    world_from_base = frame.world_from_lidar @ se3.inverse(rig.base_from_lidar)
    messages.append(_odometry(world_from_base, frame.stamp_ns, rig))
    messages.append(Outgoing(frame.stamp_ns, rig.lidar_topic, _cloud(frame, rig)))
    if frame.labels is not None:
        columns = {**_xyz(frame.points), "label": frame.labels}
        truth = convert.cloud_message(pack_cloud(columns), frame.stamp_ns, rig.lidar_frame)
        messages.append(Outgoing(frame.stamp_ns, TRUTH_TOPIC, truth))
    return Batch(frame.sequence, tuple(sorted(messages, key=lambda m: m.stamp_ns)))


def _camera_messages(view: CameraView, frame: Frame, rig: Rig, transport: str) -> list[Outgoing]:
    mount = rig.camera(view.name)
    world_from_camera = frame.world_from_lidar @ se3.inverse(view.camera_from_lidar)
    world_from_base = world_from_camera @ se3.inverse(mount.base_from_camera)
    if transport == "raw":
        image = convert.image_message(view.image.rgb, view.stamp_ns, mount.frame_id)
    else:
        image = convert.compressed_message(view.image.jpeg(), view.stamp_ns, mount.frame_id)
    return [
        _odometry(world_from_base, view.stamp_ns, rig),
        Outgoing(view.stamp_ns, mount.info_topic, convert.camera_info_message(view, mount.frame_id)),
        Outgoing(view.stamp_ns, mount.image_topic, image),
    ]


def _odometry(world_from_base: np.ndarray, stamp_ns: int, rig: Rig) -> Outgoing:
    message = convert.odometry_message(world_from_base, stamp_ns, rig.world_frame, rig.base_frame)
    return Outgoing(stamp_ns, rig.odometry_topic, message)


def _cloud(frame: Frame, rig: Rig) -> Any:
    """The sweep as drivers send it: raw intensity, ring u16, time in seconds after the stamp."""
    columns = {**_xyz(frame.points), "intensity": frame.points[:, 3] * np.float32(rig.intensity_scale)}
    if "ring" in frame.extra:
        columns["ring"] = frame.extra["ring"].astype(np.uint16)
    if "time_s" in frame.extra:
        columns["time"] = frame.extra["time_s"].astype(np.float32)
    return convert.cloud_message(pack_cloud(columns), frame.stamp_ns, rig.lidar_frame)


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    return {axis: points[:, index] for index, axis in enumerate("xyz")}


def frame_batches(source: FrameSource, transport: str, loops: int, start_offset_s: float, keep: int) -> Iterator[Batch]:
    """Batches of all frames from the start offset on, `loops` times (0 = for ever).

    A source of at most `keep` frames is prepared once and kept for the further loops.
    """
    start = first_frame(source, start_offset_s)
    kept: list[Batch] = []
    for loop in _count(loops):
        for index in range(start, len(source)):
            if len(kept) > index - start:
                batch = kept[index - start]
            else:
                batch = frame_messages(source[index], source.rig, transport)
                if loops != 1 and len(source) - start <= keep:
                    kept.append(batch)
            yield Batch(f"{loop}/{batch.sequence}", batch.messages)


def first_frame(source: FrameSource, start_offset_s: float) -> int:
    """Index of the first frame at least `start_offset_s` after the first one. Raises ValueError beyond the end."""
    if start_offset_s == 0:
        return 0
    begin_ns = source[0].stamp_ns
    for index in range(len(source)):
        if source[index].stamp_ns - begin_ns >= start_offset_s * 1e9:
            return index
    raise ValueError(f"start_offset_s {start_offset_s} is beyond the end of the source ({len(source)} frames)")


def recorded_batches(bag: BagMessages, topics: set[str], loops: int, start_offset_s: float) -> Iterator[Batch]:
    """Messages of a bag as they were recorded, at bag time; latched ones before the offset are sent at once."""
    for loop in _count(loops):
        begin_ns = None
        for time_ns, topic, raw in bag:
            begin_ns = time_ns if begin_ns is None else begin_ns
            early = time_ns - begin_ns < start_offset_s * 1e9
            if topic in topics and (not early or topic in bag.latched):
                due_ns = begin_ns + round(start_offset_s * 1e9) if early else time_ns
                yield Batch(str(loop), (Outgoing(due_ns, topic, raw),))


def _count(loops: int) -> Iterator[int]:
    loop = 0
    while loops == 0 or loop < loops:
        yield loop
        loop += 1


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


class Prefetch(Generic[T]):
    """Runs an iterable in a thread, at most `depth` items ahead. `close` ends the thread."""

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._done, self._stop = threading.Event(), threading.Event()
        self._prepared = 0
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
                self._prepared += 1
        except BaseException as error:  # whatever it is, the consumer raises it
            self._error = error
        finally:
            self._done.set()
            self._put(None)

    def _put(self, item: T | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill(self, progress: Callable[[int], None]) -> None:
        """Waits until `depth` items are ready or there are no more; `progress` gets their number."""
        while not (self._queue.full() or self._done.wait(0.1)):
            progress(self._prepared)
        progress(self._prepared)

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stops the thread after the item it is at."""
        self._stop.set()
        self._thread.join()


class Pacer:
    """Maps stamps of the recording to steady time at a rate.

    Time is tied anew where a sequence begins or stamps jump, after a pause of PAUSE_S for receivers to finish, and
    where the player is late: never a burst.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self._rate, self._clock = rate, clock
        self._sequence, self._last_ns, self._begin_ns, self._begin_s = "", 0, 0, 0.0
        self.late = 0

    def delay_s(self, sequence: str, stamp_ns: int) -> float:
        """Seconds until a message of this stamp is due; not positive = now."""
        jumped = sequence != self._sequence or not 0 <= stamp_ns - self._last_ns <= MAX_GAP_S * 1e9
        if jumped:
            self._tie(stamp_ns, PAUSE_S)
        self._sequence, self._last_ns = sequence, stamp_ns
        delay = self._begin_s + (stamp_ns - self._begin_ns) / (1e9 * self._rate) - self._clock()
        if delay < -MAX_LATE_S:
            self.late += 1
            self._tie(stamp_ns, 0.0)
            return 0.0
        return delay

    def _tie(self, stamp_ns: int, pause_s: float) -> None:
        self._begin_ns, self._begin_s = stamp_ns, self._clock() + pause_s

"""What the player sends and when; no rclpy.

A frame becomes messages at the stamps of its sensors; `merged` puts the messages of consecutive frames in stamp
order, `Prefetch` prepares them ahead of time in a thread, `Pacer` says when each is due.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from lima_core.data.bag import BagMessages
from lima_core.data.frame import FrameSource
from lima_core.runtime.frame_messages import Batch, Outgoing, frame_messages
from lima_core.runtime.parameters import Parameter
from lima_ros.convert import ROS

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
                frame = source[index]
                batch = Batch(frame.sequence, frame_messages(frame, source.rig, ROS, transport))
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

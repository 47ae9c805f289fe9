"""Sets of messages by message_filters, where it is installed, in place of our synchroniser. No node of its own.

For those who must have its rules: a set is complete or it is not, and each message is in one set at most. Slower
cameras then halve the rate of the LiDAR, and a silent one stops it (spec/ros.md, facts 2 and 3): sync.policy sweep,
the default, does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lima_core.data.rig import CameraMount
from lima_core.data.ros_header import stamp_ns
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.pipeline import NO_SET, Sweep
from lima_core.runtime.synchronizer import SyncedSweep, TimedImage

try:
    import message_filters

    MISSING = ""
except ImportError as error:  # no registry but the ROS one has it
    MISSING = (
        f"message_filters cannot be imported ({error}): apt install ros-$ROS_DISTRO-message-filters and source ROS 2 "
        "before the node starts (pip has no such package), or set sync.policy: sweep"
    )

QUEUE = 10  # messages of each input that wait for the others


class FilterSynchronizer:
    """As synchronizer.Synchronizer, with the sets of message_filters.

    A sweep that is in no set `timeout_ms` after it came leaves with every camera missing, for the reason NO_SET.
    `slop_ms`: largest distance of two stamps of a set; None = equal stamps. A sweep's stamp that goes backwards starts
    over, without which the queues, full of the old time, would drop all that is new.
    """

    def __init__(self, mounts: Sequence[CameraMount], slop_ms: float | None, timeout_ms: float) -> None:
        if slop_ms == 0:
            raise ValueError("sync.policy approximate finds no set with sync.tolerance_ms: 0; use exact, or raise it")
        self._mounts, self._slop_ms, self._timeout_s = list(mounts), slop_ms, timeout_ms * 1e-3
        self._waiting: list[tuple[float, int, Sweep]] = []  # deadline, stamp, sweep
        self._sets: list[tuple[Any, ...]] = []  # cloud and images, of message_filters, not handed out yet
        self._last_ns: int | None = None
        self.time_jumps = 0  # how often a sweep's stamp went backwards
        self._connect()

    @property
    def pending(self) -> int:
        """Number of sweeps that are in no set yet."""
        return len(self._waiting)

    def add_sweep(self, stamp_ns: int, sweep: Sweep, now_s: float) -> list[SyncedSweep]:
        """Takes a sweep; returns those that are finished, which may include it."""
        finished = []
        if self._last_ns is not None and stamp_ns < self._last_ns:
            finished = self.reset()
            self.time_jumps += 1
        self._last_ns = stamp_ns
        self._waiting.append((now_s + self._timeout_s, stamp_ns, sweep))
        _feed(self._cloud_input, stamp_ns, sweep.message)
        return finished + self.poll(now_s)

    def add_image(self, camera: str, stamp_ns: int, message: Any, now_s: float) -> list[SyncedSweep]:
        """Takes an image of `camera`; returns the sweeps that were waiting for it."""
        _feed(self._image_inputs[camera], stamp_ns, message)
        return self.poll(now_s)

    def poll(self, now_s: float) -> list[SyncedSweep]:
        """The sweeps that are in a set, and those that are overdue."""
        finished = [synced for messages in self._sets if (synced := self._matched(*messages)) is not None]
        self._sets.clear()
        overdue = [entry for entry in self._waiting if now_s >= entry[0]]
        self._waiting = [entry for entry in self._waiting if now_s < entry[0]]
        return finished + self._unmatched(overdue)

    def reset(self) -> list[SyncedSweep]:
        """Forgets every message; returns the waiting sweeps, which are in no set."""
        finished = self._unmatched(self._waiting)
        self._waiting, self._sets, self._last_ns = [], [], None
        self._connect()
        return finished

    def _connect(self) -> None:
        """New queues; fed by hand, not by message_filters.Subscriber: the node's own subscriptions watch and count."""
        self._cloud_input = message_filters.SimpleFilter()
        self._image_inputs = {mount.name: message_filters.SimpleFilter() for mount in self._mounts}
        inputs = [self._cloud_input, *self._image_inputs.values()]
        if self._slop_ms is None:
            matcher = message_filters.TimeSynchronizer(inputs, QUEUE)
        else:
            matcher = message_filters.ApproximateTimeSynchronizer(inputs, QUEUE, self._slop_ms * 1e-3)
        # it calls with its lock held, and for ever so where the call raises: only remember the set
        matcher.registerCallback(lambda *messages: self._sets.append(messages))

    def _matched(self, cloud: Any, *images: Any) -> SyncedSweep | None:
        """The waiting sweep of a set; None where it is overdue and gone."""
        for entry in self._waiting:
            _, sweep_ns, sweep = entry
            if sweep.message is cloud:
                self._waiting.remove(entry)
                found = {m.name: _timed(m, image, sweep_ns) for m, image in zip(self._mounts, images, strict=True)}
                return SyncedSweep(sweep_ns, sweep, found, missing={})
        return None

    def _unmatched(self, entries: list[tuple[float, int, Sweep]]) -> list[SyncedSweep]:
        missing = {mount.name: NO_SET for mount in self._mounts}
        return [SyncedSweep(stamp_ns, sweep, {}, missing) for _, stamp_ns, sweep in entries]


def factory(policy: str) -> Callable[[Sequence[CameraMount], Resolved], FilterSynchronizer] | None:
    """How a Pipeline makes the synchroniser of a `sync.policy`; None = our own. Raises ValueError: what to install."""
    if policy == "sweep":
        return None
    if MISSING:
        raise ValueError(f"sync.policy: {policy} cannot work: {MISSING}")

    def make(mounts: Sequence[CameraMount], settings: Resolved) -> FilterSynchronizer:
        slop_ms = settings["sync.tolerance_ms"] if policy == "approximate" else None
        return FilterSynchronizer(mounts, slop_ms, settings["sync.timeout_ms"])

    return make


def _feed(into: message_filters.SimpleFilter, stamp_ns: int, message: Any) -> None:
    # rclpy's Time refuses a negative stamp, and message_filters would then keep its lock for ever
    if stamp_ns >= 0:
        into.signalMessage(message)


def _timed(mount: CameraMount, image: Any, sweep_ns: int) -> TimedImage:
    image_ns = stamp_ns(image.header.stamp)
    return TimedImage(image_ns, image, (image_ns - sweep_ns) / 1e6 - mount.offset_ms)

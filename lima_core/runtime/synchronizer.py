"""Attaches to every LiDAR sweep the image of each camera that fits best: LiDAR drives, cameras never block it.

Each camera has its own two-sided window around its nominal offset to the LiDAR stamp (offsets are negative where the
image precedes the stamp). A sweep goes on as soon as every camera is settled, after `timeout_ms` with what is there,
or when more than two sweeps wait. Why not message_filters: it uses an image once (12 Hz cameras halve a 20 Hz
LiDAR), loses the set with one dropped image, and starves on a looped bag (spec/ros.md, facts 2, 3 and "Synchroniser").

No clock, no thread, no lock: the caller passes the time in and gets the finished sweeps back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

MAX_PENDING = 2
MAX_IMAGES = 8
SILENT_AFTER = 5  # sweeps in a row without an image, after which a camera is not waited for

NEVER = "never"  # no image has come since the start or the last reset
LATE = "late"  # the newest image is older than the window
GAP = "gap"  # an image after the window is there, none inside: it was lost, or the window is misplaced


@dataclass(frozen=True)
class Window:
    """When an image of one camera belongs to a sweep: image stamp - LiDAR stamp in offset_ms +- tolerance_ms."""

    offset_ms: float
    tolerance_ms: float


class TimedImage(NamedTuple):
    """An image message and its stamp; `dt_ms` is its distance from the camera's nominal time for this sweep."""

    stamp_ns: int
    message: Any
    dt_ms: float = 0.0


@dataclass(frozen=True)
class SyncedSweep:
    """A sweep with the images found for it; every camera is in `images` or, with the reason, in `missing`."""

    stamp_ns: int
    sweep: Any
    images: dict[str, TimedImage]
    missing: dict[str, str]

    @property
    def complete(self) -> bool:
        """True when every camera has an image."""
        return not self.missing

    @property
    def spread_ms(self) -> float:
        """Largest distance of an image from its camera's nominal time; 0 without images."""
        return max((abs(image.dt_ms) for image in self.images.values()), default=0.0)


@dataclass
class _Camera:
    """State of one camera: window in ns, the newest images in order of time."""

    offset_ns: int
    tolerance_ns: int
    images: deque[TimedImage] = field(default_factory=lambda: deque(maxlen=MAX_IMAGES))
    missed: int = 0
    jumped: bool = False

    def settled(self, sweep_ns: int) -> bool:
        """True when waiting cannot bring a better image of this sweep, or the camera is silent."""
        if self.missed >= SILENT_AFTER:
            return True
        if not self.images:
            return False
        early = sweep_ns + self.offset_ns - self.images[-1].stamp_ns
        if early <= 0:
            return True
        # the next image comes a period later: it would be farther away
        return early <= self.tolerance_ns and 2 * early <= self._period_ns(default=2 * early)

    def match(self, sweep_ns: int) -> TimedImage | str:
        """The image nearest to the nominal time inside the window, or the reason why there is none."""
        if not self.images:
            return NEVER
        images, target = self.images, sweep_ns + self.offset_ns
        after = bisect_left(images, target, key=_stamp)  # in order of time, always: see add_image
        best = images[min(after, len(images) - 1)]
        if after and target - images[after - 1].stamp_ns <= abs(best.stamp_ns - target):
            best = images[after - 1]
        if abs(best.stamp_ns - target) <= self.tolerance_ns:
            return TimedImage(best.stamp_ns, best.message, (best.stamp_ns - target) / 1e6)
        return LATE if self.images[-1].stamp_ns < target else GAP

    def _period_ns(self, default: int) -> int:
        """Shortest time between two images that are held."""
        stamps = [image.stamp_ns for image in self.images]
        return min((b - a for a, b in pairwise(stamps) if b > a), default=default)


_stamp = attrgetter("stamp_ns")


class Synchronizer:
    """Sweeps and images in, sweeps with images out: each sweep exactly once and in order of arrival.

    `windows` camera name -> Window. Every method that may finish sweeps returns them; times `now_s` are seconds of
    one monotonic clock. A stamp that goes backwards (bag loop, clock step) starts over: see `reset`.
    """

    def __init__(self, windows: dict[str, Window], timeout_ms: float) -> None:
        if timeout_ms < 0 or any(window.tolerance_ms < 0 for window in windows.values()):
            raise ValueError(f"timeout_ms and tolerance_ms must not be negative: {timeout_ms}, {windows}")
        self._cameras = {
            name: _Camera(round(window.offset_ms * 1e6), round(window.tolerance_ms * 1e6))
            for name, window in windows.items()
        }
        self._timeout_s = timeout_ms * 1e-3
        self._pending: deque[tuple[float, int, Any]] = deque()  # deadline, stamp, sweep
        self._last_ns: int | None = None
        self.time_jumps = 0  # how often a sweep's stamp went backwards

    @property
    def pending(self) -> int:
        """Number of sweeps that wait for images, at most MAX_PENDING."""
        return len(self._pending)

    def add_sweep(self, stamp_ns: int, sweep: Any, now_s: float) -> list[SyncedSweep]:
        """Takes a sweep; returns those that are finished, which may include it."""
        finished = []
        if self._last_ns is not None and stamp_ns < self._last_ns:
            finished = self._start_over(keep_jumped=True)
            self.time_jumps += 1
        self._last_ns = stamp_ns
        self._pending.append((now_s + self._timeout_s, stamp_ns, sweep))
        return finished + self.poll(now_s)

    def add_image(self, camera: str, stamp_ns: int, message: Any, now_s: float) -> list[SyncedSweep]:
        """Takes an image of `camera`; returns the sweeps that were waiting for it."""
        state = self._cameras[camera]
        finished = []
        if state.images and stamp_ns < state.images[-1].stamp_ns:
            # no image of the old time can come any more: waiting sweeps leave with what they have
            finished = self._flush()
            state.images.clear()
            state.jumped = True
        state.images.append(TimedImage(stamp_ns, message))
        finished += self.poll(now_s)
        # it speaks: the next sweep waits for it again, or a camera that follows its LiDAR would never come back
        state.missed = min(state.missed, SILENT_AFTER - 1)
        return finished

    def poll(self, now_s: float) -> list[SyncedSweep]:
        """The sweeps at the head of the queue that are settled, overdue or too many."""
        finished = []
        while self._pending and (
            len(self._pending) > MAX_PENDING
            or now_s >= self._pending[0][0]
            or all(camera.settled(self._pending[0][1]) for camera in self._cameras.values())
        ):
            finished.append(self._finish())
        return finished

    def reset(self) -> list[SyncedSweep]:
        """Forgets every image and stamp; returns the waiting sweeps with what was found for them."""
        return self._start_over(keep_jumped=False)

    def _start_over(self, keep_jumped: bool) -> list[SyncedSweep]:
        """In a looped bag images precede their sweep: those of cameras that already jumped back are of the new time."""
        finished = self._flush()
        for camera in self._cameras.values():
            if not (keep_jumped and camera.jumped):
                camera.images.clear()
            camera.jumped, camera.missed = False, 0
        self._last_ns = None
        return finished

    def _flush(self) -> list[SyncedSweep]:
        return [self._finish() for _ in range(len(self._pending))]

    def _finish(self) -> SyncedSweep:
        """Takes the oldest waiting sweep off the queue with its images."""
        _, stamp_ns, sweep = self._pending.popleft()
        images: dict[str, TimedImage] = {}
        missing: dict[str, str] = {}
        for name, camera in self._cameras.items():
            match = camera.match(stamp_ns)
            if isinstance(match, str):
                missing[name] = match
                camera.missed += 1
            else:
                images[name] = match
                camera.missed = 0
        return SyncedSweep(stamp_ns, sweep, images, missing)


def windows_of(mounts: Sequence[Any], tolerance_ms: float) -> dict[str, Window]:
    """`Rig.cameras` -> a window per camera around its nominal offset."""
    return {mount.name: Window(mount.offset_ms, tolerance_ms) for mount in mounts}

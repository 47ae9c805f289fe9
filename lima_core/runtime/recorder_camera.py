"""One camera of a recording: its images and calibrations in order of their stamps, and which of them a sweep gets."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from lima_core.data.rig import CameraMount

MAX_IMAGES = 600  # a clock that stands still must not fill the memory


@dataclass(frozen=True)
class Timed:
    """A message by its stamp in ns."""

    stamp_ns: int
    message: Any


_stamp = attrgetter("stamp_ns")


class CameraTrack:
    """What has come of one camera and may still be needed."""

    def __init__(self, mount: CameraMount) -> None:
        self.mount = mount
        self.newest_ns: int | None = None
        self.newest_info_ns: int | None = None
        self._images: list[Timed] = []
        self._infos: list[Timed] = []

    def add_image(self, stamp_ns: int, message: Any, keep_ns: int) -> None:
        """Takes an image; those before `keep_ns` are forgotten."""
        insort(self._images, Timed(stamp_ns, message), key=_stamp)
        self.newest_ns = self._images[-1].stamp_ns
        self._forget(keep_ns)

    def add_info(self, stamp_ns: int, message: Any) -> None:
        """Takes a CameraInfo."""
        insort(self._infos, Timed(stamp_ns, message), key=_stamp)
        self.newest_info_ns = self._infos[-1].stamp_ns
        del self._infos[:-MAX_IMAGES]

    def due_ns(self, sweep_ns: int) -> int:
        """When the image of a sweep is nominally taken."""
        return sweep_ns + round(self.mount.offset_ms * 1e6)

    def settled(self, sweep_ns: int) -> bool:
        """Whether no image can come any more that is nearer."""
        return self.newest_ns is not None and self.newest_ns >= self.due_ns(sweep_ns) and bool(self._infos)

    def nearest(self, sweep_ns: int, tolerance_ns: int) -> Timed | None:
        """The image of a sweep."""
        due_ns = self.due_ns(sweep_ns)
        best = min(self._images, key=lambda image: abs(image.stamp_ns - due_ns), default=None)
        return best if best is not None and abs(best.stamp_ns - due_ns) <= tolerance_ns else None

    def info(self, image_ns: int) -> Any:
        """The newest CameraInfo that is not after an image, else the oldest one, else None."""
        at = bisect_right(self._infos, image_ns, key=_stamp)
        return self._infos[max(at - 1, 0)].message if self._infos else None

    def decided(self, sweep_ns: int, tolerance_ns: int) -> None:
        """Forgets what no later sweep can get."""
        self._forget(self.due_ns(sweep_ns) - tolerance_ns)

    def forget_images(self) -> None:
        """Of an old time."""
        self._images, self.newest_ns = [], None

    def forget_infos(self) -> None:
        """Of an old time; the newest stays until another comes, as many drivers send it once."""
        self._infos, self.newest_info_ns = [Timed(0, info.message) for info in self._infos[-1:]], None

    def _forget(self, keep_ns: int) -> None:
        self._images = [image for image in self._images[-MAX_IMAGES:] if image.stamp_ns >= keep_ns]
        old = bisect_right(self._infos, keep_ns, key=_stamp) - 1
        del self._infos[: max(old, 0)]

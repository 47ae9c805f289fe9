"""The one currency: every source of data yields `Frame`, every learner and every node consumes it.

Frames, units and dtypes are fixed here once. A source is anything with `len(source)`, `source[i] -> Frame`,
`source.window(i, k) -> list[Frame]` and `source.rig`, seeded, picklable and independent of the order of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import cv2
import numpy as np

from lima_core.data.rig import Rig
from lima_core.geometry.camera import NO_DISTORTION, Distortion, Projection, project

IGNORE = 255


class ImageError(ValueError):
    """A camera picture could not be decoded."""


class DatasetError(ValueError):
    """A data set on disk is incomplete or broken; the message names the file and the fix."""


class Image:
    """A camera picture that keeps its encoded bytes and decodes them on first use.

    Built from JPEG/PNG bytes (`Image(encoded=...)`) or from pixels (`Image(pixels=...)`, (H, W, 3) uint8 RGB).
    `source` names the file or topic in errors.
    """

    def __init__(self, encoded: bytes | None = None, pixels: np.ndarray | None = None, source: str = "image") -> None:
        if (encoded is None) == (pixels is None):
            raise ValueError("an Image takes either encoded bytes or pixels")
        if pixels is not None and (pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8):
            raise ValueError(f"{source}: pixels must be (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}")
        self._encoded, self._pixels, self.source = encoded, pixels, source

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises ImageError when the bytes are no picture."""
        if self._pixels is None:
            buffer = np.frombuffer(self._encoded, np.uint8)
            try:
                bgr = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(buffer) else None
            except cv2.error:  # a header that claims more pixels than OpenCV takes
                bgr = None
            if bgr is None:
                raise ImageError(f"{self.source}: {len(buffer)} bytes are not a readable JPEG or PNG")
            self._pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        return self._pixels

    def jpeg(self, quality: int = 90) -> bytes:
        """The bytes as they came, or the pixels as JPEG."""
        if self._encoded is None:
            _, data = cv2.imencode(".jpg", cv2.cvtColor(self._pixels, cv2.COLOR_RGB2BGR), [1, quality])
            self._encoded = data.tobytes()
        return self._encoded


@dataclass(frozen=True)
class CameraView:
    """One camera's picture of one sweep.

    `camera_from_lidar` (4, 4) float64 takes a point of this sweep to this camera at the camera's own stamp:
    the ego-motion between the two stamps is inside. `K` (3, 3) float64; `size` (width, height) pixels.
    """

    name: str
    stamp_ns: int
    image: Image
    size: tuple[int, int]
    K: np.ndarray
    camera_from_lidar: np.ndarray
    distortion: Distortion = NO_DISTORTION

    def project(self, points_lidar: np.ndarray) -> Projection:
        """(N, >=3) LiDAR points -> pixels, depth in m and visibility in this image."""
        return project(points_lidar, self.camera_from_lidar, self.K, self.size, self.distortion)


@dataclass(frozen=True)
class Boxes:
    """B oriented boxes in the LiDAR frame.

    `center` (B, 3) m, `size` (B, 3) m as length-width-height, `yaw` (B,) rad counter-clockwise about z with
    length along the heading, `velocity` (B, 2) m/s over ground (nan = unknown), `class_id` (B,) uint8, an index
    into `Taxonomy.detection_names`. `points` (B,) int32 LiDAR and radar returns on it, None = not counted;
    `attribute` (B,) uint8, an index into `attributes.ATTRIBUTES`, 255 = none, None = the source has none.
    """

    center: np.ndarray
    size: np.ndarray
    yaw: np.ndarray
    velocity: np.ndarray
    class_id: np.ndarray
    points: np.ndarray | None = None
    attribute: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.center)

    def take(self, rows: np.ndarray) -> Boxes:
        """Some of the boxes, by index or mask."""
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        return Boxes(**{name: None if column is None else column[rows] for name, column in columns.items()})

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """Boxes of several parts, in their order; a column that one part lacks is lost. No part gives no box."""
        if not parts:
            empty = np.zeros((0, 10))
            return cls(empty[:, :3], empty[:, 3:6], empty[:, 6], empty[:, 7:9], empty[:, 9].astype(np.uint8))
        columns = {item.name: [getattr(part, item.name) for part in parts] for item in fields(cls)}
        return cls(**{n: None if any(v is None for v in c) else np.concatenate(c) for n, c in columns.items()})


@dataclass(frozen=True)
class Detections:
    """Boxes that a network found, and the `score` (B,) float32 of each in [0, 1], best first."""

    boxes: Boxes
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True)
class Frame:
    """One LiDAR sweep with the pictures, pose and annotations that belong to it.

    `stamp_ns` is the LiDAR reference time; `points` (N, 4) float32 = x, y, z in metres in the LiDAR frame (x
    right/forward as the sensor has it, z up) and intensity in [0, 1]; `extra` holds further (N,) columns by name
    (`ring`, `time_s` relative to the stamp); `world_from_lidar` (4, 4) float64, nan where the data set has no poses;
    `labels` (N,) uint8 train ids, 255 = ignore.
    """

    stamp_ns: int
    sequence: str
    index: int
    points: np.ndarray
    world_from_lidar: np.ndarray
    cameras: tuple[CameraView, ...] = ()
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    boxes: Boxes | None = None

    def __post_init__(self) -> None:
        """Raises ValueError when columns and points differ in number: never a silent misalignment."""
        if self.points.ndim != 2 or self.points.shape[1] != 4 or self.points.dtype != np.float32:
            got = f"{self.points.shape} {self.points.dtype}"
            raise ValueError(f"{self.where}: points must be (N, 4) float32, got {got}")
        columns = {**self.extra, **({} if self.labels is None else {"labels": self.labels})}
        for name, column in columns.items():
            if len(column) != len(self.points):
                raise ValueError(f"{self.where}: {len(column)} {name} for {len(self.points)} points")

    @property
    def where(self) -> str:
        """Sequence and index, for messages."""
        return f"{self.sequence} frame {self.index}"


class FrameSource(Protocol):
    """What every data set, recording, bag and simulator offers."""

    rig: Rig

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first; fewer at its start."""
        ...

"""From received messages to finished ones: synchronise, segment in one thread, draw overlays in another. No rclpy.

The segmented cloud is published first and never waits for an overlay; a camera never holds a cloud up for longer than
`sync.timeout_ms`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_cloud import CloudError, CloudPoints, cloud_points
from lima_ros import convert, health
from lima_ros.overlay import OverlayError, camera_view, extrinsics, overlay_jpeg
from lima_ros.parameters import Resolved
from lima_ros.synchronizer import SyncedSweep, Synchronizer, windows_of
from lima_ros.transforms import PoseBuffer
from lima_ros.worker import SHUTDOWN, LatestWorker

STAGES = ("preprocess", "inference", "postprocess", "total", "cyclic", "sync_spread")


class Outputs(Protocol):
    """Where results go; called from the pipeline's threads."""

    def publish_cloud(self, msg: Any) -> None:
        """A segmented cloud."""

    def publish_overlay(self, camera: str, msg: Any) -> None:
        """A CompressedImage with the segmentation drawn in."""

    def overlay_wanted(self, camera: str) -> bool:
        """True when somebody listens to this camera's overlay."""

    def publish_ms(self, stage: str, value: float) -> None:
        """Duration of one of STAGES."""

    def warn(self, text: str) -> None:
        """Something is wrong with the input."""


@dataclass(frozen=True)
class Sweep:
    """A received cloud message and its number in the ledger."""

    number: int
    message: Any


@dataclass(frozen=True)
class Drawing:
    """What the overlays of one sweep are made of: (N, 4) points, their (N, 3) uint8 RGB, cameras to draw."""

    synced: SyncedSweep
    points: np.ndarray
    colors: np.ndarray
    cameras: tuple[str, ...]


class Pipeline:
    """All that happens between input and output of the perception node; the `on_*` methods belong to one thread.

    `predictor` as lima_core.predict.Predictor; `rig` None = LiDAR only.
    """

    def __init__(self, predictor: Any, rig: Rig | None, settings: Resolved, outputs: Outputs) -> None:
        self.predictor, self._rig, self._settings, self._out = predictor, rig, settings, outputs
        with_cameras = rig is not None and settings["overlay.enabled"] != "never"
        self.mounts: dict[str, CameraMount] = {m.name: m for m in rig.cameras} if with_cameras else {}
        self._scale = settings["intensity_scale"] or (rig.intensity_scale if rig else 255.0)
        self._rgb = np.zeros((256, 3), np.uint8)  # points without a label are black
        self._rgb[: len(predictor.colors)] = predictor.colors
        self.ledger = health.Ledger(self.mounts)
        self._poses = PoseBuffer(settings["odometry.max_gap_ms"], settings["odometry.max_extrapolation_ms"])
        windows = windows_of(list(self.mounts.values()), settings["sync.tolerance_ms"])
        self._sync = Synchronizer(windows, settings["sync.timeout_ms"])
        self._infos: dict[str, Any] = {}
        self._intensity: str | None = "unknown"
        self._published_s: float | None = None
        self._segmenter = LatestWorker("segment", self._segment, self._drop_sweep, self._sweep_failed)
        self._painter = LatestWorker("overlay", self._draw, self._drop_drawing, self._drawing_failed)

    @property
    def waiting(self) -> bool:
        """True while sweeps wait for images: `poll` must then be called every few ms."""
        return self._sync.pending > 0

    def on_cloud(self, msg: Any) -> None:
        """A PointCloud2 has come."""
        now_s = time.monotonic()
        sweep = Sweep(self.ledger.receive(now_s), msg)
        self._forward(self._sync.add_sweep(convert.stamp_ns(msg.header.stamp), sweep, now_s))

    def on_image(self, camera: str, msg: Any) -> None:
        """An Image or CompressedImage of `camera` has come; it is decoded later, and only if drawn."""
        self._forward(self._sync.add_image(camera, convert.stamp_ns(msg.header.stamp), msg, time.monotonic()))

    def on_info(self, camera: str, msg: Any) -> None:
        """A CameraInfo of `camera` has come."""
        self._infos[camera] = msg

    def on_odometry(self, msg: Any) -> None:
        """An Odometry of the vehicle has come."""
        try:
            self._poses.add(convert.stamp_ns(msg.header.stamp), convert.pose_from_odometry(msg))
        except ValueError as error:
            self._out.warn(f"odometry ignored: {error}")

    def poll(self) -> None:
        """Lets sweeps go whose images are overdue."""
        self._forward(self._sync.poll(time.monotonic()))

    def reset(self) -> None:
        """Forgets images and poses; waiting sweeps go on with what they have."""
        self._poses.reset()
        self._forward(self._sync.reset())

    def drop_waiting(self, reason: str) -> None:
        """Drops the sweeps that wait for images."""
        for synced in self._sync.reset():
            self._drop_sweep(synced, reason)

    def close(self) -> None:
        """Drops what waits, finishes what runs and ends the threads; may be called again."""
        self.drop_waiting(SHUTDOWN)
        self._segmenter.stop()
        self._painter.stop()

    def facts(self) -> dict[str, object]:
        """What diagnostics say beside the counts."""
        return {
            "device": str(self.predictor.device),
            "intensity_field": self._intensity or "none: the network gets 0",
            "odometry": "received" if len(self._poses) else "none: overlays without ego-motion",
            "time_jumps": self._sync.time_jumps,
        }

    def _forward(self, finished: list[SyncedSweep]) -> None:
        """Sweeps that left the synchroniser go to the network."""
        for synced in finished:
            for camera in synced.images:
                self.ledger.note(camera, "matched")
            for camera, reason in synced.missing.items():
                self.ledger.note(camera, f"missed.{reason}")
            self._segmenter.submit(synced)

    # ---- in the segmentation thread

    def _segment(self, synced: SyncedSweep) -> None:
        sweep, started_s = synced.sweep, time.monotonic()
        try:
            cloud = cloud_points(sweep.message, self._scale)
        except CloudError as error:
            self.ledger.drop(sweep.number, health.BAD_CLOUD)
            self._out.warn(f"cloud dropped: {error}")
            return
        self._note_intensity(cloud)
        decoded_s = time.monotonic()
        result = self.predictor.segment(cloud.points)
        inferred_s = time.monotonic()
        colors = self._rgb[result.labels]
        self._out.publish_cloud(
            convert.segmentation_message(cloud, result.labels, result.probability, colors, sweep.message.header)
        )
        now_s = time.monotonic()
        total_ms = self.ledger.publish(sweep.number, now_s)
        self._start_drawing(synced, cloud, colors)
        self._out.publish_ms("preprocess", (decoded_s - started_s) * 1e3)
        self._out.publish_ms("inference", (inferred_s - decoded_s) * 1e3)
        self._out.publish_ms("postprocess", (now_s - inferred_s) * 1e3)
        self._out.publish_ms("total", total_ms)
        self._out.publish_ms("sync_spread", synced.spread_ms)
        if self._published_s is not None:
            self._out.publish_ms("cyclic", (now_s - self._published_s) * 1e3)
        self._published_s = now_s

    def _note_intensity(self, cloud: CloudPoints) -> None:
        if cloud.intensity_field is None and self._intensity is not None:
            self._out.warn("the cloud has no intensity field: the network gets 0 and will label worse")
        self._intensity = cloud.intensity_field

    def _drop_sweep(self, synced: SyncedSweep, reason: str) -> None:
        self.ledger.drop(synced.sweep.number, reason)

    def _sweep_failed(self, synced: SyncedSweep, error: Exception) -> None:
        if self.ledger.is_open(synced.sweep.number):  # else it failed after its publication
            self.ledger.drop(synced.sweep.number, health.FAILED)
        self._out.warn(f"sweep failed: {type(error).__name__}: {error}")

    def _start_drawing(self, synced: SyncedSweep, cloud: CloudPoints, colors: np.ndarray) -> None:
        always = self._settings["overlay.enabled"] == "always"
        wanted = tuple(camera for camera in synced.images if always or self._out.overlay_wanted(camera))
        if wanted:
            self._painter.submit(Drawing(synced, cloud.points, colors, wanted))

    # ---- in the overlay thread

    def _draw(self, drawing: Drawing) -> None:
        for camera in drawing.cameras:
            try:
                self._draw_one(drawing, self.mounts[camera])
            except OverlayError as error:
                self.ledger.note(camera, f"overlay.{error.reason}")
                self._out.warn(f"no overlay of {camera}: {error}")

    def _draw_one(self, drawing: Drawing, mount: CameraMount) -> None:
        image = drawing.synced.images[mount.name]
        matrix, moving = extrinsics(self._rig, mount, self._poses, image.stamp_ns, drawing.synced.stamp_ns)
        view = camera_view(mount, image, self._infos.get(mount.name), matrix)
        radius, quality = self._settings["overlay.point_radius_px"], self._settings["overlay.jpeg_quality"]
        jpeg = overlay_jpeg(view, drawing.points, drawing.colors, radius, quality)
        frame_id = image.message.header.frame_id
        self._out.publish_overlay(mount.name, convert.compressed_message(jpeg, image.stamp_ns, frame_id))
        self.ledger.note(mount.name, "overlay.drawn" if moving else "overlay.drawn_without_odometry")

    def _drop_drawing(self, drawing: Drawing, reason: str) -> None:
        for camera in drawing.cameras:
            self.ledger.note(camera, f"overlay.{reason}")

    def _drawing_failed(self, drawing: Drawing, error: Exception) -> None:
        self._drop_drawing(drawing, health.FAILED)
        self._out.warn(f"overlay failed: {type(error).__name__}: {error}")

"""From received messages to finished ones: synchronise, perceive in one thread, draw overlays in another. No rclpy.

Clouds and boxes are published first and never wait for an overlay; a camera never holds a cloud up for longer than
`sync.timeout_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_cloud import CloudError, CloudPoints
from lima_core.data.ros_header import stamp_ns
from lima_core.runtime import health
from lima_core.runtime.intake import Intake
from lima_core.runtime.messages import Messages, pose_from_odometry
from lima_core.runtime.overlay import OverlayError, camera_view, extrinsics, overlay_jpeg
from lima_core.runtime.parameters import Parameter, ParameterError, Resolved, Value
from lima_core.runtime.results import Publisher, Results, filtered_classes
from lima_core.runtime.sweeps import SweepHistory
from lima_core.runtime.synchronizer import SyncedSweep, Synchronizer, windows_of
from lima_core.runtime.transforms import EitherPoses, PoseBuffer, Poses
from lima_core.runtime.worker import SHUTDOWN, InlineWorker, LatestWorker

NO_SET = "no_set"  # why a camera has no image, and its sweep is dropped: message_filters made no set of it
WITHOUT_POSES = ": overlays without ego-motion, no past sweeps"
STAGES = ("preprocess", "inference", "postprocess", "total", "cyclic", "sync_spread")


def swept(mounts: Sequence[CameraMount], settings: Resolved) -> Synchronizer:
    """The synchroniser of sync.policy sweep."""
    return Synchronizer(windows_of(mounts, settings["sync.tolerance_ms"]), settings["sync.timeout_ms"])


def overlay_topic(camera: str) -> str:
    """Topic of a camera's overlay below ~/output/."""
    return f"{camera}/overlay/compressed"


class Outputs(Publisher, Protocol):
    """Where results go; called from the pipeline's threads. An overlay's topic is <camera>/overlay/compressed."""

    def publish_ms(self, stage: str, value: float) -> None:
        """Duration of one of STAGES."""


@dataclass(frozen=True)
class Sweep:
    """A received cloud message, its number in the ledger, and the time since a jump that it belongs to."""

    number: int
    message: Any
    epoch: int = 0


@dataclass(frozen=True)
class Drawing:
    """What the overlays of one sweep are made of: (N, 4) points, their (N, 3) uint8 RGB, cameras to draw."""

    synced: SyncedSweep
    points: np.ndarray
    colors: np.ndarray
    cameras: tuple[str, ...]


class Pipeline:
    """All that happens between input and output of the perception node; the `on_*` methods belong to one thread.

    `predictor` as lima_core.predictor.Predictor; `rig` None = LiDAR only. `tf`: tf_node.TfPoses, where /tf is heard;
    `make_sync`: filters_node.factory(...), else synchronizer.Synchronizer. `clock` gives the seconds in which images
    are waited for; `make_worker`: LatestWorker never falls behind the LiDAR, InlineWorker leaves no sweep out.
    """

    def __init__(
        self,
        predictor: Any,
        rig: Rig | None,
        settings: Resolved,
        outputs: Outputs,
        messages: Messages,
        tf: Poses | None = None,
        make_sync: Callable[[Sequence[CameraMount], Resolved], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        make_worker: type[LatestWorker] | type[InlineWorker] = LatestWorker,
    ) -> None:
        self.predictor, self._rig, self._settings, self._out = predictor, rig, settings, outputs
        self._messages, self._clock = messages, clock
        with_cameras = rig is not None and settings["overlay.enabled"] != "never"
        self.mounts: dict[str, CameraMount] = {m.name: m for m in rig.cameras} if with_cameras else {}
        self.results = Results(predictor, settings, outputs, messages)
        self._intake = Intake(predictor.meta.get("inputs", {}), rig, settings, outputs.warn)
        self.ledger = health.Ledger(self.mounts)
        self._odometry = PoseBuffer(settings["odometry.max_gap_ms"], settings["odometry.max_extrapolation_ms"])
        self._tf, self._poses = tf, self._choose_poses(tf)
        self._sync = (make_sync or swept)(list(self.mounts.values()), settings)
        self._infos: dict[str, Any] = {}
        self._history = self._make_history()
        self._published_s: float | None = None
        self._frame_id, self._last_ns = "", 0
        self._perceiver = make_worker("perceive", self._perceive, self._drop_sweep, self._sweep_failed)
        self._painter = make_worker("overlay", self._draw, self._drop_drawing, self._drawing_failed)

    @property
    def wants_poses(self) -> bool:
        """True where the vehicle's motion is needed: overlays, past sweeps, motion inside a sweep."""
        return bool(self.mounts) or self._history.count > 1 or bool(self._settings["sweeps.deskew"])

    @property
    def wants_odometry(self) -> bool:
        """True where poses are needed that may come from odometry."""
        return self.wants_poses and self._poses is not self._tf

    def check_change(self, parameter: Parameter, value: Value) -> None:
        """Raises ParameterError where a parameter cannot take a (checked) value while the network is loaded."""
        if not parameter.live:
            raise ParameterError(
                f"parameter {parameter.name} is fixed while the node is configured; deactivate and clean up first"
            )
        if parameter.name == "filter.classes":
            filtered_classes(str(value), self.predictor.class_names)

    @property
    def waiting(self) -> bool:
        """True while sweeps wait for images: `poll` must then be called every few ms."""
        return self._sync.pending > 0

    def on_cloud(self, msg: Any) -> None:
        """A PointCloud2 has come."""
        now_s, at_ns = self._clock(), stamp_ns(msg.header.stamp)
        if at_ns < self._last_ns:  # before the sweep goes on: it is the first of the new time
            self._history.reset()
            if self._tf is not None:  # the odometry starts over by itself
                self._tf.reset()
        self._last_ns, self._frame_id = at_ns, msg.header.frame_id
        if self._rig is not None and self._frame_id not in ("", self._rig.lidar_frame):
            self._out.warn(
                f"cloud in another frame: {self._frame_id!r}, the rig's LiDAR is {self._rig.lidar_frame!r}; overlays "
                "and past sweeps are misplaced where the two differ: correct the LiDAR in the rig file"
            )
        # not `now_s`: its latency is real time also where `clock` is a bag's
        sweep = Sweep(self.ledger.receive(time.monotonic()), msg, self._history.epoch)
        self._forward(self._sync.add_sweep(at_ns, sweep, now_s))

    def on_image(self, camera: str, msg: Any) -> None:
        """An Image or CompressedImage of `camera` has come; it is decoded later, and only if drawn."""
        self._forward(self._sync.add_image(camera, stamp_ns(msg.header.stamp), msg, self._clock()))

    def on_info(self, camera: str, msg: Any) -> None:
        """A CameraInfo of `camera` has come."""
        self._infos[camera] = msg

    def on_odometry(self, msg: Any) -> None:
        """An Odometry of the vehicle has come; one of another body than the rig's base is refused."""
        if self._rig is not None and msg.child_frame_id not in ("", self._rig.base_frame):
            self._out.warn(
                f"odometry ignored: it moves {msg.child_frame_id!r}, the rig's base_frame is {self._rig.base_frame!r}; "
                "its mounts would be applied twice"
            )
            return
        try:
            pose = pose_from_odometry(msg)
        except ValueError as error:
            self._out.warn(f"odometry ignored: {error}")
            return
        self._odometry.frame_id = msg.header.frame_id
        self._odometry.add(stamp_ns(msg.header.stamp), pose)

    def on_click(self, msg: Any) -> None:
        """A PointStamped has come: ~/output/similarity compares with the point nearest to it from now on."""
        if msg.header.frame_id != self._frame_id:
            self._out.warn(
                f"clicked point ignored: it is in frame {msg.header.frame_id!r}, the cloud in {self._frame_id!r}; "
                "set RViz' fixed frame to the LiDAR's"
            )
            return
        self.results.ask(np.array([msg.point.x, msg.point.y, msg.point.z]))

    def poll(self) -> None:
        """Lets sweeps go whose images are overdue."""
        self._forward(self._sync.poll(self._clock()))

    def reset(self) -> None:
        """Forgets all that came before; waiting sweeps go on with the images they have."""
        self._poses.reset()
        self._history.reset()
        self._intake.reset()
        self.results.reset()
        self._forward(self._sync.reset())

    def drop_waiting(self, reason: str) -> None:
        """Drops what waits for images, for the network or to be drawn; what runs is still published."""
        for synced in self._sync.reset():
            self._drop_sweep(synced, reason)
        self._perceiver.drop(reason)
        self._painter.drop(reason)

    def close(self) -> None:
        """Drops what waits, finishes what runs and ends the threads; may be called again."""
        self.drop_waiting(SHUTDOWN)
        self._perceiver.stop()
        self._painter.stop()

    def facts(self) -> dict[str, object]:
        """What diagnostics say beside the counts."""
        return {
            "device": str(self.predictor.device),
            **self._intake.facts(),
            "odometry": "received" if len(self._odometry) else "none" + ("" if self._tf else WITHOUT_POSES),
            **({"tf": f"{self._tf.frame_id} <- {self._rig.base_frame}"} if self._tf else {}),
            "time_jumps": self._sync.time_jumps,
            **({"sweeps": health.events_text(self._history.counts)} if self._history.counts else {}),
            **{f"left_out.{index}": line for index, line in enumerate(self.results.left_out)},
        }

    def _forward(self, finished: list[SyncedSweep]) -> None:
        """Sweeps that left the synchroniser go to the network."""
        for synced in finished:
            if NO_SET in synced.missing.values():
                self._drop_sweep(synced, NO_SET)
                continue
            for camera in synced.images:
                self.ledger.note(camera, "matched")
            for camera, reason in synced.missing.items():
                self.ledger.note(camera, f"missed.{reason}")
            self._perceiver.submit(synced)

    def _choose_poses(self, tf: Poses | None) -> Poses:
        if tf is None:
            return self._odometry
        return tf if self._settings["transforms"] == "tf" else EitherPoses(self._odometry, tf)

    def _make_history(self) -> SweepHistory:
        """Past sweeps for a detector; without a rig there are no poses of the LiDAR and so only the current one."""
        count = (self._settings["sweeps.count"] or self.predictor.sweeps) if self.predictor.detection_names else 1
        if count > 1 and self._rig is None:
            self._out.warn(f"the detector wants {count} sweeps, but without a rig it gets one: set the parameter rig")
            count = 1
        base_from_lidar = self._rig.base_from_lidar if self._rig else None
        return SweepHistory(self._poses, base_from_lidar, count, self._settings["sweeps.max_age_ms"] / 1e3)

    # ---- in the network's thread

    def _perceive(self, synced: SyncedSweep) -> None:
        sweep, started_s = synced.sweep, time.monotonic()
        try:
            cloud = self._intake.decode(sweep.message)
        except CloudError as error:
            self.ledger.drop(sweep.number, health.BAD_CLOUD)
            self._out.warn(f"cloud dropped: {error}")
            return
        points = self._intake.straightened(cloud, synced.stamp_ns, self._poses)
        past = self._history.past(synced.stamp_ns)
        self._history.add(synced.stamp_ns, points, sweep.epoch)
        decoded_s = time.monotonic()
        found = self.predictor.perceive(points, past)
        inferred_s = time.monotonic()
        self.results.publish(sweep.message, cloud, found)
        now_s = time.monotonic()
        total_ms = self.ledger.publish(sweep.number, now_s)
        if found.segmentation is not None:
            self._start_drawing(synced, cloud, self.results.colors_of(found.segmentation.labels))
        self._report(started_s, decoded_s, inferred_s, now_s, total_ms, synced.spread_ms)
        self.results.publish_features(cloud, sweep.message.header)
        self._intake.look(cloud)

    def _report(
        self, started_s: float, decoded_s: float, inferred_s: float, now_s: float, total_ms: float, spread_ms: float
    ) -> None:
        self._out.publish_ms("preprocess", (decoded_s - started_s) * 1e3)
        self._out.publish_ms("inference", (inferred_s - decoded_s) * 1e3)
        self._out.publish_ms("postprocess", (now_s - inferred_s) * 1e3)
        self._out.publish_ms("total", total_ms)
        self._out.publish_ms("sync_spread", spread_ms)
        if self._published_s is not None:
            self._out.publish_ms("cyclic", (now_s - self._published_s) * 1e3)
        self._published_s = now_s

    def _drop_sweep(self, synced: SyncedSweep, reason: str) -> None:
        self.ledger.drop(synced.sweep.number, reason)

    def _sweep_failed(self, synced: SyncedSweep, error: Exception) -> None:
        if self.ledger.is_open(synced.sweep.number):  # else it failed after its publication
            self.ledger.drop(synced.sweep.number, health.FAILED)
        self._out.warn(f"sweep failed: {type(error).__name__}: {error}")

    def _start_drawing(self, synced: SyncedSweep, cloud: CloudPoints, colors: np.ndarray) -> None:
        always = self._settings["overlay.enabled"] == "always"
        wanted = tuple(camera for camera in synced.images if always or self._out.wanted(overlay_topic(camera)))
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
        self._out.publish(overlay_topic(mount.name), self._messages.compressed(jpeg, image.stamp_ns, frame_id))
        self.ledger.note(mount.name, "overlay.drawn" if moving else "overlay.drawn_without_odometry")

    def _drop_drawing(self, drawing: Drawing, reason: str) -> None:
        for camera in drawing.cameras:
            self.ledger.note(camera, f"overlay.{reason}")

    def _drawing_failed(self, drawing: Drawing, error: Exception) -> None:
        self._drop_drawing(drawing, health.FAILED)
        self._out.warn(f"overlay failed: {type(error).__name__}: {error}")

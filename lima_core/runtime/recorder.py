"""From messages to the frames of a recording: the same code in the recorder node and offline on bags.

Nothing is decided by the time at which a message comes, only by stamps: a sweep is decided once the next one has come
and everything that belongs to it must be there, or the LiDAR is `patience_ms` ahead. A lossless replay therefore gives
the recording that the bag itself gives.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima_core.data.recording_format import COLUMNS, XYZI, CalibrationEntry
from lima_core.data.recording_writer import FullError, RecordingWriter, TakenFrame, TakenPicture
from lima_core.data.rig import Rig, is_rectified
from lima_core.data.ros_cloud import CloudError, CloudPoints, cloud_points, read_cloud
from lima_core.data.ros_header import stamp_ns
from lima_core.data.ros_image import camera_from_info, encoded_picture
from lima_core.runtime.messages import pose_from_odometry
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.pose_track import PoseTrack
from lima_core.runtime.recorder_camera import CameraTrack, Timed
from lima_core.runtime.tf_poses import TfChain
from lima_core.runtime.triggers import Features, Triggers

JUMP_NS = 1_000_000_000  # a stamp that is as far behind is of a new time, one that is less came late
MAX_TRUTH = 600
REQUEST, SNAPSHOT = "request", "snapshot"
RECORDED, NOT_CHOSEN = "recorded", "not_chosen"  # what becomes of a sweep; the others say what was wrong
PAUSED, NO_POSE, BAD_CLOUD, LATE, FULL, THERE = "paused", "no_pose", "bad_cloud", "late", "full", "already_there"


@dataclass(frozen=True)
class _Shot:
    """An image of a sweep: its CameraInfo (None = none came), and (4, 4) world_from_base at its stamp."""

    stamp_ns: int
    message: Any
    info: Any
    world_from_base: np.ndarray


@dataclass(frozen=True)
class _Candidate:
    """A decided sweep with all that belongs to it."""

    sweep: Timed
    generation: int
    world_from_base: np.ndarray
    shots: dict[str, _Shot]
    truth: Any


class Recorder:
    """Takes messages, writes frames. One thread calls it.

    `counts` says what became of every sweep, and of images by camera and reason; `full` why the disk took no more, else
    "" (`stop_when_full`: FullError is raised then, as a hole could not be recorded later by going on). `warn` is told
    what is wrong with the input. Raises ValueError on parameters that contradict each other.
    """

    def __init__(
        self,
        rig: Rig,
        settings: Resolved,
        writer: RecordingWriter,
        warn: Callable[[str], None],
        features: Features | None = None,
        stop_when_full: bool = False,
    ) -> None:
        self._rig, self._settings, self._writer, self._warn = rig, settings, writer, warn
        self._stop_when_full = stop_when_full
        self._triggers = Triggers(settings, features)
        self._tolerance_ns = round(settings["tolerance_ms"] * 1e6)
        self._patience_ns = round(settings["patience_ms"] * 1e6)
        self._cameras = {mount.name: CameraTrack(mount) for mount in rig.cameras}
        self._poses = PoseTrack(settings["pose_gap_ms"], settings["max_speed_m_s"])
        self._chain = TfChain(rig.base_frame)
        self._pending: deque[Timed] = deque()
        self._truth: dict[int, Any] = {}
        self._recent: deque[_Candidate] = deque()  # for a snapshot
        self._newest_ns: int | None = None
        self._decided_ns: int | None = None
        self._jumped: set[str] = set()  # streams that are in the new time already
        self._sequence: int | None = None
        self._begun = False  # whether the sequence has a frame
        self._generation = -1
        self._asked = self._paused = False
        self.counts: Counter[str] = Counter()
        self.full = ""

    # ---- messages

    def on_cloud(self, msg: Any) -> None:
        """A PointCloud2 of the LiDAR."""
        at_ns = stamp_ns(msg.header.stamp)
        if self._newest_ns is not None and at_ns < self._newest_ns - JUMP_NS:
            self._jump()
        elif self._newest_ns is not None and at_ns <= self._newest_ns:
            self.counts[LATE] += 1
            return
        self._newest_ns = at_ns
        self._pending.append(Timed(at_ns, msg))
        self._advance()

    def on_image(self, camera: str, msg: Any) -> None:
        """An Image or CompressedImage of a camera of the rig."""
        state, at_ns = self._cameras[camera], stamp_ns(msg.header.stamp)
        if self._is_back(camera, at_ns, state.newest_ns):
            state.forget_images()
        # a silent LiDAR must not fill the memory: what is this old could only belong to a sweep that waits
        oldest_ns = max(at_ns, state.newest_ns or at_ns) - self._patience_ns - JUMP_NS
        waiting_ns = state.due_ns(self._pending[0].stamp_ns) - self._tolerance_ns if self._pending else oldest_ns
        state.add_image(at_ns, msg, min(oldest_ns, waiting_ns))
        self._advance()

    def on_info(self, camera: str, msg: Any) -> None:
        """A CameraInfo of a camera of the rig."""
        state, at_ns = self._cameras[camera], stamp_ns(msg.header.stamp)
        if self._is_back(f"{camera}.info", at_ns, state.newest_info_ns):
            state.forget_infos()
        state.add_info(at_ns, msg)
        self._advance()

    def on_odometry(self, msg: Any) -> None:
        """An Odometry of the vehicle's base."""
        if msg.child_frame_id not in ("", self._rig.base_frame):
            self._warn(f"odometry ignored: it moves {msg.child_frame_id!r}, the rig's base is {self._rig.base_frame!r}")
            return
        try:
            pose = pose_from_odometry(msg)
        except ValueError as error:
            self._warn(f"odometry ignored: {error}")
            return
        self._on_pose(stamp_ns(msg.header.stamp), pose, msg.header.frame_id)

    def on_transforms(self, msg: Any, fixed: bool) -> None:
        """A TFMessage of /tf, or of /tf_static (`fixed`); used in place of odometry."""
        for at_ns, pose, frame_id in self._chain.add(msg, fixed):
            self._on_pose(at_ns, pose, frame_id)

    def on_truth(self, msg: Any) -> None:
        """A PointCloud2 of /gt/segmentation, with the stamp of its sweep."""
        at_ns = stamp_ns(msg.header.stamp)
        if self._is_back("truth", at_ns, max(self._truth, default=None)):
            self._truth.clear()
        self._truth[at_ns] = msg
        while len(self._truth) > MAX_TRUTH:
            del self._truth[next(iter(self._truth))]

    # ---- wishes

    def record_frame(self) -> None:
        """The next sweep is recorded, whatever the triggers say."""
        self._asked = True

    def pause(self) -> None:
        """Records nothing until `resume`; what comes then is a new sequence."""
        self._paused = True

    def resume(self) -> None:
        """Records again."""
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._paused

    def split(self) -> None:
        """The next recorded sweep begins a new sequence."""
        self._end_sequence()

    def lost(self) -> None:
        """Messages are missing here: what has come is decided, and what comes is a new sequence."""
        self._flush()
        self._end_sequence()

    def snapshot(self) -> int:
        """Writes every sweep of the last `snapshot_s` seconds as a sequence of its own; returns how many."""
        recent, sequence, written = list(self._recent), None, 0
        self._recent.clear()
        for index, candidate in enumerate(recent):
            if index and candidate.generation != recent[index - 1].generation:
                sequence = None
            sequence = self._writer.start_sequence() if sequence is None else sequence
            written += self._write(sequence, SNAPSHOT, candidate) in (RECORDED, THERE)
        return written

    def reset(self) -> None:
        """Forgets what waits, all images and poses; a new sequence begins."""
        self._jump()
        for camera in self._cameras.values():
            camera.forget_images()
            camera.forget_infos()
        self._poses.start_over()
        self._newest_ns = None

    def close(self) -> None:
        """Decides what still waits, and closes the recording."""
        self._flush()
        self._writer.close()

    # ---- time

    def _on_pose(self, at_ns: int, pose: np.ndarray, frame_id: str) -> None:
        if self._is_back("poses", at_ns, self._poses.newest_ns):
            self._poses.start_over()
        self._poses.add(at_ns, pose, frame_id)
        self._advance()

    def _is_back(self, stream: str, at_ns: int, newest_ns: int | None) -> bool:
        """Whether a stream went back in time: nothing of its old time will come, so what waits is decided."""
        if newest_ns is None or at_ns >= newest_ns - JUMP_NS:
            return False
        self._flush()
        self._jumped.add(stream)
        return True

    def _jump(self) -> None:
        """The LiDAR went back in time: what is of the old time goes, but for streams that went back before it."""
        self._flush()
        for name, camera in self._cameras.items():
            if name not in self._jumped:
                camera.forget_images()
            if f"{name}.info" not in self._jumped:
                camera.forget_infos()
        if "poses" not in self._jumped:
            self._poses.start_over()
        if "truth" not in self._jumped:
            self._truth.clear()
        self._jumped.clear()
        self._recent.clear()
        self._decided_ns = None
        self._end_sequence()

    def _end_sequence(self) -> None:
        self._sequence = None
        self._triggers.start_over()

    # ---- decisions

    def _advance(self) -> None:
        while self._pending and self._ready(self._pending[0].stamp_ns):
            self._decide(self._pending.popleft())

    def _flush(self) -> None:
        while self._pending:
            self._decide(self._pending.popleft())

    def _ready(self, sweep_ns: int) -> bool:
        """Whether all that belongs to a sweep has come, or has had its time."""
        if self._newest_ns <= sweep_ns:  # truth has the sweep's own stamp: it is there once the next sweep is
            return False
        if self._newest_ns - sweep_ns >= self._patience_ns:
            return True
        if self._poses.newest_ns is None or not all(camera.settled(sweep_ns) for camera in self._cameras.values()):
            return False
        images = (camera.nearest(sweep_ns, self._tolerance_ns) for camera in self._cameras.values())
        return self._poses.newest_ns >= max([sweep_ns, *(image.stamp_ns for image in images if image is not None)])

    def _decide(self, sweep: Timed) -> None:
        """One end for one sweep."""
        gap = self._decided_ns is not None and sweep.stamp_ns - self._decided_ns > self._settings["max_gap_ms"] * 1e6
        self._decided_ns = sweep.stamp_ns
        found = self._poses.at(sweep.stamp_ns)
        if gap or self._paused or found is None or found[0] != self._generation:
            self._end_sequence()
        if found is None:
            end = NO_POSE
        else:
            self._generation = found[0]
            shots = self._shots(sweep.stamp_ns, found[0])
            candidate = _Candidate(sweep, *found, shots, self._truth.get(sweep.stamp_ns))
            self._remember(candidate)
            end = PAUSED if self._paused else self._judge(candidate)
        self.counts[end] += 1
        for camera in self._cameras.values():
            camera.decided(sweep.stamp_ns, self._tolerance_ns)
        self._truth = {at_ns: truth for at_ns, truth in self._truth.items() if at_ns > sweep.stamp_ns}

    def _shots(self, sweep_ns: int, generation: int) -> dict[str, _Shot]:
        """The images of a sweep with the vehicle's poses at their stamps; what is missing is counted."""
        shots = {}
        for name, camera in self._cameras.items():
            image = camera.nearest(sweep_ns, self._tolerance_ns)
            found = None if image is None else self._poses.at(image.stamp_ns)
            if found is not None and found[0] == generation:
                shots[name] = _Shot(image.stamp_ns, image.message, camera.info(image.stamp_ns), found[1])
            else:
                self.counts[f"{name}.no_image" if image is None else f"{name}.no_pose"] += 1
        return shots

    def _remember(self, candidate: _Candidate) -> None:
        kept_ns = round(self._settings["snapshot_s"] * 1e9)
        if kept_ns:
            self._recent.append(candidate)
            while candidate.sweep.stamp_ns - self._recent[0].sweep.stamp_ns > kept_ns:
                self._recent.popleft()

    def _judge(self, candidate: _Candidate) -> str:
        """Records a sweep where a trigger says so."""
        at_ns, position = candidate.sweep.stamp_ns, (candidate.world_from_base @ self._rig.base_from_lidar)[:3, 3]

        def points() -> np.ndarray:
            return self._cloud(candidate.sweep.message).points

        try:
            reason = self._triggers.reason(at_ns, position, points)
            reason, self._asked = REQUEST if self._asked else reason, False
            if reason is None:
                return NOT_CHOSEN
            if self._sequence is None:
                self._sequence, self._begun = self._writer.start_sequence(), False
            end = self._write(self._sequence, reason, candidate)
            if end in (RECORDED, THERE):
                self._triggers.taken(at_ns, points)
                self._begun = True
            elif end == FULL and self._begun:  # else the number is still free
                self._end_sequence()
        except CloudError as error:
            self._warn(f"cloud left out: {error}")
            return BAD_CLOUD
        return end

    # ---- frames

    def _cloud(self, msg: Any) -> CloudPoints:
        return cloud_points(msg, self._rig.intensity_scale)

    def _write(self, sequence: int, reason: str, candidate: _Candidate) -> str:
        """Commits a frame; says how that ended."""
        try:
            cloud = self._cloud(candidate.sweep.message)
            taken = {name: self._picture(name, shot) for name, shot in candidate.shots.items()}
            pictures = {name: picture for name, picture in taken.items() if picture is not None}
            columns = (*XYZI, *(name for name in COLUMNS[4:] if name in cloud.extra))
            frame = TakenFrame(
                stamp_ns=candidate.sweep.stamp_ns,
                trigger=reason,
                world_from_base=candidate.world_from_base,
                columns=columns,
                table=_table(cloud, columns),
                pictures=pictures,
                labels=self._labels(candidate.truth, len(cloud)),
            )
            new = self._writer.add(sequence, frame)
        except CloudError as error:
            self._warn(f"cloud left out: {error}")
            return BAD_CLOUD
        except FullError as error:
            if self._stop_when_full:
                raise
            if not self.full:
                self._warn(f"recording stopped: {error}")
            self.full = str(error)
            return FULL
        self.full = ""
        return RECORDED if new else THERE

    def _picture(self, name: str, shot: _Shot) -> TakenPicture | None:
        """A picture for a frame; None, counted, where it has no calibration or is broken."""
        topic = self._cameras[name].mount.image_topic
        if shot.info is None:
            self.counts[f"{name}.no_camera_info"] += 1
            return None
        try:
            K, distortion, size = camera_from_info(shot.info, is_rectified(topic))
            encoded = encoded_picture(shot.message, topic, size, self._settings["jpeg_quality"])
        except ValueError as error:
            self.counts[f"{name}.broken"] += 1
            self._warn(f"picture of {name} left out: {error}")
            return None
        return TakenPicture(shot.stamp_ns, encoded, CalibrationEntry.of(K, distortion, size), shot.world_from_base)

    def _labels(self, truth: Any, points: int) -> np.ndarray | None:
        """(N,) uint8; None, counted, where /gt/segmentation has not one label for each point."""
        if truth is None:
            return None
        try:
            labels = read_cloud(truth).get("label")
        except CloudError as error:
            labels, why = None, str(error)
        else:
            why = "/gt/segmentation has no field label of 0 .. 255, or not one for each point"
        if labels is None or labels.shape != (points,) or not _is_uint8(labels):
            self.counts["truth.broken"] += 1
            self._warn(f"labels left out: {why}")
            return None
        return labels.astype(np.uint8)


def _is_uint8(labels: np.ndarray) -> bool:
    """Whether (N,) numbers are whole and in 0 .. 255."""
    with np.errstate(invalid="ignore"):
        return bool((labels.astype(np.uint8) == labels).all())


def _table(cloud: CloudPoints, columns: tuple[str, ...]) -> np.ndarray:
    """(N, C) float32: x, y, z, raw intensity and the others."""
    table = np.empty((len(cloud), len(columns)), np.float32)
    table[:, :4] = cloud.points
    table[:, 3] = cloud.raw_intensity
    for at, name in enumerate(columns[4:], 4):
        table[:, at] = cloud.extra[name]
    return table

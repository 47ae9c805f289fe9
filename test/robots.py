"""A small robot for tests of the recorder: the messages of its sensors, and bags of them. One LiDAR, two cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lima_core.data.bag import TRUTH_TOPIC
from lima_core.data.frame import CameraView, Image
from lima_core.data.recording_writer import RecordingWriter
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_cloud import pack_cloud
from lima_core.geometry import se3
from lima_core.runtime.bag_messages import bag_messages
from lima_core.runtime.bag_writer import BagWriter
from lima_core.runtime.offline_recording import listeners
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder import Recorder
from lima_core.runtime.recorder_parameters import RECORDING

MS = 1_000_000
PERIOD_NS = 100 * MS
BEGIN_NS = 1_700_000_000_000 * MS
SIZE = (32, 24)
K = np.array([[20.0, 0, 16], [0, 20, 12], [0, 0, 1]])
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
RIG = Rig(
    name="robot",
    lidar_topic="/lidar",
    lidar_frame="lidar",
    base_from_lidar=se3.transform(np.eye(3), np.array([0, 0, 1.8])),
    cameras=(
        CameraMount("front", "front", "/front/image", "/front/info", se3.transform(FORWARD, np.zeros(3)), -20.0),
        CameraMount("back", "back", "/back/image", "/back/info", se3.transform(FORWARD, np.ones(3)), 30.0),
    ),
)
SPEED = 5.0  # m/s
OPEN = {"disk.min_free_gb": 0.0, "disk.sync_s": 0.0}
MESSAGES = bag_messages()


@dataclass(frozen=True)
class Sent:
    """A message on its topic, due at its stamp."""

    stamp_ns: int
    topic: str
    message: Any


@cache
def jpeg(seed: int) -> bytes:
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)).jpeg()


def cloud(stamp_ns: int, seed: int, points: int = 50, **columns: np.ndarray) -> Any:
    rng = np.random.default_rng(seed)
    columns = columns or {axis: rng.uniform(-20, 20, points).astype(np.float32) for axis in "xyz"} | {
        "intensity": rng.integers(0, 256, points).astype(np.float32),
        "ring": rng.integers(0, 32, points).astype(np.uint16),
    }
    return MESSAGES.cloud(pack_cloud(columns), stamp_ns, "lidar")


def odometry(stamp_ns: int, x: float, frame_id: str = "map", child: str = "base_link") -> Any:
    return MESSAGES.odometry(se3.transform(np.eye(3), np.array([x, 0, 0])), stamp_ns, frame_id, child)


def info(name: str, stamp_ns: int, focal: float = 20.0) -> Any:
    intrinsics = np.array([[focal, 0, 16], [0, focal, 12], [0, 0, 1]])
    return MESSAGES.camera_info(CameraView(name, stamp_ns, Image(encoded=b""), SIZE, intrinsics, np.eye(4)), name)


def truth(stamp_ns: int, labels: np.ndarray) -> Any:
    return MESSAGES.cloud(pack_cloud({"label": labels}), stamp_ns, "lidar")


def x_at(stamp_ns: int) -> float:
    return SPEED * (stamp_ns - BEGIN_NS) / 1e9


def sweep_ns(index: int) -> int:
    return BEGIN_NS + index * PERIOD_NS


def sweep(index: int, labelled: bool = False) -> list[Sent]:
    """All that belongs to a sweep, in order of stamps; odometry 10 ms before each sensor, and 90 ms after the sweep."""
    at_ns = sweep_ns(index)
    found = [Sent(at_ns, RIG.lidar_topic, cloud(at_ns, index))]
    if labelled:
        found.append(Sent(at_ns, TRUTH_TOPIC, truth(at_ns, np.full(50, index % 5, np.uint8))))
    for mount in RIG.cameras:
        image_ns = at_ns + round(mount.offset_ms * MS)
        found.append(Sent(image_ns, mount.info_topic, info(mount.name, image_ns)))
        picture = MESSAGES.compressed(jpeg(index), image_ns, mount.frame_id)
        found.append(Sent(image_ns, mount.image_topic, picture))
    for pose_ns in (at_ns - 30 * MS, at_ns - 10 * MS, at_ns + 20 * MS):
        found.append(Sent(pose_ns, RIG.odometry_topic, odometry(pose_ns, x_at(pose_ns))))
    return sorted(found, key=lambda sent: sent.stamp_ns)


def drive(indices: Iterable[int], labelled: bool = False) -> list[Sent]:
    """All messages of sweeps, in order of stamps, odometry to the end."""
    found = [sent for index in indices for sent in sweep(index, labelled)]
    last_ns = max(sent.stamp_ns for sent in found) + 10 * MS
    found.append(Sent(last_ns, RIG.odometry_topic, odometry(last_ns, x_at(last_ns))))
    return sorted(found, key=lambda sent: sent.stamp_ns)


def without(sent: Iterable[Sent], *topics: str) -> list[Sent]:
    return [one for one in sent if one.topic not in topics]


def shifted(sent: Iterable[Sent], topic: str, ns: int) -> list[Sent]:
    """The messages of a topic with later stamps, in their old places."""
    return [restamped(one, ns) if one.topic == topic else one for one in sent]


def restamped(sent: Sent, ns: int) -> Sent:
    header = replace(sent.message.header, stamp=MESSAGES.stamp(sent.stamp_ns + ns))
    return Sent(sent.stamp_ns + ns, sent.topic, replace(sent.message, header=header))


def write_bag(path: Path, sent: Iterable[Sent]) -> Path:
    with BagWriter(path) as bag:
        for one in sent:
            bag.write(one.topic, one.message, one.stamp_ns)
    return path


class Taken:
    """A recorder of RIG in `folder`: `feed` it, `close` it; `warnings` has what it said."""

    def __init__(
        self, folder: Path, features: Callable | None = None, writer: RecordingWriter | None = None, **settings: Any
    ) -> None:
        self.folder, self.warnings = folder, []
        resolved = resolve(
            {"triggers": "all", **OPEN, **{k.replace("__", "."): v for k, v in settings.items()}}, RECORDING
        )
        self.writer = writer or RecordingWriter(folder, RIG)
        self.recorder = Recorder(RIG, resolved, self.writer, self.warnings.append, features)
        self.hear = listeners(self.recorder, RIG, tf=False)

    def feed(self, sent: Iterable[Sent]) -> Taken:
        for one in sent:
            self.hear[one.topic](one.message)
        return self

    def close(self) -> dict[str, int]:
        self.recorder.close()
        return dict(self.recorder.counts)


def files(root: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def places(recording: Any) -> Iterator[tuple[str, int]]:
    """Sequence number and index of the sweep of each frame."""
    for frame in (recording[i] for i in range(len(recording))):
        yield frame.sequence.rsplit("/", 1)[1], round((frame.stamp_ns - BEGIN_NS) / PERIOD_NS)

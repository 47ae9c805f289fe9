"""rosbag2 (mcap, sqlite3) as `Frame`s, read by the library `rosbags`: no ROS installation.

Frames are assembled by header stamps, never by bag time. The first pass reads the header of each message and no
more; clouds and pictures are read when a frame is asked for.
"""

from __future__ import annotations

import logging
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, QosDurability
from rosbags.typesys import Stores, get_typestore

from lima_core.data import ros_header
from lima_core.data.bag_poses import BagPoses
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Frame
from lima_core.data.rig import CameraMount, Rig, is_rectified
from lima_core.data.ros_boxes import detection_boxes, marker_boxes
from lima_core.data.ros_cloud import cloud_points, read_cloud
from lima_core.data.ros_header import read_header
from lima_core.data.ros_image import camera_from_info, image_from_message
from lima_core.geometry import se3

CLOUD = "sensor_msgs/msg/PointCloud2"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
RAW = "sensor_msgs/msg/Image"
INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
MARKERS, DETECTIONS = "visualization_msgs/msg/MarkerArray", "vision_msgs/msg/Detection3DArray"
TRUTH_TOPIC, BOXES_TOPIC, DETECTIONS_TOPIC = "/gt/segmentation", "/gt/markers", "/gt/detections"

REPAIR = (
    "one that was cut off is repaired by `mcap recover`, one without metadata.yaml by `ros2 bag reindex`, one with two "
    "definitions of a type by leaving the topic with the wrong one out of it (`ros2 bag convert`)"
)
ARRAY_COUNT = 4  # bytes before the first marker, whose header stands for all

log = logging.getLogger(__name__)


class BagError(ValueError):
    """The bag lacks what a frame needs; the message names the topics there are and the fix."""


@dataclass
class _Stamps:
    """Header stamps of one topic in order, the bag time of each, and the frame of the first message."""

    frame_id: str = ""
    bag_time_ns: dict[int, int] = field(default_factory=dict)
    ordered_ns: list[int] = field(default_factory=list)

    def nearest(self, stamp_ns: int) -> int:
        """The stamp closest to `stamp_ns`."""
        after = bisect_left(self.ordered_ns, stamp_ns)
        return min(self.ordered_ns[max(after - 1, 0) : after + 1], key=lambda stamp: abs(stamp - stamp_ns))


class Bag:
    """Sweeps of one rosbag2 folder, each with the nearest picture of each camera inside that camera's window.

    With a `rig` its topics, mounts and offsets hold. Without one the LiDAR is the only PointCloud2 topic outside
    /gt, cameras are picture topics with a camera_info beside them, mounts come from /tf_static, offsets are the
    median of the bag, and intensity is scaled by the smallest of 1, 255 and 65535 that covers the first sweep.
    The window is offset_ms +- tolerance_ms. Poses come from /tf, or odometry where /tf has none; sweeps without
    a known pose are left out, with a warning. Raises BagError naming what is missing.
    """

    def __init__(self, path: str | Path, rig: Rig | None = None, tolerance_ms: float = 50.0) -> None:
        self.path, self.tolerance_ns = Path(path), round(tolerance_ms * 1e6)
        self._open: AnyReader | None = None
        self._types = {topic: info.msgtype for topic, info in self._reader.topics.items()}
        self._poses = BagPoses()
        self._infos: dict[str, Any] = {}
        self._stamps: dict[str, _Stamps] = {}
        self._scan()
        self.rig = rig or self._found_rig()
        self._check_topics()
        self._sweeps_ns = self._sweeps_with_pose()

    def __len__(self) -> int:
        return len(self._sweeps_ns)

    def __getitem__(self, index: int) -> Frame:
        """The sweep at `index` with its pictures and, where the bag has ground truth, labels and boxes."""
        index = range(len(self))[index]
        stamp_ns = self._sweeps_ns[index]
        with _naming(self.path, self.rig.lidar_topic, stamp_ns):
            cloud = cloud_points(self._read(self.rig.lidar_topic, stamp_ns), self.rig.intensity_scale)
        world_from_lidar = self._poses.tree.root_from(self.rig.base_frame, stamp_ns) @ self.rig.base_from_lidar
        views = (self._view(mount, stamp_ns, world_from_lidar) for mount in self.rig.cameras)
        return Frame(
            stamp_ns=stamp_ns,
            sequence=self.path.name,
            index=index,
            points=cloud.points,
            extra=cloud.extra,
            world_from_lidar=world_from_lidar,
            cameras=tuple(view for view in views if view is not None),
            labels=self._labels(stamp_ns),
            boxes=self._boxes(stamp_ns),
        )

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k sweeps before `index`, oldest first; fewer at the start."""
        index = range(len(self))[index]
        return [self[j] for j in range(max(index - k, 0), index)]

    def __getstate__(self) -> dict[str, Any]:
        """The open file stays behind: worker processes open their own."""
        return {**self.__dict__, "_open": None}

    @property
    def _reader(self) -> AnyReader:
        if self._open is None:
            self._open = _opened(self.path, self)
        return self._open

    def _scan(self) -> None:
        """One pass over all messages: stamps of clouds and pictures, poses, the first CameraInfo of each topic."""
        kinds = (CLOUD, COMPRESSED, RAW, INFO, ODOMETRY, TRANSFORMS)
        truth = ((BOXES_TOPIC, MARKERS), (DETECTIONS_TOPIC, DETECTIONS))
        self._set_strange_apart(kinds)
        wanted = [
            c
            for c in self._reader.connections
            if self._types[c.topic] in kinds or (c.topic, self._types[c.topic]) in truth
        ]
        seen = 0
        # without `wanted` rosbags would give all messages
        for connection, bag_time_ns, raw in _read_on(self.path, self._reader.messages(wanted)) if wanted else ():
            with _naming(self.path, connection.topic, bag_time_ns):
                self._take(connection, bag_time_ns, raw)
            seen += 1
        told = sum(connection.msgcount for connection in wanted)
        if seen < told:
            log.warning("%s: %d of %d messages could be read; %s", self.path, seen, told, REPAIR)
        for entry in self._stamps.values():
            entry.ordered_ns = sorted(entry.bag_time_ns)
        self._poses.join_odometry()
        for child, count in self._poses.lost.items():
            log.warning("%s: %d poses of %s are left out: not finite, or without a rotation", self.path, count, child)

    def _take(self, connection: Connection, bag_time_ns: int, raw: bytes) -> None:
        """What the first pass keeps of one message."""
        kind, topic = connection.msgtype, connection.topic
        if kind == TRANSFORMS:
            self._poses.add_transforms(self._reader.deserialize(raw, kind), fixed=topic.endswith("tf_static"))
        elif kind == ODOMETRY:
            self._poses.add_odometry(self._reader.deserialize(raw, kind))
        elif kind == INFO:
            if topic not in self._infos:
                self._infos[topic] = self._reader.deserialize(raw, kind)
        else:
            stamp_ns, frame_id = _header(raw, kind)
            entry = self._stamps.setdefault(topic, _Stamps(frame_id))
            entry.bag_time_ns[stamp_ns] = bag_time_ns

    def _set_strange_apart(self, kinds: tuple[str, ...]) -> None:
        """Topics whose type the bag defines without fields that it has in ROS are not read, with a warning."""
        usual, own = get_typestore(Stores.ROS2_HUMBLE).fielddefs, self._reader.typestore.fielddefs
        for topic, kind in self._types.items():
            if kind in kinds:
                there = {name for name, _ in own[kind][1]}
                lacks = [name for name, _ in usual[kind][1] if name not in there]
                if lacks:
                    self._types[topic] = f"{kind} by another definition, without {', '.join(lacks)}"
                    log.warning("%s: %s is not read: it is %s", self.path, topic, self._types[topic])

    def _of_type(self, *types: str) -> list[str]:
        return sorted(topic for topic, msgtype in self._types.items() if msgtype in types)

    def _check_topics(self) -> None:
        """Raises BagError naming the topics of the right type when one of the rig's is not in the bag."""
        wanted = [(self.rig.lidar_topic, (CLOUD,))]
        for mount in self.rig.cameras:
            wanted += [(mount.image_topic, (COMPRESSED, RAW)), (mount.info_topic, (INFO,))]
        for topic, types in wanted:
            if self._types.get(topic) not in types or topic not in (self._stamps.keys() | self._infos.keys()):
                names = "/".join(t.rsplit("/", 1)[1] for t in types)
                there = ", ".join(self._of_type(*types)) or "none"
                kind = self._types.get(topic, "")
                held = f" (which is {kind})" if kind and kind not in types else ""
                raise BagError(f"{self.path}: no {names} messages on {topic}{held}; topics of that type: {there}")

    def _sweeps_with_pose(self) -> list[int]:
        """Stamps of the sweeps whose pose is known. Raises BagError when there is none."""
        stamps = self._stamps[self.rig.lidar_topic].ordered_ns
        if not any(self._poses.tree.moves(f) for f in self._poses.tree.ancestors(self.rig.base_frame)):
            raise BagError(
                f"{self.path}: nothing says where {self.rig.base_frame} is over time; a frame needs /tf or "
                "nav_msgs/Odometry, and the rig's base_frame must be its child frame"
            )
        known = [stamp for stamp in stamps if self._poses.tree.knows(self.rig.base_frame, stamp)]
        if len(known) < len(stamps):
            log.warning("%s: %d of %d sweeps have no pose", self.path, len(stamps) - len(known), len(stamps))
        return known

    def _read(self, topic: str, stamp_ns: int) -> Any:
        """The message of a topic with this header stamp."""
        at = self._stamps[topic].bag_time_ns[stamp_ns]
        connections = self._reader.topics[topic].connections
        for connection, _, raw in _read_on(self.path, self._reader.messages(connections, start=at, stop=at + 1)):
            with _naming(self.path, topic, at):
                if _header(raw, connection.msgtype)[0] == stamp_ns:
                    return self._reader.deserialize(raw, connection.msgtype)
        raise BagError(f"{self.path}: the message of {topic} at {stamp_ns} ns is gone; has the bag changed?")

    def _view(self, mount: CameraMount, lidar_stamp_ns: int, world_from_lidar: np.ndarray) -> CameraView | None:
        """The picture nearest to the camera's due time, None when outside the window or without a pose."""
        due_ns = lidar_stamp_ns + round(mount.offset_ms * 1e6)
        stamp_ns = self._stamps[mount.image_topic].nearest(due_ns)
        if abs(stamp_ns - due_ns) > self.tolerance_ns or not self._poses.tree.knows(self.rig.base_frame, stamp_ns):
            return None
        info = self._infos[mount.info_topic]
        with _naming(self.path, mount.info_topic, ros_header.stamp_ns(info.header.stamp)):
            K, distortion, size = camera_from_info(info, is_rectified(mount.image_topic))
        world_from_camera = self._poses.tree.root_from(self.rig.base_frame, stamp_ns) @ mount.base_from_camera
        where = f"{self.path.name}{mount.image_topic} at {stamp_ns} ns"
        return CameraView(
            name=mount.name,
            stamp_ns=stamp_ns,
            image=image_from_message(self._read(mount.image_topic, stamp_ns), where),
            size=size,
            K=K,
            camera_from_lidar=se3.inverse(world_from_camera) @ world_from_lidar,
            distortion=distortion,
        )

    def _labels(self, stamp_ns: int) -> np.ndarray | None:
        """(N,) uint8 of /gt/segmentation at the sweep's stamp."""
        if TRUTH_TOPIC not in self._stamps or stamp_ns not in self._stamps[TRUTH_TOPIC].bag_time_ns:
            return None
        with _naming(self.path, TRUTH_TOPIC, stamp_ns):
            columns = read_cloud(self._read(TRUTH_TOPIC, stamp_ns))
        if "label" not in columns:
            raise BagError(f"{self.path}: {TRUTH_TOPIC} has no field label; its fields are {list(columns)}")
        return columns["label"].astype(np.uint8)

    def _boxes(self, stamp_ns: int) -> Boxes | None:
        """Boxes of /gt/markers, else of /gt/detections, at the sweep's stamp. Raises BagError where they are broken."""
        names = load_taxonomy("nuscenes").detection_names
        readers = {BOXES_TOPIC: lambda message: marker_boxes(message, names).boxes}
        readers[DETECTIONS_TOPIC] = lambda message: detection_boxes(message, names)
        for topic, read in readers.items():
            if topic in self._stamps and stamp_ns in self._stamps[topic].bag_time_ns:
                with _naming(self.path, topic, stamp_ns):
                    return read(self._read(topic, stamp_ns))
        return None

    def _found_rig(self) -> Rig:
        """A rig from what the bag itself says."""
        clouds = [t for t in self._of_type(CLOUD) if not t.startswith("/gt/") and t in self._stamps]
        if not clouds:
            there = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(self._types.items())) or "none, it is empty"
            raise BagError(f"{self.path}: no PointCloud2 messages, so no sweeps; its topics: {there}")
        if len(clouds) > 1:
            there = ", ".join(clouds)
            raise BagError(f"{self.path}: which PointCloud2 topic is the LiDAR? Give a rig file; there are: {there}")
        lidar = self._stamps[clouds[0]]
        base_frame, base_from_lidar = self._poses.tree.fixed_root(lidar.frame_id)
        pictures = [t for t in self._of_type(COMPRESSED, RAW) if self._info_of(t)]
        for topic in pictures:
            if topic not in self._stamps:
                log.warning("%s: %s has no messages; its camera is left out", self.path, topic)
        cameras = [self._found_mount(topic, base_frame) for topic in pictures if topic in self._stamps]
        names = [mount.name for mount in cameras]
        compressed = [m for m in cameras if names.count(m.name) == 1 or m.transport == "compressed"]
        return Rig(
            name=self.path.name,
            lidar_topic=clouds[0],
            lidar_frame=lidar.frame_id,
            base_from_lidar=base_from_lidar,
            cameras=tuple(replace(m, offset_ms=self._offset_ms(m, lidar)) for m in compressed),
            base_frame=base_frame,
            odometry_topic=next(iter(self._of_type(ODOMETRY)), "/odom"),
            intensity_scale=self._intensity_scale(clouds[0]),
        )

    def _info_of(self, image_topic: str) -> str | None:
        """The camera_info topic in the namespace of a picture topic, or in the one around it."""
        namespaces = [str(parent).rstrip("/") for parent in list(Path(image_topic).parents)[:2]]
        return next((f"{n}/camera_info" for n in namespaces if f"{n}/camera_info" in self._infos), None)

    def _found_mount(self, image_topic: str, base_frame: str) -> CameraMount:
        info_topic = self._info_of(image_topic)
        frame_id = self._stamps[image_topic].frame_id
        root, root_from_camera = self._poses.tree.fixed_root(frame_id)
        if root != base_frame:
            raise BagError(
                f"{self.path}: /tf_static has no way from {base_frame} to {frame_id} of {image_topic}; "
                "give a rig file with the camera's mount"
            )
        transport = "compressed" if self._types[image_topic] == COMPRESSED else "raw"
        name = Path(info_topic).parent.name
        return CameraMount(name, frame_id, image_topic, info_topic, root_from_camera, 0.0, transport)

    def _offset_ms(self, mount: CameraMount, lidar: _Stamps) -> float:
        """Median of the nearest picture's stamp minus the sweep's."""
        pictures = self._stamps[mount.image_topic]
        return median(pictures.nearest(stamp) - stamp for stamp in lidar.ordered_ns) / 1e6

    def _intensity_scale(self, topic: str) -> float:
        first_ns = self._stamps[topic].ordered_ns[0]
        with _naming(self.path, topic, first_ns):
            first = cloud_points(self._read(topic, first_ns), 1.0)
        highest = float(np.nanmax(first.raw_intensity, initial=0.0))
        return next((scale for scale in (1.0, 255.0) if highest <= scale), 65535.0)


class BagMessages:
    """Every message of a rosbag2 as it was recorded, in bag-time order.

    `types` {topic: message type such as sensor_msgs/msg/Imu}; `counts` {topic: messages}; `latched` the topics that
    late subscribers must get too (transient local); iterating yields (bag time in ns, topic, CDR bytes).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader = _opened(self.path, self)
        self.types = {topic: info.msgtype for topic, info in self._reader.topics.items()}
        self.counts = {topic: info.msgcount for topic, info in self._reader.topics.items()}
        self.latched = {t for t, info in self._reader.topics.items() if any(map(_is_latched, info.connections))}
        self.latched |= {topic for topic in self.types if topic.endswith("tf_static")}  # some writers leave QoS out

    @property
    def listing(self) -> str:
        """Its topics with their types, each on a line of its own."""
        return "".join(f"\n  {topic}: {kind}" for topic, kind in sorted(self.types.items()))

    def __iter__(self) -> Iterator[tuple[int, str, bytes]]:
        """Raises BagError where the bag is broken further on."""
        # a generator keeps this object, and with it the file, for as long as somebody reads
        for connection, time_ns, raw in _read_on(self.path, self._reader.messages()):
            yield time_ns, connection.topic, bytes(raw)


def _is_latched(connection: Connection) -> bool:
    return any(q.durability == QosDurability.TRANSIENT_LOCAL for q in connection.ext.offered_qos_profiles)


def _opened(path: Path, owner: object) -> AnyReader:
    """An open reader, closed when its owner goes. Raises BagError when the folder is no rosbag2."""
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:  # what its parsers stumble over in a damaged file has many names
        raise BagError(f"{path} is not a readable rosbag2 folder: {error}; {REPAIR}") from error
    weakref.finalize(owner, reader.close)
    return reader


def _read_on(path: Path, messages: Iterator[Any]) -> Iterator[Any]:
    """The messages, and a BagError in place of whatever the reader raises on a broken file."""
    count = 0
    try:
        for message in messages:
            yield message
            count += 1
    except Exception as error:  # each storage has errors of its own; those of who reads do not come here
        raise BagError(f"{path} is broken after {count} messages: {error}; {REPAIR}") from error


@contextmanager
def _naming(path: Path, topic: str, at_ns: int) -> Iterator[None]:
    """A BagError, with the place, instead of whatever a broken message makes its readers stumble over."""
    try:
        yield
    except BagError:
        raise
    except Exception as error:  # also what struct, numpy and rosbags raise on bytes that are no message
        raise BagError(
            f"{path}: the message of {topic} at {at_ns} ns is broken: {error}; leave the topic out of the bag "
            "(`ros2 bag convert`), or record it anew"
        ) from error


def _header(raw: bytes, kind: str) -> tuple[int, str]:
    """Stamp in ns and frame of a message, of the first one in an array of markers; one without any has the stamp 0.

    Raises as read_header.
    """
    if kind != MARKERS:
        return read_header(raw)
    return read_header(raw, ARRAY_COUNT) if len(raw) >= ARRAY_COUNT + 16 else (0, "")

"""Writes small rosbag2 recordings for the tests, message by message, with the library `rosbags`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from lima_core.geometry import se3

STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPES = STORE.types


class BagWriter:
    """with BagWriter(path, "mcap") as bag: bag.cloud("/lidar", stamp_ns, "lidar", points) ..."""

    def __init__(self, path: Path, storage: str = "mcap") -> None:
        plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
        self._writer = Writer(path, version=8, storage_plugin=plugin)
        self._connections: dict[str, object] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def announce(self, topic: str, kind: str) -> None:
        """The topic alone, as of a publisher that sends nothing."""
        self._connections[topic] = self._writer.add_connection(topic, kind, typestore=STORE)

    def write(self, topic: str, kind: str, bag_time_ns: int, **fields: object) -> None:
        if topic not in self._connections:
            self.announce(topic, kind)
        raw = STORE.serialize_cdr(TYPES[kind](**fields), kind)
        self._writer.write(self._connections[topic], bag_time_ns, raw)

    def cloud(self, topic: str, stamp_ns: int, frame_id: str, delay_ns: int = 0, **columns: np.ndarray) -> None:
        codes = {"float32": 7, "uint8": 2, "uint16": 4}
        table = np.zeros(len(columns["x"]), [(name, column.dtype) for name, column in columns.items()])
        for name, column in columns.items():
            table[name] = column
        field = TYPES["sensor_msgs/msg/PointField"]
        self.write(
            topic,
            "sensor_msgs/msg/PointCloud2",
            stamp_ns + delay_ns,
            header=header(stamp_ns, frame_id),
            height=1,
            width=len(table),
            fields=[field(n, table.dtype.fields[n][1], codes[c.dtype.name], 1) for n, c in columns.items()],
            is_bigendian=False,
            point_step=table.itemsize,
            row_step=table.nbytes,
            data=np.frombuffer(table.tobytes(), np.uint8),
            is_dense=True,
        )

    def jpeg(self, topic: str, stamp_ns: int, frame_id: str, data: bytes) -> None:
        kind, pixels = "sensor_msgs/msg/CompressedImage", np.frombuffer(data, np.uint8)
        self.write(topic, kind, stamp_ns, header=header(stamp_ns, frame_id), format="jpeg", data=pixels)

    def image(self, topic: str, stamp_ns: int, frame_id: str, rgb: np.ndarray) -> None:
        self.write(
            topic,
            "sensor_msgs/msg/Image",
            stamp_ns,
            header=header(stamp_ns, frame_id),
            height=rgb.shape[0],
            width=rgb.shape[1],
            encoding="rgb8",
            is_bigendian=0,
            step=3 * rgb.shape[1],
            data=rgb.ravel(),
        )

    def info(self, topic: str, stamp_ns: int, frame_id: str, K: np.ndarray, size: tuple[int, int]) -> None:
        self.write(
            topic,
            "sensor_msgs/msg/CameraInfo",
            stamp_ns,
            header=header(stamp_ns, frame_id),
            width=size[0],
            height=size[1],
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=K.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([K, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )

    def transforms(self, topic: str, stamp_ns: int, *edges: tuple[str, str, np.ndarray]) -> None:
        stamped = [
            TYPES["geometry_msgs/msg/TransformStamped"](header(stamp_ns, parent), child, _transform(matrix))
            for parent, child, matrix in edges
        ]
        self.write(topic, "tf2_msgs/msg/TFMessage", stamp_ns, transforms=stamped)

    def odometry(self, topic: str, stamp_ns: int, world_from_base: np.ndarray) -> None:
        position = TYPES["geometry_msgs/msg/Point"](*map(float, world_from_base[:3, 3]))
        pose = TYPES["geometry_msgs/msg/Pose"](position, _quaternion(world_from_base))
        zero = TYPES["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
        self.write(
            topic,
            "nav_msgs/msg/Odometry",
            stamp_ns,
            header=header(stamp_ns, "map"),
            child_frame_id="base_link",
            pose=TYPES["geometry_msgs/msg/PoseWithCovariance"](pose, np.zeros(36)),
            twist=TYPES["geometry_msgs/msg/TwistWithCovariance"](
                TYPES["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36)
            ),
        )


def header(stamp_ns: int, frame_id: str) -> object:
    stamp = TYPES["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    return TYPES["std_msgs/msg/Header"](stamp, frame_id)


def _transform(matrix: np.ndarray) -> object:
    translation = TYPES["geometry_msgs/msg/Vector3"](*map(float, matrix[:3, 3]))
    return TYPES["geometry_msgs/msg/Transform"](translation, _quaternion(matrix))


def _quaternion(matrix: np.ndarray) -> object:
    w, x, y, z = map(float, se3.quaternion_from_rotation(matrix[:3, :3]))
    return TYPES["geometry_msgs/msg/Quaternion"](x, y, z, w)

"""Values -> ROS messages, of the classes that the caller has: those of a ROS installation, or rosbags'.

Both (lima_ros/convert.py, bag_messages.py) have the fields of the message definitions.
Quaternions turn from w-x-y-z to ROS's x-y-z-w here.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from lima_core.data.frame import CameraView
from lima_core.data.ros_cloud import CloudPoints, PackedCloud, pack_cloud, pack_rgb
from lima_core.geometry import se3


class Classes(Protocol):
    """Message classes by name."""

    has_vision: bool  # vision_msgs is among them

    def make(self, kind: str, /, **fields: Any) -> Any:
        """`sensor_msgs/msg/Image` -> a message; fields that are left out have their default."""

    def data(self, content: bytes | np.ndarray) -> Any:
        """What a field uint8[] takes."""


def pose_from_odometry(msg: Any) -> np.ndarray:
    """Odometry (duck-typed) -> (4, 4) world_from_base. Raises ValueError on a zero or non-finite pose."""
    p, q = msg.pose.pose.position, msg.pose.pose.orientation
    pose = se3.transform(np.array([q.w, q.x, q.y, q.z]), np.array([p.x, p.y, p.z]))
    if not np.isfinite(pose).all():
        raise ValueError(f"odometry has a non-finite position: {p.x}, {p.y}, {p.z}")
    return pose


class Messages:
    """Makes messages of the given classes."""

    def __init__(self, classes: Classes) -> None:
        self.make, self._data, self.has_vision = classes.make, classes.data, classes.has_vision

    def stamp(self, ns: int) -> Any:
        """Nanoseconds -> builtin_interfaces/Time."""
        return self.make("builtin_interfaces/msg/Time", sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """std_msgs/Header."""
        return self.make("std_msgs/msg/Header", stamp=self.stamp(stamp_ns), frame_id=frame_id)

    def cloud(self, packed: PackedCloud, stamp_ns: int, frame_id: str) -> Any:
        """`pack_cloud(...)` -> PointCloud2 of one row."""
        return self.cloud_of(packed, self.header(stamp_ns, frame_id))

    def cloud_of(self, packed: PackedCloud, header: Any) -> Any:
        """`pack_cloud(...)` -> PointCloud2 of one row with this header."""
        field = "sensor_msgs/msg/PointField"
        fields = [self.make(field, name=n, offset=o, datatype=t, count=c) for n, o, t, c in packed.fields]
        msg = self.make(
            "sensor_msgs/msg/PointCloud2",
            header=header,
            height=1,
            width=packed.width,
            fields=fields,
            is_bigendian=False,
            point_step=packed.point_step,
            row_step=packed.point_step * packed.width,
            is_dense=False,
        )
        return self._filled(msg, packed.data)

    def image(self, rgb: np.ndarray, stamp_ns: int, frame_id: str) -> Any:
        """(H, W, 3) uint8 RGB -> raw Image, encoding rgb8."""
        height, width = rgb.shape[:2]
        msg = self.make(
            "sensor_msgs/msg/Image",
            header=self.header(stamp_ns, frame_id),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
        )
        return self._filled(msg, np.ascontiguousarray(rgb))

    def compressed(self, jpeg: bytes, stamp_ns: int, frame_id: str) -> Any:
        """JPEG bytes -> CompressedImage, untouched."""
        header = self.header(stamp_ns, frame_id)
        return self._filled(self.make("sensor_msgs/msg/CompressedImage", header=header, format="jpeg"), jpeg)

    def camera_info(self, view: CameraView, frame_id: str) -> Any:
        """A camera's intrinsics at its own stamp -> CameraInfo; R is identity and P is K, as in a rectified picture."""
        K = np.asarray(view.K, np.float64)
        plain = view.distortion.model == "none"
        return self.make(
            "sensor_msgs/msg/CameraInfo",
            header=self.header(view.stamp_ns, frame_id),
            width=view.size[0],
            height=view.size[1],
            distortion_model="plumb_bob" if plain else view.distortion.model,
            d=[0.0] * 5 if plain else list(map(float, view.distortion.coefficients)),
            k=K.ravel().tolist(),
            r=np.eye(3).ravel().tolist(),
            p=np.hstack([K, np.zeros((3, 1))]).ravel().tolist(),
        )

    def odometry(
        self, world_from_base: np.ndarray, stamp_ns: int, frame_id: str = "map", child_frame_id: str = "base_link"
    ) -> Any:
        """(4, 4) pose of the vehicle in the world -> Odometry (pose only)."""
        pose = self.make("geometry_msgs/msg/PoseWithCovariance", pose=self.pose(world_from_base))
        header = self.header(stamp_ns, frame_id)
        return self.make("nav_msgs/msg/Odometry", header=header, child_frame_id=child_frame_id, pose=pose)

    def transforms(self, stamp_ns: int, *links: tuple[str, str, np.ndarray]) -> Any:
        """(parent, child, (4, 4) parent_from_child) each -> TFMessage."""
        stamped = [self._transform(stamp_ns, *link) for link in links]
        return self.make("tf2_msgs/msg/TFMessage", transforms=stamped)

    def segmentation(
        self, cloud: CloudPoints, labels: np.ndarray, probability: np.ndarray, rgb: np.ndarray, header: Any
    ) -> Any:
        """The input's points, order, raw intensity and header, with (N,) labels and probability and (N, 3) rgb."""
        columns = {axis: np.ascontiguousarray(cloud.points[:, index]) for index, axis in enumerate("xyz")}
        columns |= {"intensity": cloud.raw_intensity, "label": labels, "probability": probability, "rgb": pack_rgb(rgb)}
        return self.cloud_of(pack_cloud(columns), header)

    def pose(self, matrix: np.ndarray) -> Any:
        """(4, 4) -> geometry_msgs/Pose."""
        x, y, z = map(float, matrix[:3, 3])
        position = self.make("geometry_msgs/msg/Point", x=x, y=y, z=z)
        return self.make("geometry_msgs/msg/Pose", position=position, orientation=self._quaternion(matrix))

    def _transform(self, stamp_ns: int, parent: str, child: str, parent_from_child: np.ndarray) -> Any:
        x, y, z = map(float, parent_from_child[:3, 3])
        translation = self.make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)
        rotation = self._quaternion(parent_from_child)
        transform = self.make("geometry_msgs/msg/Transform", translation=translation, rotation=rotation)
        header = self.header(stamp_ns, parent)
        return self.make("geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform)

    def _quaternion(self, matrix: np.ndarray) -> Any:
        w, x, y, z = map(float, se3.quaternion_from_rotation(matrix[:3, :3]))
        return self.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

    def _filled(self, msg: Any, content: bytes | np.ndarray) -> Any:
        """The message with its `data`; assigned, because a ROS constructor would copy it once more."""
        msg.data = self._data(content)
        return msg

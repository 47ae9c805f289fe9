"""numpy <-> ROS messages. Message packages only, no rclpy; quaternions turn from w-x-y-z to ROS's x-y-z-w here.

Bulk data is assigned as array.array: a list or an ndarray costs 400-1000 ms per raw image (spec: Transport).
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from lima_core.data.frame import CameraView
from lima_core.data.ros_cloud import CloudPoints, PackedCloud, pack_cloud, pack_rgb
from lima_core.geometry import se3
from lima_ros.health import Status
from lima_ros.parameters import Parameter


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (duck-typed) -> nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def to_stamp(ns: int) -> Time:
    """Nanoseconds -> builtin_interfaces/Time."""
    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def header(stamp_ns: int, frame_id: str) -> Header:
    """std_msgs/Header."""
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame_id)


def cloud_message(packed: PackedCloud, stamp_ns: int, frame_id: str) -> PointCloud2:
    """`pack_cloud(...)` -> PointCloud2 of one row."""
    msg = PointCloud2(
        header=header(stamp_ns, frame_id),
        height=1,
        width=packed.width,
        fields=[PointField(name=n, offset=o, datatype=t, count=c) for n, o, t, c in packed.fields],
        is_bigendian=False,
        point_step=packed.point_step,
        row_step=packed.point_step * packed.width,
        is_dense=False,
    )
    return _filled(msg, packed.data)


def image_message(rgb: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """(H, W, 3) uint8 RGB -> raw Image, encoding rgb8."""
    height, width = rgb.shape[:2]
    msg = Image(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
    )
    return _filled(msg, np.ascontiguousarray(rgb))


def compressed_message(jpeg: bytes, stamp_ns: int, frame_id: str) -> CompressedImage:
    """JPEG bytes -> CompressedImage, untouched."""
    return _filled(CompressedImage(header=header(stamp_ns, frame_id), format="jpeg"), jpeg)


def camera_info_message(view: CameraView, frame_id: str) -> CameraInfo:
    """A camera's intrinsics at its own stamp -> CameraInfo; R is identity and P is K, as in a rectified picture."""
    K = np.asarray(view.K, np.float64)
    plain = view.distortion.model == "none"
    return CameraInfo(
        header=header(view.stamp_ns, frame_id),
        width=view.size[0],
        height=view.size[1],
        distortion_model="plumb_bob" if plain else view.distortion.model,
        d=[0.0] * 5 if plain else list(map(float, view.distortion.coefficients)),
        k=K.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([K, np.zeros((3, 1))]).ravel().tolist(),
    )


def odometry_message(
    world_from_base: np.ndarray, stamp_ns: int, frame_id: str = "map", child_frame_id: str = "base_link"
) -> Odometry:
    """(4, 4) pose of the vehicle in the world -> Odometry (pose only)."""
    msg = Odometry(header=header(stamp_ns, frame_id), child_frame_id=child_frame_id)
    position, orientation = msg.pose.pose.position, msg.pose.pose.orientation
    position.x, position.y, position.z = map(float, world_from_base[:3, 3])
    quaternion = se3.quaternion_from_rotation(world_from_base[:3, :3])
    orientation.w, orientation.x, orientation.y, orientation.z = map(float, quaternion)
    return msg


def pose_from_odometry(msg: Any) -> np.ndarray:
    """Odometry (duck-typed) -> (4, 4) world_from_base. Raises ValueError on a zero or non-finite pose."""
    p, q = msg.pose.pose.position, msg.pose.pose.orientation
    pose = se3.transform(np.array([q.w, q.x, q.y, q.z]), np.array([p.x, p.y, p.z]))
    if not np.isfinite(pose).all():
        raise ValueError(f"odometry has a non-finite position: {p.x}, {p.y}, {p.z}")
    return pose


def segmentation_message(
    cloud: CloudPoints, labels: np.ndarray, probability: np.ndarray, rgb: np.ndarray, header: Header
) -> PointCloud2:
    """The input's points, order, raw intensity and header, with (N,) labels and probability and (N, 3) rgb."""
    columns = {axis: np.ascontiguousarray(cloud.points[:, index]) for index, axis in enumerate("xyz")}
    columns |= {"intensity": cloud.raw_intensity, "label": labels, "probability": probability, "rgb": pack_rgb(rgb)}
    msg = cloud_message(pack_cloud(columns), 0, "")
    msg.header = header
    return msg


def diagnostics_message(status: Status, name: str, hardware_id: str, stamp_ns: int) -> DiagnosticArray:
    """`health.status(...)` -> DiagnosticArray of one status."""
    values = [KeyValue(key=key, value=value) for key, value in status.values]
    one = DiagnosticStatus(
        level=bytes([status.level]), name=name, message=status.message, hardware_id=hardware_id, values=values
    )
    return DiagnosticArray(header=header(stamp_ns, ""), status=[one])


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Description and range of a parameter; what may change when is the node's business."""
    text = parameter.description + (f" ({' | '.join(parameter.choices)})" if parameter.choices else "")
    out = ParameterDescriptor(name=parameter.name, description=text)
    if parameter.low is not None and type(parameter.default) is float:
        out.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    elif parameter.low is not None:
        out.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)]
    return out


def _filled(msg: Any, data: bytes | np.ndarray) -> Any:
    """The message with its `data`; assigned, because the constructor would copy it once more."""
    content = array("B")
    content.frombytes(memoryview(data).cast("B") if len(data) else b"")
    msg.data = content
    return msg

"""Messages without ROS: the classes of the library rosbags, and their bytes (CDR) as a rosbag2 holds them."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from lima_core.data.ros_cloud import CloudError
from lima_core.data.ros_header import read_header
from lima_core.runtime.messages import Messages

# Fields of vision_msgs 4.1 (Humble to Kilted), which rosbags does not know:
# https://github.com/ros-perception/vision_msgs
VISION = {
    "Detection3DArray": "std_msgs/Header header\nDetection3D[] detections",
    "Detection3D": "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox3D bbox\nstring id",
    "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size",
    "LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold",
    "VisionClass": "uint16 class_id\nstring class_name",
}
# The only default of these definitions that is not zero (geometry_msgs/msg/Quaternion)
DEFAULTS = {("geometry_msgs/msg/Quaternion", "w"): 1.0}


@cache
def typestore() -> Typestore:
    """Definitions that ROS 2 Humble and its successors share, with those of vision_msgs."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in VISION.items():
        store.register(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    return store


class BagClasses:
    """The `Classes` of rosbags."""

    has_vision = True

    def __init__(self) -> None:
        self._store = typestore()

    def make(self, kind: str, /, **fields: Any) -> Any:
        """A message; fields that are left out have their default. Raises ValueError on a field that it lacks."""
        known = dict(self._store.fielddefs[kind][1])
        unknown = fields.keys() - known.keys()
        if unknown:
            raise ValueError(f"{kind} has no field {', '.join(sorted(unknown))}; its fields are {', '.join(known)}")
        values = {
            name: _array(shape, fields[name]) if name in fields else self._default(kind, name, shape)
            for name, shape in known.items()
        }
        return self._store.types[kind](**values)

    def data(self, content: bytes | np.ndarray) -> np.ndarray:
        """A view of the bytes."""
        return np.frombuffer(memoryview(content).cast("B") if len(content) else b"", np.uint8)

    def _default(self, kind: str, name: str, shape: Any) -> Any:
        """Zero, empty, or what the definition says."""
        node, detail = shape
        if (kind, name) in DEFAULTS:
            return DEFAULTS[kind, name]
        if node == Nodetype.NAME:
            return self.make(detail)
        if node == Nodetype.BASE:
            return "" if detail[0] == "string" else np.dtype(detail[0]).type(0).item()
        (inner, of), count = detail
        length = count if node == Nodetype.ARRAY else 0
        if inner == Nodetype.BASE and of[0] != "string":
            return np.zeros(length, of[0])
        return [self.make(of) if inner == Nodetype.NAME else "" for _ in range(length)]


def _array(shape: Any, value: Any) -> Any:
    """Numbers of a list field as an array, which is how rosbags has them."""
    node, detail = shape
    if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        inner, of = detail[0]
        if inner == Nodetype.BASE and of[0] != "string":
            return np.asarray(value, of[0])
    return value


@cache
def bag_messages() -> Messages:
    """Makes messages that `typestore().serialize_cdr` takes."""
    return Messages(BagClasses())


class MessageError(CloudError):
    """Bytes that are no message of their type; who reads a cloud of them has a broken cloud."""


class LazyMessage:
    """The bytes of a message that begins with a header, decoded when more than the header is asked for.

    Reading a field raises MessageError where the bytes are broken.
    """

    def __init__(self, raw: bytes, kind: str) -> None:
        self._raw, self._kind = raw, kind

    def __getattr__(self, name: str) -> Any:
        """A field. Raises AttributeError where the message has none of this name."""
        try:
            # the header is read by itself: most messages are passed over by their stamp
            value = _header(self._raw) if name == "header" else getattr(self._message, name)
        except AttributeError:
            raise
        except Exception as error:  # whatever struct, numpy and rosbags raise on bytes that are no message
            raise MessageError(f"{len(self._raw)} bytes are no {self._kind}: {error}") from error
        setattr(self, name, value)
        return value

    @cached_property
    def _message(self) -> Any:
        return typestore().deserialize_cdr(self._raw, self._kind)


def _header(raw: bytes) -> Any:
    """The std_msgs/Header that a message begins with."""
    types, (at_ns, frame_id) = typestore().types, read_header(raw)
    stamp = types["builtin_interfaces/msg/Time"](at_ns // 1_000_000_000, at_ns % 1_000_000_000)
    return types["std_msgs/msg/Header"](stamp, frame_id)

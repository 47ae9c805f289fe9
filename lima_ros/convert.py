"""ROS's own message classes for `lima_core.runtime.messages`, and what only a node sends. Message packages, no rclpy.

Bulk data is assigned as array.array: a list or an ndarray costs 400-1000 ms per raw image (spec: Transport).
"""

from __future__ import annotations

import importlib
from array import array
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from lima_core.runtime.health import Status
from lima_core.runtime.messages import Messages
from lima_core.runtime.parameters import Parameter


@cache
def message_class(name: str) -> type:
    """sensor_msgs/msg/Image -> its class. Raises ImportError or AttributeError where it is not installed."""
    package, _, message = name.partition("/msg/")
    return getattr(importlib.import_module(f"{package}.msg"), message)


class RosClasses:
    """The `Classes` of the ROS installation."""

    @property
    def has_vision(self) -> bool:
        """Whether vision_msgs is installed."""
        return find_spec("vision_msgs") is not None

    def make(self, kind: str, /, **fields: Any) -> Any:
        """A message; fields that are left out have their default."""
        return message_class(kind)(**fields)

    def data(self, content: bytes | np.ndarray) -> array:
        """A copy of the bytes, as ROS wants them."""
        out = array("B")
        out.frombytes(memoryview(content).cast("B") if len(content) else b"")
        return out


ROS = Messages(RosClasses())


def diagnostics_message(status: Status, name: str, hardware_id: str, stamp_ns: int) -> DiagnosticArray:
    """`health.status(...)` -> DiagnosticArray of one status."""
    values = [KeyValue(key=key, value=value) for key, value in status.values]
    one = DiagnosticStatus(
        level=bytes([status.level]), name=name, message=status.message, hardware_id=hardware_id, values=values
    )
    return DiagnosticArray(header=ROS.header(stamp_ns, ""), status=[one])


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Description and range of a parameter; what may change when is the node's business."""
    text = parameter.description + (f" ({' | '.join(parameter.choices)})" if parameter.choices else "")
    out = ParameterDescriptor(name=parameter.name, description=text)
    if parameter.low is not None and type(parameter.default) is float:
        out.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    elif parameter.low is not None:
        out.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)]
    return out

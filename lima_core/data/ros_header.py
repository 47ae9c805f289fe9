"""std_msgs/Header: of any message object (rclpy, rosbags, a test double), and at the beginning of a message's bytes."""

from __future__ import annotations

import struct
from typing import Any


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (duck-typed) -> nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def read_header(raw: bytes, before: int = 0) -> tuple[int, str]:
    """Stamp in ns and frame of the header `before` bytes into a CDR message, after 4 bytes of encapsulation.

    Raises ValueError, IndexError or struct.error where the message ends in its header.
    """
    order = "<" if raw[1] & 1 else ">"
    seconds, nanoseconds, length = struct.unpack_from(f"{order}iII", raw, before + 4)
    end = before + 15 + length
    if end > len(raw):
        raise ValueError(f"it has {len(raw)} bytes, its header alone {end}")
    return seconds * 1_000_000_000 + nanoseconds, bytes(raw[before + 16 : end]).decode()

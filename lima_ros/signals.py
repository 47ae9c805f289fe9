"""How our nodes take SIGINT and SIGTERM: once. A process group and launch often both send it; no rclpy."""

from __future__ import annotations

import signal
from types import FrameType


def interrupt_once() -> None:
    """From now on the first SIGINT or SIGTERM raises KeyboardInterrupt; further ones do not disturb the shutdown.

    To be used with SignalHandlerOptions.NO: rclpy's own handler would invalidate the context that is still needed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt

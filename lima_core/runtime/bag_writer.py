"""Writes a rosbag2 that `ros2 bag play` of Humble and later takes; no ROS."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from lima_core.data.bag import BagMessages
from lima_core.runtime.bag_messages import typestore

Storage = Literal["mcap", "sqlite3"]
VERSION = 8  # Humble reads QoS profiles as text, which version 9 has as a list
PLUGINS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


def is_complete(path: Path) -> bool:
    """Whether `path` is a bag that was written to its end; False where nothing is there.

    Raises FileExistsError where something else is.
    """
    if not path.exists():
        return False
    if not (path / "metadata.yaml").is_file():  # what a BagWriter leaves has it
        raise FileExistsError(
            f"{path} is there and is no complete bag (no metadata.yaml); remove it, or write elsewhere"
        )
    BagMessages(path)  # raises BagError where it cannot be opened
    return True


class BagWriter:
    """with BagWriter(path) as bag: bag.write("/lidar", message, stamp_ns) ...

    The folder appears under its name once it is complete; where the block is left by an exception nothing remains.
    The same calls give the same bytes. Raises FileExistsError where `path` is already there.
    """

    def __init__(self, path: str | Path, storage: Storage = "mcap") -> None:
        self.path, self._storage = Path(path), storage
        self._part = self.path.with_name(f".{self.path.name}.part")  # no pid: the files' names are inside the bag
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already; choose another name, or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._part, ignore_errors=True)
        # the folder's name becomes the name of the file in it: one more folder keeps it
        self._writer = Writer(self._part / self.path.name, version=VERSION, storage_plugin=PLUGINS[self._storage])
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                (self._part / self.path.name).rename(self.path)
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def write(self, topic: str, message: Any, bag_ns: int, latched: bool = False) -> None:
        """A message of `bag_messages()` at a bag time in ns; `latched` topics are kept for late subscribers."""
        kind = message.__msgtype__
        self.write_raw(topic, kind, bytes(typestore().serialize_cdr(message, kind)), bag_ns, latched)

    def write_raw(self, topic: str, kind: str, cdr: bytes, bag_ns: int, latched: bool = False) -> None:
        """The CDR bytes of a message."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=typestore(), offered_qos_profiles=[_profile(latched)]
            )
        self._writer.write(self._connections[topic], bag_ns, cdr)


def _profile(latched: bool) -> Qos:
    """Reliable, depth 10; transient local where latched. Times are rosbag2's "unspecified"."""
    never = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        False,
    )

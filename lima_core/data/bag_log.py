"""What a rosbag2 holds, as far as stamps and headers say: one pass, a log of each topic, and the frames of /tf."""

from __future__ import annotations

import sqlite3
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from lima_core.data.bag import CLOUD, COMPRESSED, INFO, ODOMETRY, RAW, TRANSFORMS, BagMessages
from lima_core.data.ros_header import stamp_ns

STAMPED = (CLOUD, COMPRESSED, RAW, INFO, ODOMETRY)
UNREADABLE = (AnyReaderError, ReaderError, SerdeError, sqlite3.DatabaseError, struct.error, ValueError, IndexError)


@dataclass
class TopicLog:
    """Messages of one topic in the order of recording: header stamps and bag times in ns, and a few whole ones.

    `problem` says why one of these could not be decoded, "" = none failed.
    """

    kind: str
    stamps_ns: list[int] = field(default_factory=list)
    bag_ns: list[int] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)
    problem: str = ""

    @property
    def period_ns(self) -> float:
        """Median time between two messages, nan with fewer than two."""
        steps = np.diff(np.unique(self.stamps_ns))
        return float(np.median(steps)) if len(steps) else float("nan")

    @property
    def frame_id(self) -> str:
        """Of the first message kept."""
        return self.samples[0].header.frame_id.lstrip("/") if self.samples else ""

    @property
    def age_s(self) -> float:
        """Median of bag time minus header stamp."""
        pairs = zip(self.bag_ns, self.stamps_ns, strict=False)  # a message too short for a stamp has none
        return float(np.median([bag - stamp for bag, stamp in pairs])) / 1e9


class Recording:
    """One pass over a rosbag2: a log of each stamped topic, with up to `samples` messages of it, and the frames of /tf.

    `broken` says why the pass ended early, "" = it did not. Raises BagError when the folder cannot be opened.
    """

    def __init__(self, path: Path, samples: int) -> None:
        self._messages = BagMessages(path)
        self.types, self.counts = self._messages.types, self._messages.counts
        self.logs = {topic: TopicLog(kind) for topic, kind in self.types.items()}
        self.parents: dict[str, str] = {}
        self.moving: dict[str, list[int]] = {}  # stamps in ns by child frame
        self._store, self._samples, self.broken = get_typestore(Stores.ROS2_HUMBLE), samples, ""
        try:
            for bag_ns, topic, raw in self._messages:
                self._add(topic, bag_ns, raw)
        except UNREADABLE as error:
            self.broken = f"{type(error).__name__}: {error}"

    def of_type(self, *kinds: str) -> list[str]:
        """Topics of these types that have messages, truth aside."""
        return [t for t, log in sorted(self.logs.items()) if log.kind in kinds and log.bag_ns and t[:4] != "/gt/"]

    def chain(self, frame: str) -> list[str]:
        """The frame and its ancestors."""
        frames = [frame]
        while (parent := self.parents.get(frames[-1])) and parent not in frames:
            frames.append(parent)
        return frames

    def fixed_root(self, frame: str) -> str:
        """The furthest ancestor over frames that do not move."""
        return next((f for f in self.chain(frame) if f in self.moving or f not in self.parents), frame)

    def _add(self, topic: str, bag_ns: int, raw: bytes) -> None:
        log = self.logs[topic]
        log.bag_ns.append(bag_ns)
        try:
            if log.kind in STAMPED:
                self._keep(log, raw, self.counts[topic])
            elif log.kind == TRANSFORMS:
                for item in self._store.deserialize_cdr(raw, log.kind).transforms:
                    self._link(item, moves=not topic.endswith("tf_static"))
        except UNREADABLE as error:  # of this message alone
            log.problem = f"{type(error).__name__}: {error}"

    def _keep(self, log: TopicLog, raw: bytes, count: int) -> None:
        """Its stamp, and of clouds some messages, of others the first."""
        seconds, rest = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)  # the header comes first
        log.stamps_ns.append(seconds * 10**9 + rest)
        wanted = self._samples if log.kind == CLOUD else 1
        if len(log.samples) < wanted and (len(log.bag_ns) - 1) % max(1, count // wanted) == 0:
            log.samples.append(self._store.deserialize_cdr(raw, log.kind))

    def _link(self, item: Any, moves: bool) -> None:
        child, stamp = item.child_frame_id.lstrip("/"), item.header.stamp
        self.parents[child] = item.header.frame_id.lstrip("/")
        if moves:
            self.moving.setdefault(child, []).append(stamp_ns(stamp))

"""Our synchroniser against message_filters: `PYTHONPATH=<where message_filters is> python -m bench.synchronizer`.

nuScenes rates: a LiDAR of 20 Hz, six cameras of 12 Hz at their offsets (spec/ros.md, facts 2 and 10), 20 s, no
transport. First the time of a call per message. Then the bag is played three times over: sweeps with all six images, in
each loop, where the cameras end with the LiDAR and where they end before it, as they do in real bags.

message_filters comes with ROS 2 (apt install ros-$ROS_DISTRO-message-filters). Its Python half needs rclpy alone: a
checkout of github.com/ros2/message_filters, its folder `src` in PYTHONPATH, does as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_core.files import write_whole
from lima_core.runtime.synchronizer import SyncedSweep, Synchronizer, Window
from lima_ros import convert

try:
    import message_filters
except ImportError as error:
    message_filters, MISSING = None, str(error)

MS = 1_000_000
START_NS = 1_532_402_927_000 * MS
SECONDS, LOOPS, LIDAR_HZ, CAMERA_HZ, JITTER_MS = 20, 3, 20, 12, 1.0
LIDAR = "LIDAR_TOP"
OFFSETS_MS = {mount.name: mount.offset_ms for mount in street_rig().cameras}  # those of nuScenes
TOLERANCE_MS, TIMEOUT_MS = 45.0, 50.0  # ours: the node's defaults
SLOP_MS, QUEUE = 60.0, 10  # message_filters': as in fact 2
EARLY_S = (0.0, 0.2, 0.5)  # how long before the LiDAR the cameras end


@dataclass(frozen=True)
class Arrival:
    """A message of one sensor."""

    stamp_ns: int
    sensor: str
    message: Any


class Ours:
    """The node's synchroniser; `sets` counts complete sweeps by the loop they came in."""

    def __init__(self) -> None:
        self._sync = Synchronizer({n: Window(o, TOLERANCE_MS) for n, o in OFFSETS_MS.items()}, TIMEOUT_MS)
        self.sets = [0] * LOOPS

    def take(self, arrival: Arrival, loop: int, now_s: float) -> None:
        """A message comes at `now_s`."""
        if arrival.sensor == LIDAR:
            self._count(self._sync.add_sweep(arrival.stamp_ns, loop, now_s))
        else:
            self._count(self._sync.add_image(arrival.sensor, arrival.stamp_ns, arrival.message, now_s))

    def end(self) -> None:
        """What still waits, goes."""
        self._count(self._sync.reset())

    def _count(self, finished: list[SyncedSweep]) -> None:
        for synced in finished:
            self.sets[synced.sweep] += synced.complete


class Theirs:
    """message_filters.ApproximateTimeSynchronizer; `sets` counts by the loop of the call."""

    def __init__(self) -> None:
        self._inputs = {name: message_filters.SimpleFilter() for name in (LIDAR, *OFFSETS_MS)}
        matcher = message_filters.ApproximateTimeSynchronizer(list(self._inputs.values()), QUEUE, SLOP_MS * 1e-3)
        matcher.registerCallback(self._count)
        self.sets, self._loop = [0] * LOOPS, 0

    def take(self, arrival: Arrival, loop: int, now_s: float) -> None:
        """A message comes."""
        self._loop = loop
        self._inputs[arrival.sensor].signalMessage(arrival.message)

    def end(self) -> None:
        """Nothing: what is in no set is never heard of again."""

    def _count(self, *_: Any) -> None:
        self.sets[self._loop] += 1


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if message_filters is None:
        sys.exit(f"message_filters cannot be imported ({MISSING}); see `python -m bench.synchronizer --help`")
    costs = {kind.__name__: cost(kind) for kind in (Ours, Theirs)}
    ratios = {key: costs["Ours"][key] / costs["Theirs"][key] for key in costs["Ours"]}
    print(f"{LIDAR_HZ} Hz LiDAR, six cameras of {CAMERA_HZ} Hz, {SECONDS} s: microseconds per message")
    for name, row in costs.items():
        print(f"  {name:8s}" + "".join(f"{key} {value:8.2f}   " for key, value in row.items()))
    print("  ratio   " + "".join(f"{key} 1/{1 / ratio:<6.1f}   " for key, ratio in ratios.items()))
    loops = {early_s: {kind.__name__: played(kind, early_s) for kind in (Ours, Theirs)} for early_s in EARLY_S}
    print(f"played {LOOPS} times: complete sweeps of {SECONDS * LIDAR_HZ} in each loop")
    for early_s, row in loops.items():
        print(f"  cameras end {early_s:.1f} s early:   " + "   ".join(f"{n} {sets}" for n, sets in row.items()))
    if options.json:
        report = {"us_per_message": costs, "ratio": ratios, "sets": {f"{s} s early": row for s, row in loops.items()}}
        write_whole(options.json, json.dumps(report, indent=2) + "\n")


def bag(early_s: float = 0.0) -> list[Arrival]:
    """All messages in order of their stamps, which have some jitter; the cameras end `early_s` before the LiDAR."""
    rng = np.random.default_rng(0)
    arrivals = []
    for name, offset_ms in {LIDAR: 0.0, **OFFSETS_MS}.items():
        hz, until_s = (LIDAR_HZ, SECONDS) if name == LIDAR else (CAMERA_HZ, SECONDS - early_s)
        times_ms = np.arange(0, 1000 * until_s, 1000 / hz) + offset_ms
        for time_ms in times_ms + rng.uniform(-JITTER_MS, JITTER_MS, len(times_ms)):
            stamp_ns = START_NS + round(time_ms * MS)
            arrivals.append(Arrival(stamp_ns, name, SimpleNamespace(header=convert.ROS.header(stamp_ns, name))))
    return sorted(arrivals, key=lambda arrival: arrival.stamp_ns)


def cost(kind: type[Ours | Theirs]) -> dict[str, float]:
    """Mean, median and 99th percentile of a call, and all calls over the complete sweeps, microseconds."""
    matcher, taken_us = kind(), []
    for arrival in bag():
        now_s = (arrival.stamp_ns - START_NS) * 1e-9
        start = time.perf_counter_ns()
        matcher.take(arrival, 0, now_s)
        taken_us.append((time.perf_counter_ns() - start) / 1e3)
    p50, p99 = np.percentile(taken_us, [50, 99])
    matcher.end()
    per_set = sum(taken_us) / matcher.sets[0]
    return {"mean": float(np.mean(taken_us)), "p50": float(p50), "p99": float(p99), "per complete sweep": per_set}


def played(kind: type[Ours | Theirs], early_s: float) -> list[int]:
    """Complete sweeps of each loop of the bag."""
    matcher = kind()
    for loop in range(LOOPS):
        for arrival in bag(early_s):
            matcher.take(arrival, loop, now_s=loop * (SECONDS + 1) + (arrival.stamp_ns - START_NS) * 1e-9)
    matcher.end()
    return matcher.sets


if __name__ == "__main__":
    main()

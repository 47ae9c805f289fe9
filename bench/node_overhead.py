"""What the perception node costs besides the network: `OMP_NUM_THREADS=1 python -m bench.node_overhead [--json FILE]`.

One sweep of 35,000 points and six JPEGs of 1600 x 900, as DDS hands them over: deserialised by rclpy, then given to the
node's pipeline, whose network answers at once. "executor" is what the thread does that must never be late: the seven
messages' deserialisation and callbacks. "worker" is decoding and result messages, in the network's own thread. Medians
and 95th percentiles in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, PointCloud2

from lima_core.data.ros_cloud import pack_cloud
from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_core.files import write_whole
from lima_core.predictor import Perception, Segmentation
from lima_core.runtime.parameters import resolve
from lima_core.runtime.pipeline import Pipeline
from lima_ros import convert

POINTS, SIZE, PERIOD_NS = 35_000, (1600, 900), 50_000_000
START_NS = 1_600_000_000_000_000_000


class Network:
    """Answers at once, so that only the node's own work is left."""

    colors, device, meta = np.full((16, 3), 90, np.uint8), "cpu", {"inputs": {}}
    class_names, detection_names, sweeps = tuple(f"class {i}" for i in range(16)), (), 1

    def __init__(self) -> None:
        self._answer = Segmentation(np.zeros(POINTS, np.uint8), np.full(POINTS, 0.9, np.float32))

    def perceive(self, points: np.ndarray, past: list) -> Perception:
        """The same labels for every sweep."""
        return Perception(self._answer, None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stages: dict[str, list[float]] = {"preprocess": [], "postprocess": []}
    outputs = SimpleNamespace(
        publish=lambda topic, msg: None,
        wanted=lambda topic: False,
        warn=lambda text: None,
        publish_ms=lambda stage, ms: stages[stage].append(ms) if stage in stages else None,
    )
    pipeline = Pipeline(Network(), street_rig(), resolve({}), outputs, convert.ROS)
    sweep, jpeg = columns(), picture()
    deserialise, callbacks = [], []
    for index in range(options.sweeps):
        raw = serialised(pipeline, index, sweep, jpeg)
        start = time.perf_counter()
        messages = [(name, deserialize_message(data, kind)) for name, kind, data in raw]
        between = time.perf_counter()
        for name, message in messages:
            pipeline.on_cloud(message) if name is None else pipeline.on_image(name, message)
        pipeline.poll()
        end = time.perf_counter()
        deserialise.append(1000 * (between - start))
        callbacks.append(1000 * (end - between))
        while len(stages["postprocess"]) <= index:  # one at a time: the worker's Python would share the core
            time.sleep(0.0005)
    pipeline.close()
    account = pipeline.ledger.account()
    assert account.published == options.sweeps and account.cameras["CAM_FRONT"]["matched"] == options.sweeps, account
    rows = {
        "executor: deserialise 7 messages": deserialise,
        "executor: callbacks": callbacks,
        "worker: decode the cloud": stages["preprocess"],
        "worker: build and send the result": stages["postprocess"],
    }
    report = {name: [float(np.percentile(ms, p)) for p in (50, 95)] for name, ms in rows.items()}
    what = f"{POINTS} points and six JPEGs of {SIZE[0]} x {SIZE[1]} ({len(jpeg) / 1e3:.0f} kB)"
    print(f"{what}, {options.sweeps} sweeps, ms")
    for name, (median, p95) in report.items():
        print(f"  {name:36s} p50 {median:7.3f}   p95 {p95:7.3f}")
    if options.json:
        write_whole(options.json, json.dumps(report, indent=2) + "\n")


def columns() -> dict[str, np.ndarray]:
    """A sweep as a driver sends it: x, y, z, intensity, ring."""
    rng = np.random.default_rng(0)
    xyz = {axis: rng.uniform(-50, 50, POINTS).astype(np.float32) for axis in "xyz"}
    return {**xyz, "intensity": rng.uniform(0, 255, POINTS).astype(np.float32), "ring": np.zeros(POINTS, np.float32)}


def picture() -> bytes:
    """A JPEG with as much detail as a street, about 200 kB."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC))[1].tobytes()


def serialised(
    pipeline: Pipeline, index: int, sweep: dict[str, np.ndarray], jpeg: bytes
) -> list[tuple[Any, type, bytes]]:
    """(camera or None, type, CDR) of the messages of one sweep, images first, as their stamps have it."""
    stamp = START_NS + index * PERIOD_NS
    images = [
        (name, CompressedImage, convert.ROS.compressed(jpeg, stamp + round(mount.offset_ms * 1e6), mount.frame_id))
        for name, mount in pipeline.mounts.items()
    ]
    cloud = (None, PointCloud2, convert.ROS.cloud(pack_cloud(sweep), stamp, "LIDAR_TOP"))
    return [(name, kind, serialize_message(message)) for name, kind, message in (*images, cloud)]


if __name__ == "__main__":
    main()

"""Soak of the perception node: `python -m bench.soak [--minutes 10] [--hz 20] [--points 600] [--overlay]`.

The node runs in a process of its own, with the shipped network on the CPU, and hears over DDS what a vehicle sends: a
LiDAR and six cameras (JPEGs of 1600 x 900). `--overlay` also listens to the overlay of one camera. Printed at the end:
the process's memory over time, the ledger, latency from reception to publication, and what of it is not the network.
Exit status 1 when the node ends by itself or its ledger does not close.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Float64
from tqdm import tqdm

from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.rig import Rig
from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_core.runtime.frame_messages import frame_messages
from lima_core.runtime.health import statistics
from lima_core.runtime.pipeline import overlay_topic
from lima_core.runtime.transforms import static_camera_from_lidar
from lima_ros import bringup
from lima_ros.convert import ROS
from lima_ros.processes import Process

BEGIN_NS = 1_700_000_000_000_000_000
SIZE = (1600, 900)
K = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])
SAMPLE_S = 10.0
STAGES = ("preprocess", "inference", "postprocess", "total")
WARM_UP = 0.25  # share of the samples, at the begin, that the slope leaves out
MEMORY = ("VmRSS", "RssAnon")  # all pages; those that are neither files nor shared with other processes


class Vehicle:
    """Sends a standing vehicle's sensors at their own times, and hears the node's durations."""

    def __init__(self, rig: Rig, points: int, hz: float, overlay: bool) -> None:
        rclpy.init(args=[])
        self.node = rclpy.create_node("vehicle")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._period_ns = round(1e9 / hz)
        self._messages = frame_messages(standing(rig, points), rig, ROS)
        self._out = {m.topic: self.node.create_publisher(type(m.message), m.topic, 10) for m in self._messages}
        self._durations: dict[str, list[Float64]] = {stage: [] for stage in STAGES}
        for stage, heard in self._durations.items():
            self.node.create_subscription(Float64, f"/perception/debug/{stage}_ms", heard.append, 100)
        self.sent = self.overlays = 0
        self.seconds = 0.0
        if overlay:
            topic = f"/perception/output/{overlay_topic('CAM_FRONT')}"
            self.node.create_subscription(CompressedImage, topic, self._count_overlay, 1)

    @property
    def ms(self) -> dict[str, list[float]]:
        """Durations heard, by stage, in order."""
        return {stage: [message.data for message in heard] for stage, heard in self._durations.items()}

    def wait_for(self, process: Process, timeout_s: float = 120.0) -> None:
        """Until the node listens. Raises RuntimeError with its output when it does not."""
        deadline = time.monotonic() + timeout_s
        while not all(publisher.get_subscription_count() for publisher in self._out.values()):
            if process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node does not listen:\n{process.output()}")
            self._executor.spin_once(timeout_sec=0.05)
        self.spin_until(time.monotonic() + 1.0)

    def send(self, begin_s: float) -> None:
        """The next sweep and its images, each when it is due; `begin_s` = steady time of the first message of all."""
        shift_ns = self.sent * self._period_ns
        for outgoing in self._messages:
            stamp_ns = outgoing.stamp_ns + shift_ns
            self.spin_until(begin_s + (stamp_ns - self._messages[0].stamp_ns) / 1e9)
            outgoing.message.header.stamp = ROS.stamp(stamp_ns)
            self._out[outgoing.topic].publish(outgoing.message)
        self.sent += 1

    def spin_until(self, end_s: float) -> None:
        """Runs callbacks until a steady time; one even where it is past, or results would not be heard when late."""
        left_s = 0.0
        while left_s >= 0:
            self._executor.spin_once(timeout_sec=left_s)
            left_s = end_s - time.monotonic()

    def close(self) -> None:
        """Destroys node and context."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def _count_overlay(self, _: CompressedImage) -> None:
        self.overlays += 1


def standing(rig: Rig, points: int) -> Frame:
    """A sweep of (points, 4) within 50 m and a picture per camera with as much detail as a street, about 200 kB."""
    rng = np.random.default_rng(0)
    cloud = rng.uniform([-50, -50, -2, 0], [50, 50, 3, 1], (points, 4)).astype(np.float32)
    small = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
    image = Image(pixels=cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC))
    views = [
        CameraView(
            mount.name,
            BEGIN_NS + round(mount.offset_ms * 1e6),
            image,
            SIZE,
            K,
            static_camera_from_lidar(mount.base_from_camera, rig.base_from_lidar),
        )
        for mount in rig.cameras
    ]
    return Frame(BEGIN_NS, "standing", 0, cloud, world_from_lidar=rig.base_from_lidar, cameras=tuple(views))


def memory_mb(pid: int) -> dict[str, float]:
    """MB of a process by name of MEMORY, from /proc."""
    found = re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return {name: int(kb) / 1024 for name, kb in found if name in MEMORY}


def slope(seconds: Sequence[float], mb: Sequence[float]) -> float:
    """MB per minute, least squares, without the warm-up; nan with fewer than two samples after it."""
    first = round(WARM_UP * len(mb))
    if len(mb) - first < 2:
        return float("nan")
    return float(np.polyfit(np.asarray(seconds[first:]) / 60, mb[first:], 1)[0])


def node_spec(rig: Rig, folder: Path, env: dict[str, str]) -> bringup.NodeSpec:
    """The perception node; reliable inputs, so that what is missing was dropped by the node and not on the way."""
    rig.save(folder / "rig.yaml")
    remappings = bringup.perception_remappings(rig)
    parameters = {
        "rig": str(folder / "rig.yaml"),
        "device": "cpu",
        "ledger_file": str(folder / "ledger.json"),
        **{f"qos_overrides.{topic}.subscription.reliability": "reliable" for _, topic in remappings},
    }
    return bringup.NodeSpec("perception_node", "perception", parameters=(parameters,), remappings=remappings, env=env)


def drive(vehicle: Vehicle, process: Process, minutes: float) -> list[tuple[float, dict[str, float]]]:
    """Sends for so long, or until the node ends; (seconds, memory) every SAMPLE_S."""
    samples: list[tuple[float, dict[str, float]]] = []
    begin_s = time.monotonic()
    with tqdm(desc="sweeps", unit="sweep", mininterval=SAMPLE_S) as bar:
        while (now_s := time.monotonic() - begin_s) < 60 * minutes and process.returncode is None:
            if now_s >= len(samples) * SAMPLE_S:
                samples.append((now_s, memory_mb(process.pid)))
            vehicle.send(begin_s)
            bar.update()
    vehicle.seconds = time.monotonic() - begin_s
    vehicle.spin_until(time.monotonic() + 2.0)  # what is under way
    return samples


def report(vehicle: Vehicle, samples: list[tuple[float, dict[str, float]]], ledger: dict) -> bool:
    """Prints what was found; True when every received sweep was published or dropped."""
    seconds = [s for s, _ in samples]
    for name in MEMORY:
        mb = [memory[name] for _, memory in samples]
        print(
            f"{name:8s} first {mb[0]:7.1f}  last {mb[-1]:7.1f}  max {max(mb):7.1f} MB  {slope(seconds, mb):+.3f} MB/min"
        )
        print(f"         by minute {[round(value, 1) for value in mb[:: round(60 / SAMPLE_S)]]}")
    dropped = sum(ledger["dropped"].values())
    closes = ledger["open"] == 0 and ledger["received"] == ledger["published"] + dropped
    rate = vehicle.sent / vehicle.seconds
    print(
        f"sent     {vehicle.sent} sweeps in {vehicle.seconds:.0f} s, {rate:.2f} Hz; {vehicle.overlays} overlays heard"
    )
    print(f"ledger   received {ledger['received']} = published {ledger['published']} + dropped {ledger['dropped']}")
    print(f"         {'closes' if closes else 'DOES NOT CLOSE'}; open {ledger['open']}")
    print(f"cameras  {ledger['cameras']}")
    report_ms(vehicle.ms)
    return closes


def report_ms(ms: dict[str, list[float]]) -> None:
    """Prints where the time of a sweep went; `ms` has the durations of each of STAGES."""
    if len({len(values) for values in ms.values()}) > 1:
        print(f"durations were lost on the way: { {stage: len(values) for stage, values in ms.items()} }")
        return
    preprocess, inference, postprocess, total = (np.asarray(ms[stage]) for stage in STAGES)
    rows = {
        "latency": total,
        "network": inference,
        "besides the network": total - inference,  # with the wait for images and for the sweep before
        "of it decoding, sending": preprocess + postprocess,
    }
    for name, values in rows.items():
        print(f"{name:24s} {statistics(values)} ms")


def main() -> int:
    """Runs the soak; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--hz", type=float, default=20.0, help="sweeps a second, and images of each camera")
    parser.add_argument("--points", type=int, default=600, help="of a sweep")
    parser.add_argument("--overlay", action="store_true", help="listen to the overlay of one camera")
    options = parser.parse_args()
    rig = street_rig()
    with tempfile.TemporaryDirectory(prefix="lima_soak_") as name:
        folder = Path(name)
        env = {**bringup.isolated_environment(folder / "ros_log"), "OMP_NUM_THREADS": "1"}
        os.environ.update(env)
        process = Process(node_spec(rig, folder, env), folder)
        vehicle = Vehicle(rig, options.points, options.hz, options.overlay)
        try:
            vehicle.wait_for(process)
            samples = drive(vehicle, process, options.minutes)
            early = process.returncode is not None
        finally:
            vehicle.close()
            status = process.stop(30.0)
        if early or status != 0:
            when = "by itself" if early else "when it was stopped"
            print(f"the node ended {when}, with status {status}:\n{process.output()[-4000:]}", file=sys.stderr)
            return 1
        return 0 if report(vehicle, samples, json.loads((folder / "ledger.json").read_text())) else 1


if __name__ == "__main__":
    sys.exit(main())

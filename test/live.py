"""One perception node in a process of its own, the sensors of a rig that feed it, and the ear for its results.

A sweep is sent when the result of the one before is there: then every count is exact, however busy the machine is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import PointCloud2

from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.rig import Rig
from lima_core.data.ros_header import stamp_ns
from lima_core.runtime.frame_messages import frame_messages
from lima_core.runtime.transforms import static_camera_from_lidar
from lima_ros import bringup
from lima_ros.convert import ROS
from lima_ros.processes import Process

MS = 1_000_000
PERIOD_NS = 100 * MS
BEGIN_NS = 1_700_000_000_000 * MS
SIZE = (64, 48)
K = np.array([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]])
SEGMENTATION = "/perception/output/segmentation"


def isolated(patch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    """Environment of a graph of its own, one thread per network; set in this process too, until `patch` is undone."""
    env = {**bringup.isolated_environment(folder / "ros_log"), "OMP_NUM_THREADS": "1"}
    for name, value in env.items():
        patch.setenv(name, value)
    return env


def standing(rig: Rig) -> Frame:
    """A sweep of 600 points and a small JPEG per camera, of a vehicle that stands still."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-30, -30, -2, 0], [30, 30, 2, 1], (600, 4)).astype(np.float32)
    image = Image(pixels=np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    views = [
        CameraView(
            mount.name,
            BEGIN_NS + round(mount.offset_ms * MS),
            image,
            SIZE,
            K,
            static_camera_from_lidar(mount.base_from_camera, rig.base_from_lidar),
        )
        for mount in rig.cameras
    ]
    return Frame(BEGIN_NS, "standing", 0, points, world_from_lidar=rig.base_from_lidar, cameras=tuple(views))


def exact(rig: Rig) -> dict[str, Any]:
    """Parameters that leave no input to chance: reliable, long queues, and a long wait for images."""
    topics = [topic for _, topic in bringup.perception_remappings(rig)]
    reliable = {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in topics}
    return {**reliable, **{f"qos_overrides.{t}.subscription.depth": 200 for t in topics}, "sync.timeout_ms": 2000.0}


def node(rig: Rig, checkpoint: str, env: dict[str, str], folder: Path, **parameters: Any) -> Process:
    """Starts the perception node; its ledger will be folder/ledger.json."""
    rig.save(folder / "rig.yaml")
    given = {
        "checkpoint": checkpoint,
        "rig": str(folder / "rig.yaml"),
        "device": "cpu",
        "ledger_file": str(folder / "ledger.json"),
        **exact(rig),
        **parameters,
    }
    remappings = bringup.perception_remappings(rig)
    spec = bringup.NodeSpec("perception_node", "perception", parameters=(given,), remappings=remappings, env=env)
    return Process(spec, folder)


def ledger(process: Process, folder: Path) -> dict[str, Any]:
    """Stops the node, which must end well, and returns its closed account."""
    assert process.returncode is None, f"it ended by itself:\n{process.output()}"
    assert process.stop(60) == 0 and "Traceback" not in process.output(), process.output()
    account = json.loads((folder / "ledger.json").read_text())
    assert account["open"] == 0 and account["received"] == account["published"] + sum(account["dropped"].values())
    return account


class Sensors:
    """Publishes sweeps of a rig and hears the node's clouds and diagnostics, in the test's own thread."""

    def __init__(self, rig: Rig) -> None:
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context)
        self.node = rclpy.create_node("sensors", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._rig, self._messages = rig, frame_messages(standing(rig), rig, ROS)
        self._out = {m.topic: self.node.create_publisher(type(m.message), m.topic, 50) for m in self._messages}
        self.clouds = self.collect(PointCloud2, SEGMENTATION)
        self._diagnostics = self.collect(DiagnosticArray, "/diagnostics")
        self.sent: list[int] = []

    def collect(self, message_type: type, topic: str) -> list[Any]:
        """Subscribes; the list returned grows with every message."""
        received: list[Any] = []
        self.node.create_subscription(message_type, topic, received.append, 50)
        return received

    def wait_for(self, process: Process) -> None:
        """Until the node listens to every sensor and its results are heard."""

        def connected() -> bool:
            assert process.returncode is None, process.output()
            heard = all(self.node.count_publishers(topic) for topic in (SEGMENTATION, "/diagnostics"))
            return heard and all(publisher.get_subscription_count() for publisher in self._out.values())

        self.spin_until(connected, 120, "the node to listen")
        self.spin_for(0.5)  # for its publishers to know our subscriptions

    def drive(self, index: int, silent: Collection[str] = ()) -> None:
        """Sends sweep `index` of the drive with the images of all cameras but the `silent`; waits for its result."""
        unsent = {topic for name in silent for topic in _topics(self._rig, name)}
        for outgoing in self._messages:
            if outgoing.topic not in unsent:
                outgoing.message.header.stamp = ROS.stamp(outgoing.stamp_ns + index * PERIOD_NS)
                self._out[outgoing.topic].publish(outgoing.message)
        self.sent.append(BEGIN_NS + index * PERIOD_NS)
        self.spin_until(lambda: len(self.clouds) >= len(self.sent), 60, f"the result of sweep {index}")

    def stamps(self) -> list[int]:
        """Of the results, in order of arrival."""
        return [stamp_ns(cloud.header.stamp) for cloud in self.clouds]

    def diagnosed(self) -> dict[str, str]:
        """What /diagnostics says once it counts every sweep that was sent."""

        def latest() -> dict[str, str]:
            ours = [s for array in self._diagnostics for s in array.status if s.name == "perception: segmentation"]
            return {v.key: v.value for v in ours[-1].values} if ours else {}

        self.spin_until(lambda: latest().get("published") == str(len(self.sent)), 60, "diagnostics of all sweeps")
        return latest()

    def spin_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Runs callbacks until `condition()` holds. Raises AssertionError naming `what` when it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
            self._executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        """Runs callbacks for so long."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left_s, 0.02))

    def close(self) -> None:
        """Destroys the node and its context."""
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def _topics(rig: Rig, camera: str) -> tuple[str, str]:
    mount = rig.camera(camera)
    return mount.image_topic, mount.info_topic

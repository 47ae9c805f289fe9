"""Poses from tf: tf2's words become PoseError, nothing waits, and the real tf2_ros where it is installed."""

from __future__ import annotations

import importlib
import json
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
from test_perception_node import MS, START_NS, Car, ended_cleanly, values

from lima_core.data.rig import Rig
from lima_core.geometry import se3
from lima_core.runtime.transforms import PoseError, camera_from_lidar
from lima_ros import tf_node as real
from networks import save_random

HALF = np.sqrt(0.5)
RIG = Rig("r", "/lidar", "lidar", np.eye(4), base_frame="base", world_frame="world")
needs_tf2 = pytest.mark.skipif(bool(real.MISSING), reason=real.MISSING)


class TransformException(Exception):  # noqa: N818  tf2 calls it so
    """As tf2's, of which the others are."""


class ExtrapolationException(TransformException):
    """As tf2's."""


class Buffer:
    """Drives along x at 10 m/s, turned left by 90 degrees; knows 1 s to 2 s."""

    cleared = 0

    def lookup_transform_core(self, target, source, time):
        assert (target, source) == ("world", "base")
        if not 1000 * MS <= time.nanoseconds <= 2000 * MS:
            raise ExtrapolationException("Lookup would require extrapolation into the future")
        position = SimpleNamespace(x=time.nanoseconds * 1e-8, y=0.0, z=0.0)
        return SimpleNamespace(
            transform=SimpleNamespace(translation=position, rotation=SimpleNamespace(w=HALF, x=0.0, y=0.0, z=HALF))
        )

    def clear(self):
        self.cleared += 1


class Node:
    """Keeps what is logged."""

    def __init__(self):
        self.lines = []

    def get_logger(self):
        return SimpleNamespace(info=self.lines.append)


@pytest.fixture
def tf_node(monkeypatch):
    """lima_ros.tf_node over a stand-in of tf2_ros."""
    tf2 = ModuleType("tf2_ros")
    tf2.TransformException = TransformException
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2)
    monkeypatch.delitem(sys.modules, "lima_ros.tf_node")
    yield importlib.import_module("lima_ros.tf_node")
    sys.modules["lima_ros"].tf_node = real


@pytest.fixture
def without(monkeypatch):
    """lima_ros.tf_node where tf2_ros cannot be imported."""
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    monkeypatch.delitem(sys.modules, "lima_ros.tf_node")
    yield importlib.import_module("lima_ros.tf_node")
    sys.modules["lima_ros"].tf_node = real


def test_a_transform_becomes_a_pose(tf_node):
    poses = tf_node.TfPoses(Buffer(), "world", "base")
    pose = poses.world_from_base(1500 * MS)
    np.testing.assert_allclose(pose, [[0, -1, 0, 15], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)
    moving = camera_from_lidar(poses, np.eye(4), np.eye(4), camera_ns=1500 * MS, lidar_ns=1600 * MS)
    np.testing.assert_allclose(moving[:3, 3], [0, -1, 0], atol=1e-12)  # 1 m along the world's x = the car's right


def test_what_tf2_does_not_know_is_said_in_its_words(tf_node):
    poses = tf_node.TfPoses(Buffer(), "world", "base")
    with pytest.raises(PoseError, match=r"tf world <- base: Lookup would require extrapolation"):
        poses.world_from_base(2001 * MS)


@pytest.mark.parametrize("stamp_ns", [0, -1])
def test_a_stamp_of_zero_is_not_the_latest(tf_node, stamp_ns):
    with pytest.raises(PoseError, match="'the latest'"):
        tf_node.TfPoses(Buffer(), "world", "base").world_from_base(stamp_ns)


def test_a_fault_that_is_not_tf2s_is_not_hidden(tf_node):
    buffer = Buffer()
    buffer.lookup_transform_core = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tf_node.TfPoses(buffer, "world", "base").world_from_base(MS)


def test_reset_clears_the_buffer(tf_node):
    buffer = Buffer()
    tf_node.TfPoses(buffer, "world", "base").reset()
    assert buffer.cleared == 1


def test_where_tf2_is_missing(without):
    node = Node()
    with pytest.raises(ValueError, match=r"transforms: tf cannot work: tf2_ros .* apt install ros-.*-tf2-ros-py"):
        without.listen(node, "tf", RIG)
    assert node.lines == []
    assert without.listen(node, "auto", RIG) is None
    assert len(node.lines) == 1 and "odometry alone: tf2_ros cannot be imported" in node.lines[0]


def test_what_needs_no_tf2(without):
    node = Node()
    assert without.listen(node, "odometry", RIG) is None
    assert without.listen(node, "auto", None) is None
    assert node.lines == []
    with pytest.raises(ValueError, match="set the parameter rig"):
        without.listen(node, "tf", None)


# ---- the real one


def stamped(parent, child, x, stamp_ns):
    from geometry_msgs.msg import TransformStamped

    from lima_ros import convert

    found = TransformStamped(header=convert.ROS.header(stamp_ns, parent), child_frame_id=child)
    found.transform.translation.x, found.transform.rotation.w = x, 1.0
    return found


@needs_tf2
def test_real_tf2_interpolates_refuses_and_forgets_all_but_the_mounts():
    from tf2_ros import Buffer as TfBuffer

    buffer = TfBuffer()
    buffer.set_transform_static(stamped("base", "base_link", 0.5, 0), "test")
    for t, x in ((1000, 10.0), (2000, 20.0)):
        buffer.set_transform(stamped("world", "base", x, t * MS), "test")
    poses = real.TfPoses(buffer, "world", "base_link")
    np.testing.assert_allclose(poses.world_from_base(1500 * MS), se3.transform(np.eye(3), np.array([15.5, 0, 0])))
    for stamp_ns, words in ((2001 * MS, "future"), (999 * MS, "past")):
        with pytest.raises(PoseError, match=words):
            poses.world_from_base(stamp_ns)
    with pytest.raises(PoseError, match="mars"):
        real.TfPoses(buffer, "mars", "base").world_from_base(1500 * MS)
    poses.reset()
    with pytest.raises(PoseError):
        poses.world_from_base(1500 * MS)
    for t, x in ((100, 1.0), (200, 2.0)):  # a looped bag: older than all before
        buffer.set_transform(stamped("world", "base", x, t * MS), "test")
    assert poses.world_from_base(150 * MS)[0, 3] == pytest.approx(2.0)


@needs_tf2
def test_the_listener_hears_tf_and_a_jump_of_the_clock_empties_it(tester):
    from rclpy.parameter import Parameter
    from rosgraph_msgs.msg import Clock
    from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

    from lima_ros import convert

    node = tester.node
    clock = node.create_publisher(Clock, "/clock", 10)
    node.set_parameters([Parameter("use_sim_time", value=True)])
    listener = real.listen(node, "auto", RIG)
    static, moving = StaticTransformBroadcaster(node), TransformBroadcaster(node)
    static.sendTransform(stamped("base", "lidar", 0.0, 0))
    poses = listener.poses

    def known(stamp_ns):
        try:
            return bool(len(poses.world_from_base(stamp_ns)))
        except PoseError:
            return False

    def at(now_ms):
        clock.publish(Clock(clock=convert.ROS.stamp(now_ms * MS)))
        moving.sendTransform([stamped("world", "base", 1.0, t * MS) for t in (now_ms - 50, now_ms)])
        tester.spin_for(0.02)
        return known(now_ms * MS - MS)

    end = time.monotonic() + 20
    while not at(60_000):
        assert time.monotonic() < end, "tf was never heard"
    tester.spin_until(lambda: node.get_clock().now().nanoseconds == 60_000 * MS, 10, "the clock")
    while not at(10_000):  # 50 s earlier: beyond the 10 s that tf2 keeps
        assert time.monotonic() < end, "the old time was never forgotten"
    assert not known(60_000 * MS - MS)
    listener.close()
    assert node.count_subscribers("/tf") == 0


# ---- the node


@pytest.fixture
def car(tester, tmp_path):
    """The car of test_perception_node; its odometry goes to a topic that nobody hears."""
    import torch

    torch.manual_seed(0)
    car = Car(tester, save_random(tmp_path / "random.safetensors"), tmp_path)
    for name in [name for name in car.spec.parameters if name.startswith("qos_overrides./odom")]:
        del car.spec.parameters[name]
    return car


@pytest.mark.skipif(not real.MISSING, reason="tf2_ros is installed")
def test_a_node_that_needs_tf_says_what_to_install(car, tester, start_node):
    car.spec.parameters["transforms"] = "tf"
    with start_node("perception_node", **vars(car.spec)) as process:
        tester.spin_until(lambda: process.returncode is not None, 40, "the end")
    assert process.returncode == 2 and "apt install ros-$ROS_DISTRO-tf2-ros-py" in process.output()
    assert "Traceback" not in process.output()


@pytest.mark.parametrize("transforms", [pytest.param(mode, marks=needs_tf2) for mode in ("tf", "auto")])
def test_a_node_without_odometry_draws_with_the_motion_from_tf(car, tester, start_node, transforms):
    from diagnostic_msgs.msg import DiagnosticArray
    from tf2_ros import TransformBroadcaster

    broadcaster = TransformBroadcaster(tester.node)
    diagnostics = tester.collect(DiagnosticArray, "/diagnostics")
    car.spec.parameters |= {"transforms": transforms, "watch.silent_after_s": 1.0}
    car.out["/odom"] = SimpleNamespace(publish=lambda msg: None)
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process, ("/lidar", "/front/image", "/front/info", "/back/image", "/back/info"))
        tester.spin_until(lambda: tester.node.count_subscribers("/tf"), 10, "the node to hear /tf")
        tester.spin_for(0.3)
        for index in range(2):
            stamp_ns = START_NS + 100 * MS * index
            around = range(stamp_ns - 100 * MS, stamp_ns + 1, 50 * MS)
            broadcaster.sendTransform([stamped("map", "base_link", (t - START_NS) * 1e-8, t) for t in around])
            tester.spin_for(0.2)
            car.drive(index)
            car.expect(index + 1)
            tester.spin_until(lambda n=index + 1: all(len(o) == n for o in car.overlays.values()), 10, "the overlays")
        tester.spin_until(lambda: values(diagnostics).get("published") == "2", 5, "diagnostics")
        tester.spin_for(1.2)
    ended_cleanly(process)
    cameras = json.loads(car.ledger_file.read_text())["cameras"]
    assert cameras == {name: {"matched": 2, "overlay.drawn": 2} for name in cameras} and len(cameras) == 2
    assert values(diagnostics)["tf"] == "map <- base_link"
    assert not any("odometry" in text for key, text in values(diagnostics).items() if key.startswith("silent"))

"""Parameters over real DDS: live ones are checked, the others wait for cleanup, and QoS that cannot work is named."""

from __future__ import annotations

import pytest
from test_lifecycle import Remote
from test_perception_node import Car, ended_cleanly

from networks import save_random

FILTERED = "/perception/output/filtered"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    torch.manual_seed(0)
    return save_random(tmp_path_factory.mktemp("network") / "random.safetensors")


@pytest.fixture
def car(tester, checkpoint, tmp_path):
    one = Car(tester, checkpoint, tmp_path, overlays=False)
    one.spec.parameters["overlay.enabled"] = "never"
    return one


def reasons(results):
    """Why each of them was refused."""
    assert not any(result.successful for result in results)
    return [result.reason for result in results]


def test_values_are_checked_while_it_works(car, tester, start_node):
    remote = Remote(tester)
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process)
        remote.wait(process)

        (score,) = reasons(remote.set(detections__min_score=2.0))
        assert "detections.min_score" in score and "0.0" in score and "1.0" in score
        (quality,) = reasons(remote.set(overlay__jpeg_quality=0))
        assert "overlay.jpeg_quality" in quality and "100" in quality
        (kind,) = reasons(remote.set(filter__classes=3))
        assert "expected" in kind
        (unknown,) = reasons(remote.set(filter__classes="car, raod"))
        assert "'raod'; the network has barrier, bicycle, bus, car" in unknown
        fixed = {"checkpoint": "/other.safetensors", "device": "cpu", "sync__timeout_ms": 10.0, "ledger_file": "x"}
        for name, reason in zip(fixed, reasons(remote.set(**fixed)), strict=True):
            assert f"parameter {name.replace('__', '.')} is fixed while the node is configured" in reason

        together = {"detections__min_score": 0.5, "filter__classes": "raod"}
        (reason,) = reasons([remote.set("set_parameters_atomically", **together)])
        assert "'raod'" in reason
        assert all(r.successful for r in remote.set(filter__classes="car, truck", detections__min_score=0.5))

        car.drive(0, cameras=())
        car.expect(1)
    ended_cleanly(process)


def test_who_can_never_hear_each_other_is_told_the_fix(car, tester, start_node):
    """A driver that sends best effort where reliable was asked for; a viewer that wants latched results."""
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import PointCloud2

    parameters = {
        name: value for name, value in car.spec.parameters.items() if not name.startswith("qos_overrides./odom")
    }
    parameters["sweeps.deskew"] = True  # it then listens to odometry
    parameters[f"qos_overrides.{FILTERED}.publisher.durability"] = "transient_local"
    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    with start_node("perception_node", parameters=parameters, remappings=car.spec.remappings) as process:
        car.wait_for_node(process, ("/lidar", "/odom"))
        tester.node.create_publisher(PointCloud2, "/lidar", best_effort)
        tester.collect(PointCloud2, "/perception/output/segmentation", latched)
        tester.collect(PointCloud2, FILTERED, latched)
        fixes = (
            "reliability differs; set the parameter qos_overrides./lidar.subscription.reliability, ",
            "durability differs; set the parameter qos_overrides./perception/output/segmentation.publisher.durability",
        )
        tester.spin_until(lambda: all(fix in process.output() for fix in fixes), 20, "both fixes in the log")

        def reliability(topic):
            (one,) = [
                info.qos_profile.reliability
                for info in tester.node.get_subscriptions_info_by_topic(topic)
                if info.node_name == "perception"
            ]
            return one

        # an override is of its topic alone
        assert reliability("/lidar") == ReliabilityPolicy.RELIABLE
        assert reliability("/odom") == ReliabilityPolicy.BEST_EFFORT
        assert f"{FILTERED}.publisher.durability, " not in process.output()
    ended_cleanly(process)

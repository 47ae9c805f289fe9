"""perception.rviz without RViz: known classes, ROS 2 topics, and each one published by our nodes with a type and a
QoS that the display can receive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bags import BagWriter
from lima_core.data.rig import Rig
from lima_core.paths import config_dir
from networks import save_random

RIG = Rig.load(config_dir() / "rigs" / "nuscenes.yaml")
TYPES = {
    "rviz_default_plugins/PointCloud2": "sensor_msgs/msg/PointCloud2",
    "rviz_default_plugins/Image": "sensor_msgs/msg/CompressedImage",
}
DISPLAYS = {*TYPES, "rviz_default_plugins/Grid"}
TOOLS = {f"rviz_default_plugins/{n}" for n in ("Interact", "MoveCamera", "Select", "FocusCamera", "Measure")}
PANELS = {f"rviz_common/{n}" for n in ("Displays", "Views", "Time", "Selection", "Tool Properties")}
VIEWS = {f"rviz_default_plugins/{n}" for n in ("Orbit", "TopDownOrtho", "ThirdPersonFollower", "FPS", "XYOrbit")}


@pytest.fixture(scope="module")
def rviz() -> dict[str, Any]:
    return yaml.safe_load((config_dir() / "rviz" / "perception.rviz").read_text())


@pytest.fixture(scope="module")
def displays(rviz: dict[str, Any]) -> list[dict[str, Any]]:
    return rviz["Visualization Manager"]["Displays"]


def test_classes_are_those_of_rviz2(rviz: dict[str, Any], displays: list[dict[str, Any]]) -> None:
    manager = rviz["Visualization Manager"]
    assert {panel["Class"] for panel in rviz["Panels"]} <= PANELS
    assert {tool["Class"] for tool in manager["Tools"]} <= TOOLS
    assert manager["Views"]["Current"]["Class"] in VIEWS
    assert {display["Class"] for display in displays} <= DISPLAYS
    assert manager["Global Options"]["Fixed Frame"] == RIG.lidar_frame


def test_topics_are_ros2_mappings(displays: list[dict[str, Any]]) -> None:
    for display in displays:
        if display["Class"] in TYPES:
            topic = display["Topic"]
            assert topic["Value"].startswith("/")
            assert topic["Reliability Policy"] in ("Reliable", "Best Effort")
            assert topic["Durability Policy"] in ("Volatile", "Transient Local")
            assert topic["History Policy"] == "Keep Last"


def test_every_camera_and_the_cloud_are_shown(displays: list[dict[str, Any]]) -> None:
    shown = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    overlays = {f"/perception/output/{mount.name}/overlay/compressed" for mount in RIG.cameras}
    assert shown == overlays | {"/perception/output/segmentation", "/gt/segmentation"}
    (cloud,) = [d for d in displays if d["Name"] == "Segmentation"]
    assert cloud["Color Transformer"] == "RGB8"  # the cloud's rgb field: class colours


def test_displays_can_receive_what_the_nodes_publish(
    displays: list[dict[str, Any]], start_node: Callable, tester: Any, tmp_path: Path
) -> None:
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    perception = {
        "rig": str(config_dir() / "rigs" / "nuscenes.yaml"),
        "checkpoint": str(save_random(tmp_path / "random.safetensors")),
    }
    with BagWriter(tmp_path / "bag") as bag:  # for its topics; the player waits for a subscriber and sends nothing
        bag.transforms("/tf_static", 0, ("base_link", "lidar", np.eye(4)))
        bag.odometry("/odom", 0, np.eye(4))
        bag.cloud("/points", 0, "lidar", **{axis: np.zeros(1, np.float32) for axis in "xyz"})
    player = {"source": str(tmp_path / "bag"), "wait_for": "/gt/segmentation"}
    with start_node("perception_node", perception), start_node("player_node", player):
        for display in displays:
            if display["Class"] not in TYPES:
                continue
            name = display["Topic"]["Value"]
            find = tester.node.get_publishers_info_by_topic
            tester.spin_until(lambda find=find, name=name: find(name), 30, f"a publisher of {name}")
            (publisher,) = find(name)
            assert publisher.topic_type == TYPES[display["Class"]]
            if display["Topic"]["Reliability Policy"] == "Reliable":
                assert publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            if display["Topic"]["Durability Policy"] == "Transient Local":
                assert publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL

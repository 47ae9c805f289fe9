"""perception.rviz without RViz: known classes, ROS 2 topics, and each one published by our nodes with a type and a
QoS that the display can receive. What the tool publishes is heard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lima_core.data.rig import Rig
from lima_core.paths import config_dir
from viewed import listeners_of, publisher_of, viewed_graph

RIG = Rig.load(config_dir() / "rigs" / "nuscenes.yaml")
TYPES = {
    "rviz_default_plugins/PointCloud2": "sensor_msgs/msg/PointCloud2",
    "rviz_default_plugins/Image": "sensor_msgs/msg/CompressedImage",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
}
DISPLAYS = {*TYPES, "rviz_default_plugins/Grid", "rviz_default_plugins/TF"}
NAMES = ("Interact", "MoveCamera", "Select", "FocusCamera", "Measure", "PublishPoint")
TOOLS = {f"rviz_default_plugins/{name}" for name in NAMES}
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


def test_topics_are_ros2_mappings(rviz: dict[str, Any], displays: list[dict[str, Any]]) -> None:
    shown = [display["Topic"] for display in displays if display["Class"] in TYPES]
    for topic in (*shown, clicked(rviz)):
        assert topic["Value"].startswith("/")
        assert topic["Reliability Policy"] in ("Reliable", "Best Effort")
        assert topic["Durability Policy"] in ("Volatile", "Transient Local")
        assert topic["History Policy"] == "Keep Last"


def test_everything_is_shown_and_what_costs_time_is_off(displays: list[dict[str, Any]]) -> None:
    shown = {display["Topic"]["Value"]: display["Enabled"] for display in displays if "Topic" in display}
    overlays = {f"/perception/output/{mount.name}/overlay/compressed" for mount in RIG.cameras}
    clouds = {f"/perception/output/{name}" for name in ("segmentation", "filtered", "markers", "similarity")}
    assert shown.keys() == overlays | clouds | {"/gt/segmentation"}
    assert [topic for topic, enabled in shown.items() if enabled] == [
        "/perception/output/segmentation",
        "/perception/output/markers",
        "/perception/output/CAM_FRONT/overlay/compressed",
    ]
    assert all(display["Enabled"] == display["Value"] for display in displays)
    colored = {d["Name"] for d in displays if d.get("Color Transformer") == "RGB8"}
    assert colored == {"Segmentation", "Similarity"}  # the clouds' rgb field


def test_displays_can_receive_what_the_nodes_publish(
    rviz: dict[str, Any], displays: list[dict[str, Any]], start_node: Callable, tester: Any, tmp_path: Path
) -> None:
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    with viewed_graph(start_node, tmp_path):
        for display in displays:
            if display["Class"] not in TYPES:
                continue
            publisher = publisher_of(tester, display["Topic"]["Value"])
            assert publisher.topic_type == TYPES[display["Class"]]
            if display["Topic"]["Reliability Policy"] == "Reliable":
                assert publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            if display["Topic"]["Durability Policy"] == "Transient Local":
                assert publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        (listener,) = listeners_of(tester, clicked(rviz)["Value"])
        assert (listener.node_name, listener.topic_type) == ("perception", "geometry_msgs/msg/PointStamped")


def clicked(rviz: dict[str, Any]) -> dict[str, Any]:
    """Topic of the tool Publish Point."""
    (tool,) = [t for t in rviz["Visualization Manager"]["Tools"] if t["Class"].endswith("/PublishPoint")]
    return tool["Topic"]

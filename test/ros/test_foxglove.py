"""perception.json without Foxglove: a layout whose panels are known, placed once, and fed by topics of our nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lima_core.data.rig import Rig
from lima_core.paths import config_dir
from viewed import listeners_of, publisher_of, viewed_graph

RIG = Rig.load(config_dir() / "rigs" / "nuscenes.yaml")
# ids are <type>!<name>; types and the messages they draw as in docs.foxglove.dev/docs/visualization/panels
DRAWN = {
    "3D": {"sensor_msgs/msg/PointCloud2", "visualization_msgs/msg/MarkerArray"},
    "Image": {"sensor_msgs/msg/CompressedImage"},
    "Plot": {"std_msgs/msg/Float64"},
    "DiagnosticSummary": {"diagnostic_msgs/msg/DiagnosticArray"},
}
PANELS = {*DRAWN, "Tab"}
SCENE = "3D!scene"


@pytest.fixture(scope="module")
def layout() -> dict[str, Any]:
    return json.loads((config_dir() / "foxglove" / "perception.json").read_text())


def placed(node: Any) -> Iterator[str]:
    """Ids of the panels in a tree of splits."""
    if isinstance(node, str):
        yield node
        return
    assert node.keys() == {"direction", "splitPercentage", "first", "second"}
    assert node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    yield from placed(node["first"])
    yield from placed(node["second"])


def topics(panel: str, config: dict[str, Any]) -> list[str]:
    """What a panel subscribes to, switched on or not."""
    kind = panel.partition("!")[0]
    if kind == "3D":
        return list(config["topics"])
    if kind == "Image":
        return [config["imageMode"]["imageTopic"]]
    if kind == "Plot":
        return [path["value"].removesuffix(".data") for path in config["paths"]]
    return [config["topicToRender"]] if kind == "DiagnosticSummary" else []


def test_every_panel_is_known_and_has_one_place(layout: dict[str, Any]) -> None:
    configs = layout["configById"]
    tabs = [tab for panel, config in configs.items() if panel.startswith("Tab!") for tab in config["tabs"]]
    seen = [panel for tree in (layout["layout"], *(tab["layout"] for tab in tabs)) for panel in placed(tree)]
    assert sorted(seen) == sorted(configs)
    assert {panel.partition("!")[0] for panel in configs} == PANELS
    assert layout.keys() == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}


def test_the_scene_is_in_the_frame_of_the_lidar_and_what_costs_time_is_off(layout: dict[str, Any]) -> None:
    scene = layout["configById"][SCENE]
    assert scene["followTf"] == RIG.lidar_frame  # clicked points are in it
    outputs = {name.removeprefix("/perception/output/"): topic for name, topic in scene["topics"].items()}
    assert {name for name, topic in outputs.items() if topic["visible"]} == {"segmentation", "markers"}
    assert {name for name, topic in outputs.items() if topic.get("colorMode") == "rgb"} == {
        "segmentation",
        "similarity",
        "features",
    }
    assert all(topic["colorField"] == "rgb" for topic in outputs.values() if topic.get("colorMode") == "rgb")


def test_every_camera_has_a_picture_and_every_path_is_drawn(layout: dict[str, Any]) -> None:
    pictures = [c["imageMode"]["imageTopic"] for p, c in layout["configById"].items() if p.startswith("Image!")]
    assert sorted(pictures) == sorted(f"/perception/output/{m.name}/overlay/compressed" for m in RIG.cameras)
    paths = layout["configById"]["Plot!latency"]["paths"]
    assert "/perception/debug/total_ms.data" in [path["value"] for path in paths]
    assert all(path["value"].endswith(".data") and path["enabled"] for path in paths)


def test_every_topic_is_in_the_graph(layout: dict[str, Any], start_node: Callable, tester: Any, tmp_path: Path) -> None:
    with viewed_graph(start_node, tmp_path):
        for panel, config in layout["configById"].items():
            for topic in topics(panel, config):
                assert publisher_of(tester, topic).topic_type in DRAWN[panel.partition("!")[0]], topic
        publish = layout["configById"][SCENE]["publish"]
        assert publish["type"] == "point"
        (listener,) = listeners_of(tester, publish["pointTopic"])
        assert (listener.node_name, listener.topic_type) == ("perception", "geometry_msgs/msg/PointStamped")

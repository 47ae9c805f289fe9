"""The graph whose topics the layouts of RViz and Foxglove show: a network with points and boxes, and a player."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bags import BagWriter
from lima_core.data.classes import load_taxonomy
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.paths import config_dir
from networks import save_detector

BOUNDS = RangeConfig((-6.4, -6.4, -5.0), (6.4, 6.4, 3.0), (0.2, 0.2, 0.2))
CONFIG = DetectorConfig(bev_width=8, head_channels=8, sweeps=2)


def save_both(path: Path) -> Path:
    """A small network for points and boxes, with random weights."""
    taxonomy = load_taxonomy("nuscenes")
    network = Detector("voxelnet_tiny", BOUNDS, CONFIG, taxonomy.detection_names, len(taxonomy.names))
    return save_detector(path, network, BOUNDS, CONFIG)


@contextlib.contextmanager
def viewed_graph(start_node: Callable, folder: Path) -> Iterator[None]:
    """Runs the perception node with the nuScenes rig, and a player that advertises its topics and sends nothing."""
    rig, checkpoint = config_dir() / "rigs" / "nuscenes.yaml", save_both(folder / "both.safetensors")
    with BagWriter(folder / "bag") as bag:
        bag.transforms("/tf_static", 0, ("base_link", "lidar", np.eye(4)))
        bag.odometry("/odom", 0, np.eye(4))
        bag.cloud("/points", 0, "lidar", **{axis: np.zeros(1, np.float32) for axis in "xyz"})
    # nobody subscribes: the player waits for as long as the graph runs
    player = {"source": str(folder / "bag"), "wait_for": "/gt/segmentation", "wait_timeout_s": 1e4}
    perception = {"rig": str(rig), "checkpoint": str(checkpoint), "device": "cpu"}
    with start_node("perception_node", perception), start_node("player_node", player):
        yield


def publisher_of(tester: Any, topic: str) -> Any:
    """What the graph says of the one publisher of a topic; waits until it is there."""
    find = tester.node.get_publishers_info_by_topic
    tester.spin_until(lambda: find(topic), 30, f"a publisher of {topic}")
    (publisher,) = find(topic)
    return publisher


def listeners_of(tester: Any, topic: str) -> list[Any]:
    """What the graph says of the subscribers of a topic; waits until there is one."""
    find = tester.node.get_subscriptions_info_by_topic
    tester.spin_until(lambda: find(topic), 30, f"a subscriber of {topic}")
    return find(topic)

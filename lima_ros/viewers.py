"""What shows the results: RViz2 with config/rviz, or the bridge to Foxglove (config/foxglove). Both are optional."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import yaml

from lima_core.paths import config_dir
from lima_ros.node_spec import NodeSpec, installed_executable

NONE, RVIZ, FOXGLOVE = "none", "rviz", "foxglove"
PERCEPTION = "perception"

log = logging.getLogger(__name__)


def viewers(
    visualize: str, namespace: str, use_sim_time: bool, fixed_frame: str, env: Mapping[str, str]
) -> list[NodeSpec]:
    """The viewer that `visualize` names; without it, and a warning with the fix, where it is not installed.

    `fixed_frame` is what RViz draws in; clicked points are then in it. Raises ValueError for an unknown name.
    """
    if visualize == NONE:
        return []
    if visualize == RVIZ:
        spec = rviz_node(namespace, use_sim_time, fixed_frame, env)
    elif visualize == FOXGLOVE:
        spec = foxglove_node(namespace, use_sim_time, env)
    else:
        raise ValueError(f"visualize is {visualize!r}; choose {RVIZ}, {FOXGLOVE} or {NONE}")
    if installed_executable(spec) is None:
        log.warning(
            "visualize:=%s is left out: the package %s is not installed; sudo apt install ros-$ROS_DISTRO-%s",
            visualize, spec.package, spec.package.replace("_", "-"),
        )  # fmt: skip
        return []
    return [spec]


def rviz_node(namespace: str, use_sim_time: bool, fixed_frame: str, env: Mapping[str, str]) -> NodeSpec:
    """RViz2 with the perception node's displays, moved into the namespace."""
    layout = rviz_layout()
    return NodeSpec(
        "rviz2",
        "rviz",
        namespace,
        parameters=({"use_sim_time": use_sim_time},),
        # a layout names its topics in full, so that a namespace alone would leave every display empty
        remappings=_in_namespace(layout, namespace),
        arguments=("-d", str(layout), "-f", fixed_frame),
        env=env,
        package="rviz2",
    )


def rviz_layout() -> Path:
    """Path of the shipped RViz layout."""
    return config_dir() / "rviz" / "perception.rviz"


def foxglove_node(namespace: str, use_sim_time: bool, env: Mapping[str, str]) -> NodeSpec:
    """The bridge that Foxglove connects to, at ws://<host>:8765 by its own default; the layout is imported there."""
    return NodeSpec(
        "foxglove_bridge",
        "foxglove_bridge",
        namespace,
        parameters=({"use_sim_time": use_sim_time},),
        env=env,
        package="foxglove_bridge",
    )


def _in_namespace(layout: Path, namespace: str) -> tuple[tuple[str, str], ...]:
    if not namespace.strip("/"):
        return ()
    displays = yaml.safe_load(layout.read_text())["Visualization Manager"]["Displays"]
    topics = [display["Topic"]["Value"] for display in displays if "Topic" in display]
    return tuple((t, f"/{namespace.strip('/')}{t}") for t in topics if t.startswith(f"/{PERCEPTION}/"))

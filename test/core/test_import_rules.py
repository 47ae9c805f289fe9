"""The rules of the house, read from the imports: learning knows no ROS, only node files know rclpy, no way back up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROS = {
    "rclpy", "lima_ros", "launch", "launch_ros", "ament_index_python", "tf2_ros", "tf2_msgs", "vision_msgs", "std_msgs",
    "std_srvs", "geometry_msgs", "sensor_msgs", "nav_msgs", "diagnostic_msgs", "visualization_msgs", "rosgraph_msgs",
    "builtin_interfaces", "rcl_interfaces", "message_filters", "sensor_msgs_py", "cv_bridge", "rosbag2_py",
}  # fmt: skip
MESSAGES = {name for name in ROS if name.endswith(("_msgs", "_srvs", "_interfaces"))}
# Data flows one way (design.md, rule 4): a layer imports from those to its left only.
LAYERS = (
    ("files", "paths", "config", "geometry"),
    ("data", "metrics"),
    ("sparse",),
    ("models",),
    ("checkpoint",),
    ("training",),
    ("lima", "baselines"),
    ("predictor", "viz"),
    ("runtime",),
    ("finetune", "pretrain", "evaluate", "evaluate_boxes", "predict", "doctor", "tools"),
)


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files("lima_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_learning_knows_no_ros(path: Path) -> None:
    assert not roots(path) & ROS


@pytest.mark.parametrize("path", files("lima_ros"), ids=lambda p: p.name)
def test_only_node_files_know_rclpy(path: Path) -> None:
    if path.name.endswith("_node.py"):
        return
    allowed = MESSAGES | {"lima_ros"} if path.name == "convert.py" else {"lima_ros"}
    assert not (roots(path) & ROS) - allowed


@pytest.mark.parametrize("path", files("lima_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_flows_one_way(path: Path) -> None:
    def layer(name: str) -> int:
        return next(i for i, names in enumerate(LAYERS) if name in names)

    parts = path.relative_to(ROOT / "lima_core").with_suffix("").parts
    if parts[0] == "__init__":
        return
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "lima_core" and rest not in ("", "__version__"):
            assert layer(rest.split(".")[0]) <= layer(parts[0]), f"{path.name} imports {name}, which lies after it"


@pytest.mark.parametrize("package", ["lima_core", "lima_ros"])
def test_nothing_evaluates_or_unpickles(package: str) -> None:
    forbidden = {"eval", "exec", "pickle", "marshal", "dill"}
    for path in files(package):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not (names | roots(path)) & forbidden, path

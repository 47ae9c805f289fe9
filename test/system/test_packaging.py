"""The package installs as pip and as colcon do it, with everything that `ros2 run` and `ros2 launch` look for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = ("perception_node", "player_node", "evaluator_node")
SHARED_FILES = (
    "ament_index/resource_index/packages/lima_ros",
    "lima_ros/package.xml",
    "lima_ros/launch/perception.launch.py",
    "lima_ros/launch/replay.launch.py",
    "lima_ros/config/perception.yaml",
    "lima_ros/config/fastdds.xml",
    "lima_ros/config/datasets/nuscenes.yaml",
    "lima_ros/config/rigs/nuscenes.yaml",
    "lima_ros/config/rviz/perception.rviz",
    "lima_ros/config/foxglove/perception.json",
)


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git tracks, or would, copied: a build leaves nothing in the checkout, and nothing ignored slips in."""
    copy = tmp_path_factory.mktemp("src") / "lima"
    names = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def prefix(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install .` into a prefix of its own."""
    target = tmp_path_factory.mktemp("prefix")
    # without --ignore-installed pip takes the installation that the tests run from away
    options = ["--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet", "--prefix", str(target)]
    run([sys.executable, "-m", "pip", "install", *options, str(checkout)])
    return target


def packages_of(prefix: Path) -> Path:
    (folder,) = prefix.glob("lib/python*/site-packages")
    return folder


@pytest.mark.slow
def test_pip_puts_everything_where_ros_looks(prefix: Path) -> None:
    missing = [name for name in SHARED_FILES if not (prefix / "share" / name).is_file()]
    assert not missing
    for node in NODES:
        assert os.access(prefix / "lib" / "lima_ros" / node, os.X_OK), node


@pytest.mark.slow
def test_the_installed_package_finds_its_own_files(prefix: Path, tmp_path: Path) -> None:
    code = "import lima_core.paths as p; print(p.config_dir(), p.STREET_CHECKPOINT, p.STREET_CHECKPOINT.is_file())"
    env = {**os.environ, "PYTHONPATH": str(packages_of(prefix))}
    config, checkpoint, there = run([sys.executable, "-c", code], cwd=tmp_path, env=env).split()
    assert Path(config) == (prefix / "share" / "lima_ros" / "config").resolve()
    assert Path(checkpoint).is_relative_to(packages_of(prefix)) and there == "True"
    assert (packages_of(prefix) / "lima_core" / "assets" / "street.safetensors").stat().st_size <= 5e6


@pytest.mark.slow
def test_colcon_takes_the_root_as_a_ros_package(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("colcon_core", reason="pip install colcon-common-extensions")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    colcon = [str(Path(sys.executable).with_name("colcon")), "--log-base", str(tmp_path / "log"), "build"]
    places = ["--build-base", str(tmp_path / "build"), "--install-base", str(tmp_path / "install")]
    run([*colcon, "--base-paths", str(checkout), *places], env=env)
    installed = tmp_path / "install" / "lima_ros"
    # colcon exits 0 even where it fell back to plain Python; the hook is there only for a ROS package
    assert (installed / "share" / "lima_ros" / "hook" / "ament_prefix_path.sh").is_file()
    assert all((installed / "share" / name).is_file() for name in SHARED_FILES)
    assert all(os.access(installed / "lib" / "lima_ros" / node, os.X_OK) for node in NODES)


def test_package_xml_names_every_message_package_that_is_imported() -> None:
    tree = ET.parse(ROOT / "package.xml").getroot()
    assert tree.get("format") == "3" and tree.findtext("export/build_type") == "ament_python"
    named = {e.text for e in tree if e.tag.endswith("depend")}
    text = "".join(p.read_text() for p in (ROOT / "lima_ros").glob("*.py"))
    used = {name for name in ("std_msgs", "std_srvs", "sensor_msgs", "nav_msgs", "diagnostic_msgs", "rosgraph_msgs",
                              "geometry_msgs", "visualization_msgs", "rclpy") if f"{name}" in text}  # fmt: skip
    assert used and used <= named


def test_versions_agree() -> None:
    from lima_core import __version__

    assert ET.parse(ROOT / "package.xml").getroot().findtext("version") == __version__
    assert f'version="{__version__}"' in (ROOT / "setup.py").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()

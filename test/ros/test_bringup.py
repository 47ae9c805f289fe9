"""The graph as data: the lines that start it, the environment, and processes that are stopped and cleaned up after."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from bags import BagWriter
from lima_core.data.nuscenes import NuScenes
from lima_core.data.rig import Rig, RigError
from lima_core.geometry import se3
from lima_core.paths import config_dir
from lima_core.runtime.parameters import resolve
from lima_ros import bringup, viewers
from lima_ros.node_spec import NodeSpec, command
from lima_ros.player import PARAMETERS as PLAYER_PARAMETERS
from lima_ros.processes import Process, running

HANGING = """
import signal, sys, time
import rclpy
rclpy.init(args=sys.argv)
node = rclpy.create_node("hanging")
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("READY", flush=True)
time.sleep(60)
"""
STOPPING = """
import signal, time
try:
    print("READY", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(7)
"""


def written(line: list[str]) -> dict:
    """All parameters of a command line, as ROS reads them: later files win."""
    values = {}
    for flag, path in itertools.pairwise(line):
        if flag == "--params-file":
            values |= yaml.safe_load(Path(path).read_text())["/**"]["ros__parameters"]
    return values


def test_command_is_what_launch_ros_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere{os.pathsep}{tmp_path}")
    executable = tmp_path / "lib" / "lima_ros" / "some_node"
    executable.parent.mkdir(parents=True)
    executable.touch()
    spec = NodeSpec(
        "some_node",
        "me",
        "robot",
        parameters=("/etc/some.yaml", {"rate": 2.0, "sync.timeout_ms": 5.0}),
        remappings=(("~/in", "/out"),),
        ros_arguments=("--log-level", "warn"),
    )
    line = command(spec, tmp_path)
    assert line == [
        *[str(executable), "--ros-args", "--log-level", "warn", "-r", "__node:=me", "-r", "__ns:=/robot"],
        *["--params-file", "/etc/some.yaml", "--params-file", str(tmp_path / "me.parameters.1.yaml")],
        *["-r", "~/in:=/out"],
    ]
    assert yaml.safe_load(Path(line[11]).read_text()) == {
        "/**": {"ros__parameters": {"rate": 2.0, "sync.timeout_ms": 5.0}}
    }


def test_command_without_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    line = command(NodeSpec("player_node", "player"), tmp_path)
    assert line == [sys.executable, "-m", "lima_ros.player_node", "--ros-args", "-r", "__node:=player"]


def test_perception_graph_connects_the_rig(tmp_path: Path) -> None:
    (spec,) = bringup.perception_graph("nuscenes", device="cpu", namespace="car", use_sim_time=True, ledger_file="l")
    remappings = dict(spec.remappings)
    assert len(remappings) == 2 + 2 * 6
    assert remappings["~/input/pointcloud"] == "/LIDAR_TOP"
    assert remappings["~/input/odometry"] == "/odom"
    assert remappings["~/input/CAM_BACK/image"] == "/CAM_BACK/image_rect_compressed"
    assert remappings["~/input/CAM_BACK/camera_info"] == "/CAM_BACK/camera_info"
    defaults, values = spec.parameters
    assert defaults == str(config_dir() / "perception.yaml")
    assert values["device"] == "cpu" and "checkpoint" not in values  # empty = the parameter file's
    assert (values["use_sim_time"], values["ledger_file"]) == (True, "l")
    assert Path(values["rig"]).name == "nuscenes.yaml"
    assert spec.launch_arguments()["namespace"] == "car"


def test_launch_arguments_win_over_the_parameter_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/**: {ros__parameters: {checkpoint: mine, device: cuda}}")
    (spec,) = bringup.perception_graph(params_file=str(own), device="cpu")
    values = written(command(spec, tmp_path))
    assert (values["checkpoint"], values["device"]) == ("mine", "cpu")


def test_every_given_parameter_is_one_the_nodes_have(tmp_path: Path) -> None:
    from lima_core.runtime import parameters
    from lima_ros import evaluation, player

    specs = bringup.demo_graph("street:1", "nuscenes", tmp_path, 5, checkpoint="c", device="cpu", rate=0.5)
    tables = {
        "perception_node": parameters.PARAMETERS,
        "player_node": player.PARAMETERS,
        "evaluator_node": evaluation.PARAMETERS,
    }
    assert [spec.executable for spec in specs] == ["perception_node", "evaluator_node", "player_node"]
    for spec in specs:
        given = {k: v for p in spec.parameters if isinstance(p, dict) for k, v in p.items()}
        assert parameters.resolve(given, tables[spec.executable]).foreign == ()
    waits = specs[2].parameters[0]["wait_for"].split(",")
    assert {"/LIDAR_TOP", "/odom", "/CAM_FRONT/camera_info", "/gt/segmentation"} < set(waits)


def test_recorder_graph_and_its_file_have_every_parameter(tmp_path: Path) -> None:
    from lima_core.runtime.parameters import resolve
    from lima_core.tools.settings import given_settings
    from lima_ros.recorder_node import PARAMETERS

    (spec,) = bringup.recorder_graph("nuscenes", str(tmp_path / "drive"), triggers="all", snapshot_s=5.0)
    file, values = spec.parameters
    assert resolve(values, PARAMETERS).foreign == () and values["triggers"] == "all"
    shipped = given_settings(PARAMETERS, Path(file), [])
    assert shipped.given == {parameter.name for parameter in PARAMETERS}
    assert shipped.values == {parameter.name: parameter.default for parameter in PARAMETERS}


def test_replay_graph_takes_the_rig_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    perception, player = bringup.replay_graph("street:3", rate=0.5, namespace="car", log_level="debug")
    assert Rig.load(perception.parameters[1]["rig"]).name == "street"
    assert perception.parameters[1]["use_sim_time"] is True
    assert (player.namespace, player.ros_arguments) == ("car", ("--log-level", "debug"))
    assert player.parameters[0]["rate"] == 0.5


def test_a_shipped_rig_is_known_by_name_to_the_player_too() -> None:
    _, player = bringup.replay_graph("street:3", rig="nuscenes")
    assert player.parameters[0]["wait_for"] == "/LIDAR_TOP"


@pytest.mark.parametrize(("loop", "loops"), [(False, 1), (True, 0)])
def test_a_bag_brings_its_player_its_rig_and_its_time(
    loop: bool, loops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with BagWriter(tmp_path / "bag") as bag:
        bag.transforms("/tf_static", 0, ("base_link", "lidar", np.eye(4)))
        bag.odometry("/odom", 0, np.eye(4))
        bag.cloud("/points", 0, "lidar", **{axis: np.zeros(1, np.float32) for axis in "xyz"})
    perception, player = bringup.launch_graph(str(tmp_path / "bag"), 0.5, loop, use_sim_time=False, namespace="car")
    assert dict(perception.remappings)["~/input/pointcloud"] == "/points"
    assert perception.parameters[1]["use_sim_time"] is True
    settings = player.parameters[0]
    assert (settings["source"], settings["rate"], settings["loops"]) == (str(tmp_path / "bag"), 0.5, loops)
    assert (settings["wait_for"], player.namespace) == ("/points", "car")
    assert resolve(settings, PLAYER_PARAMETERS).foreign == ()


def test_without_a_bag_the_sensors_are_live() -> None:
    (perception,) = bringup.launch_graph()
    assert Path(perception.parameters[1]["rig"]).name == "nuscenes.yaml"
    assert perception.parameters[1]["use_sim_time"] is False
    for given in ({"rate": 0.5}, {"loop": True}):
        with pytest.raises(ValueError, match="rate and loop belong to a bag: give bag:="):
            bringup.launch_graph(**given)
    with pytest.raises(ValueError, match="'no_bag' is neither street:<seed> nor a folder"):
        bringup.launch_graph("no_bag")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix with both viewers in it."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    for name in ("rviz2", "foxglove_bridge"):
        (tmp_path / "lib" / name).mkdir(parents=True)
        (tmp_path / "lib" / name / name).touch()


@pytest.mark.parametrize(
    ("given", "packages"),
    [
        ({}, []),
        ({"visualize": "none"}, []),
        ({"visualize": "rviz"}, ["rviz2"]),
        ({"rviz": True}, ["rviz2"]),
        ({"visualize": "rviz", "rviz": True}, ["rviz2"]),
        ({"visualize": "foxglove"}, ["foxglove_bridge"]),
        ({"visualize": "foxglove", "rviz": True}, ["foxglove_bridge", "rviz2"]),
    ],
)
def test_viewers_that_are_asked_for(installed: None, given: dict, packages: list[str]) -> None:
    perception, *shown = bringup.perception_graph(use_sim_time=True, **given)
    assert perception.package == "lima_ros"
    assert [spec.package for spec in shown] == packages
    for spec in shown:
        assert spec.parameters == ({"use_sim_time": True},)
        assert spec.env == perception.env


@pytest.mark.parametrize(("name", "package"), [("rviz", "rviz2"), ("foxglove", "foxglove_bridge")])
def test_a_viewer_that_is_not_installed_is_left_out(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/nowhere")
    assert len(bringup.perception_graph(visualize=name)) == 1
    assert f"the package {package} is not installed; sudo apt install ros-$ROS_DISTRO-" in caplog.text
    with pytest.raises(ValueError, match="visualize is 'rvix'; choose rviz, foxglove or none"):
        bringup.perception_graph(visualize="rvix")


def test_rviz_looks_where_the_namespace_has_put_the_topics() -> None:
    spec = viewers.rviz_node("/car/", False, "LIDAR_TOP", {})
    assert spec.arguments == ("-d", str(config_dir() / "rviz" / "perception.rviz"), "-f", "LIDAR_TOP")
    moved = dict(spec.remappings)
    assert moved["/perception/output/segmentation"] == "/car/perception/output/segmentation"
    assert moved["/perception/output/CAM_BACK/overlay/compressed"].startswith("/car/")
    assert "/gt/segmentation" not in moved  # the player's topics have no namespace
    assert viewers.rviz_node("", False, "LIDAR_TOP", {}).remappings == ()


def test_environment(tmp_path: Path) -> None:
    env = bringup.environment()
    assert env["MALLOC_ARENA_MAX"] == "1"
    assert env["FASTDDS_DEFAULT_PROFILES_FILE"] == env["FASTRTPS_DEFAULT_PROFILES_FILE"]
    assert Path(env["FASTDDS_DEFAULT_PROFILES_FILE"]).name == "fastdds.xml"
    assert bringup.environment("") == {"MALLOC_ARENA_MAX": "1"}
    with pytest.raises(FileNotFoundError, match=r"Fast DDS profile /no\.xml does not exist"):
        bringup.environment("/no.xml")
    isolated = bringup.isolated_environment(tmp_path)
    assert 0 <= int(isolated["ROS_DOMAIN_ID"]) <= 101
    assert isolated["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "127.0.0.1" in Path(isolated["FASTDDS_DEFAULT_PROFILES_FILE"]).read_text()


def test_the_two_profiles_differ_in_the_whitelist_alone() -> None:
    import xml.etree.ElementTree as ET

    name = "{http://www.eprosima.com}"
    everywhere, localhost = (ET.parse(config_dir() / f).getroot() for f in ("fastdds.xml", "fastdds_localhost.xml"))
    for transport in localhost.iter(f"{name}transport_descriptor"):
        for whitelist in transport.findall(f"{name}interfaceWhiteList"):
            transport.remove(whitelist)
    flat = [[(e.tag, (e.text or "").strip()) for e in root.iter()] for root in (everywhere, localhost)]
    assert flat[0] == flat[1]
    sizes = {e.tag.removeprefix(name): int(e.text) for e in everywhere.iter() if (e.text or "").isdigit()}
    raw_set = 6 * 1600 * 900 * 3 + 800_000
    assert sizes["segment_size"] > 4 * raw_set and sizes["maxMessageSize"] > 1600 * 900 * 3


def test_text_of_launch_arguments_becomes_values() -> None:
    given = {"rviz": "True", "loop": "false", "rate": "0.5", "loops": "3", "rig": "1", "visualize": "none"}
    values = {"rviz": True, "loop": False, "rate": 0.5, "loops": 3, "rig": "1", "visualize": "none"}
    assert bringup.typed(given) == values
    with pytest.raises(ValueError, match="launch argument rviz:=yes: use true or false"):
        bringup.typed({"rviz": "yes"})
    with pytest.raises(ValueError, match="launch argument rate:=fast"):
        bringup.typed({"rate": "fast"})


def test_unknown_rigs_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a file nor one of the shipped rigs: .*nuscenes"):
        bringup.perception_graph("nuscene")
    broken = tmp_path / "rig.yaml"
    broken.write_text("name: x")
    with pytest.raises(RigError, match="lidar"):
        bringup.perception_graph(str(broken))


def test_shipped_nuscenes_rig_is_that_of_the_data(shared: Path) -> None:
    shipped, real = Rig.load(config_dir() / "rigs" / "nuscenes.yaml"), NuScenes(shared / "data/nus_tiny").rig
    assert (shipped.lidar_topic, shipped.intensity_scale) == (real.lidar_topic, real.intensity_scale)
    assert {m.name for m in shipped.cameras} == {m.name for m in real.cameras}
    pairs = [(shipped.base_from_lidar, real.base_from_lidar)]
    for mount in shipped.cameras:
        other = real.camera(mount.name)
        assert (mount.image_topic, mount.info_topic) == (other.image_topic, other.info_topic)
        assert mount.offset_ms == pytest.approx(other.offset_ms, abs=0.1)
        pairs.append((mount.base_from_camera, other.base_from_camera))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours[:3, 3], theirs[:3, 3], atol=1e-3)
        assert np.trace((se3.inverse(ours) @ theirs)[:3, :3]) > 3 - 1e-6  # cosine of the angle between them


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> NodeSpec:
    """A node of a package of its own, importable in the processes."""
    (tmp_path / "toys").mkdir(exist_ok=True)
    (tmp_path / "toys" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return NodeSpec(name, name, package="toys")


def test_processes_are_stopped_by_sigint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, await_output: Callable
) -> None:
    spec = script(tmp_path, monkeypatch, "stopping", STOPPING)
    with running([spec], tmp_path) as (process,):
        await_output(process, "READY")
        with pytest.raises(TimeoutError, match=r"stopping still runs after 0\.1 s:\nREADY"):
            process.wait(0.1)
    assert process.returncode == 7


def test_a_hanging_node_is_killed_and_its_shared_memory_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ros_env: dict, await_output: Callable
) -> None:
    spec = script(tmp_path, monkeypatch, "hanging", HANGING)
    process = Process(spec, tmp_path)
    await_output(process, "READY")
    maps = Path(f"/proc/{process._popen.pid}/maps").read_text().split()
    segments = {Path(p) for p in maps if p.startswith("/dev/shm/fastdds_") and "port" not in p}
    assert segments
    assert process.stop(timeout_s=0.3) == -9
    assert not [path for path in segments if path.exists()]

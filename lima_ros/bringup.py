"""The graph as data: which nodes run with which parameters, remappings and environment.

No `launch` and no `rclpy` in here: the launch files, the demo and the tests all start what these functions
describe. `command` gives the line that launch_ros builds for the same `Node(...)`; lima_ros/processes.py runs it.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lima_core.data.bag import TRUTH_TOPIC
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.paths import config_dir

PACKAGE = "lima_ros"
PERCEPTION = "perception"
DEFAULT = "default"


@dataclass(frozen=True)
class NodeSpec:
    """One ROS node as data. `parameters`: parameter files (str) and dicts of values, later ones win."""

    executable: str
    name: str
    namespace: str = ""
    parameters: tuple[str | dict[str, Any], ...] = ()
    remappings: tuple[tuple[str, str], ...] = ()
    ros_arguments: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    package: str = PACKAGE

    def launch_arguments(self) -> dict[str, Any]:
        """The keyword arguments of launch_ros.actions.Node."""
        return {
            "package": self.package,
            "executable": self.executable,
            "name": self.name,
            "namespace": self.namespace,
            "parameters": list(self.parameters),
            "remappings": list(self.remappings),
            "arguments": list(self.arguments),
            "ros_arguments": list(self.ros_arguments),
            "additional_env": dict(self.env),
            "output": "screen",
        }


def environment(fastdds_profile: str = DEFAULT) -> dict[str, str]:
    """What every node's environment needs; without it images are lost (measured at six raw cameras).

    One malloc arena, or glibc hands the memory of every image back to the kernel; and the Fast DDS profile under the
    names of all distributions. "default" = the shipped profile; "" leaves the middleware as the user has set it.
    """
    profile = str(config_dir() / "fastdds.xml") if fastdds_profile == DEFAULT else fastdds_profile
    env = {"MALLOC_ARENA_MAX": "1"}
    if profile:
        if not Path(profile).is_file():
            raise FileNotFoundError(f"Fast DDS profile {profile} does not exist; an empty name sets none")
        env["FASTDDS_DEFAULT_PROFILES_FILE"] = env["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
    return env


def isolated_environment(log_folder: Path) -> dict[str, str]:
    """An environment for a graph of its own on this host: random domain, loopback only (demo, tests)."""
    env = {
        "ROS_DOMAIN_ID": str(random.SystemRandom().randint(0, 101)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(log_folder),
        **environment(str(config_dir() / "fastdds_localhost.xml")),
    }
    if os.environ.get("ROS_DISTRO") == "humble":  # later distributions read the range and warn about this one
        env["ROS_LOCALHOST_ONLY"] = "1"
    return env


def rig_path(rig: str) -> Path:
    """Path of a rig file, given as a path or as the name of a shipped one. Raises FileNotFoundError with both."""
    shipped = config_dir() / "rigs" / f"{rig}.yaml"
    for path in (Path(rig), shipped):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
    raise FileNotFoundError(f"rig {rig!r} is neither a file nor one of the shipped rigs: {known}")


def perception_remappings(rig: Rig) -> tuple[tuple[str, str], ...]:
    """The perception node's private inputs -> the rig's topics."""
    pairs = [("~/input/pointcloud", rig.lidar_topic), ("~/input/odometry", rig.odometry_topic)]
    for mount in rig.cameras:
        pairs += [
            (f"~/input/{mount.name}/image", mount.image_topic),
            (f"~/input/{mount.name}/camera_info", mount.info_topic),
        ]
    return tuple(pairs)


def perception_graph(
    rig: str = "nuscenes",
    checkpoint: str = "",
    device: str = "",
    params_file: str = "",
    namespace: str = "",
    use_sim_time: bool = False,
    autostart: bool = True,
    log_level: str = "info",
    fastdds_profile: str = DEFAULT,
    rviz: bool = False,
    **parameters: Any,
) -> list[NodeSpec]:
    """The perception node, and RViz on request.

    Empty `checkpoint` and `device` leave the choice to the parameter file, config/perception.yaml by default;
    `fastdds_profile` as for `environment`. Further keywords are parameters, e.g. ledger_file.
    """
    path = rig_path(rig)
    chosen = {name: value for name, value in {"checkpoint": checkpoint, "device": device}.items() if value}
    values = {"rig": str(path), "use_sim_time": use_sim_time, "autostart": autostart, **chosen, **parameters}
    env = environment(fastdds_profile)
    perception = NodeSpec(
        "perception_node",
        PERCEPTION,
        namespace,
        parameters=(params_file or str(config_dir() / "perception.yaml"), values),
        remappings=perception_remappings(Rig.load(path)),
        ros_arguments=("--log-level", log_level),
        env=env,
    )
    return [perception, rviz_node(namespace, use_sim_time, env)] if rviz else [perception]


def rviz_node(namespace: str, use_sim_time: bool, env: Mapping[str, str]) -> NodeSpec:
    """RViz2 with the perception node's displays."""
    return NodeSpec(
        "rviz2",
        "rviz",
        namespace,
        parameters=({"use_sim_time": use_sim_time},),
        arguments=("-d", str(config_dir() / "rviz" / "perception.rviz")),
        env=env,
        package="rviz2",
    )


def player(
    source: str,
    namespace: str = "",
    log_level: str = "info",
    fastdds_profile: str = DEFAULT,
    **parameters: Any,
) -> NodeSpec:
    """The player of a source; further keywords are its parameters (PARAMETERS in lima_ros/player.py)."""
    return NodeSpec(
        "player_node",
        "player",
        namespace,
        parameters=({"source": source, **parameters},),
        ros_arguments=("--log-level", log_level),
        env=environment(fastdds_profile),
    )


def evaluator(
    out: str,
    rig: str = "",
    namespace: str = "",
    log_level: str = "info",
    fastdds_profile: str = DEFAULT,
    **parameters: Any,
) -> NodeSpec:
    """The evaluator of the perception node; without a `rig` it keeps no overlays, which are then not drawn.

    Further keywords are its parameters (PARAMETERS in lima_ros/evaluation.py).
    """
    cameras = {"rig": str(rig_path(rig))} if rig else {}
    return NodeSpec(
        "evaluator_node",
        "evaluator",
        namespace,
        parameters=({"out": out, "perception": PERCEPTION, **cameras, **parameters},),
        ros_arguments=("--log-level", log_level),
        env=environment(fastdds_profile),
    )


def replay_graph(
    source: str,
    rig: str = "",
    rate: float = 1.0,
    loops: int = 1,
    start_offset_s: float = 0.0,
    messages: bool = False,
    **perception: Any,
) -> list[NodeSpec]:
    """Perception on its source's own time: empty `rig` = the source's. `perception` as for perception_graph."""
    rig = rig or str(source_rig(source))
    specs = perception_graph(rig, use_sim_time=True, **perception)
    shared = {name: perception[name] for name in ("namespace", "log_level", "fastdds_profile") if name in perception}
    settings = {"rate": rate, "loops": loops, "start_offset_s": start_offset_s, "messages": messages}
    return [*specs, player(source, wait_for=Rig.load(rig).lidar_topic, **settings, **shared)]


def demo_graph(
    source: str,
    rig: str,
    out: Path,
    frames: int,
    checkpoint: str = "",
    device: str = "",
    rate: float = 1.0,
    frames_made: int = 0,
    fastdds_profile: str = DEFAULT,
) -> list[NodeSpec]:
    """Perception, evaluator and player of a source of `frames` frames; each writes its JSON into `out`.

    `frames_made` is the length asked of a simulated street (0 for folders). The player waits until every input of
    the perception node, and the evaluator, is connected; overlays of every frame are kept.
    """
    path = rig_path(rig)
    topics = [topic for _, topic in perception_remappings(Rig.load(path))] + [TRUTH_TOPIC]
    profile = {"fastdds_profile": fastdds_profile}
    return [
        *perception_graph(
            rig=str(path), checkpoint=checkpoint, device=device, ledger_file=str(out / "ledger.json"), **profile
        ),
        evaluator(str(out), str(path), frames=frames, **profile),
        player(
            source,
            frames=frames_made,
            rate=rate,
            wait_for=",".join(topics),
            prefetch=frames,
            summary_file=str(out / "player.json"),
            **profile,
        ),
    ]


def typed(given: Mapping[str, str]) -> dict[str, Any]:
    """Launch arguments, which are text, as the keywords of perception_graph and replay_graph.

    Raises ValueError naming an argument that is no boolean or number.
    """
    kinds = {"use_sim_time": _boolean, "autostart": _boolean, "rviz": _boolean, "messages": _boolean}
    kinds |= {"rate": float, "start_offset_s": float, "loops": int}
    values: dict[str, Any] = {}
    for name, text in given.items():
        try:
            values[name] = kinds.get(name, str)(text)
        except ValueError as error:
            raise ValueError(f"launch argument {name}:={text}: {error}") from error
    return values


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("use true or false")
    return text.lower() == "true"


def source_rig(source: str) -> Path:
    """Saves the rig of a source to a temporary file, for nodes that take a rig by file."""
    path = Path(tempfile.mkdtemp(prefix="lima_")) / "rig.yaml"
    open_source(source).rig.save(path)
    return path


def command(spec: NodeSpec, folder: Path) -> list[str]:
    """The command line that launch_ros builds; `python -m` where the package is not installed.

    Dicts of parameters are written to files in `folder`, as launch_ros does.
    """
    line = [str(executable)] if (executable := installed_executable(spec)) else [sys.executable, "-m"]
    if executable is None:
        line.append(f"{spec.package}.{spec.executable}")
    line += [*spec.arguments, "--ros-args", *spec.ros_arguments, "-r", f"__node:={spec.name}"]
    if spec.namespace:
        line += ["-r", f"__ns:=/{spec.namespace.strip('/')}"]
    for index, parameters in enumerate(spec.parameters):
        if isinstance(parameters, dict):
            path = folder / f"{spec.name}.parameters.{index}.yaml"
            parameters = write_whole(path, yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        line += ["--params-file", str(parameters)]
    for old, new in spec.remappings:
        line += ["-r", f"{old}:={new}"]
    return line


def installed_executable(spec: NodeSpec) -> Path | None:
    """Where AMENT_PREFIX_PATH has the node, as `ros2 run` and `ros2 launch` look it up; None if nowhere."""
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        path = Path(prefix) / "lib" / spec.package / spec.executable
        if path.is_file():
            return path
    return None

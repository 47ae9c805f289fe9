"""The graph as data: which nodes run with which parameters, remappings and environment.

No `launch` and no `rclpy` in here: the launch files, the demo and the tests all start what these functions
describe, as `NodeSpec`s (lima_ros/node_spec.py).
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from lima_core.data.bag import TRUTH_TOPIC
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.paths import config_dir
from lima_ros.node_spec import NodeSpec
from lima_ros.viewers import NONE, PERCEPTION, RVIZ, viewers

DEFAULT = "default"


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
    autostart: bool | None = None,
    log_level: str = "info",
    fastdds_profile: str = DEFAULT,
    visualize: str = NONE,
    rviz: bool = False,
    **parameters: Any,
) -> list[NodeSpec]:
    """The perception node, and the viewer that `visualize` names (lima_ros/viewers.py); `rviz` asks for RViz too.

    Empty `checkpoint` and `device`, and `autostart` None, leave the choice to the parameter file, by default
    config/perception.yaml; `fastdds_profile` as for `environment`. Further keywords are parameters, e.g. ledger_file.
    """
    path = rig_path(rig)
    sensors = Rig.load(path)
    chosen = {name: value for name, value in {"checkpoint": checkpoint, "device": device}.items() if value}
    chosen |= {} if autostart is None else {"autostart": autostart}
    values = {"rig": str(path), "use_sim_time": use_sim_time, **chosen, **parameters}
    env = environment(fastdds_profile)
    perception = NodeSpec(
        "perception_node",
        PERCEPTION,
        namespace,
        parameters=(params_file or str(config_dir() / "perception.yaml"), values),
        remappings=perception_remappings(sensors),
        ros_arguments=("--log-level", log_level),
        env=env,
    )
    wanted = dict.fromkeys((visualize, RVIZ if rviz else NONE))
    shown = (viewers(name, namespace, use_sim_time, sensors.lidar_frame, env) for name in wanted)
    return [perception, *chain.from_iterable(shown)]


def launch_graph(
    bag: str = "", rate: float = 1.0, loop: bool = False, rig: str = "", **perception: Any
) -> list[NodeSpec]:
    """What perception.launch.py starts: perception on live sensors, or on a `bag` that it plays, for ever with `loop`.

    Empty `rig` = the bag's own, nuscenes without a bag. Time is the bag's, whatever `use_sim_time` says.
    Raises ValueError where `rate` or `loop` is given without a bag.
    """
    if bag:
        return replay_graph(bag, rig, rate=rate, loops=0 if loop else 1, **perception)
    if loop or rate != 1.0:
        raise ValueError(
            "launch arguments rate and loop belong to a bag: give bag:=/path/to/bag too, or leave them out"
        )
    return perception_graph(rig or "nuscenes", **perception)


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


def recorder_graph(
    rig: str = "nuscenes",
    out: str = "recording",
    triggers: str = "",
    params_file: str = "",
    namespace: str = "",
    use_sim_time: bool = False,
    log_level: str = "info",
    fastdds_profile: str = DEFAULT,
    **parameters: Any,
) -> list[NodeSpec]:
    """The recorder: what the rig's sensors send becomes a recording in the folder `out`.

    Empty `triggers` leave the choice to the parameter file, by default config/recorder.yaml; further keywords are
    parameters, e.g. snapshot_s.
    """
    values = {"rig": str(rig_path(rig)), "out": str(Path(out).absolute()), "use_sim_time": use_sim_time}
    values |= {"triggers": triggers} if triggers else {}
    return [
        NodeSpec(
            "recorder_node",
            "recorder",
            namespace,
            parameters=(params_file or str(config_dir() / "recorder.yaml"), {**values, **parameters}),
            ros_arguments=("--log-level", log_level),
            env=environment(fastdds_profile),
        )
    ]


def replay_graph(
    source: str,
    rig: str = "",
    rate: float = 1.0,
    loops: int = 1,
    start_offset_s: float = 0.0,
    messages: bool = False,
    evaluate: str = "",
    **perception: Any,
) -> list[NodeSpec]:
    """Perception on its source's own time: empty `rig` = the source's. `perception` as for perception_graph.

    `evaluate`: a folder in which the evaluator writes how that compares with the source's ground truth; empty = none.
    """
    rig = rig or str(source_rig(source))
    specs = perception_graph(rig, **{**perception, "use_sim_time": True})
    shared = {name: perception[name] for name in ("namespace", "log_level", "fastdds_profile") if name in perception}
    settings = {"rate": rate, "loops": loops, "start_offset_s": start_offset_s, "messages": messages}
    specs += [evaluator(str(Path(evaluate).absolute()), rig, **shared)] if evaluate else []
    return [*specs, player(source, wait_for=Rig.load(rig_path(rig)).lidar_topic, **settings, **shared)]


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
    """Launch arguments, which are text, as the keywords of launch_graph and replay_graph.

    Raises ValueError naming an argument that is no boolean or number.
    """
    kinds = dict.fromkeys(("use_sim_time", "autostart", "rviz", "messages", "loop"), _boolean)
    kinds |= {"rate": float, "start_offset_s": float, "loops": int}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name == "autostart" and not text:
            continue
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

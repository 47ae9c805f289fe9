"""One ROS node as data, and the line that starts it; no `launch` and no `rclpy`.

launch_ros starts a node from `NodeSpec.launch_arguments`, lima_ros/processes.py from `command`: the same line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lima_core.files import write_whole

PACKAGE = "lima_ros"


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
            "sigterm_timeout": "15",  # a node finishes its sweep and closes its ledger first
            "output": "screen",
        }


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

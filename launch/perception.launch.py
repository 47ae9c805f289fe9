"""Segments a LiDAR and its cameras: `ros2 launch lima_ros perception.launch.py rig:=my_rig.yaml rviz:=true`."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from lima_ros import bringup

ARGUMENTS = {
    "rig": ("nuscenes", "Rig file, or the name of one in config/rigs: topics, mounts and offsets of the sensors"),
    "checkpoint": ("", "Network file; empty = the parameter file's, or the one that ships with lima"),
    "device": ("", "auto, cpu or cuda; empty = the parameter file's"),
    "params_file": ("", "Parameters of the perception node; empty = config/perception.yaml"),
    "namespace": ("", "Namespace of the nodes"),
    "use_sim_time": ("false", "Time from /clock, for bags and simulators"),
    "autostart": ("true", "Start at once; false = wait for the service ~/enable"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "fastdds_profile": (bringup.DEFAULT, "Fast DDS profile; default = the shipped one, empty = none"),
    "rviz": ("false", "Open RViz"),
}


def generate_launch_description() -> LaunchDescription:
    """Declares the arguments and starts the graph that lima_ros.bringup describes."""
    declared = [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    return [Node(**spec.launch_arguments()) for spec in bringup.perception_graph(**bringup.typed(given))]

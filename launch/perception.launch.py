"""Perception on live sensors or on a bag.

ros2 launch lima_ros perception.launch.py rig:=my_rig.yaml visualize:=rviz
ros2 launch lima_ros perception.launch.py bag:=/path/to/bag loop:=true visualize:=foxglove
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from lima_ros import bringup

ARGUMENTS = {
    "bag": ("", "A rosbag2 folder to play (or any source of replay.launch.py); empty = live sensors"),
    "rate": ("1.0", "Speed of the bag, times real time"),
    "loop": ("false", "Play the bag for ever"),
    "rig": ("", "Rig file, or the name of one in config/rigs; empty = the bag's own, nuscenes without a bag"),
    "checkpoint": ("", "Network file; empty = the parameter file's, or the one that ships with lima"),
    "device": ("", "auto, cpu or cuda; empty = the parameter file's"),
    "params_file": ("", "Parameters of the perception node; empty = config/perception.yaml"),
    "namespace": ("", "Namespace of the nodes"),
    "use_sim_time": ("false", "Time from /clock, for simulators; a bag implies it"),
    "autostart": ("", "true, or false = wait for ~/enable or a lifecycle manager; empty = the parameter file's"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "fastdds_profile": (bringup.DEFAULT, "Fast DDS profile; default = the shipped one, empty = none"),
    "visualize": ("none", "rviz, foxglove (starts the bridge; import config/foxglove/perception.json) or none"),
    "rviz": ("false", "Short for visualize:=rviz"),
}


def generate_launch_description() -> LaunchDescription:
    """Declares the arguments and starts the graph that lima_ros.bringup describes."""
    declared = [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    return [Node(**spec.launch_arguments()) for spec in bringup.launch_graph(**bringup.typed(given))]

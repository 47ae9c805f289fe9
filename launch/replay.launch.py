"""Plays a source through perception: `ros2 launch lima_ros replay.launch.py source:=my_bag visualize:=rviz`."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from lima_ros import bringup

ARGUMENTS = {
    "source": ("street:7", "A rosbag2 folder, a folder in the nuScenes layout, or street:<seed>"),
    "rig": ("", "Rig file or name; empty = the rig of the source itself"),
    "rate": ("1.0", "Speed, times real time"),
    "loops": ("1", "How often to play; 0 = until stopped"),
    "start_offset_s": ("0.0", "Leave out so many seconds at the start"),
    "messages": ("false", "Play a bag's messages as they were recorded, instead of frames made of them"),
    "evaluate": ("", "Folder for the comparison with the source's ground truth; empty = none"),
    "checkpoint": ("", "Network file; empty = the parameter file's, or the one that ships with lima"),
    "device": ("", "auto, cpu or cuda; empty = the parameter file's"),
    "params_file": ("", "Parameters of the perception node; empty = config/perception.yaml"),
    "namespace": ("", "Namespace of the nodes"),
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
    return [Node(**spec.launch_arguments()) for spec in bringup.replay_graph(**bringup.typed(given))]

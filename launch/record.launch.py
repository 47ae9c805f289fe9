"""Records what the robot's sensors send: `ros2 launch lima_ros record.launch.py rig:=my_rig.yaml out:=/data/drive`."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from lima_ros import bringup

ARGUMENTS = {
    "rig": ("nuscenes", "Rig file, or the name of one in config/rigs"),
    "out": ("recording", "Folder of the recording; one that is there goes on with a new sequence"),
    "triggers": ("", "time, distance, novelty, all, comma between; empty = the parameter file's"),
    "params_file": ("", "Parameters of the recorder; empty = config/recorder.yaml"),
    "namespace": ("", "Namespace of the node"),
    "use_sim_time": ("false", "Time from /clock, for simulators and bags"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "fastdds_profile": (bringup.DEFAULT, "Fast DDS profile; default = the shipped one, empty = none"),
}


def generate_launch_description() -> LaunchDescription:
    """Declares the arguments and starts the graph that lima_ros.bringup describes."""
    declared = [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    return [Node(**spec.launch_arguments()) for spec in bringup.recorder_graph(**bringup.typed(given))]

"""LiMA: LiDAR perception learned from a robot's own unlabelled drives. This package imports no ROS."""

__version__ = "0.1.0"

"""ROS 2 nodes of lima: sensors in, segmented clouds out. Only the `*_node.py` files import rclpy."""

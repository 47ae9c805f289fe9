"""What happens on a robot between messages in and messages out, live in the nodes and offline on a bag; no ROS."""

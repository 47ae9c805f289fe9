"""Boxes from ROS messages: the markers that lima sends (runtime/detections.py), and vision_msgs/Detection3DArray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lima_core.data.frame import Boxes, Detections
from lima_core.geometry.boxes import CORNERS

LINE_LIST = 5  # visualization_msgs/Marker
BOXES = "boxes"  # last part of the namespace of their markers
# pairs of rows of CORNERS: front face, rear face, and what joins them
EDGES = np.array([(i + f, (i + 1) % 4 + f) for f in (0, 4) for i in range(4)] + [(i, i + 4) for i in range(4)])
HEADING = np.array([(0, 0, -1), (1, 0, -1)]) / 2  # a line on the floor from the middle to the front
WIREFRAME = np.concatenate([CORNERS[EDGES].reshape(-1, 3), HEADING])  # (26, 3) ends of 13 lines of a box of size 1


def marker_boxes(message: Any, class_names: Sequence[str]) -> Detections:
    """What `marker_array` was made of, but for counts and attributes; other markers are left out.

    Raises ValueError on a class without a name here, or where a box is not as `marker_array` makes it.
    """
    found = [m for m in message.markers if m.type == LINE_LIST and m.ns.endswith(f"/{BOXES}")]
    facts = [_facts(marker, class_names) for marker in found]
    ends = [np.array([(p.x, p.y, p.z) for p in m.points]).reshape(-1, 3) for m in found]
    if any(len(points) != len(WIREFRAME) for points in ends):
        raise ValueError(f"a box marker has {sorted(map(len, ends))} points instead of {len(WIREFRAME)}")
    center, yaw = _placed([m.pose for m in found])
    boxes = Boxes(
        center=center,
        size=np.array([2 * np.abs(points).max(0) for points in ends]).reshape(-1, 3),
        yaw=yaw,
        velocity=np.array([velocity for _, _, velocity in facts]).reshape(-1, 2),
        class_id=np.array([class_id for class_id, _, _ in facts], np.uint8),
    )
    return Detections(boxes, np.array([score for _, score, _ in facts], np.float32))


def detection_boxes(message: Any, class_names: Sequence[str]) -> Boxes:
    """vision_msgs/Detection3DArray -> boxes without velocities, which it has none of; of each object the first class.

    Raises ValueError on an object without a class, or of a class without a name here.
    """
    found = message.detections
    names = [d.results[0].hypothesis.class_id if d.results else "" for d in found]
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ValueError(f"a box is a {unknown[0]!r}; the classes are {', '.join(class_names)}")
    center, yaw = _placed([d.bbox.center for d in found])
    return Boxes(
        center=center,
        size=np.array([(d.bbox.size.x, d.bbox.size.y, d.bbox.size.z) for d in found]).reshape(-1, 3),
        yaw=yaw,
        velocity=np.full((len(found), 2), np.nan),
        class_id=np.array([class_names.index(name) for name in names], np.uint8),
    )


def _placed(poses: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """geometry_msgs/Pose of boxes that turn about z alone -> (B, 3) centres in m, (B,) yaw in rad."""
    center = np.array([(p.position.x, p.position.y, p.position.z) for p in poses]).reshape(-1, 3)
    return center, np.array([2 * np.arctan2(p.orientation.z, p.orientation.w) for p in poses]).reshape(-1)


def _facts(marker: Any, class_names: Sequence[str]) -> tuple[int, float, tuple[float, float]]:
    """Class, score and velocity of a box marker."""
    try:
        facts = json.loads(marker.text)
        velocity = (np.nan, np.nan) if facts["velocity"] is None else tuple(map(float, facts["velocity"]))
        name, score = str(facts["class"]), float(facts["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"box marker {marker.ns}/{marker.id}: text {marker.text[:80]!r} is not class, score and velocity"
        ) from error
    if name not in class_names or len(velocity) != 2:
        raise ValueError(f"a box is a {name!r} with velocity {velocity}; the classes are {', '.join(class_names)}")
    return class_names.index(name), score, velocity

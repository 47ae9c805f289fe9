"""Detections -> what RViz draws (MarkerArray) and what others read (vision_msgs), and back.

ROS has a box's size along its own x (length), y (width), z (height), and quaternions as x-y-z-w. Headers are the
input's, never now(): TF then takes the boxes to the place where the points were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lima_core.data.frame import Detections
from lima_core.data.ros_boxes import BOXES, LINE_LIST, WIREFRAME
from lima_core.runtime.messages import Messages

MARKER = "visualization_msgs/msg/Marker"
LINE_M = 0.08
TEXT_M = 0.7  # height of a letter
TEXT_ABOVE_M = 0.6  # from the roof to the middle of the text
SHAFT_M, HEAD_M = 0.15, 0.4  # diameters of the arrow
SLOWEST_SHOWN_M_S = 0.3  # slower ones are noise of parked cars
WHITE = (1.0, 1.0, 1.0)  # dark class colours are illegible as text
ARROW, TEXT_VIEW_FACING, DELETEALL = 0, 9, 3  # visualization_msgs/Marker


def above(detections: Detections, class_names: Sequence[str], threshold: float | Mapping[str, float]) -> Detections:
    """The detections whose score reaches `threshold`: one for all, or one for each class by name.

    Raises ValueError on a threshold outside [0, 1], for an unknown class, or for not every class.
    """
    _check(detections, class_names)
    rows = detections.score >= _thresholds(class_names, threshold)[detections.boxes.class_id]
    return Detections(detections.boxes.take(rows), detections.score[rows])


def marker_array(
    detections: Detections,
    class_names: Sequence[str],
    colors: np.ndarray,
    header: Any,
    lifetime_s: float,
    namespace: str,
    messages: Messages,
) -> Any:
    """MarkerArray: DELETEALL, then per object a wireframe, `name score` above it, and an arrow, a second of its motion.

    `colors` (C, 3) uint8 RGB of the classes; `lifetime_s` 0 = until the next array. No arrow where the velocity is
    unknown or below SLOWEST_SHOWN_M_S. The three kinds are in namespaces of their own, to be switched off in RViz. The
    `text` of a wireframe, which RViz does not draw, is JSON with what data/ros_boxes.py reads.
    Raises ValueError on a box that is not finite or of a class without name or colour.
    """
    _check(detections, class_names)
    if len(colors) != len(class_names):  # those of segmentation, say, which are in another order
        raise ValueError(f"{len(class_names)} classes of boxes and {len(colors)} colours; give one to each, in order")
    lifetime = messages.make("builtin_interfaces/msg/Duration", sec=int(lifetime_s), nanosec=int(lifetime_s % 1 * 1e9))
    markers = [messages.make(MARKER, header=header, action=DELETEALL)]  # without namespace: all of them
    for row in range(len(detections)):
        for kind, marker in _object_markers(detections, row, class_names, colors, messages):
            marker.header, marker.ns, marker.id, marker.lifetime = header, f"{namespace}/{kind}", len(markers), lifetime
            markers.append(marker)
    return messages.make("visualization_msgs/msg/MarkerArray", markers=markers)


def detection_array(detections: Detections, class_names: Sequence[str], header: Any, messages: Messages) -> Any:
    """vision_msgs/Detection3DArray; class_id is the NAME, id is empty (no tracks).

    vision_msgs has no field for a velocity: see the markers. The pose's covariance is left at zero.
    Raises ValueError on a box that is not finite or of a class without name.
    """
    _check(detections, class_names)
    found = []
    for row, score in enumerate(detections.score.tolist()):
        name, pose = class_names[detections.boxes.class_id[row]], _pose(detections, row, messages)
        hypothesis = messages.make("vision_msgs/msg/ObjectHypothesis", class_id=name, score=score)
        uncertain = messages.make("geometry_msgs/msg/PoseWithCovariance", pose=pose)
        result = messages.make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=uncertain)
        size = _vector(*detections.boxes.size[row], messages)
        box = messages.make("vision_msgs/msg/BoundingBox3D", center=pose, size=size)
        found.append(messages.make("vision_msgs/msg/Detection3D", header=header, results=[result], bbox=box, id=""))
    return messages.make("vision_msgs/msg/Detection3DArray", header=header, detections=found)


def label_info(
    class_names: Sequence[str], threshold: float | Mapping[str, float], header: Any, messages: Messages
) -> Any:
    """vision_msgs/LabelInfo (vision_msgs 4, Humble and later): names by id, and the lowest score that is published.

    Raises ValueError as `above`.
    """
    kind = "vision_msgs/msg/VisionClass"
    classes = [messages.make(kind, class_id=index, class_name=name) for index, name in enumerate(class_names)]
    lowest = float(_thresholds(class_names, threshold).min())
    return messages.make("vision_msgs/msg/LabelInfo", header=header, class_map=classes, threshold=lowest)


def _check(detections: Detections, class_names: Sequence[str]) -> None:
    """Raises ValueError naming the first box that cannot be sent; an unknown velocity can."""
    boxes = detections.boxes
    finite = np.isfinite(np.column_stack([boxes.center, boxes.size, boxes.yaw, detections.score])).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"detection {row} is not finite: centre {boxes.center[row]}, size {boxes.size[row]}, yaw {boxes.yaw[row]}, "
            f"score {detections.score[row]}; the checkpoint or its input is broken"
        )
    unnamed = boxes.class_id >= len(class_names)
    if unnamed.any():
        row = int(np.argmax(unnamed))
        raise ValueError(
            f"detection {row} has class {boxes.class_id[row]}, but there are {len(class_names)} names; "
            "take the names from the checkpoint that found it"
        )


def _thresholds(class_names: Sequence[str], threshold: float | Mapping[str, float]) -> np.ndarray:
    """(C,) of all classes, float32 as the scores: 0.7 is then reached by a score of 0.7."""
    if not isinstance(threshold, Mapping):
        threshold = dict.fromkeys(class_names, threshold)
    wrong = sorted(threshold.keys() ^ set(class_names))
    if wrong:
        what = "unknown" if wrong[0] in threshold else "without a score threshold"
        raise ValueError(f"class {wrong[0]!r} is {what}; give one to each of {', '.join(class_names)}")
    for name, value in threshold.items():
        if not 0 <= value <= 1:
            raise ValueError(f"the score threshold of {name!r} is {value}; its range is 0 .. 1")
    return np.array([threshold[name] for name in class_names], np.float32)


def _object_markers(
    detections: Detections, row: int, class_names: Sequence[str], colors: np.ndarray, messages: Messages
) -> Iterator[tuple[str, Any]]:
    """Kind and marker of all that is drawn for one object."""
    boxes = detections.boxes
    name, score = class_names[boxes.class_id[row]], float(detections.score[row])
    color = _color(np.asarray(colors[boxes.class_id[row]], np.float64) / 255, messages)
    marker = partial(messages.make, MARKER)
    # lines, not a CUBE: the points inside stay visible
    lines = [_point(end, messages) for end in WIREFRAME * boxes.size[row]]
    thin, pose = _vector(LINE_M, 0, 0, messages), _pose(detections, row, messages)
    facts = json.dumps({"class": name, "score": score, "velocity": _plain_velocity(boxes.velocity[row])})
    yield BOXES, marker(type=LINE_LIST, pose=pose, scale=thin, color=color, points=lines, text=facts)
    over = messages.make(
        "geometry_msgs/msg/Pose",
        position=_point(boxes.center[row] + [0, 0, boxes.size[row, 2] / 2 + TEXT_ABOVE_M], messages),
    )
    high, white = _vector(0, 0, TEXT_M, messages), _color(WHITE, messages)
    yield "names", marker(type=TEXT_VIEW_FACING, pose=over, scale=high, color=white, text=f"{name} {score:.2f}")
    speed = np.hypot(*boxes.velocity[row])
    if np.isfinite(speed) and speed >= SLOWEST_SHOWN_M_S:
        tip = boxes.center[row] + [*boxes.velocity[row], 0]
        ends = [_point(boxes.center[row], messages), _point(tip, messages)]
        yield "velocities", marker(type=ARROW, scale=_vector(SHAFT_M, HEAD_M, 0, messages), color=color, points=ends)


def _plain_velocity(velocity: np.ndarray) -> list[float] | None:
    """For JSON, which has no nan."""
    return list(map(float, velocity)) if np.isfinite(velocity).all() else None


def _pose(detections: Detections, row: int, messages: Messages) -> Any:
    """Centre of a box, and its turn about z."""
    half = float(detections.boxes.yaw[row]) / 2
    turn = messages.make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=float(np.sin(half)), w=float(np.cos(half)))
    position = _point(detections.boxes.center[row], messages)
    return messages.make("geometry_msgs/msg/Pose", position=position, orientation=turn)


def _point(xyz: np.ndarray, messages: Messages) -> Any:
    x, y, z = map(float, xyz)
    return messages.make("geometry_msgs/msg/Point", x=x, y=y, z=z)


def _vector(x: float, y: float, z: float, messages: Messages) -> Any:
    return messages.make("geometry_msgs/msg/Vector3", x=float(x), y=float(y), z=float(z))


def _color(rgb: Sequence[float], messages: Messages) -> Any:
    r, g, b = map(float, rgb)
    return messages.make("std_msgs/msg/ColorRGBA", r=r, g=g, b=b, a=1.0)

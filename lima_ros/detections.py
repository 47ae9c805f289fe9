"""Detections -> what RViz draws (MarkerArray) and what others read (vision_msgs). Message packages only, no rclpy.

ROS has a box's size along its own x (length), y (width), z (height), and quaternions as x-y-z-w. Headers are the
input's, never now(): TF then takes the boxes to the place where the points were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from lima_core.data.frame import Detections
from lima_core.geometry.boxes import CORNERS

LINE_M = 0.08
TEXT_M = 0.7  # height of a letter
TEXT_ABOVE_M = 0.6  # from the roof to the middle of the text
SHAFT_M, HEAD_M = 0.15, 0.4  # diameters of the arrow
SLOWEST_SHOWN_M_S = 0.3  # slower ones are noise of parked cars
WHITE = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)  # dark class colours are illegible as text
# pairs of rows of CORNERS: front face, rear face, and what joins them
EDGES = np.array([(i + f, (i + 1) % 4 + f) for f in (0, 4) for i in range(4)] + [(i, i + 4) for i in range(4)])
HEADING = np.array([(0, 0, -1), (1, 0, -1)]) / 2  # a line on the floor from the middle to the front
WIREFRAME = np.concatenate([CORNERS[EDGES].reshape(-1, 3), HEADING])  # (26, 3) ends of 13 lines of a box of size 1


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
    header: Header,
    lifetime_s: float,
    namespace: str,
) -> MarkerArray:
    """DELETEALL, then per object a wireframe, `name score` above it, and an arrow of one second of its motion.

    `colors` (C, 3) uint8 RGB of the classes; `lifetime_s` 0 = until the next array. No arrow where the velocity is
    unknown or below SLOWEST_SHOWN_M_S. The three kinds are in namespaces of their own, to be switched off in RViz.
    Raises ValueError on a box that is not finite or of a class without name or colour.
    """
    _check(detections, class_names)
    if len(colors) != len(class_names):  # those of segmentation, say, which are in another order
        raise ValueError(f"{len(class_names)} classes of boxes and {len(colors)} colours; give one to each, in order")
    lifetime = Duration(sec=int(lifetime_s), nanosec=int(lifetime_s % 1 * 1e9))
    markers = [Marker(header=header, action=Marker.DELETEALL)]  # without namespace: all of them
    for row in range(len(detections)):
        for kind, marker in _object_markers(detections, row, class_names, colors):
            marker.header, marker.ns, marker.id, marker.lifetime = header, f"{namespace}/{kind}", len(markers), lifetime
            markers.append(marker)
    return MarkerArray(markers=markers)


def vision_messages() -> ModuleType | None:
    """The module vision_msgs.msg, None where the package is not installed. A broken one raises ImportError."""
    try:
        import vision_msgs.msg
    except ModuleNotFoundError as error:
        if error.name != "vision_msgs":
            raise
        return None
    return vision_msgs.msg


def detection_array(detections: Detections, class_names: Sequence[str], header: Header, messages: ModuleType) -> Any:
    """vision_msgs/Detection3DArray, `messages` from `vision_messages()`; class_id is the NAME, id is empty (no tracks).

    vision_msgs has no field for a velocity: see the markers. The pose's covariance is left at zero.
    Raises ValueError on a box that is not finite or of a class without name.
    """
    _check(detections, class_names)
    found = []
    for row, score in enumerate(detections.score.tolist()):
        name, pose = class_names[detections.boxes.class_id[row]], _pose(detections, row)
        hypothesis = messages.ObjectHypothesis(class_id=name, score=score)
        result = messages.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=PoseWithCovariance(pose=pose))
        box = messages.BoundingBox3D(center=pose, size=_vector(detections.boxes.size[row]))
        found.append(messages.Detection3D(header=header, results=[result], bbox=box, id=""))
    return messages.Detection3DArray(header=header, detections=found)


def label_info(
    class_names: Sequence[str], threshold: float | Mapping[str, float], header: Header, messages: ModuleType
) -> Any:
    """vision_msgs/LabelInfo (vision_msgs 4, Humble and later): names by id, and the lowest score that is published.

    Raises ValueError as `above`.
    """
    classes = [messages.VisionClass(class_id=index, class_name=name) for index, name in enumerate(class_names)]
    lowest = float(_thresholds(class_names, threshold).min())
    return messages.LabelInfo(header=header, class_map=classes, threshold=lowest)


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
    detections: Detections, row: int, class_names: Sequence[str], colors: np.ndarray
) -> Iterator[tuple[str, Marker]]:
    """Kind and marker of all that is drawn for one object."""
    boxes = detections.boxes
    label = boxes.class_id[row]
    r, g, b = (np.asarray(colors[label], np.float64) / 255).tolist()
    color = ColorRGBA(r=r, g=g, b=b, a=1.0)
    # lines, not a CUBE: the points inside stay visible
    lines = [_point(end) for end in WIREFRAME * boxes.size[row]]
    thin = Vector3(x=LINE_M)
    yield "boxes", Marker(type=Marker.LINE_LIST, pose=_pose(detections, row), scale=thin, color=color, points=lines)
    over = Pose(position=_point(boxes.center[row] + [0, 0, boxes.size[row, 2] / 2 + TEXT_ABOVE_M]))
    text = f"{class_names[label]} {detections.score[row]:.2f}"
    yield "names", Marker(type=Marker.TEXT_VIEW_FACING, pose=over, scale=Vector3(z=TEXT_M), color=WHITE, text=text)
    speed = np.hypot(*boxes.velocity[row])
    if np.isfinite(speed) and speed >= SLOWEST_SHOWN_M_S:
        tip = boxes.center[row] + [*boxes.velocity[row], 0]
        ends = [_point(boxes.center[row]), _point(tip)]
        yield "velocities", Marker(type=Marker.ARROW, scale=Vector3(x=SHAFT_M, y=HEAD_M), color=color, points=ends)


def _pose(detections: Detections, row: int) -> Pose:
    """Centre of a box, and its turn about z."""
    half = float(detections.boxes.yaw[row]) / 2
    turn = Quaternion(x=0.0, y=0.0, z=float(np.sin(half)), w=float(np.cos(half)))
    return Pose(position=_point(detections.boxes.center[row]), orientation=turn)


def _point(xyz: np.ndarray) -> Point:
    x, y, z = map(float, xyz)
    return Point(x=x, y=y, z=z)


def _vector(xyz: np.ndarray) -> Vector3:
    x, y, z = map(float, xyz)
    return Vector3(x=x, y=y, z=z)

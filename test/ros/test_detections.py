"""Detections as markers and as vision_msgs: what RViz and a subscriber get, after real serialisation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from visualization_msgs.msg import Marker

from lima_core.data.frame import Boxes, Detections
from lima_core.data.ros_header import stamp_ns
from lima_core.geometry import boxes as geometry
from lima_core.geometry import se3
from lima_core.runtime import detections
from lima_core.runtime.bag_messages import bag_messages, typestore
from lima_ros import convert

NAMES = ("car", "pedestrian", "traffic_cone")
COLORS = np.array([[255, 158, 0], [0, 0, 230], [47, 79, 79]], np.uint8)
NS = 1_532_402_927_647_951_000
HEADER = convert.ROS.header(NS, "LIDAR_TOP")


class Vision:
    """Messages with vision_msgs, and their serialisation: the installed package, or rosbags' classes."""

    def __init__(self, real: bool) -> None:
        if real:
            pytest.importorskip("vision_msgs.msg", reason="needs the package vision_msgs")
        self.messages = convert.ROS if real else bag_messages()
        self.sent = self._real if real else self._through_cdr
        self.header = self.messages.header(NS, "LIDAR_TOP")

    @staticmethod
    def _real(msg):
        return deserialize_message(serialize_message(msg), type(msg))

    @staticmethod
    def _through_cdr(msg):
        name = msg.__msgtype__
        return typestore().deserialize_cdr(typestore().serialize_cdr(msg, name), name)


@pytest.fixture(params=[False, True], ids=["definitions", "package"])
def vision(request: pytest.FixtureRequest) -> Vision:
    return Vision(request.param)


def found(*rows) -> Detections:
    """Rows of x, y, z, l, w, h, yaw, vx, vy, class, score."""
    table = np.array(rows, np.float64).reshape(-1, 11)
    boxes = Boxes(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:9], table[:, 9].astype(np.uint8))
    return Detections(boxes, table[:, 10].astype(np.float32))


CAR = (10, -2, 0.5, 4.6, 1.9, 1.6, np.pi / 2, 0, 5, 0, 0.87)
PARKED = (5, 3, 0.4, 4.2, 1.8, 1.5, -2.0, 0.2, 0.2, 0, 0.7)
WALKER = (1, 2, 0, 0.7, 0.6, 1.8, 0.3, np.nan, np.nan, 1, 0.5)


def drawn(what: Detections, lifetime_s: float = 0.0):
    """The markers after DELETEALL, as a subscriber gets them."""
    msg = detections.marker_array(what, NAMES, COLORS, HEADER, lifetime_s, "lima", convert.ROS)
    array = deserialize_message(serialize_message(msg), type(msg))
    assert array.markers[0].action == Marker.DELETEALL and array.markers[0].ns == ""
    assert all(marker.header == HEADER for marker in array.markers)
    return array.markers[1:]


def of_type(markers, kind):
    return [marker for marker in markers if marker.type == kind]


def xyz(point) -> list[float]:
    return [point.x, point.y, point.z]


def in_cloud(marker) -> np.ndarray:
    """(P, 3) points of a marker in the header's frame, as RViz places them."""
    p, q = marker.pose.position, marker.pose.orientation
    return se3.apply(se3.transform(np.array([q.w, q.x, q.y, q.z]), xyz(p)), np.array([xyz(e) for e in marker.points]))


def test_nothing_found_clears_the_view():
    assert drawn(found()) == []


def test_length_lies_along_the_heading():
    (box,) = of_type(drawn(found(CAR)), Marker.LINE_LIST)
    local = np.array([xyz(end) for end in box.points])
    np.testing.assert_allclose(np.ptp(local, axis=0), [4.6, 1.9, 1.6])
    np.testing.assert_allclose(np.ptp(in_cloud(box), axis=0), [1.9, 4.6, 1.6])  # it faces y


@given(st.tuples(*[st.floats(-80, 80)] * 3, *[st.floats(0.1, 20)] * 3, st.floats(-7, 7)))
def test_wireframe_is_the_box(box):
    (marker,) = of_type(drawn(found((*box, 0, 0, 1, 0.5))), Marker.LINE_LIST)
    ends, corners = in_cloud(marker), geometry.corners(np.array([box]))[0]
    lines = ends.reshape(-1, 2, 3)
    far = np.linalg.norm(ends[:24, None] - corners, axis=-1)
    nearest = far.argmin(1).reshape(-1, 2)
    assert far.min(1).max() < 1e-6
    assert len({frozenset(pair) for pair in nearest.tolist()}) == 12  # 12 edges, and each corner has three
    np.testing.assert_array_equal(np.bincount(nearest.ravel(), minlength=8), 3)
    lengths = np.linalg.norm(lines[:12, 1] - lines[:12, 0], axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.sort(np.repeat(box[3:6], 4)), atol=1e-6)
    heading = lines[12, 1] - lines[12, 0]
    np.testing.assert_allclose(heading, np.array([np.cos(box[6]), np.sin(box[6]), 0]) * box[3] / 2, atol=1e-6)


def test_text_stands_above_the_box():
    (text,) = of_type(drawn(found(CAR)), Marker.TEXT_VIEW_FACING)
    assert text.text == "car 0.87" and text.scale.z > 0
    assert (text.pose.position.x, text.pose.position.y) == (10, -2) and text.pose.position.z > 0.5 + 1.6 / 2


def test_arrow_is_one_second_of_motion_where_there_is_any():
    (arrow,) = of_type(drawn(found(CAR, PARKED, WALKER)), Marker.ARROW)
    np.testing.assert_allclose(in_cloud(arrow), [[10, -2, 0.5], [10, 3, 0.5]])
    assert arrow.scale.x > 0 and arrow.scale.y > arrow.scale.x


@pytest.mark.parametrize(("speed", "arrows"), [(0.29, 0), (0.31, 1), (np.nan, 0), (np.inf, 0)])
def test_slow_and_unknown_velocities_have_no_arrow(speed, arrows):
    assert len(of_type(drawn(found((*CAR[:7], speed, 0, 0, 0.5))), Marker.ARROW)) == arrows


def test_ids_colours_namespaces_and_lifetime():
    markers = drawn(found(CAR, PARKED, WALKER), lifetime_s=1.25)
    ids = [marker.id for marker in markers]
    assert len(set(ids)) == len(ids) == 3 + 3 + 1
    assert {marker.ns for marker in markers} == {"lima/boxes", "lima/names", "lima/velocities"}
    assert all((m.lifetime.sec, m.lifetime.nanosec) == (1, 250_000_000) for m in markers)
    assert all(marker.action == Marker.ADD and marker.color.a == 1 for marker in markers)
    shown = [np.rint(np.array([b.color.r, b.color.g, b.color.b]) * 255) for b in of_type(markers, Marker.LINE_LIST)]
    np.testing.assert_array_equal(shown, COLORS[[0, 0, 1]])


def test_colours_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="3 classes of boxes and 16 colours"):
        detections.marker_array(found(CAR), NAMES, np.zeros((16, 3), np.uint8), HEADER, 0.0, "lima", convert.ROS)


@pytest.mark.parametrize(("column", "value", "text"), [(1, np.nan, "detection 1 is not finite"), (9, 3, "has class 3")])
def test_what_cannot_be_sent_is_named(vision, column, value, text):
    row = list(PARKED)
    row[column] = value
    with pytest.raises(ValueError, match=text):
        drawn(found(CAR, row))
    with pytest.raises(ValueError, match=text):
        detections.detection_array(found(CAR, row), NAMES, vision.header, vision.messages)


def test_detection_array(vision):
    msg = vision.sent(detections.detection_array(found(CAR, WALKER), NAMES, vision.header, vision.messages))
    assert stamp_ns(msg.header.stamp) == stamp_ns(HEADER.stamp) and msg.header.frame_id == "LIDAR_TOP"
    car, walker = msg.detections
    for one in (car, walker):
        assert one.header == msg.header and one.id == "" and len(one.results) == 1
        assert one.results[0].pose.pose == one.bbox.center
        assert not np.any(one.results[0].pose.covariance)
    assert car.results[0].hypothesis.class_id == "car" and walker.results[0].hypothesis.class_id == "pedestrian"
    assert car.results[0].hypothesis.score == pytest.approx(0.87)
    np.testing.assert_allclose(xyz(car.bbox.center.position), [10, -2, 0.5])
    np.testing.assert_allclose(xyz(car.bbox.size), [4.6, 1.9, 1.6])  # nuScenes tables have the width first
    q = car.bbox.center.orientation
    np.testing.assert_allclose([q.x, q.y, q.z, q.w], [0, 0, np.sqrt(0.5), np.sqrt(0.5)])


def test_detection_array_of_nothing_has_the_header(vision):
    msg = vision.sent(detections.detection_array(found(), NAMES, vision.header, vision.messages))
    assert len(msg.detections) == 0 and msg.header.frame_id == "LIDAR_TOP"
    assert stamp_ns(msg.header.stamp) == stamp_ns(HEADER.stamp)


@pytest.mark.parametrize("threshold", [0.25, {"car": 0.5, "pedestrian": 0.25, "traffic_cone": 0.75}])
def test_label_info(vision, threshold):
    msg = vision.sent(detections.label_info(NAMES, threshold, vision.header, vision.messages))
    assert [(c.class_id, c.class_name) for c in msg.class_map] == list(enumerate(NAMES))
    assert msg.threshold == 0.25 and msg.header.frame_id == "LIDAR_TOP"


def test_threshold_for_all():
    kept = detections.above(found(CAR, PARKED, WALKER), NAMES, 0.7)
    np.testing.assert_array_equal(kept.score, np.float32([0.87, 0.7]))  # as a float64, 0.7 is above the score
    np.testing.assert_array_equal(kept.boxes.center[:, 0], [10, 5])
    assert len(detections.above(found(), NAMES, 0.7)) == 0


def test_threshold_of_each_class():
    kept = detections.above(found(CAR, PARKED, WALKER), NAMES, {"car": 0.8, "pedestrian": 0.4, "traffic_cone": 0.0})
    assert kept.boxes.class_id.tolist() == [0, 1] and len(kept.boxes) == len(kept) == 2


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (1.5, "'car' is 1.5; its range"),
        (float("nan"), "'car' is nan; its range"),
        ({"car": 0.5, "pedestrian": 0.5}, "'traffic_cone' is without a score threshold"),
        (dict.fromkeys((*NAMES, "cra"), 0.5), "'cra' is unknown"),
    ],
)
def test_threshold_that_means_nothing(threshold, text):
    with pytest.raises(ValueError, match=text):
        detections.above(found(CAR), NAMES, threshold)

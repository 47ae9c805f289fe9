"""What is published of one sweep, and what nobody listens to is not computed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("visualization_msgs", reason="needs the ROS 2 message packages")
from visualization_msgs.msg import Marker

from lima_core.data.frame import Boxes, Detections
from lima_core.data.ros_cloud import cloud_points, pack_cloud, read_cloud
from lima_core.predictor import Perception, Segmentation
from lima_core.runtime.bag_messages import bag_messages
from lima_core.runtime.messages import Messages
from lima_core.runtime.parameters import ParameterError, resolve
from lima_core.runtime.results import (
    DETECTIONS,
    FEATURES,
    FILTERED,
    LABEL_INFO,
    MARKERS,
    SEGMENTATION,
    SIMILARITY,
    Results,
    filtered_classes,
)
from lima_ros import convert

CLASSES, BOXES = ("car", "road", "tree"), ("car", "bus")
LABELS = np.array([0, 1, 2, 255, 1, 0], np.uint8)
STAMP_NS = 1_532_402_927_647_951_000


class Predictor:
    """Three classes of points, two of boxes; features are the coordinates."""

    def __init__(self, classes=CLASSES, boxes=BOXES):
        self.class_names, self.detection_names = classes, boxes
        self.colors = np.arange(9, dtype=np.uint8).reshape(3, 3)[: len(classes)] + 1
        self.detection_colors = np.full((len(boxes), 3), 200, np.uint8)
        self.asked = 0

    def features(self, points):
        self.asked += 1
        return points[:, :3].copy()


class Out:
    """Keeps what is published; `listeners` are the topics somebody listens to."""

    def __init__(self, *listeners):
        self.listeners, self.sent, self.warnings = set(listeners), [], []

    def publish(self, topic, msg):
        self.sent.append((topic, msg))

    def wanted(self, topic):
        return topic in self.listeners

    def warn(self, text):
        self.warnings.append(text)

    def of(self, topic):
        return [msg for name, msg in self.sent if name == topic]


def message():
    x = np.arange(1, 7, dtype=np.float32)
    columns = {"x": x, "y": -x, "z": x * 0, "intensity": x, "ring": np.arange(6, dtype=np.uint16)}
    return convert.ROS.cloud(pack_cloud(columns), STAMP_NS, "lidar")


def found(scores=(0.9, 0.4), segments=True):
    n = len(scores)
    boxes = Boxes(np.ones((n, 3)), np.ones((n, 3)), np.zeros(n), np.zeros((n, 2)), np.zeros(n, np.uint8))
    segmentation = Segmentation(LABELS, np.full(6, 0.5, np.float32)) if segments else None
    return Perception(segmentation, Detections(boxes, np.array(scores, np.float32)))


def published(out, predictor=None, what=None, messages=convert.ROS, **parameters):
    """Publishes one sweep; returns the Results for more, and its settings."""
    settings = resolve({name.replace("__", "."): value for name, value in parameters.items()})
    results, msg = Results(predictor or Predictor(), settings, out, messages), message()
    results.publish(msg, cloud_points(msg, 255.0), what or found())
    return results, settings


def test_segmentation_always_the_rest_on_demand():
    out = Out()
    published(out)
    (cloud,) = out.of(SEGMENTATION)
    assert len(out.sent) == 1 and cloud.header == message().header
    np.testing.assert_array_equal(read_cloud(cloud)["label"], LABELS)


def test_colours_are_the_classes_and_black_without_one():
    colors = Results(Predictor(), resolve({}), Out(), convert.ROS).colors_of(LABELS)
    np.testing.assert_array_equal(colors, [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0], [4, 5, 6], [1, 2, 3]])


def test_filtered_follows_the_live_parameter_and_keeps_what_has_no_label():
    out = Out(FILTERED)
    results, settings = published(out)
    for classes, rings in (("", range(6)), ("road", [0, 2, 3, 5]), (" car ,road,", [2, 3]), ("car,road,tree", [3])):
        settings.change("filter.classes", classes)
        results.publish(message(), cloud_points(message(), 255.0), found())
        cloud = out.of(FILTERED)[-1]
        assert cloud.header == message().header and cloud.fields == message().fields
        assert read_cloud(cloud)["ring"].tolist() == list(rings), classes


@pytest.mark.parametrize(("least", "boxes"), [(0.0, 2), (0.5, 1), (0.95, 0)])
def test_markers_start_anew_and_hold_what_is_sure_enough(least, boxes):
    out = Out(MARKERS)
    published(out, detections__min_score=least, detections__marker_lifetime_s=0.0)
    (array,) = out.of(MARKERS)
    first, *rest = array.markers
    assert first.action == Marker.DELETEALL and first.header == message().header
    assert sum(marker.type == Marker.LINE_LIST for marker in rest) == boxes


def test_topics_are_those_the_network_can_serve():
    def topics(classes, boxes, has_vision):
        classes_there = SimpleNamespace(make=None, data=None, has_vision=has_vision)
        results = Results(Predictor(classes, boxes), resolve({}), Out(), Messages(classes_there))
        return results.topics, results.left_out

    assert topics(CLASSES, (), False) == ((SEGMENTATION, FILTERED, FEATURES, SIMILARITY), [])
    assert topics((), BOXES, True) == ((MARKERS, DETECTIONS, LABEL_INFO, FEATURES, SIMILARITY), [])
    both, left_out = topics(CLASSES, BOXES, False)
    assert both == (SEGMENTATION, FILTERED, MARKERS, FEATURES, SIMILARITY)
    assert len(left_out) == 1 and "vision_msgs is not installed" in left_out[0]


def test_detections_are_sent_even_where_there_are_none():
    out = Out(DETECTIONS)
    published(out, what=found(scores=(), segments=False), messages=bag_messages())
    (array,) = out.of(DETECTIONS)
    assert array.header == message().header and array.detections == []
    assert out.of(SEGMENTATION) == out.of(MARKERS) == []


def look(results):
    results.publish_features(cloud_points(message(), 255.0), message().header)


def test_features_cost_nothing_until_somebody_listens():
    out, predictor = Out(), Predictor()
    results, _ = published(out, predictor)
    look(results)
    out.listeners = {SIMILARITY}
    look(results)  # nothing was clicked
    assert predictor.asked == 0
    out.listeners = {FEATURES}
    look(results)
    assert predictor.asked == 1
    (cloud,) = out.of(FEATURES)
    assert cloud.header == message().header and read_cloud(cloud)["x"].tolist() == [1, 2, 3, 4, 5, 6]


def test_similarity_to_what_was_clicked_until_reset():
    out, predictor = Out(SIMILARITY, FEATURES), Predictor()
    results, _ = published(out, predictor)
    results.ask(np.array([2.1, -2.0, 0.0]))
    look(results)
    assert predictor.asked == 1 and len(out.of(FEATURES)) == 1  # one pass for both
    (cloud,) = out.of(SIMILARITY)
    np.testing.assert_allclose(read_cloud(cloud)["similarity"], 1, atol=1e-5)  # all lie in one direction
    results.ask(np.array([50.0, 0.0, 0.0]))
    look(results)
    assert out.warnings == ["no similarity: the point nearest to 50.0, 0.0, 0.0 m is 44.4 m away, more than 1 m"]
    results.reset()
    look(results)
    assert len(out.of(SIMILARITY)) == 1 and len(out.warnings) == 1


@given(st.lists(st.sampled_from(CLASSES)), st.text(" ", max_size=2))
def test_names_between_commas(names, space):
    assert filtered_classes(",".join(f"{space}{name}{space}" for name in names), CLASSES) == tuple(names)


def test_an_unknown_class_is_refused_with_those_there_are():
    with pytest.raises(ParameterError, match=r"names 'raod'; the network has car, road, tree"):
        filtered_classes("car, raod", CLASSES)
    with pytest.raises(ParameterError, match="the network has no classes"):
        published(Out(), Predictor(classes=()), filter__classes="car")

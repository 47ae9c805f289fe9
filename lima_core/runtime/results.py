"""What the network says of a sweep, as messages on the topics that are wanted. No rclpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lima_core.data.frame import Detections
from lima_core.data.ros_cloud import CloudPoints
from lima_core.runtime import clouds, detections
from lima_core.runtime.messages import Messages
from lima_core.runtime.parameters import ParameterError, Resolved

SEGMENTATION, FILTERED, MARKERS, DETECTIONS = "segmentation", "filtered", "markers", "detections"
FEATURES, SIMILARITY, LABEL_INFO = "features", "similarity", "label_info"
QUERY_REACH_M = 1.0


class Publisher(Protocol):
    """Where messages go."""

    def publish(self, topic: str, msg: Any) -> None:
        """Sends on ~/output/<topic>."""

    def wanted(self, topic: str) -> bool:
        """True when somebody listens to ~/output/<topic>."""

    def warn(self, text: str) -> None:
        """Something is wrong with the input."""


class Results:
    """Publishes what `predictor` finds. `segmentation` always, the other topics when somebody listens.

    `topics` are those that this network and the installed packages can serve; `left_out` says what is missing and why.
    """

    def __init__(self, predictor: Any, settings: Resolved, out: Publisher, messages: Messages) -> None:
        self._predictor, self._settings, self._out, self._messages = predictor, settings, out, messages
        self._colors = clouds.FeatureColors()
        self._query: np.ndarray | None = None
        self._rgb = np.zeros((256, 3), np.uint8)  # points without a label are black
        self._rgb[: len(predictor.colors)] = predictor.colors
        segments, boxes = bool(predictor.class_names), bool(predictor.detection_names)
        self.left_out: list[str] = []
        if boxes and not messages.has_vision:
            self.left_out.append("no ~/output/detections: vision_msgs is not installed (boxes are on ~/output/markers)")
        self.topics = (
            *((SEGMENTATION, FILTERED) if segments else ()),
            *((MARKERS,) if boxes else ()),
            *((DETECTIONS, LABEL_INFO) if boxes and messages.has_vision else ()),
            FEATURES,
            SIMILARITY,
        )
        filtered_classes(str(settings["filter.classes"]), predictor.class_names)

    def colors_of(self, labels: np.ndarray) -> np.ndarray:
        """(N,) labels -> (N, 3) uint8 RGB."""
        return self._rgb[labels]

    def publish(self, message: Any, cloud: CloudPoints, found: Any) -> None:
        """All that one sweep gives: `message` the cloud as it came, `found` a lima_core.predictor.Perception."""
        if found.segmentation is not None:
            labels, probability = found.segmentation.labels, found.segmentation.probability
            colors = self.colors_of(labels)
            self._out.publish(
                SEGMENTATION, self._messages.segmentation(cloud, labels, probability, colors, message.header)
            )
            if self._out.wanted(FILTERED):
                self._out.publish(FILTERED, clouds.filtered_message(message, self._kept(labels), self._messages))
        if found.detections is not None:
            self._publish_boxes(found.detections, message.header)

    def publish_features(self, cloud: CloudPoints, header: Any) -> None:
        """Features as colours and as similarity to the clicked point, where somebody listens: another forward pass."""
        wanted = [topic for topic in (FEATURES, SIMILARITY) if self._out.wanted(topic)]
        query = self._query  # another thread may forget it meanwhile
        if not wanted or (wanted == [SIMILARITY] and query is None):
            return
        features = self._predictor.features(cloud.points)
        if FEATURES in wanted:
            self._out.publish(FEATURES, clouds.features_message(cloud, features, self._colors, header, self._messages))
        if SIMILARITY in wanted and query is not None:
            self._answer(cloud, features, query, header)

    def ask(self, point_lidar: np.ndarray | None) -> None:
        """(3,) m in the LiDAR frame: what ~/output/similarity compares with from now on; None = nothing."""
        self._query = point_lidar

    def label_info(self, header: Any) -> Any:
        """vision_msgs/LabelInfo of the boxes, for a latched topic; only where LABEL_INFO is among `topics`."""
        names, threshold = self._predictor.detection_names, float(self._settings["detections.min_score"])
        return detections.label_info(names, threshold, header, self._messages)

    def reset(self) -> None:
        """Forgets the colours' basis and the clicked point."""
        self._colors = clouds.FeatureColors()  # a new one: the worker may be using the old
        self._query = None

    def _publish_boxes(self, found: Detections, header: Any) -> None:
        names = self._predictor.detection_names
        found = detections.above(found, names, float(self._settings["detections.min_score"]))
        lifetime_s, colors = float(self._settings["detections.marker_lifetime_s"]), self._predictor.detection_colors
        messages: dict[str, Callable[[], Any]] = {
            MARKERS: lambda: detections.marker_array(
                found, names, colors, header, lifetime_s, "objects", self._messages
            ),
            DETECTIONS: lambda: detections.detection_array(found, names, header, self._messages),
        }
        for topic, make in messages.items():
            if topic in self.topics and self._out.wanted(topic):
                self._out.publish(topic, make())

    def _kept(self, labels: np.ndarray) -> np.ndarray:
        """(N,) bool: the points of classes that `filter.classes` does not name."""
        names = filtered_classes(str(self._settings["filter.classes"]), self._predictor.class_names)
        removed = [self._predictor.class_names.index(name) for name in names]
        return ~np.isin(labels, removed)

    def _answer(self, cloud: CloudPoints, features: np.ndarray, query: np.ndarray, header: Any) -> None:
        try:
            row = clouds.nearest_row(cloud.points, query, QUERY_REACH_M)
            self._out.publish(SIMILARITY, clouds.similarity_message(cloud, features, row, header, self._messages))
        except ValueError as error:
            self._out.warn(f"no similarity: {error}")


def filtered_classes(text: str, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """`car, truck` -> their names. Raises ParameterError naming a class that the network does not have."""
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise ParameterError(
            f"parameter filter.classes names {unknown[0]!r}; the network has {', '.join(class_names) or 'no classes'}"
        )
    return names

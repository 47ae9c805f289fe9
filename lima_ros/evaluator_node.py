"""Compares the perception node's output with ground truth while it runs, and writes evaluation.json.

Labels with /gt/segmentation, boxes (~/output/markers, which every node sends) with /gt/markers, or with /gt/detections
where vision_msgs is installed. Every few seconds a table by class and distance goes to the terminal, and to topics of
plain numbers, which rqt_plot and Foxglove draw as they are: ~/miou and ~/map, ~/iou/<class> and ~/ap/<class> (Float64),
and with distances in ~/table (DiagnosticArray). IoU is that of all points so far, AP that of the last KEPT frames of
boxes (metrics/live.py); means are over the classes that occur. What cannot be judged is logged and counted by topic.

`python -m lima_ros.evaluator_node --ros-args -p out:=runs/eval`; parameters: PARAMETERS in lima_ros/evaluation.py.
Ends by itself when all expected sweeps are accounted for, or after silence. Ground truth is subscribed to last,
so that a player which waits for a subscriber there knows that the evaluator sees the node's output.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Float64
from visualization_msgs.msg import MarkerArray

from lima_core.data.bag import BOXES_TOPIC, DETECTIONS_TOPIC, TRUTH_TOPIC
from lima_core.data.classes import load_taxonomy
from lima_core.data.rig import Rig
from lima_core.data.ros_boxes import detection_boxes, marker_boxes
from lima_core.data.ros_header import stamp_ns
from lima_core.geometry import se3
from lima_core.runtime.health import OK, Status
from lima_core.runtime.parameters import resolve
from lima_ros import evaluation
from lima_ros.convert import ROS, diagnostics_message, message_class
from lima_ros.evaluation_table import Column, lines, topic_of, values
from lima_ros.signals import interrupt_once

SETTLE_S = 1.0  # overlays come after the cloud
STAGES = ("preprocess", "inference", "postprocess", "total")
QUEUE = QoSProfile(depth=50)
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


class EvaluatorNode(Node):
    """Listens to the perception node and to ground truth until everything sent is accounted for."""

    def __init__(self) -> None:
        super().__init__("evaluator", automatically_declare_parameters_from_overrides=True)
        given = {name: p.value for name, p in self.get_parameters_by_prefix("").items()}
        self._settings = settings = resolve(given, evaluation.PARAMETERS)
        for line in settings.lines():
            self.get_logger().info(line)
        if not settings["out"]:
            raise ValueError("parameter out: name the folder for evaluation.json")
        taxonomy = load_taxonomy(settings["dataset"])
        rig = Rig.load(settings["rig"]) if settings["rig"] else None
        ego_xy = evaluation.ORIGIN if rig is None else se3.inverse(rig.base_from_lidar)[:2, 3]
        self.evaluation = evaluation.Evaluation(
            taxonomy.names, Path(settings["out"]), settings["keep_every"], taxonomy.detection_names, ego_xy
        )
        self._overlays: Counter[str] = Counter()
        self._last_s: float | None = None
        self._output = self.resolve_topic_name(f"{settings['perception']}/output/segmentation")
        self._markers = self.resolve_topic_name(f"{settings['perception']}/output/markers")
        self._listen(settings["perception"], rig)
        self._truth = None
        self._numbers: dict[str, Publisher] = {}
        self._table = self.create_publisher(DiagnosticArray, "~/table", 10)
        self.create_timer(settings["print_period_s"], self._on_timer)

    def run(self) -> None:
        """Spins until complete or silent. Raises TimeoutError when nothing ever comes."""
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        begin_s = time.monotonic()
        self.get_logger().info(f"waiting for {self._output}")
        while not self._finished(begin_s):
            executor.spin_once(timeout_sec=0.1)
            if self._truth is None and self.count_publishers(self._output) > 0:
                self._listen_to_truth()

    def _listen_to_truth(self) -> None:
        if self.evaluation.box_names:
            self.create_subscription(MarkerArray, BOXES_TOPIC, self._on_true_markers, BEST_EFFORT)
        if self.evaluation.box_names and ROS.has_vision:
            kind = message_class("vision_msgs/msg/Detection3DArray")
            self.create_subscription(kind, DETECTIONS_TOPIC, self._on_true_detections, BEST_EFFORT)
        self._truth = self.create_subscription(PointCloud2, TRUTH_TOPIC, self._on_truth, BEST_EFFORT)

    def _listen(self, node: str, rig: Rig | None) -> None:
        if self.evaluation.box_names:
            self.create_subscription(MarkerArray, self._markers, self._on_markers, QUEUE)
        self.create_subscription(PointCloud2, self._output, self._on_segmentation, QUEUE)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QUEUE)
        for stage in STAGES:
            self._on_each(Float64, f"{node}/debug/{stage}_ms", self._on_milliseconds, stage)
        if rig is not None:
            for mount in rig.cameras:
                topic = f"{node}/output/{mount.name}/overlay/compressed"
                self._on_each(CompressedImage, topic, self._on_overlay, mount.name)

    def _on_each(self, message_class: type, topic: str, callback: object, name: str) -> None:
        self.create_subscription(message_class, topic, lambda message: callback(name, message), QUEUE)

    def _finished(self, begin_s: float) -> bool:
        now_s = time.monotonic()
        if self._last_s is None:
            if now_s - begin_s > self._settings["start_timeout_s"]:
                raise TimeoutError(f"nothing came on {self._output} or {TRUTH_TOPIC}; is the perception node running?")
            return False
        silence_s = now_s - self._last_s
        complete = self.evaluation.complete(self._settings["frames"]) and silence_s > SETTLE_S
        return complete or silence_s > self._settings["idle_timeout_s"]

    def _on_segmentation(self, message: PointCloud2) -> None:
        now_ns = time.monotonic_ns()
        self._last_s = now_ns / 1e9
        at_ns = stamp_ns(message.header.stamp)
        self._guarded(self._output, lambda: self.evaluation.add_segmentation(at_ns, message, now_ns))

    def _on_truth(self, message: PointCloud2) -> None:
        self._last_s = time.monotonic()
        self._guarded(TRUTH_TOPIC, lambda: self.evaluation.add_truth(stamp_ns(message.header.stamp), message))

    def _guarded(self, topic: str, add: Callable[[], None]) -> None:
        """A malformed message is reported and left out: it must not end the evaluation."""
        try:
            add()
        except ValueError as error:
            self.evaluation.problems[topic] += 1
            self.get_logger().error(f"{topic}: {error}", throttle_duration_sec=1.0)

    def _on_markers(self, message: MarkerArray) -> None:
        self._last_s = time.monotonic()
        self._guarded(self._markers, lambda: self.evaluation.add_boxes(_stamp_ns(message), message))

    def _on_true_markers(self, message: MarkerArray) -> None:
        self._last_s = time.monotonic()
        names = self.evaluation.box_names
        self._guarded(
            BOXES_TOPIC,
            lambda: self.evaluation.add_true_boxes(_stamp_ns(message), marker_boxes(message, names).boxes),
        )

    def _on_true_detections(self, message: Any) -> None:
        self._last_s = time.monotonic()
        if self.count_publishers(BOXES_TOPIC) == 0:  # the markers have velocities too
            at_ns, names = stamp_ns(message.header.stamp), self.evaluation.box_names
            self._guarded(
                DETECTIONS_TOPIC, lambda: self.evaluation.add_true_boxes(at_ns, detection_boxes(message, names))
            )

    def _on_overlay(self, camera: str, message: CompressedImage) -> None:
        self._last_s = time.monotonic()
        jpeg, index = bytes(message.data), self._overlays[camera]
        self.evaluation.add_overlay(camera, stamp_ns(message.header.stamp), jpeg, index)
        self._overlays[camera] += 1

    def _on_milliseconds(self, stage: str, message: Float64) -> None:
        self.evaluation.add_milliseconds(stage, message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if self._settings["perception"].strip("/") in status.name and {"received", "published"} <= values.keys():
                self._guarded("/diagnostics", partial(self.evaluation.add_ledger, values))

    def _on_timer(self) -> None:
        if self._last_s is not None:
            self.report()

    def report(self) -> None:
        """Prints and publishes what is known so far."""
        columns = self.evaluation.columns()
        self.get_logger().info("\n".join([self.evaluation.line(), *lines(columns)]))
        for column in columns:
            self._publish(column)

    def _publish(self, column: Column) -> None:
        """Numbers for plots, and the table."""
        known = values(column)
        for name in ("mean", *column.names):
            if name in known:
                where = topic_of(column.measure, name)
                if where not in self._numbers:
                    self._numbers[where] = self.create_publisher(Float64, where, 10)
                self._numbers[where].publish(Float64(data=known[name]))
        status = Status(OK, self.evaluation.line(), tuple((name, f"{value:.4f}") for name, value in known.items()))
        now_ns = self.get_clock().now().nanoseconds
        self._table.publish(diagnostics_message(status, f"{self.get_name()}: {column.measure}", "", now_ns))


def _stamp_ns(message: MarkerArray) -> int:
    """That of the first marker, which stands for all. Raises ValueError where there is none."""
    if not message.markers:
        raise ValueError("a MarkerArray without markers has no stamp; begin it with DELETEALL, also when it is empty")
    return stamp_ns(message.markers[0].header.stamp)


def main() -> int:
    """Runs the evaluator; the result is written also when interrupted. Exit status 1 when nothing came."""
    node = None
    try:
        interrupt_once()
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        node = EvaluatorNode()
        node.run()
    except KeyboardInterrupt:
        return 0
    except (ValueError, OSError) as error:
        print(f"evaluator: {error}", file=sys.stderr)
        return 1
    finally:
        if node is not None:
            node.evaluation.write()
            node.report()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

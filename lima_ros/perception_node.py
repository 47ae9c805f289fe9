"""Perception node: LiDAR and cameras in, segmented cloud and camera overlays out.

    ros2 run lima_ros perception_node --ros-args --params-file config/perception.yaml -p rig:=config/rigs/nuscenes.yaml
    python -m lima_ros.perception_node --ros-args ...          where lima is installed by pip only

Wiring only: the main thread spins, `lima_core.runtime.pipeline` does the work. Parameters: config/perception.yaml.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped
from nav_msgs.msg import Odometry
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from lima_core.data.rig import Rig
from lima_core.files import write_whole
from lima_core.paths import STREET_CHECKPOINT
from lima_core.runtime import health, parameters
from lima_core.runtime.pipeline import STAGES, Pipeline, overlay_topic
from lima_core.runtime.results import DETECTIONS, LABEL_INFO, MARKERS
from lima_core.runtime.worker import SHUTDOWN
from lima_ros import convert, filters_node, tf_node
from lima_ros.base_node import BaseNode, run, type_name
from lima_ros.ports_node import LATCHED_QOS, RESULT_QOS, advertise

STATUS_PERIOD_S = 1.0
RECENT = 11  # states of the ledger, a period apart: diagnostics judge the last ten seconds
INACTIVE = "inactive"


class PerceptionNode(BaseNode):
    """A lifecycle node: configure loads the network, activate listens, deactivate keeps it, cleanup gives it back.

    A transition that fails says why in the log and in `problem`, and leaves the node unconfigured.
    """

    def __init__(self) -> None:
        super().__init__("perception", parameters.PARAMETERS)
        self._pipeline: Pipeline | None = None
        self._tf: tf_node.TfListener | None = None
        self._out: dict[str, Publisher] = {}
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/doctor", self._on_doctor)

    # ---- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads rig and network and advertises the outputs; FAILURE with the reason in the log where it cannot."""
        return self.attempt(self._configure, "configured", self.release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes to the inputs; FAILURE with the reason in the log where it cannot, and the node stays inactive."""
        return self.attempt(self._listen_to_all, "activated", partial(self._stop_listening, INACTIVE))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops listening; sweeps that wait for images are dropped as `inactive`. Keeps the network."""
        self._stop_listening(INACTIVE)
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Closes the ledger and gives the network's memory back."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state; for good."""
        self.release()
        self.problem = "the node was shut down for good: start it anew"
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Gives everything back; the node can be configured again."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self.take_parameters()
        self._checkpoint = str(self.settings["checkpoint"] or STREET_CHECKPOINT)
        rig = Rig.load(self.settings["rig"]) if self.settings["rig"] else None
        make_sync = filters_node.factory(self.settings["sync.policy"])
        self._tf = tf_node.listen(self, self.settings["transforms"], rig)
        tf = self._tf.poses if self._tf else None
        self._pipeline = Pipeline(self._load_predictor(), rig, self.settings, self, convert.ROS, tf, make_sync)
        # at once: `_release` takes them for granted where there is a pipeline, and what follows may fail
        self._diagnostics_out = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._ms_out = {stage: self.create_publisher(Float64, f"~/debug/{stage}_ms", 10) for stage in STAGES}
        for line in self._pipeline.results.left_out:
            self.get_logger().warning(line)
        kinds = message_kinds()
        for topic in (*self._pipeline.results.topics, *map(overlay_topic, self._pipeline.mounts)):
            qos = LATCHED_QOS if topic == LABEL_INFO else RESULT_QOS
            self._out[topic] = advertise(self, kinds[topic.rpartition("/")[2]], f"~/output/{topic}", qos)
        self._label_frame = rig.lidar_frame if rig else ""
        if LABEL_INFO in self._out:
            self._publish_label_info()
        self.configured = True

    def _publish_label_info(self) -> None:
        """Latched, with the threshold of this moment."""
        header = convert.ROS.header(self.get_clock().now().nanoseconds, self._label_frame)
        self._out[LABEL_INFO].publish(self._pipeline.results.label_info(header))

    def _listen_to_all(self) -> None:
        self._expected: dict[str, str] = {}
        self._silent: list[str] = []
        self._findings: list[str] = []
        self._accounts: deque[health.Account] = deque(maxlen=RECENT)
        infos = []
        self._listen(PointCloud2, "~/input/pointcloud", self._pipeline.on_cloud)
        if self._pipeline.wants_odometry:
            odometry = self._listen(Odometry, "~/input/odometry", self._pipeline.on_odometry)
            if self._tf is not None:  # then nobody misses it while it has never come
                del self._expected[odometry]
        for name, mount in self._pipeline.mounts.items():
            kind = CompressedImage if mount.transport == "compressed" else Image
            self._listen(kind, f"~/input/{name}/image", partial(self._pipeline.on_image, name))
            infos.append(self._listen(CameraInfo, f"~/input/{name}/camera_info", partial(self._pipeline.on_info, name)))
        after_s = self.settings["watch.silent_after_s"]
        self._watch = health.TopicWatch(self._expected, after_s, time.monotonic(), once=infos)
        clicked = self.create_subscription(PointStamped, "/clicked_point", self._on_clicked, 10)
        self._inputs.append(partial(self.destroy_subscription, clicked))
        self._poll_timer = self.timer(max(self.settings["sync.timeout_ms"] / 5000, 0.005), self._on_poll)
        self._poll_timer.cancel()
        self.timer(STATUS_PERIOD_S, self._on_status)
        self.active = True
        self.get_logger().info(f"listening to {', '.join(self._expected)}")

    def _stop_listening(self, reason: str) -> None:
        self.stop_listening()
        if self._pipeline is not None:
            self._pipeline.drop_waiting(reason)

    def release(self) -> None:
        """Undoes activate and configure, as far as they came."""
        self._stop_listening(SHUTDOWN)
        if self._tf is not None:
            self._tf.close()
            self._tf = None
        if self._pipeline is None:
            return
        self._pipeline.close()
        self._write_ledger()
        for publisher in (*self._out.values(), *self._ms_out.values(), self._diagnostics_out):
            self.destroy_publisher(publisher)
        self._out, self._pipeline, self.configured = {}, None, False
        from lima_core.predictor import free_memory  # torch: loaded, or there would be no pipeline

        free_memory()

    # ---- what the pipeline calls from its threads

    def publish(self, topic: str, msg: Any) -> None:
        """Sends on ~/output/<topic>."""
        self._out[topic].publish(msg)

    def wanted(self, topic: str) -> bool:
        """True when ~/output/<topic> is advertised and has a subscriber."""
        return topic in self._out and self._out[topic].get_subscription_count() > 0

    def publish_ms(self, stage: str, value: float) -> None:
        """Sends a duration."""
        self._ms_out[stage].publish(Float64(data=value))

    # ---- wiring

    def _load_predictor(self) -> Any:
        """Torch takes seconds to import: here, a SIGINT meanwhile still ends the node cleanly."""
        # OpenMP reads this once, on import. Its waiting threads otherwise spin: beside other busy processes a sweep
        # then takes 4 to 100 times as long
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from lima_core.predictor import Predictor

        started_s = time.monotonic()
        predictor = Predictor(self._checkpoint, self.settings["device"])
        took_s = time.monotonic() - started_s
        self.get_logger().info(f"network {self._checkpoint} is ready on {predictor.device} after {took_s:.1f} s")
        return predictor

    def _listen(self, kind: type, topic: str, handle: Callable[[Any], None]) -> str:
        """Subscribes with sensor QoS, tells the watch of every message, and returns the resolved topic."""

        def hear(name: str, msg: Any) -> None:
            self._watch.hear(name, time.monotonic())
            handle(msg)
            if self._pipeline.waiting and self._poll_timer.is_canceled():
                self._poll_timer.reset()

        name = self.listen(kind, topic, hear)
        self._expected[name] = type_name(kind)
        return name

    def _on_poll(self) -> None:
        self._pipeline.poll()
        if not self._pipeline.waiting:
            self._poll_timer.cancel()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            response.success = self.start()
        elif self.active:
            response.success = self.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        else:
            response.success = True
        response.message = self.problem or ("active" if self.active else "inactive")
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is not None:
            self._pipeline.reset()
        response.success, response.message = True, "forgot images, poses and past sweeps"
        return response

    def _on_doctor(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        lines = [self.problem] if self.problem else []
        if not self.active:
            lines.append("the node is not active: call ~/enable with data: true")
        else:
            account, facts = self._pipeline.ledger.account(), self._facts()
            lines += health.complaints(account, self._silent_now(), facts)
        response.success, response.message = not lines, "\n".join(lines) or "all is well"
        return response

    def _on_clicked(self, msg: PointStamped) -> None:
        self._pipeline.on_click(msg)

    def check_change(self, parameter: parameters.Parameter, value: parameters.Value) -> None:
        """Live parameters may be changed while there is a network."""
        self._pipeline.check_change(parameter, value)

    def changed(self, names: set[str]) -> None:
        """The threshold of the boxes is told to late subscribers too."""
        if LABEL_INFO in self._out and "detections.min_score" in names:
            self._publish_label_info()

    def _on_status(self) -> None:
        silent = self._silent_now()
        if silent and silent != self._silent:
            self.get_logger().warning("inputs are silent:\n  " + "\n  ".join(silent))
        self._silent = silent
        facts = self._facts()
        findings = health.findings_in(facts)
        if findings and findings != self._findings:
            self.get_logger().warning("the input differs from what the network knows:\n  " + "\n  ".join(findings))
        self._findings = findings
        self._accounts.append(self._pipeline.ledger.account())
        since = self._accounts[0] if len(self._accounts) == RECENT else None
        status = health.status(self._accounts[-1], silent, since, **facts)
        now_ns = self.get_clock().now().nanoseconds
        name = f"{self.get_name()}: segmentation"
        device = str(self._pipeline.predictor.device)
        self._diagnostics_out.publish(convert.diagnostics_message(status, name, device, now_ns))

    def _silent_now(self) -> list[str]:
        ours = {publisher.topic_name for publisher in self._out.values()}
        others = [(name, types) for name, types in self.get_topic_names_and_types() if name not in ours]
        return self._watch.report(time.monotonic(), others)

    def _facts(self) -> dict[str, object]:
        return {"checkpoint": self._checkpoint, **self._pipeline.facts()}

    def _write_ledger(self) -> None:
        summary = {**health.summary(self._pipeline.ledger.account()), **self._facts()}
        self.get_logger().info(f"ledger: {json.dumps(summary)}")
        if self.settings["ledger_file"]:
            try:
                write_whole(self.settings["ledger_file"], json.dumps(summary, indent=2) + "\n")
            except OSError as error:
                self.get_logger().error(f"ledger_file {self.settings['ledger_file']} cannot be written: {error}")


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; 0, or 2 with the reason on stderr when it cannot work."""
    return run(PerceptionNode, "perception", args)


def message_kinds() -> dict[str, type]:
    """Message type of each topic below ~/output/, by the last part of its name."""
    vision = {DETECTIONS: "vision_msgs/msg/Detection3DArray", LABEL_INFO: "vision_msgs/msg/LabelInfo"}
    boxes = {topic: convert.message_class(name) for topic, name in vision.items()} if convert.ROS.has_vision else {}
    clouds = dict.fromkeys(("segmentation", "filtered", "features", "similarity"), PointCloud2)
    return {**clouds, **boxes, MARKERS: MarkerArray, "compressed": CompressedImage}


if __name__ == "__main__":
    sys.exit(main())

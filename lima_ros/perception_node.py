"""Perception node: LiDAR and cameras in, segmented cloud and camera overlays out.

    ros2 run lima_ros perception_node --ros-args --params-file config/perception.yaml -p rig:=config/rigs/nuscenes.yaml
    python -m lima_ros.perception_node --ros-args ...          where lima is installed by pip only

Wiring only: the main thread spins, `lima_ros.pipeline` does the work. Parameters: config/perception.yaml.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from lima_core.data.rig import Rig
from lima_core.files import write_whole
from lima_core.paths import STREET_CHECKPOINT
from lima_ros import convert, health, parameters
from lima_ros.pipeline import STAGES, Pipeline
from lima_ros.worker import SHUTDOWN

SENSOR_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)  # hears best effort and reliable publishers
RESULT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)  # heard by RViz' default and by sensor QoS
STATUS_PERIOD_S = 1.0
REPEAT_WARNING_S = 5.0


class PerceptionNode(Node):
    """configure -> activate -> (deactivate -> activate ...) -> shutdown, as in a lifecycle node."""

    def __init__(self) -> None:
        super().__init__("perception", automatically_declare_parameters_from_overrides=True)
        self.settings = self._declare(parameters.PARAMETERS)
        self._checkpoint = str(self.settings["checkpoint"] or STREET_CHECKPOINT)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # timers must not follow a bag's clock
        self._pipeline: Pipeline | None = None
        self._active = self._closed = False
        self._inputs: list[Callable[[], object]] = []  # how to destroy what `activate` made

    def configure(self) -> None:
        """Loads rig and network, advertises the outputs; ValueError, OSError or RuntimeError say what is wrong."""
        rig = Rig.load(self.settings["rig"]) if self.settings["rig"] else None
        self._pipeline = Pipeline(self._load_predictor(), rig, self.settings, self)
        self._cloud_out = self.create_publisher(PointCloud2, "~/output/segmentation", RESULT_QOS)
        self._overlay_out = {
            name: self.create_publisher(CompressedImage, f"~/output/{name}/overlay/compressed", RESULT_QOS)
            for name in self._pipeline.mounts
        }
        self._diagnostics_out = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._ms_out = {stage: self.create_publisher(Float64, f"~/debug/{stage}_ms", 10) for stage in STAGES}
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/reset", self._on_reset)

    def activate(self) -> None:
        """Subscribes to the inputs."""
        if self._active:
            return
        self._expected: dict[str, str] = {}
        self._silent: list[str] = []
        infos = []
        self._listen(PointCloud2, "~/input/pointcloud", self._pipeline.on_cloud)
        if self._pipeline.mounts:
            self._listen(Odometry, "~/input/odometry", self._pipeline.on_odometry)
        for name, mount in self._pipeline.mounts.items():
            kind = CompressedImage if mount.transport == "compressed" else Image
            self._listen(kind, f"~/input/{name}/image", partial(self._pipeline.on_image, name))
            infos.append(self._listen(CameraInfo, f"~/input/{name}/camera_info", partial(self._pipeline.on_info, name)))
        after_s = self.settings["watch.silent_after_s"]
        self._watch = health.TopicWatch(self._expected, after_s, time.monotonic(), once=infos)
        self._poll_timer = self._timer(max(self.settings["sync.timeout_ms"] / 5000, 0.005), self._on_poll)
        self._poll_timer.cancel()
        self._timer(STATUS_PERIOD_S, self._on_status)
        self._active = True
        self.get_logger().info(f"listening to {', '.join(self._expected)}")

    def deactivate(self, reason: str = "inactive") -> None:
        """Stops listening; sweeps that wait for images are dropped with `reason`. Keeps the network."""
        if not self._active:
            return
        self._active = False
        for destroy in self._inputs:
            destroy()
        self._inputs.clear()
        self._pipeline.drop_waiting(reason)

    def shutdown(self) -> None:
        """Finishes the running sweep, closes the ledger and writes it; may be called again."""
        if self._closed:
            return
        self._closed = True
        self.deactivate(SHUTDOWN)
        if self._pipeline:
            self._pipeline.close()
            self._write_ledger()
        self.destroy_node()

    # ---- what the pipeline calls from its threads

    def publish_cloud(self, msg: PointCloud2) -> None:
        """Sends a segmented cloud."""
        self._cloud_out.publish(msg)

    def publish_overlay(self, camera: str, msg: CompressedImage) -> None:
        """Sends an overlay."""
        self._overlay_out[camera].publish(msg)

    def overlay_wanted(self, camera: str) -> bool:
        """True when the overlay has a subscriber."""
        return self._overlay_out[camera].get_subscription_count() > 0

    def publish_ms(self, stage: str, value: float) -> None:
        """Sends a duration."""
        self._ms_out[stage].publish(Float64(data=value))

    def warn(self, text: str) -> None:
        """Logs a warning, at most every few seconds."""
        self.get_logger().warning(text, throttle_duration_sec=REPEAT_WARNING_S)

    # ---- wiring

    def _declare(self, table: tuple[parameters.Parameter, ...]) -> parameters.Resolved:
        """Declares every parameter with its checked value and logs it with its source."""
        given = {name: p.value for name, p in self.get_parameters_by_prefix("").items()}
        resolved = parameters.resolve(given, table)
        for parameter in table:
            if self.has_parameter(parameter.name):
                self.undeclare_parameter(parameter.name)
            value = resolved[parameter.name]
            self.declare_parameter(parameter.name, value, convert.descriptor(parameter), ignore_override=True)
        self.get_logger().info("parameters:\n  " + "\n  ".join(resolved.lines()))
        if resolved.foreign:
            self.get_logger().warning(f"not parameters of this node: {', '.join(resolved.foreign)}")
        return resolved

    def _load_predictor(self) -> Any:
        """Torch takes seconds to import: here, a SIGINT meanwhile still ends the node cleanly."""
        # OpenMP reads this once, on import. Its waiting threads otherwise spin: beside other busy processes a sweep
        # then takes 4 to 100 times as long
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from lima_core.predict import Predictor

        started_s = time.monotonic()
        predictor = Predictor(self._checkpoint, self.settings["device"])
        took_s = time.monotonic() - started_s
        self.get_logger().info(f"network {self._checkpoint} is ready on {predictor.device} after {took_s:.1f} s")
        return predictor

    def _listen(self, kind: type, topic: str, handle: Callable[[Any], None]) -> str:
        """Subscribes with sensor QoS, tells the watch of every message, and returns the resolved topic."""

        def hear(msg: Any) -> None:
            self._watch.hear(name, time.monotonic())
            handle(msg)
            if self._pipeline.waiting and self._poll_timer.is_canceled():
                self._poll_timer.reset()

        options = QoSOverridingOptions.with_default_policies()
        subscription = self.create_subscription(kind, topic, hear, SENSOR_QOS, qos_overriding_options=options)
        name = subscription.topic_name
        self._expected[name] = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._inputs.append(partial(self.destroy_subscription, subscription))
        return name

    def _timer(self, period_s: float, handle: Callable[[], None]) -> Any:
        timer = self.create_timer(period_s, handle, clock=self._steady)
        self._inputs.append(partial(self.destroy_timer, timer))
        return timer

    def _on_poll(self) -> None:
        self._pipeline.poll()
        if not self._pipeline.waiting:
            self._poll_timer.cancel()

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            self.activate()
        else:
            self.deactivate()
        response.success, response.message = True, "active" if self._active else "inactive"
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._pipeline.reset()
        response.success, response.message = True, "forgot images and poses"
        return response

    def _on_status(self) -> None:
        ours = {publisher.topic_name for publisher in (self._cloud_out, *self._overlay_out.values())}
        others = [(name, types) for name, types in self.get_topic_names_and_types() if name not in ours]
        silent = self._watch.report(time.monotonic(), others)
        if silent and silent != self._silent:
            self.get_logger().warning("inputs are silent:\n  " + "\n  ".join(silent))
        self._silent = silent
        status = health.status(self._pipeline.ledger.account(), silent, **self._facts())
        now_ns = self.get_clock().now().nanoseconds
        name = f"{self.get_name()}: segmentation"
        device = str(self._pipeline.predictor.device)
        self._diagnostics_out.publish(convert.diagnostics_message(status, name, device, now_ns))

    def _facts(self) -> dict[str, object]:
        return {"checkpoint": self._checkpoint, **self._pipeline.facts()}

    def _write_ledger(self) -> None:
        summary = {**health.summary(self._pipeline.ledger.account()), **self._facts()}
        self.get_logger().info(f"ledger: {json.dumps(summary)}")
        if self.settings["ledger_file"]:
            write_whole(self.settings["ledger_file"], json.dumps(summary, indent=2) + "\n")


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; 0, or 2 with the reason on stderr when it cannot work."""
    # an event and no KeyboardInterrupt: that could strike between a sweep's reception and its place in a queue
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # not rclpy's handlers: they invalidate the context under the sweep that is being published
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = PerceptionNode()
        node.configure()
        if node.settings["autostart"]:
            node.activate()
    except (ValueError, OSError, RuntimeError) as error:
        print(f"perception: {error}", file=sys.stderr)
        return 2
    else:
        _spin(node, stop)
        return 0
    finally:
        if node is not None:
            node.shutdown()
        rclpy.try_shutdown()


def _spin(node: Node, stop: threading.Event) -> None:
    """Runs callbacks in this thread until `stop` is set or the context ends."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    finally:
        executor.remove_node(node)
        executor.shutdown()


if __name__ == "__main__":
    sys.exit(main())

"""Recorder node: what the robot senses becomes a recording that LiMA pretrains on (docs/recording.md).

    ros2 launch lima_ros record.launch.py rig:=my_rig.yaml out:=/data/drive
    python -m lima_ros.recorder_node --ros-args -p rig:=my_rig.yaml -p out:=/data/drive

Wiring only: `lima_core.runtime.recorder` decides, in a thread of its own. Services are named as those of `ros2 bag
record` (~/pause, ~/resume, ~/toggle_paused, ~/is_paused, ~/split_bagfile, ~/snapshot), and ~/record_frame, ~/reset; all
are std_srvs/Trigger, for rosbag2_interfaces is on no package index. Parameters: config/recorder.yaml.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_srvs.srv import Trigger

from lima_core.data.bag import TRUTH_TOPIC
from lima_core.data.recording_writer import RecordingWriter
from lima_core.data.rig import Rig
from lima_core.runtime import health
from lima_core.runtime.parameters import Parameter
from lima_core.runtime.recorder import FULL, RECORDED, Recorder
from lima_core.runtime.recorder_parameters import GIGABYTE, RECORDING
from lima_core.runtime.recorder_thread import RecorderThread
from lima_core.runtime.triggers import features_of
from lima_ros import convert
from lima_ros.base_node import BaseNode, run, type_name
from lima_ros.ports_node import LATCHED_QOS, sensor_qos

DEPTH = 100  # messages of each topic that wait in the middleware: a camera's second or two
ANSWER_S = 10.0
STATUS_PERIOD_S = 1.0

PARAMETERS = (
    Parameter("out", "", "Folder of the recording; one that is there goes on with a new sequence"),
    Parameter("rig", "", "Rig file: topics, frames, mounts and camera offsets"),
    Parameter("autostart", True, "Configure and activate at once; false = wait for a lifecycle manager"),
    Parameter("queue_mb", 512.0, "Messages that may wait to be written, MB", 1.0, 1e5),
    Parameter("watch.silent_after_s", 3.0, "Seconds without a message after which an input is reported", 0.1, 600.0),
    *RECORDING,
)


class RecorderNode(BaseNode):
    """A lifecycle node: configure opens the recording, activate listens, deactivate stops, cleanup closes it."""

    def __init__(self) -> None:
        super().__init__("recorder", PARAMETERS)
        self._worker: RecorderThread | None = None
        services = {"pause": self._pause, "resume": self._resume, "toggle_paused": self._toggle}
        services |= {"is_paused": self._is_paused, "split_bagfile": self._split, "snapshot": self._snapshot}
        services |= {"record_frame": self._record_frame, "reset": self._reset}
        for name, command in services.items():
            self.create_service(Trigger, f"~/{name}", partial(self._on_service, command))

    # ---- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the rig and opens the recording; FAILURE with the reason in the log where it cannot."""
        return self.attempt(self._configure, "configured", self.release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes to the sensors."""
        return self.attempt(self._listen_to_all, "activated", self.stop_listening)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops listening; what comes after the next activation is a new sequence."""
        self.stop_listening()
        self._worker.ask(self._recorder.reset, ANSWER_S)
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Closes the recording."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, for good."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """Writes what waits and closes the recording."""
        self.stop_listening()
        if self._worker is None:
            return
        worker, self._worker, self.configured = self._worker, None, False
        try:
            worker.close()
        except Exception as error:  # what was committed is safe; the reason must be heard
            self.get_logger().error(f"recording ended: {type(error).__name__}: {error}")
        self.get_logger().info(f"recorded {self._writer.frames} frames, {self._facts()}")
        self.destroy_publisher(self._diagnostics_out)

    def _configure(self) -> None:
        settings = self.settings
        for name, what in (("out", "a folder for the recording"), ("rig", "a rig file, see config/rigs")):
            if not settings[name]:
                raise ValueError(f"parameter {name} is empty: name {what}")
        self._rig = Rig.load(settings["rig"])
        self._tf = _tf_message() if settings["poses"] == "tf" else None
        limits = (settings["disk.quota_gb"], settings["disk.min_free_gb"])
        features = features_of(settings)
        self._writer = RecordingWriter(
            settings["out"], self._rig, *(round(gigabytes * GIGABYTE) for gigabytes in limits), settings["disk.sync_s"]
        )
        self._recorder = Recorder(self._rig, settings, self._writer, self.warn, features)
        self._worker = RecorderThread(self._recorder, round(settings["queue_mb"] * 1e6))
        self._diagnostics_out = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.configured = True

    def _listen_to_all(self) -> None:
        self._expected: dict[str, str] = {}
        rig, recorder, infos = self._rig, self._recorder, []
        self._hear(PointCloud2, rig.lidar_topic, recorder.on_cloud)
        for mount in rig.cameras:
            kind = CompressedImage if mount.transport == "compressed" else Image
            self._hear(kind, mount.image_topic, partial(recorder.on_image, mount.name))
            infos.append(self._hear(CameraInfo, mount.info_topic, partial(recorder.on_info, mount.name)))
        if self._tf is not None:
            self._hear(self._tf, "/tf", partial(recorder.on_transforms, fixed=False))
            self._hear(self._tf, "/tf_static", partial(recorder.on_transforms, fixed=True), LATCHED_QOS)
        else:
            self._hear(Odometry, rig.odometry_topic, recorder.on_odometry)
        self._watch = health.TopicWatch(
            self._expected, self.settings["watch.silent_after_s"], time.monotonic(), once=infos
        )
        self._hear(PointCloud2, TRUTH_TOPIC, recorder.on_truth)  # where it is: nobody misses it
        self.timer(STATUS_PERIOD_S, self._on_status)
        self.active = True
        self.get_logger().info(f"recording {', '.join(self._expected)} into {self.settings['out']}")

    def _hear(self, kind: type, topic: str, handle: Callable[[Any], None], qos: QoSProfile | None = None) -> str:
        def hear(name: str, msg: Any) -> None:
            if name in self._expected:
                self._watch.hear(name, time.monotonic())
            self._worker.put(name, handle, msg)

        name = self.listen(kind, topic, hear, qos or sensor_qos(DEPTH))
        self._expected[name] = type_name(kind)
        return name

    # ---- services

    def _on_service(self, command: Callable[[], str], _: Trigger.Request, response: Trigger.Response) -> Any:
        if not self.active:
            response.success, response.message = False, self.problem or "the node is not active"
            return response
        try:
            response.message = self._worker.ask(command, ANSWER_S)
            response.success = True
        except Exception as error:
            response.message = f"{type(error).__name__}: {error}"
        return response

    def _pause(self) -> str:
        self._recorder.pause()
        return "paused"

    def _resume(self) -> str:
        self._recorder.resume()
        return "recording"

    def _toggle(self) -> str:
        return self._resume() if self._recorder.paused else self._pause()

    def _is_paused(self) -> str:
        return "paused" if self._recorder.paused else "recording"

    def _split(self) -> str:
        self._recorder.split()
        return "the next frame begins a new sequence"

    def _snapshot(self) -> str:
        if not self.settings["snapshot_s"]:
            raise ValueError("nothing is kept for a snapshot: set snapshot_s")
        return f"{self._recorder.snapshot()} sweeps written"

    def _record_frame(self) -> str:
        self._recorder.record_frame()
        return "the next sweep is recorded"

    def _reset(self) -> str:
        self._recorder.reset()
        return "forgot images and poses; a new sequence begins"

    # ---- diagnostics

    def _on_status(self) -> None:
        silent = self._watch.report(time.monotonic(), self.get_topic_names_and_types())
        facts = self._facts() | {f"silent.{index}": line for index, line in enumerate(silent)}
        if self._recorder.full:
            level, message = health.ERROR, self._recorder.full
        elif self._worker.lost or silent:
            lost = sum(self._worker.lost.values())
            level, message = health.WARN, f"{lost} messages lost, {len(silent)} silent inputs"
        else:
            level, message = health.OK, f"{self._writer.frames} frames recorded"
        status = health.Status(level, message, tuple((key, str(value)) for key, value in facts.items()))
        now_ns = self.get_clock().now().nanoseconds
        name = f"{self.get_name()}: recording"
        self._diagnostics_out.publish(convert.diagnostics_message(status, name, self._rig.name, now_ns))

    def _facts(self) -> dict[str, object]:
        """Counts by what became of sweeps and pictures; copies, for the recorder's thread changes them."""
        counts = dict(self._recorder.counts)
        return {
            "frames": counts.get(RECORDED, 0),
            "bytes": self._writer.bytes,
            "free_gb": round(shutil.disk_usage(self._writer.root).free / GIGABYTE, 1),
            "full": counts.get(FULL, 0),
            **counts,
            **({} if self._worker is None else {f"lost.{topic}": n for topic, n in dict(self._worker.lost).items()}),
        }


def _tf_message() -> type:
    """tf2_msgs/TFMessage. Raises ValueError with what to install or set where it is not there."""
    try:
        return convert.message_class("tf2_msgs/msg/TFMessage")
    except ImportError as error:
        raise ValueError(
            f"poses: tf needs tf2_msgs ({error}): apt install ros-$ROS_DISTRO-tf2-msgs, or set poses: odometry"
        ) from error


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; 0, or 2 with the reason on stderr when it cannot work."""
    return run(RecorderNode, "recorder", args)


if __name__ == "__main__":
    sys.exit(main())

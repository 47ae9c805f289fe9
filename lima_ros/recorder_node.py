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
from collections import deque
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
from lima_core.runtime.parameters import Parameter, ParameterError, Value
from lima_core.runtime.recorder import Recorder
from lima_core.runtime.recorder_parameters import RECORDING, disk_limits
from lima_core.runtime.recorder_status import Progress, recorder_status, summary_line
from lima_core.runtime.recorder_thread import RecorderThread
from lima_core.runtime.triggers import features_of
from lima_ros import convert
from lima_ros.base_node import BaseNode, run, type_name
from lima_ros.ports_node import LATCHED_QOS, sensor_qos

DEPTH = 100  # messages of each topic that wait in the middleware: a camera's second or two
ANSWER_S = 60.0  # a snapshot waits for the disk
STATUS_PERIOD_S = 1.0
RECENT = 11  # states of the recording, a period apart: diagnostics judge the last ten seconds

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
        """Stops listening and writes what waits; what comes after the next activation is a new sequence."""
        self.stop_listening()
        return self.attempt(self._flush, "deactivated", lambda: None)

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
        self.get_logger().info(summary_line(self._progress(worker), self.settings["out"]))
        self.destroy_publisher(self._diagnostics_out)

    def _flush(self) -> None:
        self._worker.ask(self._recorder.reset, ANSWER_S)
        self._worker.ask(self._writer.sync, ANSWER_S)

    def _configure(self) -> None:
        settings = self.take_parameters()
        for name, what in (("out", "a folder for the recording"), ("rig", "a rig file, see config/rigs")):
            if not settings[name]:
                raise ValueError(f"parameter {name} is empty: name {what}")
        self._rig = Rig.load(settings["rig"])
        self._tf = _tf_message() if settings["poses"] == "tf" else None
        features = features_of(settings)
        self._writer = RecordingWriter(settings["out"], self._rig, *disk_limits(settings), settings["disk.sync_s"])
        self._recorder = Recorder(self._rig, settings, self._writer, self.warn, features)
        self._broken = ""
        self._worker = RecorderThread(self._recorder, round(settings["queue_mb"] * 1e6), self._on_error)
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
            hear_fixed = partial(recorder.on_transforms, fixed=True)
            infos.append(self._hear(self._tf, "/tf_static", hear_fixed, LATCHED_QOS))
        else:
            self._hear(Odometry, rig.odometry_topic, recorder.on_odometry)
        self._watch = health.TopicWatch(
            self._expected, self.settings["watch.silent_after_s"], time.monotonic(), once=infos
        )
        self._hear(PointCloud2, TRUTH_TOPIC, recorder.on_truth, watched=False)  # where it is: nobody misses it
        self._silent: list[str] = []
        self._past: deque[tuple[float, Progress]] = deque([(time.monotonic(), self._progress(self._worker))], RECENT)
        self.timer(STATUS_PERIOD_S, self._on_status)
        self.active = True
        self.get_logger().info(f"recording {', '.join(self._expected)} into {self.settings['out']}")

    def _hear(
        self,
        kind: type,
        topic: str,
        handle: Callable[[Any], None],
        qos: QoSProfile | None = None,
        watched: bool = True,
    ) -> str:
        """Subscribes, and returns the resolved topic; a `watched` one is reported where it is silent."""

        def hear(name: str, msg: Any) -> None:
            if watched:
                self._watch.hear(name, time.monotonic())
            self._worker.put(name, handle, msg)

        name = self.listen(kind, topic, hear, qos or sensor_qos(DEPTH))
        if watched:
            self._expected[name] = type_name(kind)
        return name

    def _on_error(self, error: Exception) -> None:
        """In the recorder's thread: a message that it failed on."""
        self._broken = f"a message was not recorded: {type(error).__name__}: {error}"
        self.get_logger().error(self._broken)

    def check_change(self, parameter: Parameter, value: Value) -> None:
        """None may be changed while the recording is open."""
        raise ParameterError(f"parameter {parameter.name} is fixed while the node is configured: clean up first")

    # ---- services

    def _on_service(self, command: Callable[[], str], _: Trigger.Request, response: Trigger.Response) -> Any:
        if not self.active:
            response.success, response.message = False, self.problem or "the node is not active"
            return response
        try:
            response.message = self._worker.ask(command, ANSWER_S)
            response.success = True
        except Exception as error:  # whatever it is, who asked must hear it
            response.message = str(error) or type(error).__name__
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
        written = self._recorder.snapshot()
        if self._recorder.full:
            raise OSError(f"{written} sweeps written, then: {self._recorder.full}")
        return f"{written} sweeps written"

    def _record_frame(self) -> str:
        if self._recorder.paused:
            raise ValueError("paused: call ~/resume first")
        self._recorder.record_frame()
        return "the next sweep is recorded"

    def _reset(self) -> str:
        self._recorder.reset()
        return "forgot images and poses; a new sequence begins"

    # ---- diagnostics

    def _on_status(self) -> None:
        silent = self._watch.report(time.monotonic(), self.get_topic_names_and_types())
        if silent and silent != self._silent:
            self.get_logger().warning("inputs are silent:\n  " + "\n  ".join(silent))
        self._silent = silent
        now_s, now = time.monotonic(), self._progress(self._worker)
        then_s, then = self._past[0]
        self._past.append((now_s, now))
        waiting_mb = f"{self._worker.waiting_bytes / 1e6:.1f}"
        status = recorder_status(now, then, now_s - then_s, silent, out=self.settings["out"], waiting_mb=waiting_mb)
        self._broken = ""
        name, at_ns = f"{self.get_name()}: recording", self.get_clock().now().nanoseconds
        self._diagnostics_out.publish(convert.diagnostics_message(status, name, self._rig.name, at_ns))

    def _progress(self, worker: RecorderThread) -> Progress:
        """Of this moment; copies, for the recorder's thread changes them."""
        writer, recorder = self._writer, self._recorder
        try:
            free, broken = shutil.disk_usage(writer.root).free, self._broken
        except OSError as error:
            free, broken = 0, f"the recording's folder cannot be reached: {error}"
        return Progress(
            frames=writer.frames,
            sequences=writer.sequences,
            bytes=writer.bytes,
            free_bytes=free,
            counts=dict(recorder.counts),
            lost=dict(worker.lost),
            full=recorder.full,
            broken=broken,
            paused=recorder.paused,
        )


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

"""From messages to results without rclpy: overlays never hold a cloud up, and every sweep ends in the ledger."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lima_core.data.rig import CameraMount, Rig
from lima_core.predictor import Perception, Segmentation
from lima_core.runtime.parameters import resolve

pytest.importorskip("sensor_msgs", reason="needs the ROS 2 message packages")
from lima_core.data.ros_cloud import pack_cloud, read_cloud
from lima_core.runtime import pipeline
from lima_ros import convert

MS = 1_000_000
RIG = Rig("one", "/lidar", "lidar", np.eye(4), (CameraMount("CAM", "cam", "/cam/image", "/cam/info", np.eye(4)),))


class Predictor:
    """Calls every point a 3; fails on clouds of 13 points."""

    colors, device, meta = np.full((16, 3), 50, np.uint8), "cpu", {"inputs": {}}
    class_names, detection_names, sweeps = tuple(f"class {i}" for i in range(16)), (), 1

    def perceive(self, points, past):
        if len(points) == 13:
            raise RuntimeError("unlucky")
        labels = Segmentation(np.full(len(points), 3, np.uint8), np.full(len(points), 0.5, np.float32))
        return Perception(labels, None)


class Outputs:
    """Keeps what is published; `gate` holds the overlay thread up."""

    def __init__(self):
        self.clouds, self.overlays, self.ms, self.warnings = [], [], [], []
        self.gate, self.overlays_wanted = threading.Event(), True
        self.changed = threading.Condition()

    def publish(self, topic, msg):
        if topic.endswith("overlay/compressed"):
            assert self.gate.wait(10)
            self._keep(self.overlays, msg)
        else:
            assert topic == "segmentation"
            self._keep(self.clouds, msg)

    def wanted(self, topic):
        return self.overlays_wanted and topic.endswith("overlay/compressed")

    def publish_ms(self, stage, value):
        self._keep(self.ms, (stage, value))

    def warn(self, text):
        self._keep(self.warnings, text)

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10), vars(self)

    def _keep(self, kept, item):
        with self.changed:
            kept.append(item)
            self.changed.notify_all()


@pytest.fixture
def run():
    """run(rig, **parameters) -> (pipeline, outputs); closed at the end."""
    made = []

    def start(rig=RIG, parameters=None):
        outputs = Outputs()
        made.append((pipeline.Pipeline(Predictor(), rig, resolve(parameters or {}), outputs, convert.ROS), outputs))
        return made[-1]

    yield start
    for one, outputs in made:
        outputs.gate.set()
        one.close()


def cloud(index, n=5):
    ramp = np.arange(n, dtype=np.float32)
    packed = pack_cloud({"x": ramp + 2, "y": ramp, "z": ramp, "intensity": ramp})
    return convert.ROS.cloud(packed, (1000 + 100 * index) * MS, "lidar")


def image(index, jpeg=b"no picture"):
    return convert.ROS.compressed(jpeg, (1000 + 100 * index) * MS, "cam")


def info():
    view = SimpleNamespace(stamp_ns=0, size=(8, 6), K=np.eye(3), distortion=SimpleNamespace(model="none"))
    return convert.ROS.camera_info(view, "cam")


def picture():
    import cv2

    return cv2.imencode(".jpg", np.zeros((6, 8, 3), np.uint8))[1].tobytes()


def test_clouds_go_on_while_an_overlay_is_stuck(run):
    one, out = run()
    one.on_info("CAM", info())
    for index in range(5):
        one.on_image("CAM", image(index, picture()))
        one.on_cloud(cloud(index))
        out.wait(lambda n=index + 1: len(out.clouds) == n)
    out.wait(lambda: [stage for stage, _ in out.ms].count("total") == 5)  # said after the overlay was handed over
    assert out.overlays == []
    out.gate.set()
    out.wait(lambda: len(out.overlays) == 2)  # the stuck one and the newest
    one.close()
    account = one.ledger.account()
    assert (account.received, account.published, account.dropped) == (5, 5, {})
    events = account.cameras["CAM"]
    assert events == {"matched": 5, "overlay.superseded": 3, "overlay.drawn_without_odometry": 2}


def test_a_failing_network_costs_one_sweep(run):
    one, out = run(rig=None)
    one.on_cloud(cloud(0, n=13))
    out.wait(lambda: out.warnings)
    one.on_cloud(cloud(1))
    out.wait(lambda: out.clouds)
    one.close()
    assert out.warnings == ["sweep failed: RuntimeError: unlucky"]
    account = one.ledger.account()
    assert (account.received, account.published, account.dropped, account.open) == (2, 1, {"error": 1}, 0)


def test_nothing_is_decoded_for_an_overlay_nobody_wants(run):
    one, out = run()
    out.overlays_wanted = False
    one.on_image("CAM", image(0))
    one.on_cloud(cloud(0))
    out.wait(lambda: out.clouds)
    one.close()
    assert out.warnings == [] and one.ledger.account().cameras["CAM"] == {"matched": 1}


@pytest.mark.parametrize(
    ("prepare", "event", "word"),
    [
        (lambda one: one.on_image("CAM", image(0)), "overlay.no_camera_info", "/cam/info"),
        (lambda one: (one.on_info("CAM", info()), one.on_image("CAM", image(0))), "overlay.corrupt", "/cam/image"),
        (
            lambda one: (one.on_info("CAM", SimpleNamespace(width=0, height=0)), one.on_image("CAM", image(0))),
            "overlay.bad_camera_info",
            "size 0 x 0",
        ),
    ],
)
def test_why_an_overlay_is_missing(run, prepare, event, word):
    one, out = run()
    prepare(one)
    one.on_cloud(cloud(0))
    out.wait(lambda: out.warnings and out.clouds)
    assert one.ledger.account().cameras["CAM"] == {"matched": 1, event: 1}
    assert word in out.warnings[0]


def test_a_picture_of_another_size_than_its_camera_info(run):
    one, out = run()
    wrong = info()
    wrong.width = 16
    one.on_info("CAM", wrong)
    one.on_image("CAM", image(0, picture()))
    one.on_cloud(cloud(0))
    out.wait(lambda: out.warnings)
    assert "8 x 6, its CameraInfo 16 x 6" in out.warnings[0]


def test_cameras_are_left_alone_where_overlays_are_never_drawn(run):
    one, out = run(parameters={"overlay.enabled": "never"})
    one.on_cloud(cloud(0))
    out.wait(lambda: out.clouds)
    assert one.mounts == {} and not one.waiting


def test_a_cloud_without_intensity_is_said_once(run):
    one, out = run(rig=None)
    ramp = np.arange(4, dtype=np.float32)
    for index in range(3):
        one.on_cloud(convert.ROS.cloud(pack_cloud(dict.fromkeys("xyz", ramp)), index, "lidar"))
        out.wait(lambda n=index + 1: len(out.clouds) == n)
    assert len(out.warnings) == 1 and "no intensity" in out.warnings[0]
    assert one.facts()["intensity_field"] == "none: the network gets 0"


def test_waiting_sweeps_are_dropped_at_the_end_and_an_overdue_one_goes_on(run):
    one, out = run(parameters={"sync.timeout_ms": 30})
    one.on_cloud(cloud(0))
    assert one.waiting
    time.sleep(0.03)
    one.poll()
    out.wait(lambda: out.clouds)
    one.on_cloud(cloud(1))
    one.close()
    one.close()
    account = one.ledger.account()
    assert (account.published, account.dropped, account.open) == (1, {"shutdown": 1}, 0)
    assert account.cameras["CAM"] == {"matched": 0, "missed.never": 1}


def test_a_bad_pose_is_ignored_and_said(run):
    one, out = run()
    odometry = convert.ROS.odometry(np.eye(4), 1)
    odometry.pose.pose.orientation.w = 0.0
    one.on_odometry(odometry)
    assert "odometry ignored" in out.warnings[0] and one.facts()["odometry"].startswith("none")


def test_the_scale_of_the_rig_reaches_the_network_and_raw_intensity_comes_out(run):
    seen = []
    one, out = run(rig=Rig("r", "/l", "l", np.eye(4), intensity_scale=4.0))
    one.predictor.perceive = lambda points, past: seen.append(points.copy()) or Predictor().perceive(points, past)
    one.on_cloud(cloud(0))
    out.wait(lambda: out.clouds)
    np.testing.assert_array_equal(seen[0][:, 3], np.float32([0, 0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_array_equal(read_cloud(out.clouds[0])["intensity"], np.arange(5))


def test_odometry_of_another_body_is_refused(run):
    one, out = run()
    one.on_odometry(convert.ROS.odometry(np.eye(4), 1000 * MS, child_frame_id="lidar_link"))
    one.on_odometry(convert.ROS.odometry(np.eye(4), 1000 * MS, child_frame_id="base_link"))
    one.on_odometry(convert.ROS.odometry(np.eye(4), 1100 * MS, child_frame_id=""))
    assert len(one._odometry) == 2
    assert len(out.warnings) == 1 and "moves 'lidar_link', the rig's base_frame is 'base_link'" in out.warnings[0]

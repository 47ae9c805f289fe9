"""Messages and back: through real serialisation, so that what ROS would send is what is read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.serialization import deserialize_message, serialize_message

from lima_core.data.frame import CameraView, Image
from lima_core.data.ros_cloud import cloud_points, pack_cloud, read_cloud
from lima_core.data.ros_header import stamp_ns
from lima_core.data.ros_image import camera_from_info, image_from_message
from lima_core.geometry import se3
from lima_core.geometry.camera import Distortion
from lima_core.runtime import health
from lima_core.runtime.messages import pose_from_odometry
from lima_core.runtime.parameters import PARAMETERS
from lima_ros import convert

NS = 1_532_402_927_647_951_000


def sent(msg):
    """What a subscriber gets."""
    return deserialize_message(serialize_message(msg), type(msg))


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_000_000_000, NS])
def test_stamps_are_exact(ns):
    assert stamp_ns(convert.ROS.stamp(ns)) == ns


def test_cloud():
    rng = np.random.default_rng(0)
    columns = {"x": rng.random(5, np.float32), "label": np.arange(5, dtype=np.uint8), "t": rng.random(5)}
    msg = sent(convert.ROS.cloud(pack_cloud(columns), NS, "LIDAR_TOP"))
    assert (stamp_ns(msg.header.stamp), msg.header.frame_id, msg.width, msg.height) == (NS, "LIDAR_TOP", 5, 1)
    for name, column in read_cloud(msg).items():
        np.testing.assert_array_equal(column, columns[name])


@pytest.mark.parametrize("n", [0, 7])
def test_segmentation_keeps_points_order_and_raw_intensity(n):
    rng = np.random.default_rng(1)
    columns = {c: rng.random(n, np.float32) for c in "xyz"} | {"intensity": rng.integers(0, 256, n).astype(np.uint8)}
    source = convert.ROS.cloud(pack_cloud(columns), NS, "lidar")
    labels, probability = rng.integers(0, 16, n).astype(np.uint8), rng.random(n, np.float32)
    rgb = rng.integers(0, 256, (n, 3)).astype(np.uint8)
    out = convert.ROS.segmentation(cloud_points(source, 255.0), labels, probability, rgb, source.header)
    out = sent(out)
    assert out.header == source.header
    read = read_cloud(out)
    assert [(name, column.dtype.str) for name, column in read.items()] == [
        *((name, "<f4") for name in ("x", "y", "z", "intensity")),
        ("label", "|u1"),
        ("probability", "<f4"),
        ("rgb", "<f4"),
    ]
    for name in columns:
        np.testing.assert_array_equal(read[name], columns[name])
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["probability"], probability)
    bits = np.ascontiguousarray(read["rgb"]).view(np.uint32)
    np.testing.assert_array_equal(np.stack([bits >> 16, bits >> 8 & 255, bits & 255], 1), rgb)


def test_images():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    msg = sent(convert.ROS.image(rgb, NS, "CAM"))
    assert stamp_ns(msg.header.stamp) == NS and msg.header.frame_id == "CAM"
    np.testing.assert_array_equal(image_from_message(msg, "/cam").rgb, rgb)
    jpeg = Image(pixels=rgb).jpeg()
    msg = sent(convert.ROS.compressed(jpeg, NS, "CAM"))
    assert image_from_message(msg, "/cam").jpeg() == jpeg and msg.format == "jpeg"


@pytest.mark.parametrize("distortion", [Distortion(), Distortion("plumb_bob", (0.1, 0.01, 0.0, 0.0, 0.0))])
def test_camera_info(distortion):
    K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    image = Image(pixels=np.zeros((480, 640, 3), np.uint8))
    view = CameraView("CAM", NS, image, (640, 480), K, np.eye(4), distortion)
    msg = sent(convert.ROS.camera_info(view, "CAM"))
    read, model, size = camera_from_info(msg)
    np.testing.assert_array_equal(read, K)
    assert model == distortion and size == (640, 480) and stamp_ns(msg.header.stamp) == NS
    assert msg.distortion_model == "plumb_bob" and list(msg.r) == np.eye(3).ravel().tolist()
    np.testing.assert_array_equal(np.array(msg.p).reshape(3, 4)[:, :3], K)


def test_odometry_swaps_the_quaternion_once():
    quarter_left = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    msg = sent(convert.ROS.odometry(quarter_left, NS, "map", "base_link"))
    q = msg.pose.pose.orientation
    np.testing.assert_allclose([q.x, q.y, q.z, q.w], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)
    assert (msg.header.frame_id, msg.child_frame_id) == ("map", "base_link")
    np.testing.assert_allclose(pose_from_odometry(msg), quarter_left, atol=1e-12)
    np.testing.assert_allclose(se3.yaw(pose_from_odometry(msg)), np.pi / 2)


def test_odometry_that_is_no_pose():
    msg = convert.ROS.odometry(np.eye(4), NS)
    msg.pose.pose.position.x = float("nan")
    with pytest.raises(ValueError, match="position"):
        pose_from_odometry(msg)
    msg = convert.ROS.odometry(np.eye(4), NS)
    msg.pose.pose.orientation.w = 0.0
    with pytest.raises(ValueError, match="quaternion"):
        pose_from_odometry(msg)


def test_diagnostics():
    status = health.Status(health.WARN, "careful", (("received", "3"),))
    msg = sent(convert.diagnostics_message(status, "perception: segmentation", "cpu", NS))
    (one,) = msg.status
    assert (one.level, one.message, one.hardware_id) == (b"\x01", "careful", "cpu")
    assert [(v.key, v.value) for v in one.values] == [("received", "3")]


def test_every_parameter_has_a_descriptor_ros_accepts():
    for parameter in PARAMETERS:
        msg = sent(convert.descriptor(parameter))
        assert msg.name == parameter.name and parameter.description in msg.description

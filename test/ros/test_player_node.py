"""The player: its logic in closed form, and the node in a process of its own against a subscriber."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bags import BagWriter
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_boxes import marker_boxes
from lima_core.data.ros_header import stamp_ns
from lima_core.data.synthetic.street import Street
from lima_core.geometry import se3
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.frame_messages import Batch, Outgoing, frame_messages
from lima_core.runtime.frame_messages import merged as merge
from lima_core.runtime.messages import pose_from_odometry
from lima_ros.convert import ROS

pytest.importorskip("sensor_msgs", reason="needs ROS 2 messages: install lima's extra `ros`")

from lima_core.data.ros_cloud import read_cloud
from lima_ros import player

SECOND = 1_000_000_000
BASE_FROM_LIDAR = se3.transform(np.array([0.7, 0, 0, 0.7]), np.array([1.0, 0, 2]))
BASE_FROM_CAMERA = se3.transform(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.5, 0, 1.5]))
RIG = Rig(
    "toy",
    "/lidar",
    "lidar",
    BASE_FROM_LIDAR,
    (CameraMount("front", "front_optical", "/front/image", "/front/info", BASE_FROM_CAMERA, -30.0),),
)


def world_from_base(stamp_ns: int) -> np.ndarray:
    """A vehicle that drives a curve."""
    seconds = stamp_ns / 1e9
    return se3.transform(np.array([1.0, 0, 0, 0.1 * seconds]), np.array([10 * seconds, seconds**2, 0]))


def toy_frame(index: int, sequence: str = "a") -> Frame:
    stamp_ns = SECOND + index * SECOND // 10
    camera_ns = stamp_ns - 30_000_000
    world_from_lidar = world_from_base(stamp_ns) @ BASE_FROM_LIDAR
    world_from_camera = world_from_base(camera_ns) @ BASE_FROM_CAMERA
    picture = Image(pixels=np.full((8, 16, 3), index, np.uint8))
    K = np.array([[10.0, 0, 8], [0, 10, 4], [0, 0, 1]])
    view = CameraView("front", camera_ns, picture, (16, 8), K, se3.inverse(world_from_camera) @ world_from_lidar)
    points = np.array([[1, 2, 3, 0.5], [4, 5, 6, 1.0]], np.float32)
    extra = {"ring": np.array([3.0, 31.0], np.float32), "time_s": np.array([-0.1, 0.0])}
    labels = np.array([4, 255], np.uint8)
    return Frame(stamp_ns, sequence, index, points, world_from_lidar, (view,), extra, labels)


class ToySource:
    rig = RIG

    def __init__(self, frames: list[Frame]) -> None:
        self.frames, self.reads = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        self.reads += 1
        return self.frames[index]


def test_a_frame_becomes_messages_at_its_sensors_stamps() -> None:
    frame = toy_frame(2)
    batch = frame_messages(frame, RIG, ROS)
    assert [(m.stamp_ns - frame.stamp_ns, m.topic) for m in batch] == [
        (-30_000_000, "/odom"),
        (-30_000_000, "/front/info"),
        (-30_000_000, "/front/image"),
        (0, "/odom"),
        (0, "/lidar"),
        (0, "/gt/segmentation"),
    ]
    for message in batch:
        assert stamp_ns(message.message.header.stamp) == message.stamp_ns
        if message.topic == "/odom":
            pose = pose_from_odometry(message.message)
            np.testing.assert_allclose(pose, world_from_base(message.stamp_ns), atol=1e-9)
    image, cloud, truth = (batch[i].message for i in (2, 4, 5))
    assert bytes(image.data) == frame.cameras[0].image.jpeg()
    columns = read_cloud(cloud)
    assert list(columns) == ["x", "y", "z", "intensity", "ring", "time"]
    assert columns["intensity"].tolist() == [127.5, 255.0]
    assert (columns["ring"].dtype, columns["ring"].tolist()) == (np.uint16, [3, 31])
    assert read_cloud(truth)["label"].tolist() == [4, 255]
    assert (cloud.header.frame_id, image.header.frame_id) == ("lidar", "front_optical")


def test_raw_transport_sends_pixels() -> None:
    image = frame_messages(toy_frame(9), RIG, ROS, "raw")[2].message
    assert (image.encoding, image.width, image.height, set(image.data)) == ("rgb8", 16, 8, {9})


def test_consecutive_frames_are_merged_in_stamp_order() -> None:
    def batch(sequence: str, *stamps: int) -> Batch:
        return Batch(sequence, tuple(Outgoing(stamp, "t", None) for stamp in stamps))

    merged = list(merge([batch("a", 1, 5), batch("a", 3, 8), batch("b", 2, 4), batch("b", 5)]))
    stamps = [(b.sequence, [m.stamp_ns for m in b.messages]) for b in merged]
    assert stamps == [("a", [1]), ("a", [3, 5, 8]), ("b", [2, 4]), ("b", [5])]


def test_loops_start_offset_and_what_is_kept() -> None:
    source = ToySource([toy_frame(index) for index in range(5)])
    batches = list(player.frame_batches(source, "compressed", loops=3, start_offset_s=0.15, keep=10))
    assert [b.messages[-1].stamp_ns for b in batches] == [SECOND + i * SECOND // 10 for i in (2, 3, 4)] * 3
    assert len({b.sequence for b in batches}) == 3  # time jumps back between loops
    before = source.reads
    assert len(list(player.frame_batches(source, "compressed", loops=2, start_offset_s=0, keep=5))) == 10
    assert source.reads - before == 5
    before = source.reads
    assert len(list(player.frame_batches(source, "compressed", loops=2, start_offset_s=0, keep=4))) == 10
    assert source.reads - before == 10
    with pytest.raises(ValueError, match="beyond the end"):
        player.first_frame(source, 0.5)


def test_pacer_keeps_the_rate_and_never_bursts() -> None:
    now = [50.0]
    pacer = player.Pacer(2.0, lambda: now[0])
    assert pacer.delay_s("a", 10 * SECOND) == pytest.approx(player.PAUSE_S)
    now[0] += player.PAUSE_S
    assert pacer.delay_s("a", 11 * SECOND) == pytest.approx(0.5)
    now[0] += 0.6
    assert pacer.delay_s("a", 11 * SECOND) == pytest.approx(-0.1)  # a little late: catches up
    assert pacer.delay_s("a", 12 * SECOND) == pytest.approx(0.4)
    now[0] += 5.0
    assert pacer.delay_s("a", 12 * SECOND) == 0.0  # far too late: time is tied anew
    assert pacer.delay_s("a", 13 * SECOND) == pytest.approx(0.5)
    assert pacer.late == 1
    for sequence, jump_ns in (("a", 5 * SECOND), ("a", 500 * SECOND), ("b", 501 * SECOND)):
        assert pacer.delay_s(sequence, jump_ns) == pytest.approx(player.PAUSE_S)
    with pytest.raises(ValueError, match="rate"):
        player.Pacer(0.0)


def test_prefetch_prepares_ahead_in_order_and_passes_errors_on() -> None:
    made: list[int] = []

    def items():
        for item in range(6):
            made.append(item)
            yield item
        raise ValueError("broken frame")

    prefetch = player.Prefetch(items(), 4)
    progress: list[int] = []
    prefetch.fill(progress.append)
    assert progress[-1] == 4
    assert len(made) in (4, 5)  # the fifth is made and waits for room
    received = []
    with pytest.raises(ValueError, match="broken frame"):
        received.extend(prefetch)
    assert made == list(range(6))
    prefetch.close()


def test_prefetch_ends_before_the_source_does() -> None:
    prefetch = player.Prefetch(iter(int, 1), 3)  # endless
    prefetch.fill(lambda ready: None)
    prefetch.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


# ---- the node, in a process of its own


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """Three sweeps in 0.2 s, with odometry and a message type of its own topic."""
    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        writer.transforms("/tf_static", SECOND, ("base_link", "lidar", BASE_FROM_LIDAR))
        for index in range(-1, 4):
            writer.odometry("/odom", SECOND + index * SECOND // 10, np.eye(4))
        for index in range(3):
            xyz = {axis: np.full(5, index, np.float32) for axis in "xyz"}
            writer.cloud("/lidar", SECOND + index * SECOND // 10, "lidar", **xyz)
    return path


def test_node_waits_for_its_subscribers_and_sends_everything(
    start_node: Callable, tester: object, bag: Path, tmp_path: Path
) -> None:
    from nav_msgs.msg import Odometry
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import PointCloud2

    summary = tmp_path / "summary.json"
    parameters = {"source": str(bag), "loops": 2, "wait_for": "/lidar,/odom", "summary_file": str(summary)}
    with start_node("player_node", parameters) as process:
        poses, clocks = tester.collect(Odometry, "/odom"), tester.collect(Clock, "/clock", 1000)
        tester.spin_for(1.5)
        assert process.returncode is None and not poses  # nobody listens to /lidar yet
        clouds = tester.collect(PointCloud2, "/lidar")
        tester.spin_until(lambda: process.returncode is not None, 30, "the end of the player")
        assert process.returncode == 0, process.output()
    stamps = [stamp_ns(cloud.header.stamp) for cloud in clouds]
    assert stamps == [SECOND + i * SECOND // 10 for i in (0, 1, 2)] * 2
    assert len(poses) == 6
    sent = json.loads(summary.read_text())
    assert sent["frames_sent"] == 6
    assert sent["messages_sent"] == {"/odom": 6, "/lidar": 6}
    assert "sent 6 frames" in process.output()
    times = [stamp_ns(clock.clock) for clock in clocks]
    assert sum(b < a for a, b in itertools.pairwise(times)) == 1  # back once, at the loop
    assert set(stamps) < set(times)  # and it runs on between the sweeps


def test_node_plays_recorded_bytes_as_they_are(start_node: Callable, tester: object, bag: Path) -> None:
    from sensor_msgs.msg import PointCloud2

    clouds = tester.collect(PointCloud2, "/lidar")
    with start_node("player_node", {"source": str(bag), "messages": True, "wait_for": "/lidar"}) as process:
        tester.spin_until(lambda: process.returncode is not None, 30, "the end of the player")
    assert process.returncode == 0, process.output()
    assert [float(read_cloud(cloud)["x"][0]) for cloud in clouds] == [0.0, 1.0, 2.0]


def test_node_sends_the_boxes_of_its_frames(start_node: Callable, tester: object, tmp_path: Path) -> None:
    from visualization_msgs.msg import MarkerArray

    street = Street(3, frames=1, image_size=(64, 32))
    source = write_frames(street, tmp_path / "street")
    arrays = tester.collect(MarkerArray, "/gt/markers")
    with start_node("player_node", {"source": str(source), "wait_for": "/gt/markers"}) as process:
        tester.spin_until(lambda: process.returncode is not None, 60, "the end of the player")
        assert process.returncode == 0, process.output()
    (array,) = arrays
    found, wanted = marker_boxes(array, load_taxonomy("nuscenes").detection_names), street[0].boxes
    assert stamp_ns(array.markers[0].header.stamp) == street[0].stamp_ns
    assert len(wanted) > 3 and set(found.score) == {1.0}
    np.testing.assert_allclose(found.boxes.center, wanted.center, atol=1e-9)
    np.testing.assert_array_equal(found.boxes.class_id, wanted.class_id)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"source": "/no/such/folder"}, "neither street:<seed> nor a folder"),
        ({"source": "street:1", "rate": -1.0}, "parameter rate is -1.0; its range is"),
        ({"source": "street:1", "lops": 2}, "did you mean 'loops'"),
        (
            {"wait_for": "/scan"},
            "wait_for names /scan, but the player's topics are /gt/markers, /gt/segmentation, /lidar, /odom",
        ),
        ({"wait_for": "/lidar", "wait_timeout_s": 0.2}, "nobody has subscribed to /lidar"),
    ],
)
def test_node_explains_what_is_wrong(start_node: Callable, bag: Path, parameters: dict, message: str) -> None:
    with start_node("player_node", {"source": str(bag), **parameters}) as process:
        assert process.wait(30) == 1, process.output()
    assert message in process.output()
    assert "Traceback" not in process.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_node_ends_cleanly_when_interrupted_twice(
    start_node: Callable, await_output: Callable, bag: Path, tmp_path: Path, number: signal.Signals
) -> None:
    summary = tmp_path / "summary.json"
    with start_node("player_node", {"source": str(bag), "loops": 0, "summary_file": str(summary)}) as process:
        await_output(process, "playing")
        process.send(number)
        time.sleep(0.05)
        if process.returncode is None:
            process.send(number)
        assert process.wait(20) == 0, process.output()
    assert "Traceback" not in process.output()
    assert json.loads(summary.read_text())["frames_sent"] >= 0

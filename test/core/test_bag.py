"""rosbag2 as frames: real recordings against the same data in the nuScenes layout, generated ones in closed form."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

import bags
from bags import STORE, BagWriter
from lima_core.data.bag import Bag, BagError, BagMessages
from lima_core.data.nuscenes import NuScenes
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.tf_tree import TransformError, TransformTree
from lima_core.geometry import se3
from lima_core.runtime import bag_writer as writers
from lima_core.runtime.bag_messages import bag_messages

SECOND = 1_000_000_000
SWEEP_NS = SECOND // 10
BEGIN_NS = 100 * SECOND + 7
SPEED = 10.0  # m/s along the world's x
K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
BASE_FROM_LIDAR = se3.transform(np.eye(3), np.array([1.0, 0, 2]))
BASE_FROM_CAMERA = se3.transform(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.5, 0, 1.5]))
OFFSET_NS = -30_000_000
JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()


def world_from_base(stamp_ns: int) -> np.ndarray:
    return se3.transform(np.eye(3), np.array([SPEED * (stamp_ns - BEGIN_NS) / 1e9, 0, 0]))


def sweep(stamp_ns: int) -> dict[str, np.ndarray]:
    points = np.random.default_rng(stamp_ns % 1000).uniform(-20, 20, (50, 3)).astype(np.float32)
    intensity = np.linspace(0, 255, 50, dtype=np.float32)
    return {**dict(zip("xyz", points.T, strict=True)), "intensity": intensity, "ring": np.arange(50, dtype=np.uint16)}


def record(path: Path, storage: str = "mcap", sweeps: int = 4, poses: str = "tf", mounts: bool = True) -> Path:
    """A vehicle at 10 m/s: LiDAR at 10 Hz, one camera 30 ms earlier; bag times are 5 ms late, poses at 20 Hz."""
    with BagWriter(path, storage) as bag:
        edges = [("base_link", "lidar", BASE_FROM_LIDAR)]
        edges += [("base_link", "front_optical", BASE_FROM_CAMERA)] if mounts else []
        bag.transforms("/tf_static", BEGIN_NS, *edges)
        for half in range(-2, 2 * sweeps + 2):
            stamp_ns = BEGIN_NS + half * SWEEP_NS // 2
            if poses == "tf":
                bag.transforms("/tf", stamp_ns, ("map", "base_link", world_from_base(stamp_ns)))
            elif poses == "odometry":
                bag.odometry("/odom", stamp_ns, world_from_base(stamp_ns))
        for index in range(sweeps):
            stamp_ns = BEGIN_NS + index * SWEEP_NS
            bag.info("/front/camera_info", stamp_ns + OFFSET_NS, "front_optical", K, (64, 48))
            bag.jpeg("/front/image_raw/compressed", stamp_ns + OFFSET_NS, "front_optical", JPEG)
            bag.cloud("/lidar/points", stamp_ns, "lidar", delay_ns=5_000_000, **sweep(stamp_ns))
            label = np.full(50, index, np.uint8)
            xyz = {axis: sweep(stamp_ns)[axis] for axis in "xyz"}
            bag.cloud("/gt/segmentation", stamp_ns, "lidar", delay_ns=6_000_000, **xyz, label=label)
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("poses", ["tf", "odometry"])
def test_a_moving_vehicle_in_closed_form(tmp_path: Path, storage: str, poses: str) -> None:
    bag = Bag(record(tmp_path / "bag", storage, poses=poses))
    assert len(bag) == 4
    assert (bag.rig.lidar_topic, bag.rig.base_frame, bag.rig.intensity_scale) == ("/lidar/points", "base_link", 255.0)
    frame = bag[2]
    assert frame.stamp_ns == BEGIN_NS + 2 * SWEEP_NS  # the header's, not the bag's
    np.testing.assert_allclose(frame.world_from_lidar[:3, 3], [SPEED * 0.2 + 1.0, 0, 2], atol=1e-9)
    np.testing.assert_array_equal(frame.points[:, 0], sweep(frame.stamp_ns)["x"])
    np.testing.assert_allclose(frame.points[:, 3], np.linspace(0, 1, 50), atol=1e-6)
    np.testing.assert_array_equal(frame.extra["ring"], np.arange(50))
    assert set(frame.labels) == {2}
    (view,) = frame.cameras
    assert (view.name, view.stamp_ns, view.size) == ("front", frame.stamp_ns + OFFSET_NS, (64, 48))
    assert view.image.jpeg() == JPEG
    # 30 ms earlier the vehicle was 0.3 m further back: the camera sees the LiDAR 0.3 m further ahead
    origin = view.camera_from_lidar[:3, 3]
    np.testing.assert_allclose(origin, [0, -0.5, 1.0 - 1.5 + 0.3], atol=1e-9)


def test_offsets_are_found_and_windows_hold(tmp_path: Path) -> None:
    path = record(tmp_path / "bag")
    found = Bag(path).rig
    assert [mount.offset_ms for mount in found.cameras] == [pytest.approx(OFFSET_NS / 1e6)]
    mount = CameraMount("front", "front_optical", "/front/image_raw/compressed", "/front/camera_info", BASE_FROM_CAMERA)
    rig = Rig("late", "/lidar/points", "lidar", BASE_FROM_LIDAR, (mount,))  # offset 0
    assert len(Bag(path, rig, tolerance_ms=31)[1].cameras) == 1
    assert len(Bag(path, rig, tolerance_ms=29)[1].cameras) == 0


def test_windows_stay_inside_the_bag_and_the_source_is_picklable(tmp_path: Path) -> None:
    bag = pickle.loads(pickle.dumps(Bag(record(tmp_path / "bag"))))
    assert [frame.index for frame in bag.window(3, 2)] == [1, 2]
    assert bag.window(0, 2) == []
    assert bag[-1].index == 3
    with pytest.raises(IndexError):
        bag[4]


def test_sweeps_without_a_pose_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.transforms("/tf_static", BEGIN_NS, ("base_link", "lidar", BASE_FROM_LIDAR))
        for index in range(4):
            stamp_ns = BEGIN_NS + index * SWEEP_NS
            if index >= 2:
                writer.transforms("/tf", stamp_ns, ("map", "base_link", world_from_base(stamp_ns)))
            writer.cloud("/lidar/points", stamp_ns, "lidar", **sweep(stamp_ns))
    bag = Bag(tmp_path / "bag")
    assert [frame.stamp_ns for frame in bag] == [BEGIN_NS + 2 * SWEEP_NS, BEGIN_NS + 3 * SWEEP_NS]
    assert "2 of 4 sweeps have no pose" in caplog.text


def test_bad_bags_are_explained(tmp_path: Path) -> None:
    path = record(tmp_path / "bag")
    rig = Rig("wrong", "/points", "lidar", BASE_FROM_LIDAR)
    with pytest.raises(BagError, match=r"no PointCloud2 messages on /points; .*: /gt/segmentation, /lidar/points"):
        Bag(path, rig)
    mount = CameraMount("front", "front", "/front/image", "/front/camera_info", BASE_FROM_CAMERA)
    with pytest.raises(BagError, match=r"/front/image; topics of that type: /front/image_raw/compressed"):
        Bag(path, Rig("wrong", "/lidar/points", "lidar", BASE_FROM_LIDAR, (mount,)))
    with pytest.raises(BagError, match="nothing says where base_link is over time"):
        Bag(record(tmp_path / "still", poses="none"))
    with pytest.raises(BagError, match="/tf_static has no way from base_link to front_optical"):
        Bag(record(tmp_path / "unmounted", mounts=False))
    with pytest.raises(BagError, match="not a readable rosbag2 folder"):
        Bag(tmp_path / "nothing")


def changed(source: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A bag of the same messages with other bytes."""
    messages = BagMessages(source)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        places = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in messages.types.items()}
        for stamp_ns, topic, raw in messages:
            writer.write(places[topic], stamp_ns, change(topic, raw))
    return path


@pytest.mark.parametrize(
    "broken",
    [
        lambda raw: b"",
        lambda raw: raw[:6],
        lambda raw: raw[:18],  # within the name of its frame
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:20] + b"\xff" * 40,
    ],
    ids=["empty", "stub", "name", "half", "garbage"],
)
def test_broken_messages_are_named(tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    source = record(tmp_path / "whole", sweeps=2)
    topics = set(BagMessages(source).types)
    assert len(topics) == 6
    for topic in topics:

        def change(t: str, raw: bytes, topic: str = topic) -> bytes:
            return broken(raw) if t == topic else raw

        path = changed(source, tmp_path / topic[1:].replace("/", "-"), change)
        with pytest.raises(BagError, match=rf"the message of {topic} at \d+ ns is broken: .*ros2 bag convert"):
            list(Bag(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("whole") / "bag", sweeps=2)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_bytes_are_frames_or_a_clear_error(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    topic = data.draw(st.sampled_from(sorted(BagMessages(whole).types)))
    at, junk = data.draw(st.integers(0, 200)), data.draw(st.binary(max_size=12))
    path = changed(
        whole,
        Path(tempfile.mkdtemp(dir=tmp_path)) / "changed",
        lambda t, raw: raw[:at] + junk + raw[at + len(junk) :] if t == topic else raw,
    )
    with contextlib.suppress(BagError, TransformError):  # the latter of a frame that got another name
        list(Bag(path))


def own_definition(source: Path, path: Path, topic: str, kind: str) -> Path:
    """The bag, with `topic` recorded by a definition of `kind` that is not that of ROS."""
    other = get_typestore(Stores.ROS2_HUMBLE)
    del other.fielddefs[kind], other.types[kind]
    other.register(get_types_from_msg("std_msgs/Header header\nfloat32[] ranges", kind))
    message = other.types[kind](bags.header(BEGIN_NS, "lidar"), np.zeros(3, np.float32))
    messages = BagMessages(source)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kept = {t: k for t, k in messages.types.items() if k != kind}
        places = {t: writer.add_connection(t, k, typestore=STORE) for t, k in kept.items()}
        strange = writer.add_connection(topic, kind, typestore=other)
        for stamp_ns, t, raw in messages:
            if t in places:
                writer.write(places[t], stamp_ns, raw)
        writer.write(strange, BEGIN_NS, other.serialize_cdr(message, kind))
    return path


def test_another_definition_of_the_cloud_is_named(tmp_path: Path) -> None:
    kind = "sensor_msgs/msg/PointCloud2"
    path = own_definition(record(tmp_path / "whole"), tmp_path / "own", "/lidar/points", kind)
    told = r"/lidar/points \((which is )?sensor_msgs/msg/PointCloud2 by another definition, without height, width"
    with pytest.raises(BagError, match=f"no PointCloud2 messages, so no sweeps; .*{told}"):
        Bag(path)
    with pytest.raises(BagError, match=f"no PointCloud2 messages on {told}"):
        Bag(path, Rig("own", "/lidar/points", "lidar", BASE_FROM_LIDAR))


def test_another_definition_elsewhere_does_not_disturb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = own_definition(record(tmp_path / "whole"), tmp_path / "own", "/my_odom", "nav_msgs/msg/Odometry")
    assert len(list(Bag(path))) == 4
    assert "/my_odom is not read: it is nav_msgs/msg/Odometry by another definition" in caplog.text


def test_two_definitions_of_one_type_are_named(tmp_path: Path) -> None:
    source, kind = record(tmp_path / "whole"), "sensor_msgs/msg/PointCloud2"
    other = get_typestore(Stores.ROS2_HUMBLE)
    del other.fielddefs[kind], other.types[kind]
    other.register(get_types_from_msg("std_msgs/Header header\nfloat32[] ranges", kind))
    with Writer(tmp_path / "both", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, name in BagMessages(source).types.items():
            writer.add_connection(topic, name, typestore=STORE)
        writer.add_connection("/scan", kind, typestore=other)
    with pytest.raises(BagError, match=r"PointCloud2.*two definitions of a type by leaving the topic"):
        Bag(tmp_path / "both")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_an_empty_bag_and_one_without_clouds_list_their_topics(tmp_path: Path, storage: str) -> None:
    with BagWriter(tmp_path / "empty", storage):
        pass
    with pytest.raises(BagError, match="no PointCloud2 messages, so no sweeps; its topics: none, it is empty"):
        Bag(tmp_path / "empty")
    with BagWriter(tmp_path / "blind", storage) as writer:
        writer.odometry("/odom", BEGIN_NS, np.eye(4))
    with pytest.raises(BagError, match=r"its topics: /odom \(nav_msgs/msg/Odometry\)"):
        Bag(tmp_path / "blind")


def test_messages_lost_in_the_middle_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that an sqlite3 bag lost, while its metadata still counts them."""
    path = record(tmp_path / "bag", "sqlite3")
    told = sum(BagMessages(path).counts.values())
    with contextlib.closing(sqlite3.connect(path / "bag.db3")) as database, database:
        assert database.execute("DELETE FROM messages WHERE id > ?", (told - 5,)).rowcount == 5
    assert 1 <= len(Bag(path)) < 4
    assert f"{told - 5} of {told} messages could be read" in caplog.text


def test_a_camera_without_messages_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.announce("/front/image_raw/compressed", "sensor_msgs/msg/CompressedImage")
        writer.transforms("/tf", BEGIN_NS, ("map", "lidar", np.eye(4)))
        writer.info("/front/camera_info", BEGIN_NS, "lidar", K, (64, 48))
        writer.cloud("/lidar/points", BEGIN_NS, "lidar", **sweep(BEGIN_NS))
    assert Bag(tmp_path / "bag")[0].cameras == ()
    assert "/front/image_raw/compressed has no messages; its camera is left out" in caplog.text


@pytest.mark.parametrize("poses", ["tf", "odometry"])
def test_poses_that_are_no_numbers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, poses: str) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.transforms("/tf_static", BEGIN_NS, ("base_link", "lidar", BASE_FROM_LIDAR))
        for index in range(3):
            stamp_ns = BEGIN_NS + index * SWEEP_NS
            pose = world_from_base(stamp_ns)
            pose[0, 3] = np.nan if index == 1 else pose[0, 3]
            if poses == "tf":
                writer.transforms("/tf", stamp_ns, ("map", "base_link", pose))
            else:
                writer.odometry("/odom", stamp_ns, pose)
            writer.cloud("/lidar/points", stamp_ns, "lidar", **sweep(stamp_ns))
    found = [frame.world_from_lidar[0, 3] for frame in Bag(tmp_path / "bag")]
    np.testing.assert_allclose(found, [1, 2, 3], atol=1e-9)  # 1 m ahead of the base, at 10 m/s; the second from both
    assert "1 poses of base_link are left out" in caplog.text


def test_metadata_is_what_humble_reads(tmp_path: Path) -> None:
    """Keys and kinds that rosbag2 asks for at version 8 (rosbag2_storage/yaml.hpp); Humble takes QoS as text."""
    path = tmp_path / "bag"
    with writers.BagWriter(path) as bag:
        bag.write("/tf_static", bag_messages().transforms(BEGIN_NS, ("a", "b", np.eye(4))), BEGIN_NS, latched=True)
    told = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (told["version"], told["storage_identifier"], told["message_count"]) == (8, "mcap", 1)
    assert told["starting_time"] == {"nanoseconds_since_epoch": BEGIN_NS} and told["duration"]["nanoseconds"] >= 0
    assert told["relative_file_paths"] == [file["path"] for file in told["files"]] == ["bag.mcap"]
    assert (told["compression_format"], told["compression_mode"]) == ("", "") and not told["custom_data"]
    (topic,) = told["topics_with_message_count"]
    profiles = topic["topic_metadata"]["offered_qos_profiles"]
    assert isinstance(profiles, str) and yaml.safe_load(profiles)[0]["durability"] == 1  # transient local
    assert topic["topic_metadata"]["type"] == "tf2_msgs/msg/TFMessage"


def test_messages_come_as_they_were_recorded(tmp_path: Path) -> None:
    bag = BagMessages(record(tmp_path / "bag", sweeps=2))
    assert bag.latched == {"/tf_static"}
    assert bag.counts["/lidar/points"] == 2
    messages = list(bag)
    assert len(messages) == sum(bag.counts.values())
    assert [time_ns for time_ns, _, _ in messages] == sorted(time_ns for time_ns, _, _ in messages)
    assert any(JPEG in raw for _, topic, raw in messages if topic == "/front/image_raw/compressed")


def test_poses_are_interpolated_and_never_made_up() -> None:
    tree = TransformTree()
    tree.add("odom", "base", 0, se3.transform(np.eye(3), np.zeros(3)))
    tree.add("odom", "base", SECOND, se3.transform(np.eye(3), np.array([2.0, 0, 0])))
    tree.add("odom", "base", 5 * SECOND, se3.transform(np.eye(3), np.zeros(3)))
    tree.add_fixed("map", "odom", se3.transform(np.eye(3), np.array([0, 7.0, 0])))
    np.testing.assert_allclose(tree.root_from("base", SECOND // 4)[:3, 3], [0.5, 7, 0])
    with pytest.raises(TransformError, match="not known at 5000000001"):
        tree.root_from("base", 5 * SECOND + 1)
    with pytest.raises(TransformError, match=r"gap of 4\.0 s"):
        tree.root_from("base", 2 * SECOND)
    tree.add_fixed("base", "map", np.eye(4))
    with pytest.raises(TransformError, match="its own ancestor"):
        tree.root_from("base", 0)


def test_real_nuscenes_keyframe(shared: Path, vectors: dict) -> None:
    frame = Bag(shared / "data/rosbags/nuscenes_scene-0061_first_keyframe")[0]
    expected = vectors["real_nuscenes_frame"]["expected"]
    seen = np.array([view.project(frame.points).visible for view in frame.cameras])
    assert (
        dict(zip((v.name for v in frame.cameras), map(int, seen.sum(axis=1)), strict=True))
        == (expected["points_per_camera_slidr_mask"])
    )
    assert np.bincount(seen.sum(axis=0)).tolist() == expected["points_seen_by_0_1_2_cameras"]
    same = NuScenes(shared / "data/nus_tiny")[0]
    np.testing.assert_allclose(frame.points, same.points, atol=1e-6)
    np.testing.assert_allclose(frame.world_from_lidar, same.world_from_lidar, atol=1e-9)
    for view, other in zip(frame.cameras, same.cameras, strict=True):
        assert (view.name, view.stamp_ns) == (other.name, other.stamp_ns)
        assert view.image.jpeg() == other.image.jpeg()
        np.testing.assert_allclose(view.camera_from_lidar, other.camera_from_lidar, atol=1e-9)


def test_real_ddad_drive(shared: Path) -> None:
    bag, same = Bag(shared / "data/rosbags/ddad_scene_02"), NuScenes(shared / "data/ddad_as_nus")
    assert len(bag) == len(same) == 3
    assert bag.rig.intensity_scale == 1.0
    for frame, other in zip(bag, same, strict=True):
        np.testing.assert_allclose(frame.points, other.points, atol=1e-6)
        others = {view.image.jpeg(): view for view in other.cameras}
        assert len(frame.cameras) == 6
        for view in frame.cameras:
            seen = view.project(frame.points).visible
            also = others[view.image.jpeg()].project(other.points).visible
            assert abs(int(seen.sum()) - int(also.sum())) < 0.002 * seen.sum()

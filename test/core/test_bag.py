"""rosbag2 as frames: real recordings against the same data in the nuScenes layout, generated ones in closed form."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from bags import BagWriter
from lima_core.data.bag import Bag, BagError, BagMessages
from lima_core.data.nuscenes import NuScenes
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.tf_tree import TransformError, TransformTree
from lima_core.geometry import se3

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

"""Poses by time against closed forms, and the ego-motion between LiDAR and camera on real nuScenes poses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.geometry import se3
from lima_core.runtime.transforms import EitherPoses, PoseBuffer, PoseError, camera_from_lidar, static_camera_from_lidar

MS = 1_000_000


def turn(angle, x=0.0, y=0.0, z=0.0):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]])


def circle(t_ms, radius=20.0, rate=0.4):
    """World pose of a vehicle that drives a circle: exact under slerp in rotation, near in translation."""
    angle = rate * t_ms * 1e-3
    return turn(angle, radius * np.sin(angle), radius * (1 - np.cos(angle)))


def filled(step_ms=20, until_ms=1000, **settings):
    poses = PoseBuffer(**settings)
    for t in range(0, until_ms + 1, step_ms):
        poses.add(t * MS, circle(t))
    return poses


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1000))
def test_between_two_poses(t_ms):
    pose = filled().world_from_base(round(t_ms * MS))
    np.testing.assert_allclose(pose[:3, :3], circle(t_ms)[:3, :3], atol=1e-7)
    np.testing.assert_allclose(pose[:3, 3], circle(t_ms)[:3, 3], atol=2e-4)  # sagitta of 160 mm of arc


def test_a_little_beyond_the_newest_pose_the_motion_goes_on():
    poses = filled(max_extrapolation_ms=40)
    np.testing.assert_allclose(poses.world_from_base(1040 * MS), circle(1040), atol=6e-3)  # v^2/r = 3.2 m/s^2
    with pytest.raises(PoseError, match=r"60\.0 ms after"):
        poses.world_from_base(1060 * MS)


def test_refusals_say_why():
    with pytest.raises(PoseError, match="no odometry"):
        PoseBuffer().world_from_base(0)
    with pytest.raises(PoseError, match=r"5\.0 ms before"):
        filled().world_from_base(-5 * MS)
    poses = PoseBuffer(max_gap_ms=100)
    poses.add(0, circle(0))
    poses.add(500 * MS, circle(500))
    with pytest.raises(PoseError, match="gap of 500 ms"):
        poses.world_from_base(250 * MS)
    assert np.array_equal(poses.world_from_base(500 * MS), circle(500))
    with pytest.raises(PoseError):  # one pose tells no motion
        one = PoseBuffer()
        one.add(0, circle(0))
        one.world_from_base(10 * MS)


def test_a_stamp_going_backwards_starts_over():
    poses = filled()
    poses.add(0, turn(1.0))
    assert len(poses) == 1 and poses.resets == 1
    np.testing.assert_array_equal(poses.world_from_base(0), turn(1.0))


def test_old_poses_are_forgotten_and_equal_stamps_ignored():
    poses = filled(step_ms=100, until_ms=5000, history_s=1.0)
    assert len(poses) == 11
    poses.add(5000 * MS, turn(3.0))
    np.testing.assert_array_equal(poses.world_from_base(5000 * MS), circle(5000))


class Elsewhere:
    """Knows 2 s only, at another place than `circle`; the world that it is in is `frame_id`."""

    def __init__(self, frame_id):
        self.frame_id, self.resets = frame_id, 0

    def world_from_base(self, stamp_ns):
        if stamp_ns != 2000 * MS:
            raise PoseError("tf does not know")
        return turn(0.0, x=-7.0)

    def reset(self):
        self.resets += 1


def either(odometry_frame, tf_frame, **settings):
    odometry = filled(**settings)
    odometry.frame_id = odometry_frame
    return odometry, EitherPoses(odometry, Elsewhere(tf_frame))


def test_the_second_is_asked_where_the_first_does_not_know():
    _, poses = either("map", "map")
    np.testing.assert_array_equal(poses.world_from_base(500 * MS), circle(500))
    np.testing.assert_array_equal(poses.world_from_base(2000 * MS), turn(0.0, x=-7.0))
    with pytest.raises(PoseError, match=r"ms after the newest odometry; tf does not know"):
        poses.world_from_base(3000 * MS)
    assert poses.frame_id == "map"


def test_poses_of_two_worlds_are_never_mixed():
    """A camera placed by odometry and its sweep by tf would be off by the distance between odom and map."""
    odometry, poses = either("odom", "map")
    with pytest.raises(PoseError, match=r"its world is 'map', the odometry's 'odom'"):
        poses.world_from_base(2000 * MS)
    assert poses.frame_id == "odom"
    odometry.reset()
    np.testing.assert_array_equal(poses.world_from_base(2000 * MS), turn(0.0, x=-7.0))
    assert poses.frame_id == "map"


def test_before_any_odometry_the_second_alone_is_asked_and_reset_reaches_both():
    odometry, second = PoseBuffer(), Elsewhere("map")
    poses = EitherPoses(odometry, second)
    np.testing.assert_array_equal(poses.world_from_base(2000 * MS), turn(0.0, x=-7.0))
    odometry.add(0, turn(0.0))
    poses.reset()
    assert len(odometry) == 0 and second.resets == 1


def test_ego_motion_between_lidar_and_camera_by_hand():
    """Driving straight at 10 m/s, the camera fires 40 ms before the LiDAR: the point is 0.4 m farther ahead for it."""
    poses = PoseBuffer()
    for t in (0, 100):
        poses.add(t * MS, turn(0.0, x=t * 0.01))
    base_from_camera = se3.transform(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([1.5, 0, 1.5]))
    base_from_lidar = turn(0.0, x=1.0, z=1.8)
    moving = camera_from_lidar(poses, base_from_camera, base_from_lidar, camera_ns=50 * MS, lidar_ns=90 * MS)
    static = static_camera_from_lidar(base_from_camera, base_from_lidar)
    point = np.array([[10.0, 2.0, 0.0]])
    np.testing.assert_allclose(se3.apply(static, point), [[-2.0, -0.3, 9.5]], atol=1e-9)
    np.testing.assert_allclose(se3.apply(moving, point), [[-2.0, -0.3, 9.9]], atol=1e-9)


def test_equal_to_the_nuscenes_reader_on_real_poses(shared):
    """Same matrices as the data set's own per-sensor poses give."""
    from lima_core.data.nuscenes import NuScenes

    source = NuScenes(shared / "data" / "nus_tiny")
    frame, rig, poses = source[0], source.rig, PoseBuffer()
    world_from_base = {frame.stamp_ns: frame.world_from_lidar @ se3.inverse(rig.base_from_lidar)}
    for view in frame.cameras:
        world_from_camera = frame.world_from_lidar @ se3.inverse(view.camera_from_lidar)
        world_from_base[view.stamp_ns] = world_from_camera @ se3.inverse(rig.camera(view.name).base_from_camera)
    for stamp, pose in sorted(world_from_base.items()):
        poses.add(stamp, pose)
    for view in frame.cameras:
        mount = rig.camera(view.name)
        found = camera_from_lidar(poses, mount.base_from_camera, rig.base_from_lidar, view.stamp_ns, frame.stamp_ns)
        np.testing.assert_allclose(found, view.camera_from_lidar, atol=1e-6)

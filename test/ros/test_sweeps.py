"""Past sweeps and the points of one sweep, moved by the vehicle: closed forms, a static world, and every refusal."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lima_core.data.multisweep import aggregate
from lima_core.geometry import se3
from lima_core.runtime.sweeps import SweepHistory, SweepTimeError, deskewed
from lima_core.runtime.transforms import PoseBuffer, PoseError

MS = 1_000_000
START = 1_700_000_000_000_000_000
MOUNT = se3.poses(1.2, -0.3, 1.8, yaw=0.5, pitch=0.02)  # base_from_lidar


class Known:
    """A trajectory given by a function of the seconds since START, known everywhere unless told otherwise."""

    def __init__(self, pose_at):
        self.pose_at, self.unknown = pose_at, set()

    def world_from_base(self, stamp_ns):
        if stamp_ns in self.unknown:
            raise PoseError("it is in a tunnel")
        return self.pose_at((stamp_ns - START) / 1e9)


def straight(t, speed=10.0):
    return se3.poses(400.0 + speed * t, -700.0)


def in_place(t, rate=1.0):
    return se3.poses(0.0, 0.0, yaw=rate * t)


def curve(t, speed=30.0, rate=1.0):
    """A circle at `speed` m/s and `rate` rad/s."""
    radius, angle = speed / rate, rate * t
    return se3.poses(radius * np.sin(angle), radius * (1 - np.cos(angle)), yaw=angle)


def cloud(*xyz):
    """Points of intensity 0.5."""
    return np.array([[*point, 0.5] for point in xyz], np.float32)


def world_points(n=200, reach=40.0, seed=0):
    """(n, 3) static points around the world's origin."""
    return np.random.default_rng(seed).uniform(-reach, reach, (n, 3))


def seen(world, pose_at, seconds, mount=MOUNT):
    """What a LiDAR measures of (n, 3) world points, each at its own of (n,) seconds: (n, 4) float32."""
    seconds = np.broadcast_to(seconds, len(world))
    points = np.zeros((len(world), 4), np.float32)
    for row, (point, t) in enumerate(zip(world, seconds, strict=True)):
        points[row, :3] = se3.apply(se3.inverse(pose_at(t) @ mount), point[None])
    points[:, 3] = np.linspace(0, 1, len(world))
    return points


def history(pose_at=straight, count=4, max_age_s=1.0, mount=MOUNT):
    poses = Known(pose_at)
    return SweepHistory(poses, mount, count, max_age_s), poses


# ---- past sweeps


def test_driving_straight_moves_the_past_backwards():
    """1 m per 100 ms; a point that was 5 m ahead is now 4 m ahead."""
    past, _ = history(count=3, mount=np.eye(4))
    past.add(START, cloud((6, 1, 0)))
    past.add(START + 100 * MS, cloud((5, 1, 0)))
    found = past.past(START + 200 * MS)
    assert [seconds for _, _, seconds in found] == [0.1, 0.2]
    for points, lidar_from_sweep, _ in found:
        np.testing.assert_allclose(se3.apply(lidar_from_sweep, points), [[4, 1, 0]], atol=1e-9)


def test_turning_in_place_swings_a_lidar_that_is_mounted_ahead():
    """The LiDAR is 2 m ahead of the axis of rotation, and the vehicle makes a quarter turn to the left."""
    past, _ = history(lambda t: in_place(t, np.pi / 2), count=2, max_age_s=2.0, mount=se3.poses(2.0, 0.0))
    past.add(START, cloud((0, 0, 0), (10, 0, 0)))
    ((points, lidar_from_sweep, seconds),) = past.past(START + 1000 * MS)
    assert seconds == 1.0
    np.testing.assert_allclose(se3.apply(lidar_from_sweep, points), [[-2, -2, 0], [-2, -12, 0]], atol=1e-9)


def test_a_static_world_stays_static():
    """Ten sweeps on a bend, odometry at 50 Hz: every point lands where the current sweep sees it."""
    poses, world = PoseBuffer(), world_points()
    for t_ms in range(0, 1001, 20):
        poses.add(START + t_ms * MS, curve(t_ms / 1e3, 10.0, 0.4))
    past = SweepHistory(poses, MOUNT, 10, 1.0)
    stamps_ms = [13 + 97 * i for i in range(10)]
    for t_ms in stamps_ms[:-1]:
        past.add(START + t_ms * MS, seen(world, lambda t: curve(t, 10.0, 0.4), t_ms / 1e3))
    now_ms = stamps_ms[-1]
    current = seen(world, lambda t: curve(t, 10.0, 0.4), now_ms / 1e3)
    found = past.past(START + now_ms * MS)
    assert len(found) == 9 and past.counts == {} and past.problem is None
    for points, lidar_from_sweep, _ in found:
        # chord for arc: v w h^2 / 8 = 0.2 mm at both ends
        np.testing.assert_allclose(se3.apply(lidar_from_sweep, points), current[:, :3], atol=5e-4)
    assert aggregate(current, found).shape[1] == 5


metres = st.floats(-50, 50, width=32)
placed = st.builds(se3.poses, *[st.floats(-1e4, 1e4)] * 3, st.floats(-3, 3), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
drives = st.lists(
    st.tuples(
        st.integers(1, 200), placed, st.integers(0, 5).flatmap(lambda n: arrays(np.float32, (n, 4), elements=metres))
    ),
    min_size=1,
    max_size=6,
)


@given(drives, placed, st.integers(1, 5))
def test_laid_over_each_other_as_by_hand(drive, mount, count):
    """Any steps in ms, poses, mount, and number of sweeps."""
    stamps = np.cumsum([step for step, _, _ in drive])
    pose_of = {START + int(t) * MS: pose for t, (_, pose, _) in zip(stamps, drive, strict=True)}
    poses = Known(None)
    poses.world_from_base = pose_of.__getitem__
    past = SweepHistory(poses, mount, count, 10.0)
    *older, now = zip(pose_of, (points for _, _, points in drive), strict=True)
    for stamp, points in older:
        past.add(stamp, points)
    found = aggregate(now[1], past.past(now[0]))

    expected = [[*point, 0.0] for point in now[1]]
    for stamp, points in list(reversed(older))[: count - 1]:
        matrix = np.linalg.inv(pose_of[now[0]] @ mount) @ pose_of[stamp] @ mount
        for x, y, z, intensity in points.tolist():
            if abs(x) >= 1 or abs(y) >= 1:
                expected.append([*(matrix @ [x, y, z, 1])[:3], intensity, (now[0] - stamp) / 1e9])
    expected = np.array(expected).reshape(-1, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)  # float32 of some 1e4 m


def test_the_last_sweeps_are_kept():
    past, _ = history(count=4)
    for i in range(10):
        past.add(START + i * 50 * MS, cloud((i, 0, 0)))
    assert len(past) == 3
    assert [points[0, 0] for points, _, _ in past.past(START + 500 * MS)] == [9, 8, 7]


def test_the_current_sweep_is_no_past_of_itself():
    past, _ = history()
    past.add(START, cloud((1, 0, 0)))
    assert past.past(START) == [] and past.past(START - 1) == []


@pytest.mark.parametrize("late_ns", [0, 1, 1000 * MS])
def test_a_sweep_that_is_not_newer_is_not_remembered(late_ns):
    past, _ = history(max_age_s=1.0)
    past.add(START, cloud((1, 0, 0)))
    past.add(START - late_ns, cloud((2, 0, 0)))
    assert past.counts == {"stale": 1}
    assert [points[0, 0] for points, _, _ in past.past(START + 100 * MS)] == [1]


def test_one_sweep_of_another_time_does_not_block_the_next():
    """It comes after the reset, from the worker; without the jump all of the new time would be stale."""
    past, _ = history(max_age_s=1.0)
    past.add(START + 20_000 * MS, cloud((1, 0, 0)))
    assert past.past(START) == []
    past.add(START, cloud((2, 0, 0)))
    assert past.counts == {"jump": 1}
    assert [points[0, 0] for points, _, _ in past.past(START + 100 * MS)] == [2]


def test_sweeps_that_are_too_old_are_left_out():
    past, _ = history(count=4, max_age_s=0.25)
    for i in range(3):
        past.add(START + i * 100 * MS, cloud((i, 0, 0)))
    assert [seconds for _, _, seconds in past.past(START + 350 * MS)] == [0.15, 0.25]
    assert past.counts == {"old": 1}


def test_a_past_sweep_without_a_pose_is_left_out():
    past, poses = history(count=4)
    for i in range(3):
        past.add(START + i * 100 * MS, cloud((i, 0, 0)))
    poses.unknown.add(START + 100 * MS)
    assert [points[0, 0] for points, _, _ in past.past(START + 300 * MS)] == [2, 0]
    assert past.counts == {"no_pose": 1}
    assert past.problem == "no pose at the sweep 0.200 s before: it is in a tunnel"
    poses.unknown.clear()  # it came late
    assert len(past.past(START + 300 * MS)) == 3
    assert past.counts == {"no_pose": 1} and past.problem is None


def test_without_a_pose_now_there_is_no_past():
    past, poses = history()
    poses.unknown.add(START + 100 * MS)
    assert past.past(START + 100 * MS) == [] and past.counts == {}  # the first sweep needs no pose
    past.add(START, cloud((1, 0, 0)))
    assert past.past(START + 100 * MS) == []
    assert past.counts == {"no_current_pose": 1}
    assert past.problem == "no pose at the current sweep: it is in a tunnel"


def test_after_a_reset_of_the_poses_the_past_is_left_out_and_not_misplaced():
    """The new trajectory starts at another origin."""
    poses = PoseBuffer()
    for t_ms in (0, 100, 200):
        poses.add(START + t_ms * MS, straight(t_ms / 1e3))
    past = SweepHistory(poses, MOUNT, 4, 1.0)
    past.add(START, cloud((1, 0, 0)))
    past.add(START + 100 * MS, cloud((2, 0, 0)))
    assert len(past.past(START + 200 * MS)) == 2
    poses.reset()
    for t_ms in (250, 300):
        poses.add(START + t_ms * MS, np.eye(4))
    assert past.past(START + 300 * MS) == []
    assert past.counts == {"no_pose": 2}


def test_one_sweep_needs_no_poses():
    past = SweepHistory(None, None, 1, 0.5)
    past.add(START, cloud((1, 0, 0)))
    assert past.past(START + 100 * MS) == [] and len(past) == 0 and past.counts == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, np.eye(4), 2, 1.0), "2 sweeps need poses and base_from_lidar: give a rig and odometry, or use 1 sweep"),
        ((PoseBuffer(), None, 10, 1.0), "10 sweeps need poses"),
        ((PoseBuffer(), np.eye(4), 0, 1.0), "1 or more sweeps"),
        ((PoseBuffer(), np.eye(4), 2, 0.0), "positive age"),
        ((PoseBuffer(), np.eye(4), 2, float("nan")), "positive age"),
    ],
)
def test_arguments_that_cannot_work(arguments, says):
    with pytest.raises(ValueError, match=says):
        SweepHistory(*arguments)


def test_reset_forgets_sweeps_and_keeps_counts():
    past, _ = history()
    past.add(START, cloud((1, 0, 0)))
    past.add(START, cloud((1, 0, 0)))
    past.reset()
    assert len(past) == 0 and past.past(START + 1) == [] and past.counts == {"stale": 1}
    past.add(START - 1, cloud((1, 0, 0)))  # a bag that starts again
    assert len(past) == 1


def test_a_sweep_that_was_worked_on_during_a_reset_is_of_the_old_time():
    past, _ = history()
    received = past.epoch
    past.reset()
    past.add(START, cloud((1, 0, 0)), received)
    assert len(past) == 0 and past.counts == {"jump": 1}
    past.add(START, cloud((1, 0, 0)), past.epoch)
    assert len(past) == 1


def test_reset_from_another_thread():
    past, _ = history(count=5)
    stop = threading.Event()

    def keep_resetting():
        while not stop.is_set():
            past.reset()

    thread = threading.Thread(target=keep_resetting)
    thread.start()
    try:
        for i in range(1000):
            found = past.past(START + i * MS)
            ages = [seconds for _, _, seconds in found]
            assert len(found) <= 4 and ages == sorted(ages) and all(age > 0 for age in ages)
            past.add(START + i * MS, cloud((1, 0, 0)))
    finally:
        stop.set()
        thread.join()
    assert past.counts == {}


# ---- the motion inside a sweep


def test_deskewing_a_straight_drive_by_hand():
    """At 10 m/s a point seen 50 ms before the stamp is 0.5 m nearer at the stamp, and one seen after it farther."""
    points, times = cloud((20, 3, 1), (20, 3, 1), (20, 3, 1)), np.float32([-0.05, 0.0, 0.02])
    moved = deskewed(points, times, START, Known(straight), np.eye(4))
    np.testing.assert_allclose(moved, cloud((19.5, 3, 1), (20, 3, 1), (20.2, 3, 1)), atol=1e-5)
    assert moved.dtype == np.float32


def test_deskewing_a_turn_by_hand():
    """A quarter turn to the left in one sweep of a LiDAR 2 m ahead of the axis: the first point falls to the right."""
    points, times = cloud((8, 0, 1), (8, 0, 1)), np.float64([-0.1, 0.0])
    poses = Known(lambda t: in_place(t, 5 * np.pi))
    moved = deskewed(points, times, START, poses, se3.poses(2.0, 0.0))
    np.testing.assert_allclose(moved, cloud((-2, -10, 1), (8, 0, 1)), atol=1e-5)


@settings(max_examples=50, deadline=None)
@example(30.0, 1.0, -0.1, 0.1, 0)
@given(st.floats(0, 30), st.floats(0.01, 1), st.floats(-0.2, 0), st.floats(0.001, 0.3), st.integers(0, 99))
def test_a_static_world_is_seen_as_from_the_stamp(speed, rate, first_s, span_s, seed):
    """Points in any order of time, within the documented bound."""
    world = world_points(300, 70.0, seed)
    times = first_s + span_s * np.random.default_rng(seed).random(len(world))
    pose_at = lambda t: curve(t, speed, rate)  # noqa: E731
    moved = deskewed(seen(world, pose_at, times), times, START, Known(pose_at), MOUNT)
    expected = seen(world, pose_at, 0.0)
    reach = np.linalg.norm(expected[:, :3], axis=1) + 2 * speed * span_s
    bound = (speed * rate + rate**2 * (reach + 2.5)) * 0.005**2 / 8 + 3e-5  # 2.5 m of mount, float32
    assert (np.linalg.norm(moved[:, :3] - expected[:, :3], axis=1) <= bound).all()
    np.testing.assert_array_equal(moved[:, 3], expected[:, 3])


def test_the_bound_at_30_m_s_and_1_rad_s():
    """0.4 mm at 100 m, points between the poses that are looked up."""
    world = np.array([[100.0, 0, 0], [0, 100, 0], [-100, 0, 0]]).repeat(41, axis=0)
    times = np.tile(np.linspace(-0.1, 0.0, 41), 3)
    moved = deskewed(seen(world, curve, times), times, START, Known(curve), MOUNT)
    error = np.linalg.norm(moved[:, :3] - seen(world, curve, 0.0)[:, :3], axis=1)
    assert error.max() < 4.5e-4  # float32 of 100 m adds 2e-5


def test_equal_times_leave_the_sweep_untouched():
    points = cloud((1, 2, 3), (4, 5, 6))
    for time_s in (0.0, 0.05):
        assert deskewed(points, np.full(2, time_s), START, PoseBuffer(), MOUNT) is points
    empty = np.zeros((0, 4), np.float32)
    assert deskewed(empty, np.zeros(0), START, PoseBuffer(), MOUNT) is empty


def test_points_without_an_echo_stay_as_they_are_whatever_their_time():
    """Drivers send them as nan or as the origin, often with time 0 or garbage."""
    points = cloud((10, 0, 0), (0, 0, 0), (np.nan, 1, 1), (np.inf, 0, 0), (10, 0, 0))
    given, times = points.copy(), np.array([-0.1, 1.7e9, np.nan, -5.0, 0.0])
    moved = deskewed(points, times, START, Known(straight), np.eye(4))
    np.testing.assert_array_equal(points, given)
    np.testing.assert_array_equal(moved[1:], points[1:])
    np.testing.assert_allclose(moved[0], [9, 0, 0, 0.5], atol=1e-5)
    nothing = points[1:4]
    assert deskewed(nothing, times[1:4], START, PoseBuffer(), np.eye(4)) is nothing


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([START / 1e9, START / 1e9 + 0.1], "absolute, or in another unit; expected are seconds relative to the stamp"),
        (np.float32([START / 1e9, START / 1e9]), "absolute"),  # float32 knows it to 128 s: equal means nothing
        ([-100.0, 0.0], "from -100 to 0 s after the stamp"),  # ms
        ([-0.8, 0.7], "span 1.5 s: no sweep lasts over 1 s"),
        ([0.0, np.nan], "1 of 2 points have no finite time"),
        ([0.0], "1 times for 2 points"),
    ],
)
def test_times_that_are_no_sweeps(times, says):
    with pytest.raises(SweepTimeError, match=says):
        deskewed(cloud((1, 2, 3), (4, 5, 6)), np.asarray(times), START, Known(straight), MOUNT)


def test_deskewing_needs_the_whole_trajectory():
    points, times = cloud((1, 2, 3), (4, 5, 6)), np.array([-0.1, 0.0])
    with pytest.raises(PoseError, match=r"from -100\.0 to 0\.0 ms after its stamp, is not known: no odometry"):
        deskewed(points, times, START, PoseBuffer(), MOUNT)
    poses = PoseBuffer()
    for t_ms in (-50, 0):
        poses.add(START + t_ms * MS, straight(t_ms / 1e3))
    with pytest.raises(PoseError, match=r"50\.0 ms before the oldest odometry"):
        deskewed(points, times, START, poses, MOUNT)


def test_times_as_drivers_send_them():
    """Seconds as float32, and integer nanoseconds, through a message."""
    pytest.importorskip("sensor_msgs", reason="needs ROS 2 messages")
    from lima_core.data.ros_cloud import cloud_points, pack_cloud
    from lima_ros import convert

    world = world_points()
    ns = np.random.default_rng(1).integers(0, 100 * MS, len(world), dtype=np.uint32)
    points = seen(world, straight, ns / 1e9)
    xyzi = dict(zip(("x", "y", "z", "intensity"), points.T, strict=True))
    for column in ({"t": ns}, {"time": (ns / 1e9).astype(np.float32)}):
        read = cloud_points(convert.ROS.cloud(pack_cloud({**xyzi, **column}), START, "lidar"), 1.0)
        moved = deskewed(read.points, read.extra["time_s"], START, Known(straight), MOUNT)
        np.testing.assert_allclose(moved, seen(world, straight, 0.0), atol=1e-4)

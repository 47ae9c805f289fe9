"""The PointCloud2 layouts of public drivers, each read to the bit, and the meaning of their point times."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ros_cloud import CODES, DOUBLES, F32, F64, NUSCENES, STAMP_NS, U8, U16, U32, message, rows_of

from lima_core.data.ros_cloud import cloud_points, read_cloud

XYZ = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]
XYZI = [*XYZ, ("intensity", 12, F32)]
RING_TIMESTAMP = [("ring", 16, U16), ("timestamp", 18, F64)]


def ouster(ring):
    return [
        *XYZ, ("intensity", 16, F32), ("t", 20, U32), ("reflectivity", 24, U16), ("ring", 26, ring),
        ("ambient", 28, U16), ("range", 32, U32),
    ]  # fmt: skip


RETURN_CHANNEL = [("intensity", 12, U8), ("return_type", 13, U8), ("channel", 14, U16)]

# driver -> (field, offset, datatype) of each point, point_step; x at 0 and a step of 16 n is a PCL struct
LAYOUTS = {
    "velodyne_pointcloud": ([*XYZI, ("ring", 16, U16), ("time", 18, F32)], 22),
    "velodyne_pointcloud in PCL": ([*XYZ, ("intensity", 16, F32), ("ring", 20, U16), ("time", 24, F32)], 32),
    "ouster_ros": (ouster(U16), 48),
    "ouster_ros before 0.10": (ouster(U8), 48),
    "HesaiLidar_ROS_2.0": ([*XYZI, *RING_TIMESTAMP], 26),
    "HesaiLidar_General_ROS": ([*XYZ, ("intensity", 16, F32), ("timestamp", 24, F64), ("ring", 32, U16)], 48),
    "rslidar_sdk": ([*XYZI, *RING_TIMESTAMP], 26),
    "rslidar_sdk in PCL": ([*XYZ, ("intensity", 16, U8), ("ring", 18, U16), ("timestamp", 24, F64)], 32),
    "livox_ros_driver2": ([*XYZI, ("tag", 16, U8), ("line", 17, U8), ("timestamp", 18, F64)], 26),
    "livox CustomMsg as a cloud": ([*XYZ, ("reflectivity", 12, U8), ("line", 14, U8), ("offset_time", 15, U32)], 19),
    "autoware XYZIRC": ([*XYZ, *RETURN_CHANNEL], 16),
    "autoware XYZIRCAEDT": (
        [
            *XYZ, *RETURN_CHANNEL, ("azimuth", 16, F32), ("elevation", 20, F32), ("distance", 24, F32),
            ("time_stamp", 28, U32),
        ],
        32,
    ),
    "autoware XYZIRADT": (
        [
            *XYZ, ("intensity", 16, F32), ("ring", 20, U16), ("azimuth", 24, F32), ("distance", 28, F32),
            ("return_type", 32, U8), ("time_stamp", 40, F64),
        ],
        48,
    ),
    "nuScenes": NUSCENES,
    "doubles in another order": DOUBLES,
}  # fmt: skip
SPAN_S = np.linspace(-0.05, 0.05, 12)  # a sweep about its stamp
STAMP_S = STAMP_NS * 1e-9
# driver -> time field, its values for SPAN_S, error in s that its unit allows
TIMES = {
    "velodyne_pointcloud": ("time", SPAN_S, 1e-8),
    "velodyne_pointcloud in PCL": ("time", SPAN_S, 1e-8),
    "ouster_ros": ("t", (SPAN_S + 0.05) * 1e9, 1e-8),
    "ouster_ros before 0.10": ("t", (SPAN_S + 0.05) * 1e9, 1e-8),
    "HesaiLidar_ROS_2.0": ("timestamp", SPAN_S + STAMP_S, 5e-7),
    "HesaiLidar_General_ROS": ("timestamp", SPAN_S + STAMP_S, 5e-7),
    "rslidar_sdk": ("timestamp", SPAN_S + STAMP_S, 5e-7),
    "rslidar_sdk in PCL": ("timestamp", SPAN_S + STAMP_S, 5e-7),
    "livox_ros_driver2": ("timestamp", SPAN_S * 1e9 + STAMP_NS, 5e-7),
    "livox CustomMsg as a cloud": ("offset_time", (SPAN_S + 0.05) * 1e9, 1e-8),
    "autoware XYZIRCAEDT": ("time_stamp", (SPAN_S + 0.05) * 1e9, 1e-8),
    "autoware XYZIRADT": ("time_stamp", SPAN_S + STAMP_S, 5e-7),
}


def driver_rows(name):
    """Random points of a driver, with times as it sends them."""
    fields, _ = LAYOUTS[name]
    rows, names = rows_of(fields), [f[0] for f in fields]
    if name in TIMES:
        field, values, _ = TIMES[name]
        place = names.index(field)
        whole = fields[place][2] == U32
        for row, value in zip(rows, values, strict=True):
            row[place] = round(value) if whole else float(value)
    return rows


@pytest.mark.parametrize("big", [False, True], ids=["little", "big-endian"])
@pytest.mark.parametrize(
    ("height", "pad", "wider"),
    [(1, 0, 0), (3, 0, 0), (3, 7, 0), (3, 7, 5)],
    ids=["one row", "organised", "padded rows", "padded steps"],
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_field_of_every_layout(name, height, pad, wider, big):
    (fields, step), rows = LAYOUTS[name], driver_rows(name)
    msg = message(rows, fields, step + wider, height=height, pad=pad, big=big)
    columns = read_cloud(msg)
    assert list(columns) == [f[0] for f in fields]
    truth = {f[0]: np.array([row[i] for row in rows], CODES[f[2]]) for i, f in enumerate(fields)}
    for field, column in truth.items():
        np.testing.assert_array_equal(columns[field], column, err_msg=field)
    cloud = cloud_points(msg, intensity_scale=255.0)
    source = next(n for n in ("intensity", "i", "reflectivity") if n in truth)
    assert cloud.intensity_field == source and cloud.points.dtype == np.float32 and cloud.points.shape == (12, 4)
    for index, axis in enumerate("xyz"):
        np.testing.assert_array_equal(cloud.points[:, index], truth[axis].astype(np.float32))
    raw = truth[source].astype(np.float32)
    np.testing.assert_array_equal(cloud.raw_intensity, raw)
    np.testing.assert_array_equal(cloud.points[:, 3], raw / np.float32(255))


@pytest.mark.parametrize("big", [False, True], ids=["little", "big-endian"])
@pytest.mark.parametrize("name", TIMES)
def test_point_times_are_seconds_after_the_stamp(name, big):
    (fields, step), (field, values, error) = LAYOUTS[name], TIMES[name]
    cloud = cloud_points(message(driver_rows(name), fields, step, big=big), 1.0)
    start = SPAN_S + 0.05 if values[0] == 0 else SPAN_S
    assert cloud.time_problem is None and field not in cloud.extra
    assert cloud.extra["time_s"].dtype == np.float32
    np.testing.assert_allclose(cloud.extra["time_s"], start, rtol=0, atol=error)


@pytest.mark.parametrize(
    ("name", "field"), [("ouster_ros", "ring"), ("livox_ros_driver2", "line"), ("autoware XYZIRC", "channel")]
)
def test_the_ring_has_one_name(name, field):
    (fields, step), rows = LAYOUTS[name], driver_rows(name)
    names = [f[0] for f in fields]
    extra = cloud_points(message(rows, fields, step, big=True), 1.0).extra
    np.testing.assert_array_equal(extra["ring"], [row[names.index(field)] for row in rows])
    assert extra["ring"].dtype.isnative and set(extra) == {"ring"} | ({"time_s"} if name in TIMES else set())


def timed(values, kind=F64, stamp_ns=STAMP_NS):
    """A cloud with one time per point."""
    fields = [*XYZ, ("timestamp", 12, kind)]
    return message([[1.0, 2.0, 3.0, value] for value in values], fields, 20, stamp_ns=stamp_ns)


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (timed([STAMP_S - 3600.0, STAMP_S - 3599.9]), ["float64", "no reading"]),  # a LiDAR without a time source
        (timed([STAMP_S * 1e6, STAMP_S * 1e6 + 1e5]), ["no reading"]),  # microseconds
        (timed([STAMP_S, 0.0]), ["no reading"]),  # seconds and zeros mixed
        (timed([0.0, 0.1], stamp_ns=500_000_000), ["more than one"]),  # the first second of a simulation
        (timed([STAMP_S, STAMP_S + 0.1], stamp_ns=0), ["at stamp 0 ns"]),  # the driver set no stamp
        (timed([0.0, 5e4], F32), ["float32", "no reading"]),  # microseconds
        (timed([0, 2**32 - 1], U32), ["uint32", "no reading"]),
    ],
)
def test_a_time_that_cannot_be_told_is_left_out_with_the_reason(msg, words):
    cloud = cloud_points(msg, 1.0)
    assert cloud.extra == {} and len(cloud) == 2
    for word in ("timestamp", "left out", "clock", *words):
        assert word in cloud.time_problem


def test_a_field_that_is_called_time_s_is_no_exception():
    fields = [*XYZ, ("time_s", 12, U32)]
    cloud = cloud_points(message([[1.0, 2.0, 3.0, 4_000_000_000]], fields, 16), 1.0)
    assert cloud.extra == {} and "'time_s'" in cloud.time_problem


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [0.0, 0.0]])
def test_no_time_at_all_is_no_problem(values):
    cloud = cloud_points(timed(values), 1.0)
    assert cloud.time_problem is None
    np.testing.assert_array_equal(cloud.extra["time_s"], np.float32(values))


def test_points_without_a_return_have_no_time_and_disturb_none():
    cloud = cloud_points(timed([STAMP_S, np.nan, STAMP_S + 0.1]), 1.0)
    np.testing.assert_allclose(cloud.extra["time_s"], [0.0, np.nan, 0.1], atol=5e-7)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(10 * 10**9, 2**31 * 10**9),
    st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=8),
    st.sampled_from(["relative", "seconds", "nanoseconds"]),
)
def test_any_clock_and_any_sweep(stamp_ns, offsets, kind):
    offsets = 0.99 * np.array(offsets)
    values = {
        "relative": offsets,
        "seconds": stamp_ns * 1e-9 + offsets,
        "nanoseconds": stamp_ns + np.round(offsets * 1e9),
    }[kind]
    cloud = cloud_points(timed(values.tolist(), stamp_ns=stamp_ns), 1.0)
    np.testing.assert_allclose(cloud.extra["time_s"], offsets, rtol=0, atol=1e-6)


def test_arrays_of_the_transports():
    """rclpy gives array.array, rosbags a numpy array, others bytes or memoryview."""
    (fields, step), rows = LAYOUTS["rslidar_sdk"], driver_rows("rslidar_sdk")
    msg = message(rows, fields, step)
    truth = cloud_points(msg, 1.0)
    for data in (array("B", msg.data), np.frombuffer(msg.data, np.uint8), memoryview(msg.data), bytearray(msg.data)):
        same = cloud_points(SimpleNamespace(**{**vars(msg), "data": data}), 1.0)
        np.testing.assert_array_equal(same.points, truth.points)

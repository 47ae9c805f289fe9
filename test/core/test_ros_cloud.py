"""PointCloud2 by field name: padding, byte order, broken clouds, packing, real bytes against rosbags.

The layouts of drivers are in test_ros_layouts.py.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lima_core.data.ros_cloud import CloudError, cloud_points, pack_cloud, pack_rgb, read_cloud

CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
I8, U8, I16, U16, I32, U32, F32, F64 = CODES

# (field, offset, datatype) of each point, point_step
NUSCENES = ([("x", 0, F32), ("y", 4, F32), ("z", 8, F32), ("intensity", 12, F32), ("ring", 16, F32)], 20)
DOUBLES = ([("i", 0, I16), ("z", 8, F64), ("x", 16, F64), ("y", 24, F64)], 40)
STAMP_NS = 1_700_000_000_123_456_789


def header(stamp_ns=STAMP_NS):
    return SimpleNamespace(stamp=SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="lidar")


def message(rows, fields, point_step, width=None, height=1, pad=0, big=False, stamp_ns=STAMP_NS):
    """A PointCloud2 written value by value with `struct`: an oracle that shares nothing with the reader."""
    width = len(rows) // height if width is None else width
    row_step = width * point_step + pad
    data = bytearray(b"\xa5" * (row_step * height))
    for index, row in enumerate(rows):
        start = (index // width) * row_step + (index % width) * point_step
        for (_, offset, datatype, *_), value in zip(fields, row, strict=True):
            struct.pack_into((">" if big else "<") + CODES[datatype], data, start + offset, value)
    return SimpleNamespace(
        fields=[SimpleNamespace(name=f[0], offset=f[1], datatype=f[2], count=1) for f in fields],
        width=width,
        height=height,
        point_step=point_step,
        row_step=row_step,
        is_bigendian=big,
        data=bytes(data),
        is_dense=True,
        header=header(stamp_ns),
    )


def rows_of(fields, n=12):
    """Random values of each type; times are `test_ros_layouts.py`'s own."""
    rng = np.random.default_rng(len(fields))
    high = {U8: 255, I8: 127, U16: 65535, I16: 32767, U32: 2**32 - 1, I32: 2**31 - 1}
    return [
        [
            float(np.float32(rng.normal() * 30)) if t in (F32, F64) else int(rng.integers(0, high[t]))
            for _, _, t in fields
        ]
        for _ in range(n)
    ]


def test_columns_are_views_of_the_message():
    fields, step = NUSCENES
    msg = message(rows_of(fields), fields, step)
    msg.data = bytearray(msg.data)
    x = read_cloud(msg)["x"]
    struct.pack_into("<f", msg.data, step, 42.0)
    assert x[1] == 42.0


def test_points_are_no_views_of_the_message():
    fields, step = NUSCENES
    msg = message(rows_of(fields), fields, step)
    msg.data = bytearray(msg.data)
    cloud = cloud_points(msg, 255.0)
    kept = [a.copy() for a in (cloud.points, cloud.raw_intensity, cloud.extra["ring"])]
    msg.data[:] = b"\xff" * len(msg.data)
    for now, before in zip((cloud.points, cloud.raw_intensity, cloud.extra["ring"]), kept, strict=True):
        np.testing.assert_array_equal(now, before)
        assert now.flags.c_contiguous and now.flags.writeable


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e300, 1e-60])
def test_a_scale_that_is_no_scale(scale):
    with pytest.raises(CloudError, match="intensity_scale"):
        cloud_points(message([[1, 2, 3, 4, 5]], *NUSCENES), scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_stay_points(value):
    """N, order and the other points are as sent; the caller labels a point that is not finite as unknown."""
    fields, step = DOUBLES
    cloud = cloud_points(message([[1, value, 2.0, 3.0], [4, 5.0, 6.0, value]], fields, step), 1.0)
    assert np.isfinite(cloud.points).tolist() == [[True, True, False, True], [True, False, True, True]]


def test_missing_intensity_is_said():
    fields = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]
    cloud = cloud_points(message([[1, 2, 3]], fields, 12), 255.0)
    assert cloud.intensity_field is None
    assert cloud.points.tolist() == [[1, 2, 3, 0]]


def test_empty_cloud():
    fields, step = NUSCENES
    for msg in (message([], fields, step, width=0), message([], fields, step, width=0, height=0)):
        cloud = cloud_points(msg, 255.0)
        assert cloud.points.shape == (0, 4)


def test_arrays_in_a_field_and_padding_fields():
    fields = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]
    msg = message([[1, 2, 3], [4, 5, 6]], fields, 20)
    msg.fields += [
        SimpleNamespace(name="_", offset=12, datatype=U8, count=4),
        SimpleNamespace(name="rgba", offset=16, datatype=U8, count=4),
        SimpleNamespace(name="flag", offset=16, datatype=U8, count=0),
    ]
    columns = read_cloud(msg)
    assert list(columns) == ["x", "y", "z", "rgba", "flag"]
    assert columns["rgba"].tolist() == [[0xA5] * 4] * 2 and columns["flag"].tolist() == [0xA5] * 2


def broken(**changes):
    fields, step = NUSCENES
    msg = message(rows_of(fields), fields, step)
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (broken(data=b"\0" * 239), ["truncated", "239", "240"]),
        (broken(data=b""), ["truncated"]),
        (broken(point_step=0), ["point_step 0"]),
        (broken(row_step=100), ["row_step 100"]),
        (broken(point_step=16, row_step=192), ["'ring'", "16"]),
        (broken(fields=[SimpleNamespace(name="x", offset=0, datatype=9, count=1)]), ["'x'", "datatype 9"]),
        (broken(fields=broken().fields + broken().fields[:1]), ["twice"]),
        (broken(fields=broken().fields[1:]), ["no scalar field x", "'y'", "'ring'"]),
        (broken(fields=[]), ["x, y, z", "none"]),
        (broken(width=2**31, row_step=2**31 * 20 % 2**32, data=b"\0" * 10), ["row_step", "2147483648"]),
        (broken(width=1, height=2**32 - 1, row_step=20, data=b"\0" * 10), ["truncated", "85899345900"]),
        (broken(point_step=1, row_step=2**31, width=2**31, data=b"\0" * 10), ["truncated", "2147483648"]),
    ],
)
def test_a_broken_cloud_says_what_is_wrong(msg, words):
    with pytest.raises(CloudError) as error:
        cloud_points(msg, 255.0)
    for word in words:
        assert word in str(error.value)


NAMES = st.text("abcdefgh_xyz", min_size=1, max_size=6).filter(lambda name: name != "_")
DTYPES = st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])


@st.composite
def tables(draw):
    n = draw(st.integers(0, 20))
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    shapes = [(n,) if (k := draw(st.integers(1, 3))) == 1 else (n, k) for _ in names]
    return {name: draw(hnp.arrays(draw(DTYPES), shape)) for name, shape in zip(names, shapes, strict=True)}


@settings(max_examples=60, deadline=None)
@given(tables())
def test_packed_columns_are_read_back_to_the_bit(columns):
    packed = pack_cloud(columns)
    msg = SimpleNamespace(
        fields=[SimpleNamespace(name=n, offset=o, datatype=t, count=c) for n, o, t, c in packed.fields],
        width=packed.width,
        height=1,
        point_step=packed.point_step,
        row_step=packed.width * packed.point_step,
        is_bigendian=False,
        data=packed.data,
    )
    for name, offset, datatype, _ in packed.fields:
        assert offset % struct.calcsize(CODES[datatype]) == 0, f"{name} is not aligned"
    read = read_cloud(msg)
    assert list(read) == list(columns)
    for name, column in columns.items():
        assert read[name].dtype == column.dtype
        assert np.ascontiguousarray(read[name]).tobytes() == column.tobytes()


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({}, "at least one"),
        ({"x": np.zeros(3, "f4"), "y": np.zeros(2, "f4")}, "length"),
        ({"x": np.zeros(3, "i8")}, "int64"),
        ({"x": np.zeros((3, 2, 2), "f4")}, "shape"),
    ],
)
def test_columns_that_are_no_cloud(columns, word):
    with pytest.raises(CloudError, match=word):
        pack_cloud(columns)


def test_rgb_bits_as_in_pcl():
    packed = pack_rgb(np.array([[0x12, 0x34, 0x56]], np.uint8))
    assert packed.dtype == np.float32 and packed.tobytes() == struct.pack("<I", 0x123456)


def test_real_cloud_equals_the_nuscenes_file(shared):
    """The bag's bytes, through rosbags' deserialiser, against the .pcd.bin they were made from."""
    reader = pytest.importorskip("rosbags.rosbag2").Reader
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE)
    with reader(shared / "data/rosbags/nuscenes_scene-0061_first_keyframe") as bag:
        connections = [c for c in bag.connections if c.topic == "/LIDAR_TOP"]
        (message,) = (types.deserialize_cdr(raw, c.msgtype) for c, _, raw in bag.messages(connections))
    (file,) = (shared / "data/nus_tiny/samples/LIDAR_TOP").glob("*.pcd.bin")
    truth = np.fromfile(file, "<f4").reshape(-1, 5)
    cloud = cloud_points(message, 255.0)
    assert len(cloud) == 34688
    np.testing.assert_array_equal(cloud.points[:, :3], truth[:, :3])
    np.testing.assert_array_equal(cloud.raw_intensity, truth[:, 3])
    np.testing.assert_array_equal(cloud.extra["ring"], truth[:, 4])
    assert 0.9 < cloud.points[:, 3].max() <= 1.0

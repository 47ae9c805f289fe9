"""Clouds beside the segmented one, after real serialisation: bytes kept, colours that do not flicker, closed forms."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2, PointField

from lima_core.data.ros_cloud import DATATYPES, CloudError, CloudPoints, cloud_points, pack_cloud, read_cloud
from lima_core.runtime import clouds
from lima_core.viz.features import SPREAD
from lima_ros import convert

HEADER = convert.ROS.header(1_532_402_927_647_951_000, "LIDAR_TOP")
F32, F64, U16, U8 = (DATATYPES[name] for name in ("f4", "f8", "u2", "u1"))
# (name, offset, datatype, count) of each point, point_step
XYZI = ([("x", 0, F32, 1), ("y", 4, F32, 1), ("z", 8, F32, 1), ("intensity", 12, F32, 1)], 16)
GAPS = ([("x", 2, F64, 1), ("y", 11, F32, 1), ("z", 17, F32, 1), ("ring", 22, U16, 0), ("rgb", 24, U8, 3)], 29)


def sent(msg):
    """What a subscriber gets."""
    return deserialize_message(serialize_message(msg), type(msg))


def random_cloud(layout, height: int, width: int, big: bool = False, row_padding: int = 0, seed: int = 0):
    """A PointCloud2 of random bytes: each byte of a point matters, those between the fields too."""
    fields, point_step = layout
    row_step = width * point_step + row_padding
    data = np.random.default_rng(seed).integers(0, 256, height * row_step, np.uint8).tobytes()
    return PointCloud2(
        header=HEADER,
        height=height,
        width=width,
        fields=[PointField(name=n, offset=o, datatype=t, count=c) for n, o, t, c in fields],
        is_bigendian=big,
        point_step=point_step,
        row_step=row_step,
        data=data,
        is_dense=True,
    )


@settings(deadline=None)
@given(st.sampled_from([XYZI, GAPS]), st.integers(0, 4), st.integers(0, 9), st.booleans(), st.integers(0, 5), st.data())
def test_filter_removes_points_and_nothing_else(layout, height, width, big, row_padding, data):
    msg = random_cloud(layout, height, width, big, row_padding)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)), bool)
    out = sent(clouds.filtered_message(msg, keep, convert.ROS))
    for name in ("header", "fields", "is_bigendian", "point_step", "is_dense"):
        assert getattr(out, name) == getattr(msg, name)
    assert (out.height, out.width, out.row_step) == (1, keep.sum(), keep.sum() * msg.point_step)
    assert len(out.data) == out.row_step
    before, after = read_cloud(msg), read_cloud(out)
    assert list(after) == list(before)
    for name, column in after.items():
        assert column.dtype == before[name].dtype
        assert column.tobytes() == before[name][keep].tobytes()  # bytes: nan is not equal to itself


def test_filter_keeps_the_bytes_between_the_fields():
    msg = random_cloud(GAPS, 2, 3, row_padding=4)
    out = clouds.filtered_message(msg, np.array([True, False, False, False, False, True]), convert.ROS)
    first, last = msg.data[:29], msg.data[-4 - 29 : -4]
    assert bytes(out.data) == bytes(first) + bytes(last)


def test_filter_of_nothing_and_of_all():
    msg = random_cloud(XYZI, 1, 5)
    assert sent(clouds.filtered_message(msg, np.ones(5, bool), convert.ROS)) == msg
    none = sent(clouds.filtered_message(msg, np.zeros(5, bool), convert.ROS))
    assert none.width == 0 and len(none.data) == 0 and len(cloud_points(none, 1.0)) == 0


def test_filter_of_a_cloud_without_layout():
    out = sent(clouds.filtered_message(PointCloud2(header=HEADER), np.zeros(0, bool), convert.ROS))
    assert (out.width, out.row_step, out.header) == (0, 0, HEADER)


@pytest.mark.parametrize("keep", [np.ones(4, bool), np.ones(6, bool), np.ones(5, np.uint8), np.ones((5, 1), bool)])
def test_filter_that_does_not_fit(keep):
    with pytest.raises(ValueError, match=r"the cloud needs \(5,\) bool"):
        clouds.filtered_message(random_cloud(XYZI, 1, 5), keep, convert.ROS)


def test_filter_of_a_truncated_cloud():
    msg = random_cloud(XYZI, 2, 5)
    msg.data = msg.data[:-1]
    with pytest.raises(CloudError, match="truncated"):
        clouds.filtered_message(msg, np.ones(10, bool), convert.ROS)


def cloud_of(n: int, seed: int = 0) -> CloudPoints:
    columns = {axis: np.random.default_rng(seed).normal(0, 20, n).astype(np.float32) for axis in "xyz"}
    return cloud_points(convert.ROS.cloud(pack_cloud(columns), 0, "lidar"), 1.0)


def rgb_of(msg) -> np.ndarray:
    """(N, 3) of the field `rgb`."""
    bits = np.ascontiguousarray(read_cloud(msg)["rgb"]).view(np.uint32)
    return np.stack([bits >> 16, bits >> 8 & 255, bits & 255], 1).astype(np.uint8)


def same_place(msg, cloud: CloudPoints) -> None:
    read = read_cloud(msg)
    assert msg.header == HEADER
    np.testing.assert_array_equal(np.stack([read[axis] for axis in "xyz"], 1), cloud.points[:, :3])


def axes_features(counts) -> np.ndarray:
    """counts[i] features along axis i of 8, of various lengths."""
    rows = np.repeat(np.eye(8, dtype=np.float32)[: len(counts)], counts, axis=0)
    return rows * (1 + np.arange(len(rows), dtype=np.float32))[:, None]


def test_colours_of_the_first_sweep_are_its_principal_components():
    features = np.random.default_rng(3).normal(0, [3, 2, 1, 0.2, 0.1], (500, 5)) + np.array([5, 0, 0, 0, 4])
    rgb = clouds.FeatureColors().rgb(features.astype(np.float32))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = 127.5 * (1 + np.clip(left[:, :3] * np.sqrt(500) / SPREAD, -1, 1))
    assert (np.diff(size) < 0).all()
    for channel in range(3):  # a component's sign is free
        off = min(np.abs(rgb[:, channel] - w).max() for w in (wanted[:, channel], 255 - wanted[:, channel]))
        assert off <= 0.6  # rounding


def test_features_message():
    cloud, features = cloud_of(400), axes_features([100, 100, 100, 100])
    features[[3, 200]] = np.nan
    msg = sent(clouds.features_message(cloud, features, clouds.FeatureColors(), HEADER, convert.ROS))
    same_place(msg, cloud)
    assert list(read_cloud(msg)) == ["x", "y", "z", "rgb"]
    rgb = rgb_of(msg)
    assert (rgb[[3, 200]] == clouds.UNKNOWN).all()
    known = np.isfinite(features).all(1)
    groups = [np.unique(rgb[at : at + 100][known[at : at + 100]], axis=0) for at in range(0, 400, 100)]
    assert all(len(group) == 1 for group in groups)  # the length of a feature has no say
    assert len(np.unique(np.concatenate(groups), axis=0)) == 4


def sweeps(count: int, seed: int = 0, groups: int = 6, width: int = 32):
    """Noisy features of `groups` kinds of things in changing numbers: their variances are about equal, and cross."""
    rng = np.random.default_rng(seed)
    kinds = np.linalg.qr(rng.normal(size=(width, groups)))[0].T
    for _ in range(count):
        kind = np.repeat(np.arange(groups), rng.integers(250, 350, groups))
        noise = rng.normal(0, 0.02, (len(kind), width))
        yield kind, (kinds[kind] + noise).astype(np.float32)


def mean_colors(kind, rgb) -> np.ndarray:
    return np.array([rgb[kind == k].astype(float).mean(0) for k in range(kind.max() + 1)])


def flicker(colors_of) -> float:
    """Largest change of a kind's mean colour from one sweep to the next, in steps of 255."""
    means = np.array([mean_colors(kind, colors_of(features)) for kind, features in sweeps(40)])
    return np.abs(np.diff(means, axis=0)).max()


def test_colours_do_not_flicker():
    colors = clouds.FeatureColors()
    assert flicker(lambda features: clouds.FeatureColors().rgb(features)) > 60  # each sweep for itself
    assert flicker(colors.rgb) < 12


def test_colours_follow_a_new_place():
    """Another eight kinds of things: soon they are told apart as well as by a basis of their own."""
    colors = clouds.FeatureColors()
    for _, features in sweeps(5):
        colors.rgb(features)

    def spread(rgb, kind):
        return mean_colors(kind, rgb).std(0).min()

    rounds = [(kind, features, colors.rgb(features)) for kind, features in sweeps(150, seed=9)]
    kind, features, last = rounds[-1]
    assert spread(last, kind) > 0.8 * spread(clouds.FeatureColors().rgb(features), kind)


def test_same_sweep_same_colours_and_reset():
    features = next(sweeps(1))[1]
    colors = clouds.FeatureColors()
    first = colors.rgb(features)
    for _ in range(10):
        again = colors.rgb(features)
    assert np.abs(again.astype(int) - first).max() <= 1
    colors.reset()
    np.testing.assert_array_equal(colors.rgb(features), first)
    colors.reset()
    assert colors.rgb(np.eye(4, dtype=np.float32)).shape == (4, 3)  # another network


def test_a_sweep_that_says_little_leaves_the_basis():
    ours, control = clouds.FeatureColors(), clouds.FeatureColors()
    (_, first), (_, second) = sweeps(2)
    ours.rgb(first)
    control.rgb(first)
    assert ours.rgb(np.full((50, 32), np.nan, np.float32)).tolist() == [list(clouds.UNKNOWN)] * 50
    assert ours.rgb(np.zeros((0, 32), np.float32)).shape == (0, 3)
    np.testing.assert_array_equal(ours.rgb(second), control.rgb(second))


@pytest.mark.parametrize("features", [np.ones((200, 6)), np.zeros((200, 6)), np.eye(6)[[0] * 100 + [1] * 100]])
def test_features_that_hardly_vary_have_calm_colours(features):
    colors = clouds.FeatureColors()
    seen = np.array([colors.rgb(features.astype(np.float32)) for _ in range(5)], int)
    assert np.abs(np.diff(seen, axis=0)).max() <= 1
    constant = (features == features[0]).all()
    assert not constant or np.abs(seen - 127.5).max() <= 1


def test_features_of_another_width():
    colors = clouds.FeatureColors()
    with pytest.raises(ValueError, match="2 columns; colours need at least 3"):
        colors.rgb(np.ones((4, 2), np.float32))
    colors.rgb(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="5 columns; colours need 4 as before"):
        colors.rgb(np.eye(5, dtype=np.float32))


def test_similarity():
    cloud = cloud_of(6)
    features = np.float32([[1, 0, 0], [3, 4, 0], [0, 0, 2], [-5, 0, 0], [np.nan] * 3, [7, 0, 0]])
    msg = sent(clouds.similarity_message(cloud, features, 0, HEADER, convert.ROS))
    same_place(msg, cloud)
    np.testing.assert_allclose(read_cloud(msg)["similarity"], [1, 0.6, 0, -1, np.nan, 1], atol=1e-6)
    rgb = rgb_of(msg).astype(int)
    assert tuple(rgb[4]) == clouds.UNKNOWN
    np.testing.assert_array_equal(rgb[0], rgb[5])
    assert rgb[0, 0] > 100 and rgb[0, 1:].max() == 0  # red
    assert rgb[3, 2] > 100 and rgb[3, :2].max() == 0  # blue


@pytest.mark.parametrize(
    ("row", "text"), [(1, "has no feature; choose another"), (2, "is not one of the 2 points"), (-1, "is not one of")]
)
def test_similarity_to_what_has_no_feature(row, text):
    with pytest.raises(ValueError, match=text):
        clouds.similarity_message(cloud_of(2), np.float32([[1, 2, 3], [np.nan] * 3]), row, HEADER, convert.ROS)


def test_features_of_another_cloud():
    features = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"the cloud needs \(4, C\)"):
        clouds.features_message(cloud_of(4), features, clouds.FeatureColors(), HEADER, convert.ROS)
    with pytest.raises(ValueError, match=r"the cloud needs \(4, C\)"):
        clouds.similarity_message(cloud_of(4), features, 0, HEADER, convert.ROS)


def test_empty_cloud_has_colours_too():
    empty = np.zeros((0, 16), np.float32)
    msg = sent(clouds.features_message(cloud_of(0), empty, clouds.FeatureColors(), HEADER, convert.ROS))
    assert msg.width == 0 and msg.header == HEADER


@given(st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 3), min_size=1, max_size=20), st.data())
def test_nearest_row_finds_what_was_clicked(points, data):
    table = np.float32(points)
    row = data.draw(st.integers(0, len(points) - 1))
    assert points[clouds.nearest_row(table, table[row], 0.5)] == points[row]


def test_nearest_row_overlooks_points_that_are_nowhere():
    points = np.float32([[np.nan, 0, 0, 9], [np.inf, 1, 1, 9], [4, 0, 0, 9], [3, 0, 0, 9]])
    assert clouds.nearest_row(points, (0, 0, 0), 3.0) == 3


@pytest.mark.parametrize(
    ("points", "xyz", "text"),
    [
        ([[3, 0, 4]], (0, 0, 0), "5.0 m away, more than 1 m"),
        (np.zeros((0, 3)), (0, 0, 0), "any of 0 points"),
        ([[np.nan, 0, 0]], (0, 0, 0), "any of 1 points"),
        ([[0, 0, 0]], (np.nan, 0, 0), "from nan, 0.0, 0.0 m"),
    ],
)
def test_nearest_row_out_of_reach(points, xyz, text):
    with pytest.raises(ValueError, match=text):
        clouds.nearest_row(np.float32(points), xyz, 1.0)

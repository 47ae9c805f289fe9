"""Corners, points in boxes and moved boxes: golden vectors of the devkit, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lima_core.data.frame import Boxes
from lima_core.geometry import se3
from lima_core.geometry.boxes import bev_corners, box_table, corners, moved, points_in_boxes

ANGLE = st.floats(-4, 4)
TABLES = arrays(np.float64, st.tuples(st.integers(0, 5), st.just(7)), elements=st.floats(-20, 20)).map(
    lambda table: np.column_stack([table[:, :3], np.abs(table[:, 3:6]) + 0.1, table[:, 6]])
)
POSES = st.builds(se3.poses, *[st.floats(-1000, 1000)] * 3, ANGLE, st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))


def boxes_of(table: np.ndarray, velocity: np.ndarray | None = None) -> Boxes:
    """A table as Boxes, with every optional column."""
    count = len(table)
    return Boxes(
        table[:, :3], table[:, 3:6], table[:, 6], np.full((count, 2), np.nan) if velocity is None else velocity,
        np.arange(count, dtype=np.uint8), np.arange(count, dtype=np.int32), np.full(count, 255, np.uint8),
    )  # fmt: skip


def vector_table(inputs: dict) -> np.ndarray:
    width, length, height = inputs["wlh"]
    return np.array([[*inputs["center"], length, width, height, inputs["yaw"]]])


def test_corners_match_the_devkit(vectors: dict) -> None:
    vector = vectors["box_corners"]
    table = vector_table(vector["inputs"])
    np.testing.assert_allclose(corners(table)[0], vector["expected"]["corners"], atol=vector["tol"])
    bottom = np.array(vector["expected"]["bottom"])
    np.testing.assert_allclose(bev_corners(table)[0], bottom[:, :2], atol=vector["tol"])


def test_points_in_box_match_the_devkit(vectors: dict) -> None:
    vector = vectors["box_corners"]
    table, points = vector_table(vector["inputs"]), np.array(vector["inputs"]["test_points"])
    grown = table * [1, 1, 1, 1.2, 1.2, 1.2, 1]
    for boxes, name in ((table, "points_in_box"), (grown, "points_in_box_wlh_factor_1_2")):
        (rows,) = points_in_boxes(points, boxes)
        assert rows.tolist() == np.flatnonzero(vector["expected"][name]).tolist() and rows.dtype == np.int64


def test_moved_matches_the_devkit(vectors: dict) -> None:
    vector = vectors["box_global_to_lidar"]
    inputs, expected = vector["inputs"], vector["expected"]
    world_from_ego, ego_from_lidar = (
        se3.transform(np.array(inputs[name]["rotation"]), np.array(inputs[name]["translation"]))
        for name in ("ego", "calibrated")
    )
    box = inputs["global_box"]
    boxes = boxes_of(vector_table(box), np.array([box["velocity"][:2]]))
    seen = moved(boxes, se3.inverse(world_from_ego @ ego_from_lidar))
    table = np.column_stack([box_table(seen), seen.velocity])
    np.testing.assert_allclose(table[0], expected["gt_box_lwh"], atol=vector["tol"])
    assert seen.points is boxes.points and seen.attribute is boxes.attribute and seen.class_id is boxes.class_id


@given(TABLES, POSES)
def test_moving_back_undoes_a_level_move(table: np.ndarray, pose: np.ndarray) -> None:
    level = se3.poses(*pose[:3, 3], se3.yaw(pose))
    boxes = boxes_of(table, table[:, 3:5])
    back = moved(moved(boxes, level), se3.inverse(level))
    np.testing.assert_allclose(box_table(back)[:, :6], table[:, :6], atol=1e-9)
    np.testing.assert_allclose(np.cos(back.yaw - table[:, 6]), 1, atol=1e-9)
    np.testing.assert_allclose(back.velocity, boxes.velocity, atol=1e-9)


@given(TABLES, POSES)
def test_corners_move_with_the_box_where_the_frames_are_level(table: np.ndarray, pose: np.ndarray) -> None:
    level = se3.poses(*pose[:3, 3], se3.yaw(pose))
    expected = se3.apply(level, corners(table).reshape(-1, 3)).reshape(-1, 8, 3)
    np.testing.assert_allclose(corners(box_table(moved(boxes_of(table), level))), expected, atol=1e-8)


@given(TABLES, POSES)
def test_moved_yaw_is_the_heading_of_the_turned_box(table: np.ndarray, pose: np.ndarray) -> None:
    expected = [se3.yaw(pose @ se3.poses(0, 0, 0, yaw)) for yaw in table[:, 6]]
    seen = moved(boxes_of(table), pose)
    np.testing.assert_allclose(np.exp(1j * seen.yaw), np.exp(1j * np.array(expected)), atol=1e-12)
    assert np.isnan(seen.velocity).all()


@given(TABLES)
def test_faces_of_a_box(table: np.ndarray) -> None:
    faces = corners(table)
    assert faces.shape == (len(table), 8, 3)
    np.testing.assert_allclose(faces.mean(1), table[:, :3], atol=1e-9)
    front = faces[:, :4].mean(1)[:, :2] - table[:, :2]
    heading = np.column_stack([np.cos(table[:, 6]), np.sin(table[:, 6])])
    np.testing.assert_allclose(front, heading * table[:, 3:4] / 2, atol=1e-9)
    x, y = bev_corners(table).transpose(2, 0, 1)
    area = 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)  # positive: counter-clockwise
    np.testing.assert_allclose(area, table[:, 3] * table[:, 4], atol=1e-9)


@given(TABLES, st.integers(0, 100), st.floats(0.5, 0.999), st.floats(1.001, 2))
def test_points_near_the_corners(table: np.ndarray, seed: int, shrunk: float, grown: float) -> None:
    shuffle = np.random.default_rng(seed).permutation(16 * len(table))
    columns = [1, 1, 1, 0, 0, 0, 1]
    scaled = [corners(np.where(columns, table, table * factor)) for factor in (shrunk, grown)]
    points = np.concatenate(scaled, axis=1).reshape(-1, 3)[shuffle]
    for box, rows in enumerate(points_in_boxes(points, table)):
        own = shuffle[rows][shuffle[rows] // 16 == box] % 16
        assert sorted(own) == list(range(8))  # the eight inner ones
        assert (np.diff(rows) > 0).all()


def test_points_in_boxes_equal_the_brute_force() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 12, (5000, 5)).astype(np.float32)
    points[::100, :3] = np.nan
    size = rng.uniform(0.5, 12, (40, 3))
    table = np.column_stack([rng.normal(0, 10, (40, 2)), rng.normal(0, 1, 40), size, rng.uniform(-7, 7, 40)])
    found = points_in_boxes(points, table)
    assert sum(map(len, found)) > 500
    for row, rows in enumerate(found):
        lidar_from_box = se3.poses(*table[row, :3], table[row, 6])
        local = se3.apply(se3.inverse(lidar_from_box), points)
        expected = np.flatnonzero((np.abs(local) <= table[row, 3:6] / 2).all(1))
        assert rows.tolist() == expected.tolist()


def test_closed_faces_far_from_the_sensor() -> None:
    table = np.array([[900.5, -700.25, 1.0, 4.0, 2.0, 1.5, 0.0]])
    points = np.float32([[902.5, -699.25, 1.75], [898.5, -701.25, 0.25], [902.5625, -700, 1], [900, -701.3125, 1]])
    assert points_in_boxes(points, table)[0].tolist() == [0, 1]


def test_nothing_in_nothing() -> None:
    none = box_table(Boxes.joined([]))
    assert none.shape == (0, 7) and none.dtype == np.float64
    assert points_in_boxes(np.zeros((3, 4), np.float32), none) == []
    assert [len(rows) for rows in points_in_boxes(np.zeros((0, 4), np.float32), np.ones((2, 7)))] == [0, 0]
    assert corners(none).shape == (0, 8, 3) and bev_corners(none).shape == (0, 4, 2)
    assert len(moved(Boxes.joined([]), np.eye(4))) == 0


def test_wrong_shapes_are_refused() -> None:
    for function in (corners, bev_corners, lambda table: points_in_boxes(np.zeros((1, 3)), table)):
        with pytest.raises(ValueError, match=r"\(B, 7\) table x, y, z, l, w, h, yaw; got \(2, 9\)"):
            function(np.zeros((2, 9)))
    with pytest.raises(ValueError, match=r"points must be \(N, >=3\) x, y, z; got \(4, 2\)"):
        points_in_boxes(np.zeros((4, 2)), np.zeros((1, 7)))

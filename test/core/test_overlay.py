"""Points in pictures: right pixel, near over far, nothing outside, and on the real keyframe where the labels are."""

from __future__ import annotations

import numpy as np
import pytest

from lima_core.data.nuscenes import NuScenes
from lima_core.geometry.camera import Projection
from lima_core.viz.overlay import draw_points, overlay

RED, GREEN = (255, 0, 0), (0, 255, 0)


def projection(uv, depth, visible=None):
    visible = [True] * len(depth) if visible is None else visible
    return Projection(np.array(uv, float).reshape(-1, 2), np.array(depth, float), np.array(visible, bool))


def pixels_of(picture, color):
    """{(u, v)} of a colour."""
    v, u = np.nonzero((picture == color).all(axis=2))
    return set(zip(u.tolist(), v.tolist(), strict=True))


def test_a_point_covers_its_disc_and_nothing_else():
    rgb = np.full((10, 20, 3), 100, np.uint8)
    picture = draw_points(rgb, projection([[7.4, 3.6]], [5.0]), np.array([RED], np.uint8), radius=1)
    assert pixels_of(picture, RED) == {(7, 4), (6, 4), (8, 4), (7, 3), (7, 5)}
    assert len(pixels_of(picture, (75, 75, 75))) == 195
    assert (rgb == 100).all(), "the picture that came in was changed"


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_near_point_hides_the_far_one_also_where_only_discs_meet(order):
    uv, depth, colors = np.array([[5.0, 5], [6, 5]]), np.array([4.0, 40.0]), np.array([RED, GREEN], np.uint8)
    picture = draw_points(np.zeros((12, 12, 3), np.uint8), projection(uv[order], depth[order]), colors[order], 1)
    assert pixels_of(picture, RED) == {(5, 5), (4, 5), (6, 5), (5, 4), (5, 6)}
    assert pixels_of(picture, GREEN) == {(7, 5), (6, 4), (6, 6)}


def test_borders_invisible_points_and_no_points():
    black = np.zeros((4, 6, 3), np.uint8)
    corner = draw_points(black, projection([[5.4, 3.4]], [2.0]), np.array([RED], np.uint8), radius=2)
    assert pixels_of(corner, RED) <= {(u, v) for u in range(6) for v in range(4)} and (5, 3) in pixels_of(corner, RED)
    hidden = projection([[2.0, 2.0], [np.nan, np.nan]], [2.0, -1.0], [False, False])
    assert not draw_points(black, hidden, np.array([RED, RED], np.uint8)).any()
    assert not draw_points(black, projection(np.empty((0, 2)), []), np.empty((0, 3), np.uint8)).any()


@pytest.mark.parametrize(("width", "height", "radius"), [(448, 224, 1), (1600, 900, 3)])
def test_points_grow_with_the_picture(width, height, radius):
    where = projection([[width / 2, height / 2]], [9.0])
    picture = draw_points(np.zeros((height, width, 3), np.uint8), where, np.array([RED], np.uint8))
    u = [u for u, _ in pixels_of(picture, RED)]
    assert max(u) - min(u) == 2 * radius


def test_real_keyframe(shared):
    """The labelled points of the real front camera: each visible one shows its colour or that of a nearer one."""
    frame = NuScenes(shared / "data" / "nus_tiny")[0]
    view = next(v for v in frame.cameras if v.name == "CAM_FRONT")
    colors = np.where((frame.labels == 3)[:, None], RED, GREEN).astype(np.uint8)
    picture, where = overlay(view, frame.points, colors), view.project(frame.points)
    u, v = np.rint(where.uv[where.visible]).astype(int).T
    shown = picture[v, u]
    assert ((shown == RED).all(axis=1) | (shown == GREEN).all(axis=1)).all()
    nearest = np.argmin(where.depth[where.visible])
    assert (shown[nearest] == colors[where.visible][nearest]).all()
    drawn = len(pixels_of(picture, RED)) + len(pixels_of(picture, GREEN))
    assert where.visible.sum() * 3 < drawn < where.visible.sum() * 37

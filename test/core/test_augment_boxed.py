"""Points and boxes go through the same similarity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.data.augment import AugmentConfig, augment, augment_boxed
from lima_core.data.boxed import BoxedSweep
from lima_core.data.frame import Boxes
from lima_core.geometry.boxes import box_table, corners, points_in_boxes

DETECTION = AugmentConfig(flip=0.5, rotation=22.5, scale=(0.95, 1.05), intensity_gain=1.0)
STILL = AugmentConfig(flip=0.0, rotation=0.0, scale=(1.0, 1.0), intensity_gain=1.0)
seeds = st.integers(0, 2**32 - 1)
# `augment` of two points from seed 11, and the generator's next number, before boxes were augmented too
RECORDED = [[0.36407548, -2.077837, 2.864146, 0.30690247], [5.898172, -1.5666088, 0.4742621, 0.15345123]]
FOLLOWING = 3240284249
recipes = st.builds(
    AugmentConfig,
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotation=st.floats(0, 180),
    scale=st.sampled_from([(1.0, 1.0), (0.95, 1.05), (0.5, 2.0)]),
    intensity_gain=st.sampled_from([1.0, 2.0]),
)


def scene(seed: int, count: int = 6) -> BoxedSweep:
    """Boxes anywhere, 20 points well inside each, and 50 elsewhere; every second velocity is unknown."""
    rng = np.random.default_rng(seed)
    center, size = rng.uniform(-40, 40, (count, 3)), rng.uniform(0.3, 12, (count, 3))
    yaw, velocity = rng.uniform(-np.pi, np.pi, count), rng.normal(0, 8, (count, 2))
    velocity[::2] = np.nan
    local = rng.uniform(-0.45, 0.45, (count, 20, 3)) * size[:, None]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    turned = np.stack([cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]], -1)
    inside = np.concatenate([turned, local[..., 2:]], -1) + center[:, None]
    xyz = np.concatenate([inside.reshape(-1, 3), rng.uniform(-50, 50, (50, 3))])
    points = np.column_stack([xyz, rng.random(len(xyz)), rng.choice([0, 0.05], len(xyz))]).astype(np.float32)
    boxes = Boxes(center, size, yaw, velocity, np.arange(count, dtype=np.uint8), np.full(count, 20, np.int32))
    return BoxedSweep(points, 60, boxes, np.arange(60, dtype=np.uint8), 32)


@settings(deadline=None)
@given(seed=seeds, config=recipes)
def test_points_move_as_augment_moves_them_and_time_stays(seed: int, config: AugmentConfig) -> None:
    sweep = scene(1)
    changed = augment_boxed(sweep, np.random.default_rng(seed), config)
    wanted = augment(np.ascontiguousarray(sweep.points[:, :4]), np.random.default_rng(seed), config)
    np.testing.assert_allclose(changed.points[:, :4], wanted, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(changed.points[:, 4], sweep.points[:, 4])
    assert changed.points.dtype == np.float32
    assert (changed.current, changed.beams) == (sweep.current, sweep.beams)
    np.testing.assert_array_equal(changed.labels, sweep.labels)
    np.testing.assert_array_equal(changed.boxes.class_id, sweep.boxes.class_id)
    np.testing.assert_array_equal(changed.boxes.points, sweep.boxes.points)


@settings(deadline=None)
@given(seed=seeds, config=recipes)
def test_points_inside_a_box_stay_inside_it(seed: int, config: AugmentConfig) -> None:
    sweep = scene(seed % 100)
    changed = augment_boxed(sweep, np.random.default_rng(seed), config)
    found = points_in_boxes(changed.points, box_table(changed.boxes))
    for box, rows in enumerate(found):
        assert set(range(20 * box, 20 * box + 20)) <= set(rows.tolist())


@settings(deadline=None)
@given(seed=seeds, config=recipes)
def test_corners_move_as_points_do(seed: int, config: AugmentConfig) -> None:
    """The corners of a changed box are those of the box, changed; a mirror swaps their order."""
    sweep = scene(seed % 100, count=3)
    before = corners(box_table(sweep.boxes)).reshape(-1, 3)
    as_points = np.column_stack([before, np.zeros(len(before))]).astype(np.float32)
    wanted = augment(as_points, np.random.default_rng(seed), config)[:, :3].reshape(3, 8, 3)
    got = corners(box_table(augment_boxed(sweep, np.random.default_rng(seed), config).boxes))
    for one, other in zip(got, wanted, strict=True):
        distance = np.linalg.norm(one[:, None] - other[None], axis=-1)
        assert distance.min(1).max() < 1e-3 and distance.min(0).max() < 1e-3


@settings(deadline=None)
@given(seed=seeds, config=recipes)
def test_velocity_and_heading_follow_a_moving_point(seed: int, config: AugmentConfig) -> None:
    """The velocity is the way of the centre in one second; the front moves away from the centre along yaw."""
    sweep = scene(seed % 100)
    boxes = sweep.boxes
    changed = augment_boxed(sweep, np.random.default_rng(seed), config).boxes

    def carried(xy: np.ndarray) -> np.ndarray:
        points = np.column_stack([xy, np.zeros((len(xy), 2))]).astype(np.float32)
        return augment(points, np.random.default_rng(seed), config)[:, :2]

    here = carried(boxes.center[:, :2])
    known = np.isfinite(boxes.velocity[:, 0])
    np.testing.assert_allclose(
        (carried(boxes.center[:, :2] + boxes.velocity) - here)[known], changed.velocity[known], atol=1e-3
    )
    assert np.isnan(changed.velocity[~known]).all()
    front = carried(boxes.center[:, :2] + np.column_stack([np.cos(boxes.yaw), np.sin(boxes.yaw)])) - here
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    np.testing.assert_allclose(np.column_stack([np.cos(changed.yaw), np.sin(changed.yaw)]), front, atol=1e-3)
    assert ((changed.yaw >= -np.pi) & (changed.yaw < np.pi)).all()


class Drawn:
    """A generator that mirrors as told and draws nothing else: no rotation, no scale, no gain."""

    def __init__(self, x: bool, y: bool) -> None:
        self._mirror = np.where([x, y], 0.0, 1.0)

    def random(self, count: int) -> np.ndarray:
        return self._mirror[:count]

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


@pytest.mark.parametrize(
    ("x", "y", "yaw", "velocity"),
    [
        (False, False, 0.3, (2, 1)),
        (False, True, -0.3, (2, -1)),
        (True, False, np.pi - 0.3, (-2, 1)),
        (True, True, 0.3 - np.pi, (-2, -1)),
    ],
)
def test_mirrors_in_closed_form(x: bool, y: bool, yaw: float, velocity: tuple[float, float]) -> None:
    one = np.ones((1, 1))
    boxes = Boxes(one * [5, 3, 1], one * [4, 2, 1], np.array([0.3]), one * [2, 1], np.zeros(1, np.uint8))
    sweep = BoxedSweep(np.zeros((0, 5), np.float32), 0, boxes, None, 0)
    changed = augment_boxed(sweep, Drawn(x, y), AugmentConfig(flip=0.5)).boxes
    signs = np.where([x, y, False], -1, 1)
    np.testing.assert_allclose(changed.center, boxes.center * signs)
    np.testing.assert_allclose(changed.size, boxes.size)
    np.testing.assert_allclose(changed.yaw, [yaw])
    np.testing.assert_allclose(changed.velocity, [velocity])


def test_a_heading_of_pi_comes_back_as_minus_pi() -> None:
    sweep = scene(0, count=1)
    boxes = Boxes(sweep.boxes.center, sweep.boxes.size, np.array([np.pi]), sweep.boxes.velocity, sweep.boxes.class_id)
    still = BoxedSweep(sweep.points, 0, boxes, None, 0)
    np.testing.assert_array_equal(augment_boxed(still, np.random.default_rng(0), STILL).boxes.yaw, [-np.pi])


def test_a_sweep_without_boxes_stays_one() -> None:
    sweep = BoxedSweep(scene(0).points, 170, Boxes.joined([]), None, 0)
    changed = augment_boxed(sweep, np.random.default_rng(0), DETECTION)
    assert len(changed.boxes) == 0 and changed.boxes.center.shape == (0, 3) and changed.labels is None


def test_draws_of_augment_repeat_recorded_ones() -> None:
    """Numbers of this function before it knew boxes: trainings that were started then go on alike."""
    points = np.array([[1, 2, 3, 0.5], [-4, 5, 0.5, 0.25]], np.float32)
    rng = np.random.default_rng(11)
    changed = augment(points, rng, AugmentConfig(jitter=0.01))
    np.testing.assert_allclose(changed, np.array(RECORDED, np.float32), rtol=1e-6)  # the last bit is the processor's
    assert rng.integers(2**32) == FOLLOWING

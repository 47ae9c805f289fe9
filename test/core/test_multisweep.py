"""Sweeps laid over each other: the devkit's numbers, properties of poses, real drives, missing poses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drives import ToyDrive
from lima_core.data.datasets import open_dataset
from lima_core.data.frame import DatasetError, Frame
from lima_core.data.multisweep import PastSweep, aggregate, past_of, past_sweeps
from lima_core.data.semantickitti import SemanticKITTI
from lima_core.data.synthetic.street import Street
from lima_core.geometry import se3

STAMP = 1_600_000_000_000_000_000
metres = st.floats(-60, 60, width=32)
clouds = st.integers(0, 8).flatmap(lambda n: arrays(np.float32, (n, 4), elements=metres))
turns = st.floats(-3.1, 3.1)
placed = st.builds(lambda x, y, z, yaw, pitch: se3.poses(x, y, z, yaw, pitch), metres, metres, metres, turns, turns)
pasts = st.lists(st.tuples(clouds, placed, st.floats(0, 2)), max_size=4)


def frame(points: np.ndarray, pose: np.ndarray, seconds: float = 0.0) -> Frame:
    """A frame that is `seconds` older than STAMP."""
    return Frame(STAMP - round(seconds * 1e9), "drive", 7, points, pose)


def rows(points: np.ndarray) -> np.ndarray:
    """Points in an order of their own."""
    return points[np.lexsort(points.T)]


def test_the_vector_of_the_devkit(vectors: dict) -> None:
    """Its close points of the keyframe are kept, as OpenPCDet does."""
    inputs, expected, tol = (vectors["multi_sweep"][k] for k in ("inputs", "expected", "tol"))
    mount = inputs["calibrated"]
    base_from_lidar = se3.transform(np.array(mount["rotation"]), np.array(mount["translation"]))
    poses = [
        se3.transform(np.array(p["rotation"]), np.array(p["translation"])) @ base_from_lidar
        for p in inputs["ego_poses"]
    ]
    clouds = [np.array(c, np.float32)[:, :4] / np.float32([1, 1, 1, 255]) for c in inputs["raw_points"]]
    ages = [(inputs["timestamps_us"][-1] - t) / 1e6 for t in inputs["timestamps_us"]]
    *older, current = (frame(c, p, s) for c, p, s in zip(clouds, poses, ages, strict=True))
    found = aggregate(current.points, past_of(current, older)) * np.float32([1, 1, 1, 255, 1])
    lags = np.array(expected["time_lag"])
    past = np.column_stack([expected["points_xyzi"], lags])[lags > 0]
    kept = np.array(expected["keyframe_close_kept"])
    np.testing.assert_allclose(found[: len(kept)], np.column_stack([kept, np.zeros(len(kept))]), atol=tol)
    np.testing.assert_allclose(found[len(kept) :], past, atol=tol)


@given(clouds, pasts)
def test_the_current_sweep_is_first_and_complete(points: np.ndarray, past: list[PastSweep]) -> None:
    found = aggregate(points, past)
    assert found.dtype == np.float32 and found.shape[1] == 5
    np.testing.assert_array_equal(found[: len(points), :4], points)
    assert not found[: len(points), 4].any()
    kept = [sum(abs(x) >= 1 or abs(y) >= 1 for x, y in sweep[:, :2].tolist()) for sweep, _, _ in past]
    assert len(found) == len(points) + sum(kept)
    ages = np.repeat(np.float32([seconds for _, _, seconds in past]), kept)
    np.testing.assert_array_equal(found[len(points) :, 4], ages)


@given(clouds, clouds)
def test_a_sweep_from_the_same_place_is_appended_as_it_is(points: np.ndarray, older: np.ndarray) -> None:
    far = older + np.float32([200, 0, 0, 0])
    np.testing.assert_array_equal(aggregate(points, [(far, np.eye(4), 0.5)])[len(points) :, :4], far)


@given(clouds, pasts, st.randoms(use_true_random=False))
def test_the_order_of_past_sweeps_moves_rows_only(points: np.ndarray, past: list[PastSweep], random: object) -> None:
    shuffled = list(past)
    random.shuffle(shuffled)
    np.testing.assert_array_equal(rows(aggregate(points, past)), rows(aggregate(points, shuffled)))


@given(placed, placed)
def test_what_stands_still_is_found_where_it_is(first: np.ndarray, second: np.ndarray) -> None:
    """A point of the world, seen from two poses anywhere."""
    world = np.array([[500.0, -300.0, 2.0], [700.0, 100.0, 0.0]])
    seen = [
        frame(np.column_stack([se3.apply(se3.inverse(p), world), [0.1, 0.9]]).astype(np.float32), p, s)
        for p, s in ((first, 0.1), (second, 0.0))
    ]
    found = aggregate(seen[1].points, past_of(seen[1], seen[:1]))
    np.testing.assert_allclose(found[2:, :4], found[:2, :4], atol=2e-3)  # float32 at 1 km
    np.testing.assert_allclose(found[:, 4], [0, 0, 0.1, 0.1], atol=1e-6)


def test_nothing_gives_no_points() -> None:
    empty = np.zeros((0, 4), np.float32)
    for past in ([], [(empty, np.eye(4), 0.1)]):
        found = aggregate(empty, past)
        assert found.shape == (0, 5) and found.dtype == np.float32


def test_sweeps_of_a_window_are_newest_first_and_of_one_sequence() -> None:
    drive = ToyDrive(sequences=2, frames=4)
    past = past_sweeps(drive, 7, 10)
    assert [len(points) for points, _, _ in past] == [len(drive[i].points) for i in (6, 5, 4)]
    assert [seconds for _, _, seconds in past] == pytest.approx([0.5, 1.0, 1.5])
    forward = [se3.apply(drive.rig.base_from_lidar @ m, np.zeros((1, 3)))[0, 0] for _, m, _ in past]
    at_rest = drive.rig.base_from_lidar[0, 3]
    np.testing.assert_allclose(forward, at_rest - np.array([1, 2, 3]), atol=1e-9)  # a metre per frame
    assert past_sweeps(drive, 4, 10) == [] and len(past_sweeps(drive, 7, 2)) == 2 and past_sweeps(drive, 7, 0) == []


def test_a_street_stands_still_under_the_moving_vehicle() -> None:
    """Points of past sweeps lie on the current surfaces, and would not without the poses."""
    street = Street(3, frames=4, cameras=False)
    current = street[3]
    past, rigid = past_sweeps(street, 3, 3), at_rest(street, 3, 3)
    assert nearest(current.points, past, above=-1.0) < 0.6 * nearest(current.points, rigid, above=-1.0)


def at_rest(source: Street, index: int, count: int) -> list[PastSweep]:
    return [(points, np.eye(4), seconds) for points, _, seconds in past_sweeps(source, index, count)]


def nearest(points: np.ndarray, past: list[PastSweep], above: float) -> float:
    """Median distance in m from past points off the ground, within 30 m, to the nearest current point."""
    added = aggregate(points, past)[len(points) :]
    kept = (np.hypot(*added[:, :2].T) < 30) & (added[:, 2] > above)
    some = np.random.default_rng(0).choice(np.flatnonzero(kept), 500)
    return torch.cdist(torch.from_numpy(added[some, :3]), torch.from_numpy(points[:, :3])).amin(1).median().item()


def test_real_sweeps_lie_on_each_other(shared: Path) -> None:
    """1.27 m from frame to frame: with the poses, past points are nearer to the current ones."""
    drive = open_dataset("nuscenes", shared / "data" / "ddad_as_nus", "train")
    past = past_sweeps(drive, 2, 9)
    assert [seconds for _, _, seconds in past] == pytest.approx([0.1, 0.2], abs=1e-2)
    current = drive[2].points
    rigid = at_rest(drive, 2, 9)
    assert nearest(current, past, above=1.0) < 0.5 * nearest(current, rigid, above=1.0)


def test_a_frame_without_pose_is_named(shared: Path) -> None:
    source = SemanticKITTI(shared / "data" / "semantickitti", "val")
    lost = replace(source[0], world_from_lidar=np.full((4, 4), np.nan))
    for pair in ((lost, source[0]), (source[0], lost)):
        with pytest.raises(DatasetError, match=r"08 frame 0 has no pose.*use 1 sweep"):
            past_of(pair[0], [pair[1]])
    assert past_of(lost, []) == []  # a single sweep needs none


def test_a_window_from_the_future_is_named() -> None:
    empty = np.zeros((0, 4), np.float32)
    with pytest.raises(DatasetError, match=r"drive frame 7 is 0.100000 s newer"):
        past_of(frame(empty, np.eye(4), 0.1), [frame(empty, np.eye(4))])

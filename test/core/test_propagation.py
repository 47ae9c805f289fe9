"""Long-term propagation in closed form: where each point was seen from is known, so F_d is too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lima_core.geometry import se3
from lima_core.lima.memory import Memory
from lima_core.lima.propagation import aligned, propagate

CENTRE = 0.05  # of a 0.1 m voxel


def pose(x: float = 0.0, y: float = 0.0, yaw_deg: float = 0.0, z: float = 0.0) -> np.ndarray:
    half = np.radians(yaw_deg) / 2
    return se3.transform(np.array([np.cos(half), 0, 0, np.sin(half)]), np.array([x, y, z]))


def seen_from(world_from_lidar: np.ndarray, world: np.ndarray, features: torch.Tensor) -> Memory:
    """Points of the world as a sensor there measured them."""
    points = se3.apply(se3.inverse(world_from_lidar), world)
    return Memory(torch.from_numpy(points).float(), features, torch.from_numpy(world_from_lidar))


def static_world(count: int = 200, channels: int = 6) -> tuple[np.ndarray, torch.Tensor]:
    """Points in the middle of different voxels of the frame at the origin, and a unit feature each."""
    rng = np.random.default_rng(0)
    cells = np.unique(rng.integers(-200, 200, (count, 3)), axis=0)
    features = torch.from_numpy(rng.normal(size=(len(cells), channels))).float()
    return cells * 0.1 + CENTRE, torch.nn.functional.normalize(features, dim=1)


POSES = [pose(-8, 1, 20), pose(-6, 0.5, 10, 0.2), pose(3, -4, 170), pose(-2, 0, 0)]


def test_a_static_world_seen_from_anywhere_gives_its_own_feature():
    world, features = static_world()
    origin = np.eye(4)
    current = seen_from(origin, world, features)
    past = [seen_from(p, world, features) for p in POSES]
    fused, rows = propagate(torch.from_numpy(world), current, past)
    assert rows.tolist() == list(range(len(world)))
    torch.testing.assert_close(fused, features, atol=1e-6, rtol=0)


def test_the_same_far_from_the_origin_of_the_world():
    """nuScenes poses are kilometres out, where float32 would lose the voxels."""
    world, features = static_world()
    far = pose(1234567.0, 2345678.0, 33)
    at = se3.apply(far, world)
    past = [seen_from(far @ p, at, features) for p in POSES]
    nothing = Memory(torch.empty(0, 3), torch.empty(0, 6), torch.from_numpy(far))
    fused, rows = propagate(torch.from_numpy(world), nothing, past)
    assert rows.tolist() == list(range(len(world)))
    torch.testing.assert_close(fused, features, atol=1e-6, rtol=0)


def test_a_pose_error_shows():
    world, features = static_world()
    wrong = seen_from(pose(-5), world, features)
    wrong = Memory(wrong.points, wrong.features, torch.from_numpy(pose(-5 + 0.3)))
    nothing = Memory(torch.empty(0, 3), torch.empty(0, 6), torch.eye(4, dtype=torch.float64))
    _, right_rows = propagate(torch.from_numpy(world), nothing, [seen_from(pose(-5), world, features)])
    _, rows = propagate(torch.from_numpy(world), nothing, [wrong])
    assert len(right_rows) == len(world) and len(rows) < 0.05 * len(world)


def test_alignment_in_numbers():
    """1 m ahead of a car at (10, 0) that looks along y is (10, 1); from (10, -4), looking along x, that is (0, 5)."""
    then = Memory(torch.tensor([[1.0, 0, 0.5]]), torch.zeros(1, 2), torch.from_numpy(pose(10, 0, 90)))
    moved = aligned(then, torch.from_numpy(pose(10, -4)))
    torch.testing.assert_close(moved, torch.tensor([[0.0, 5, 0.5]], dtype=torch.float64))


def one(features: list[list[float]], points: list[list[float]], world_from_lidar: np.ndarray | None = None) -> Memory:
    where = np.eye(4) if world_from_lidar is None else world_from_lidar
    return Memory(torch.tensor(points).reshape(-1, 3), torch.tensor(features), torch.from_numpy(where))


HERE, BESIDE = [5.02, 1.02, 0.02], [5.08, 1.07, 0.08]  # one voxel


def test_a_voxel_pools_every_feature_of_every_frame_with_equal_weight():
    current = one([[1.0, 0.0]], [HERE])
    past = [one([[0.0, 1.0], [0.0, 1.0]], [HERE, BESIDE]), one([[1.0, 1.0]], [BESIDE])]
    fused, rows = propagate(torch.tensor([HERE, [9.0, 9, 9], BESIDE]), current, past)
    assert rows.tolist() == [0, 2]
    torch.testing.assert_close(fused, torch.tensor([[2 / 4, 3 / 4]] * 2))


def test_a_point_that_is_only_remembered_gets_a_target():
    past = one([[0.6, 0.8]], [[4.02, 1.02, 0.02]], pose(1.0))
    fused, rows = propagate(torch.tensor([[-9.0, 0, 0], HERE]), one([[1.0, 0.0]], [[7.0, 7, 7]]), [past])
    assert rows.tolist() == [1]
    torch.testing.assert_close(fused, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(("gate", "expected"), [(None, [0.5, 0.5]), (0.5, [1.0, 0.0]), (-1.0, [0.5, 0.5])])
def test_the_gate_keeps_a_moving_object_from_leaving_its_feature_behind(gate, expected):
    """A car (0, 1) stood where the road (1, 0) is seen now."""
    fused, _ = propagate(torch.tensor([HERE]), one([[1.0, 0.0]], [HERE]), [one([[0.0, 1.0]], [BESIDE])], gate=gate)
    torch.testing.assert_close(fused, torch.tensor([expected]))


def test_the_gate_lets_through_what_agrees_and_what_is_not_seen_now():
    current = one([[1.0, 0.0]], [HERE])
    past = one([[0.8, 0.6], [0.0, 1.0]], [BESIDE, [2.02, 2.02, 2.02]])
    fused, rows = propagate(torch.tensor([HERE, [2.05, 2.05, 2.05]]), current, [past], gate=0.5)
    assert rows.tolist() == [0, 1]
    torch.testing.assert_close(fused, torch.tensor([[0.9, 0.3], [0.0, 1.0]]))


def test_the_gate_compares_with_what_is_seen_now_not_with_earlier_frames():
    current, car = one([[1.0, 0.0]], [HERE]), one([[0.0, 1.0]], [HERE])
    slanted = one([[0.6, 0.8]], [HERE])
    fused, _ = propagate(torch.tensor([HERE]), current, [slanted, car], gate=0.5)
    torch.testing.assert_close(fused, torch.tensor([[0.8, 0.4]]))


def test_the_order_of_the_past_does_not_matter():
    rng = np.random.default_rng(3)
    points = torch.from_numpy(rng.uniform(-2, 2, (500, 3))).float()
    frames = [
        Memory(points + 0.01, torch.from_numpy(rng.normal(size=(500, 4))).float(), torch.from_numpy(p))
        for p in (pose(0.01), pose(0.03), pose(0.05))
    ]
    current = Memory(points, torch.from_numpy(rng.normal(size=(500, 4))).float(), torch.eye(4, dtype=torch.float64))
    for gate in (None, 0.2):
        fused, rows = propagate(points, current, frames, gate=gate)
        turned, turned_rows = propagate(points, current, frames[::-1], gate=gate)
        assert torch.equal(rows, turned_rows)
        torch.testing.assert_close(fused, turned, atol=1e-5, rtol=1e-5)


def test_the_size_of_the_voxels():
    apart = torch.tensor([[0.1, 0.1, 0.1], [0.4, 0.4, 0.4]])
    current = one([[1.0, 0.0]], [[0.1, 0.1, 0.1]])
    assert propagate(apart, current, [], voxel_m=0.1)[1].tolist() == [0]
    assert propagate(apart, current, [], voxel_m=0.5)[1].tolist() == [0, 1]


def test_a_past_that_is_somewhere_else_altogether_adds_nothing():
    """A jump of the pose by a thousand kilometres must not overflow a voxel index."""
    past = one([[0.0, 1.0]], [HERE], pose(1e6))
    fused, rows = propagate(torch.tensor([HERE]), one([[1.0, 0.0]], [HERE]), [past])
    assert rows.tolist() == [0]
    torch.testing.assert_close(fused, torch.tensor([[1.0, 0.0]]))


def test_nothing_seen_and_no_points():
    empty = Memory(torch.empty(0, 3), torch.empty(0, 4), torch.eye(4, dtype=torch.float64))
    features, rows = propagate(torch.rand(5, 3), empty, [empty])
    assert features.shape == (0, 4) and rows.shape == (0,)
    features, rows = propagate(torch.empty(0, 3), one([[1.0, 0.0]], [HERE]), [])
    assert features.shape == (0, 2) and rows.shape == (0,)

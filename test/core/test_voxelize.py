"""Voxelisation against the golden vectors and a real sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.models.voxelize import VoxelConfig, cartesian_index, cylinder_index, merge, network_input, voxelize
from lima_core.sparse.kernel_map import CoordinateError
from lima_core.training.collate import collate

CYLINDER = (0.1, 1.0, 0.1)


def test_cylinder_voxels_match_the_golden_vector(vectors: dict) -> None:
    vector = vectors["cylinder_voxels"]
    points, expected = torch.tensor(vector["inputs"]["points"]), vector["expected"]
    assert cylinder_index(points, CYLINDER).tolist() == expected["coord_round"]
    assert cylinder_index(points, CYLINDER, "floor").tolist() == expected["coord_floor"]
    voxels = voxelize(points, VoxelConfig())
    assert voxels.first_point.tolist() == expected["first_point_index"]
    assert voxels.voxel_of_point.tolist() == expected["point_to_voxel"]


def test_cartesian_voxels_match_the_golden_vector(vectors: dict) -> None:
    vector = vectors["cartesian_voxels"]
    low, voxel = vector["inputs"]["range"][:3], vector["inputs"]["voxel"]
    points = torch.tensor(vector["inputs"]["points"], dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)
    assert cartesian_index(points, tuple(voxel)).tolist() == vector["expected"]["idx_xyz"]


@pytest.mark.parametrize(("rounding", "key"), [("round", "cylinder_voxels_round"), ("floor", "cylinder_voxels_floor")])
def test_real_sweep_has_the_known_number_of_voxels(shared: Path, vectors: dict, rounding: str, key: str) -> None:
    (path,) = (shared / "data" / "nus_tiny" / "samples" / "LIDAR_TOP").glob("*.pcd.bin")
    points = torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 5))
    expected = vectors["real_nuscenes_frame"]["expected"]
    assert len(points) == expected["num_points"]
    voxels = voxelize(points, VoxelConfig(rounding=rounding))
    assert len(voxels.coords) == pytest.approx(expected[key], rel=1e-3)


coordinate = st.floats(-200, 200, width=32)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=60),
    st.sampled_from(["cylinder", "cartesian"]),
    st.sampled_from([(0.1, 1.0, 0.1), (5.0, 30.0, 5.0)]),
)
def test_points_and_voxels_map_onto_each_other(
    rows: list[tuple[float, float, float]], kind: str, size: tuple[float, float, float]
) -> None:
    points = torch.tensor(rows).reshape(-1, 3)
    config = VoxelConfig(kind, size)
    voxels = voxelize(points, config)
    index = {"cylinder": cylinder_index, "cartesian": cartesian_index}[kind](points, size, "round")
    assert torch.equal(voxels.coords[voxels.voxel_of_point, 1:], index)
    assert torch.equal(voxels.voxel_of_point[voxels.first_point], torch.arange(len(voxels.coords)))
    assert len(voxels.coords) == len(set(map(tuple, index.tolist())))
    for voxel, first in enumerate(voxels.first_point.tolist()):
        assert first == int((voxels.voxel_of_point == voxel).nonzero()[0])


def test_merge_keeps_batches_apart() -> None:
    coords = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)
    voxels = merge(coords)
    assert voxels.coords.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert voxels.first_point.tolist() == [1, 0]


def test_points_beyond_the_key_range_are_an_error_with_the_remedy() -> None:
    with pytest.raises(CoordinateError, match="remove far points or use larger voxels"):
        voxelize(torch.tensor([[1e5, 0.0, 0.0]]), VoxelConfig())


def test_collate_reads_feature_and_label_of_the_first_point_of_each_sweep() -> None:
    near, other = [10.0, 0.0, 0.0, 0.25], [10.01, 0.0, 0.0, 0.81]
    sweeps = [
        (np.array([near, other], np.float32), np.array([3, 4], np.uint8)),
        (np.array([other, near], np.float32), np.array([5, 255], np.uint8)),
    ]
    batch = collate(sweeps, VoxelConfig())
    assert batch.voxels.coords[:, 0].tolist() == [0, 1]
    assert batch.labels.tolist() == [3, 5]
    assert batch.voxel_of_point.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(batch.voxels.features[:, 3], torch.tensor([0.5, 0.9]))


def test_network_input_stays_of_order_one() -> None:
    points = torch.tensor([[80.0, -80.0, 8.0, 0.0], [0.0, 0.0, -4.0, 255.0]])
    assert network_input(points).abs().max() <= 2

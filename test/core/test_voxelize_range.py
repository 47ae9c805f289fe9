"""Detection voxels against the golden vector and a slow implementation."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.config import config_from_dict, plain
from lima_core.models.voxelize_range import RangeConfig, voxelize_range

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
COARSE = RangeConfig((-4.0, -2.0, -1.0), (4.0, 2.0, 1.0), (0.5, 0.5, 0.25), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_voxels_match_the_golden_vector(vectors: dict, dtype: torch.dtype) -> None:
    vector = vectors["cartesian_voxels"]
    inputs, expected = vector["inputs"], vector["expected"]
    points = torch.tensor(inputs["points"], dtype=dtype)
    config = RangeConfig(tuple(inputs["range"][:3]), tuple(inputs["range"][3:]), tuple(inputs["voxel"]))
    assert config == RangeConfig()
    voxels = voxelize_range(points, config)
    for row, index, inside in zip(voxels.voxel_of_point.tolist(), expected["idx_xyz"], expected["inside"], strict=True):
        assert voxels.coords[row].tolist() == [0, *index] if inside else row == -1
    assert torch.equal(voxels.features[voxels.voxel_of_point[0]], points[0])


def test_default_volume_has_one_layer_more_in_z() -> None:
    assert RangeConfig().shape == (1024, 1024, 41)
    assert COARSE.shape == (16, 8, 9)


def slow(points: torch.Tensor, batch: list[int]) -> dict[tuple[int, ...], list[int]]:
    """Voxel [batch, x, y, z] -> its points, in input order."""
    members = defaultdict(list)
    for row, (point, scene) in enumerate(zip(points.tolist(), batch, strict=True)):
        if all(low <= p < high for p, low, high in zip(point[:3], COARSE.low, COARSE.high, strict=True)):
            index = (math.floor((p - a) / s) for p, a, s in zip(point[:3], COARSE.low, COARSE.size, strict=True))
            members[(scene, *index)].append(row)
    return members


coordinate = st.one_of(st.floats(-5, 5, width=32), st.sampled_from([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, math.nan]))
# few cells, so that voxels with more points than the cap occur
rows = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(coordinate, st.just(0.1)), st.just(0.3), st.sampled_from([0.1, 0.2, 0.9]))
    | st.tuples(st.integers(0, 2), coordinate, coordinate, coordinate),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_equals_a_slow_implementation(rows: list[tuple[int, float, float, float]]) -> None:
    batch = [row[0] for row in rows]
    extra = torch.arange(2 * len(rows)).reshape(-1, 2)
    points = torch.cat([torch.tensor([row[1:] for row in rows]).reshape(-1, 3), extra], 1)
    voxels = voxelize_range(points, COARSE, torch.tensor(batch, dtype=torch.int32))
    members = slow(points, batch)
    assert voxels.coords.dtype == torch.int32
    assert [tuple(row) for row in voxels.coords.tolist()] == sorted(members)
    expected = torch.full((len(points),), -1)
    for voxel, key in enumerate(sorted(members)):
        expected[members[key]] = voxel
        mean = points[members[key][:3]].double().mean(0)
        torch.testing.assert_close(voxels.features[voxel].double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(voxels.voxel_of_point, expected)


def test_mean_is_of_the_first_ten_points_and_the_rest_keep_their_voxel() -> None:
    points = torch.tensor([[0.05, 0.05, 0.1, 0.0, 0.0]]).repeat(25, 1)
    points[:, 3] = torch.arange(25)
    points[::2, 0] += 0.1  # two voxels, their points in turn
    voxels = voxelize_range(points, RangeConfig())
    assert voxels.coords[:, 1:].tolist() == [[512, 512, 25], [513, 512, 25]]
    assert voxels.features[:, 3].tolist() == [10.0, 9.0]  # of 1, 3 ... 19 and of 0, 2 ... 18
    assert voxels.voxel_of_point.tolist() == [1, 0] * 12 + [1]


def test_scenes_of_a_batch_do_not_meet() -> None:
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(400, 5, generator=generator) - 0.5) * 4
    batch = (torch.rand(400, generator=generator) * 3).int()
    together = voxelize_range(points, COARSE, batch)
    for scene in range(3):
        alone = voxelize_range(points[batch == scene], COARSE)
        mine = together.coords[:, 0] == scene
        assert torch.equal(together.coords[mine, 1:], alone.coords[:, 1:])
        assert torch.equal(together.features[mine], alone.features)


@pytest.mark.parametrize("points", [torch.zeros(0, 5), torch.full((3, 5), 1e9), torch.full((2, 5), torch.inf)])
def test_no_point_in_range_gives_no_voxel(points: torch.Tensor) -> None:
    voxels = voxelize_range(points, RangeConfig())
    assert voxels.coords.shape == (0, 4)
    assert voxels.features.shape == (0, 5)
    assert voxels.voxel_of_point.tolist() == [-1] * len(points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_border_points_as_their_type_has_them(dtype: torch.dtype) -> None:
    """-51.2 is no float32 number: the nearest one must be inside all the same, its neighbour outside."""
    low, high, far = torch.tensor([-51.2, 51.2, torch.inf], dtype=dtype)
    x = torch.stack([low, low.nextafter(-far), high, high.nextafter(-far)])
    points = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1)
    voxels = voxelize_range(points, RangeConfig())
    assert voxels.voxel_of_point.tolist() == [0, -1, -1, 1]
    assert voxels.coords[:, 1].tolist() == [0, 1023]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0.3, 0.1, 0.2)}, "x: -51.2 to 51.2 m is not a whole number of voxels of 0.3 m"),
        ({"size": (0.1, 0.1, 0.0)}, "z: -5.0 to 3.0 m"),
        ({"low": (-51.2, 51.2, -5.0)}, "y: 51.2 to 51.2 m"),
        ({"points_per_voxel": 0}, "at least 1 point"),
    ],
)
def test_impossible_grids_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RangeConfig(**arguments)


def test_config_survives_yaml() -> None:
    assert config_from_dict(RangeConfig, plain(COARSE)) == COARSE

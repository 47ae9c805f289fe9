"""Cross-view aggregation: one feature per point, sampled where the point is, averaged over its cameras."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from lima_core.data.nuscenes import NuScenes
from lima_core.lima.cross_view import Sightings, aggregate, sample, sightings


def seen(*entries: tuple[int, int, float, float]) -> Sightings:
    """(camera, point, u, v) ..."""
    camera, point, u, v = zip(*entries, strict=True)
    return Sightings(torch.tensor(camera), torch.tensor(point), torch.tensor([u, v], dtype=torch.float32).T)


def constant_grids(*features: list[float], size: tuple[int, int] = (2, 4)) -> torch.Tensor:
    """One camera per feature, the same everywhere."""
    return torch.tensor(features)[:, :, None, None].expand(-1, -1, *size).clone()


def test_a_point_in_the_overlap_gets_one_feature_the_mean_of_the_two_unit_features():
    grids = constant_grids([3.0, 0.0], [0.0, 0.5])
    features, rows = aggregate(grids, seen((0, 4, 0.9, 0.5), (0, 7, 0.1, 0.2), (1, 4, 0.1, 0.5)))
    assert rows.tolist() == [4, 7]
    torch.testing.assert_close(features, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def test_max_takes_each_channel_from_the_camera_that_has_more_of_it():
    grids = constant_grids([3.0, -4.0], [-4.0, -3.0])
    features, rows = aggregate(grids, seen((0, 1, 0.5, 0.5), (1, 1, 0.5, 0.5)), "max")
    assert rows.tolist() == [1]
    torch.testing.assert_close(features, torch.tensor([[0.6, -0.6]]))


def test_the_order_of_the_sightings_does_not_matter():
    grids = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    entries = [(0, 9, 0.3, 0.4), (2, 1, 0.8, 0.1), (1, 9, 0.6, 0.9), (0, 1, 0.2, 0.2), (2, 4, 0.5, 0.5)]
    features, rows = aggregate(grids, seen(*entries))
    turned, turned_rows = aggregate(grids, seen(*entries[::-1]))
    assert rows.tolist() == turned_rows.tolist() == [1, 4, 9]
    torch.testing.assert_close(features, turned)


def test_sampling_reproduces_a_linear_ramp_between_the_patch_centres_and_is_flat_beyond():
    height, width = 4, 8
    u, v = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    ramp = torch.stack([u.expand(height, width), v[:, None].expand(height, width)])[None]
    inner = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * 0.7 + 0.15
    sampled = sample(ramp, Sightings(torch.zeros(50, dtype=torch.int64), torch.arange(50), inner))
    torch.testing.assert_close(sampled, inner)
    corners = sample(ramp, seen((0, 0, 0.0, 0.0), (0, 1, 1.0, 1.0)))
    torch.testing.assert_close(corners, torch.tensor([[0.5 / 8, 0.5 / 4], [7.5 / 8, 3.5 / 4]]))


def test_sampling_at_pixel_centres_is_the_dense_upsampled_map():
    grids = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    dense = functional.interpolate(grids, scale_factor=14, mode="bilinear", align_corners=False)
    row, column = torch.randint(0, 56, (200,)), torch.randint(0, 84, (200,))
    camera = torch.randint(0, 2, (200,))
    uv = torch.stack([(column + 0.5) / 84, (row + 0.5) / 56], 1)
    sampled = sample(grids, Sightings(camera, torch.arange(200), uv))
    torch.testing.assert_close(sampled, dense[camera, :, row, column], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cameras", [0, 2])
def test_points_that_no_camera_sees_get_no_feature(cameras):
    none = torch.empty(0, dtype=torch.int64)
    features, rows = aggregate(torch.zeros(cameras, 5, 2, 2), Sightings(none, none, torch.empty(0, 2)))
    assert features.shape == (0, 5) and rows.shape == (0,)


def test_one_camera_alone():
    both = seen((0, 4, 0.9, 0.5), (1, 4, 0.1, 0.5), (1, 6, 0.3, 0.5))
    assert both.of(1).point.tolist() == [4, 6] and both.of(1).uv.shape == (2, 2)
    assert both.of(-1).point.tolist() == []


def test_an_unknown_operator_is_an_error():
    with pytest.raises(ValueError, match=r"attention.*mean or max"):
        aggregate(constant_grids([1.0, 0.0]), seen((0, 0, 0.5, 0.5)), "attention")


def test_real_keyframe(shared):
    """Points seen by one camera, two and none, as the nuScenes devkit counts them; positions as its pixels."""
    frame = NuScenes(shared / "data" / "nus_tiny")[0]
    found = sightings(frame)
    count = torch.bincount(found.point, minlength=len(frame.points))
    assert [(count == n).sum().item() for n in (1, 2, 0)] == [18253, 1931, 14504]
    assert found.uv.min() > 0 and found.uv.max() < 1
    camera = [c.name for c in frame.cameras].index("CAM_FRONT")
    view, front = frame.cameras[camera], found.of(camera)
    homogeneous = np.c_[frame.points[front.point, :3].astype(np.float64), np.ones(len(front.point))]
    uvw = (homogeneous @ view.camera_from_lidar.T)[:, :3] @ view.K.T
    expected = (uvw[:, :2] / uvw[:, 2:] + 0.5) / (1600, 900)
    np.testing.assert_allclose(front.uv.numpy(), expected, atol=1e-6)

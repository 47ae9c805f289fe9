"""The networks: size, shapes, normalisation folding, learning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lima_core.models.heads import build_segmenter
from lima_core.models.minkunet import MODELS, ConvNorm
from lima_core.models.voxelize import VoxelConfig, network_input, voxelize
from lima_core.sparse.conv import InverseConv3d, SparseConv3d, SubMConv3d
from lima_core.sparse.tensor import SparseTensor

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin


def scene(n: int = 400, channels: int = 4) -> SparseTensor:
    points = torch.rand(n, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 10.0, 2.0, 1.0])
    voxels = voxelize(points, VoxelConfig("cartesian", (0.4, 0.4, 0.4)))
    return SparseTensor(network_input(points)[voxels.first_point, :channels], voxels.coords)


def test_minkunet34_has_the_published_size() -> None:
    network = MODELS["minkunet34"]()
    kinds = (SubMConv3d, SparseConv3d, InverseConv3d)
    convolutions = [m for m in network.modules() if isinstance(m, kinds) and max(m.kernel) > 1]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(37.9e6, abs=0.05e6)
    assert len(convolutions) == 56
    assert network.out_channels == 96


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_features_on_its_input_voxels_and_gradients_everywhere(name: str) -> None:
    network, x = MODELS[name](), scene()
    y = network(x)
    assert y.features.shape == (len(x), network.out_channels)
    assert y.coords is x.coords
    y.features.square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_clouds_pass_in_eval_mode(n: int) -> None:
    network = build_segmenter("minkunet_tiny", 5).eval()
    coords = torch.tensor([[0, i, 0, 0] for i in range(n)], dtype=torch.int32).reshape(-1, 4)
    assert network(SparseTensor(torch.rand(n, 4), coords)).shape == (n, 5)


def test_folded_normalisation_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    network = build_segmenter("minkunet_tiny", 5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = scene()
    with torch.no_grad():
        before = network(x)
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in network.modules())


def test_each_cloud_of_a_batch_is_seen_alone_in_eval_mode() -> None:
    network, x = build_segmenter("minkunet_tiny", 5).eval(), scene()
    shift = torch.tensor([1, 0, 0, 0], dtype=torch.int32)
    other = x.with_features(x.features.flip(0))
    both = SparseTensor(torch.cat([x.features, other.features]), torch.cat([x.coords, x.coords + shift]))
    with torch.no_grad():
        expected = torch.cat([network(x), network(other)])
        torch.testing.assert_close(network(both), expected, rtol=1e-4, atol=1e-4)


def test_network_sees_beyond_a_voxels_neighbours() -> None:
    network, x = build_segmenter("minkunet_tiny", 5).eval(), scene()
    changed = x.features.clone()
    changed[0] += 1
    with torch.no_grad():
        moved = (network(x) - network(x.with_features(changed))).abs().sum(1) > 1e-6
    distance = (x.coords - x.coords[0]).abs().amax(1)
    assert distance[moved].max() >= 8


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="minkunet34"):
        build_segmenter("minkunet35", 3)

"""The detectors' sparse encoder: published sizes, dense convolutions, spconv, layout of the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lima_core.models.minkunet import ConvNorm
from lima_core.models.voxelnet import ENCODERS, VOLUME, Hypercolumn, VoxelNet, bev_map
from lima_core.sparse.conv import SparseConv3d, SubMConv3d
from lima_core.sparse.kernel_map import Maps, pack
from lima_core.sparse.tensor import SparseTensor

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
SMALL = (8, 13, 41)  # three different sizes; 1 x 2 x 2 voxels are left at the top
# kernel, stride and padding (x, y, z) of the convolution that opens conv2, conv3, conv4 and conv_out
STRIDED = ((3, 2, 1), (3, 2, 1), (3, 2, (1, 1, 0)), ((1, 1, 3), (1, 1, 2), 0))
REPEATS = {True: (2, 2, 2, 2, 0), False: (1, 2, 2, 2, 0)}


def cloud(cells: torch.Tensor, volume: tuple[int, int, int] = VOLUME, channels: int = 5) -> SparseTensor:
    """Random features on (M, 4) distinct voxels."""
    coords = cells.int().contiguous()
    features = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(0))
    return SparseTensor(features, coords, maps=Maps(coords, volume))


def small(n: int = 100) -> SparseTensor:
    """n random voxels of two scenes in the small volume, two opposite corners among them."""
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(2 * math.prod(SMALL), generator=generator)[:n]
    cells[:2] = torch.tensor([0, 2 * math.prod(SMALL) - 1])
    x, y, z = SMALL
    cells = cells.unique()
    return cloud(torch.stack([cells // (x * y * z), cells // (y * z) % x, cells // z % y, cells % z], 1), SMALL)


def street() -> SparseTensor:
    """Two scenes: walls along the borders of the full volume, its eight corners, and scattered voxels."""
    generator = torch.Generator().manual_seed(2)
    edges = torch.tensor(VOLUME) - 1
    corners = torch.cartesian_prod(*(torch.tensor([0, edge]) for edge in edges.tolist()))
    wall = (torch.rand(500, 3, generator=generator) * torch.tensor([40, 3, 41])).long()
    scattered = (torch.rand(30, 3, generator=generator) * (edges + 1)).long()
    cells = torch.cat([corners, wall, edges - wall, scattered])
    scene = torch.arange(len(cells))[:, None] % 2
    return cloud(torch.cat([scene, cells], 1).unique(dim=0))


def randomise(network: nn.Module) -> nn.Module:
    """Gives every normalisation statistics of a trained network."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


class DenseOps:
    """Dense convolutions; x = (grid (B, C, X, Y, Z), occupancy (B, 1, X, Y, Z))."""

    @staticmethod
    def conv(x: Any, weight: torch.Tensor, geometry: tuple | None) -> Any:
        grid, mask = x
        weight = weight.permute(0, 4, 1, 2, 3)
        if geometry is None:
            return functional.conv3d(grid, weight, padding=1) * mask, mask
        _, stride, padding = geometry
        met = functional.conv3d(mask, torch.ones_like(weight[:1, :1]), stride=stride, padding=padding)
        return functional.conv3d(grid, weight, stride=stride, padding=padding), (met > 0).to(grid.dtype)

    @staticmethod
    def map(x: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return function(x[0]) * x[1], x[1]

    @staticmethod
    def features(x: Any) -> torch.Tensor:
        return x[0]


class SpconvOps:
    """Modules of the library spconv."""

    @staticmethod
    def conv(x: Any, weight: torch.Tensor, geometry: tuple | None) -> Any:
        spconv = pytest.importorskip("spconv.pytorch")
        out_channels, *_, in_channels = weight.shape
        if geometry is None:
            module = spconv.SubMConv3d(in_channels, out_channels, 3, bias=False, indice_key=str(x.spatial_shape))
        else:
            module = spconv.SparseConv3d(in_channels, out_channels, *geometry, bias=False)
        assert module.weight.shape == weight.shape
        module.weight.data = weight.detach().contiguous()
        return module(x)

    @staticmethod
    def map(x: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return x.replace_feature(function(x.features))

    @staticmethod
    def features(x: Any) -> torch.Tensor:
        return x.features


def reference(network: VoxelNet, x: Any, ops: Any, residual: bool) -> list[Any]:
    """The plan of spec/datasets.md 3.2 with the network's weights; outputs of the five stages."""
    layers = iter([module for module in network.modules() if isinstance(module, ConvNorm)])

    def layer(x: Any, geometry: tuple | None = None, relu: bool = True, skip: torch.Tensor | float = 0.0) -> Any:
        module = next(layers)
        norm, weight = module.norm, module.conv.weight
        arguments = norm.running_mean, norm.running_var, norm.weight, norm.bias
        y = ops.map(
            ops.conv(x, weight, geometry), lambda f: functional.batch_norm(f, *arguments, eps=1e-3, training=False)
        )
        return ops.map(y, lambda f: functional.relu(f + skip) if relu else f + skip)

    outputs = []
    for geometry, repeats in zip((None, *STRIDED), REPEATS[residual], strict=True):
        x = layer(x, geometry)
        for _ in range(repeats):
            x = layer(layer(x), skip=ops.features(x)) if residual else layer(x)
        outputs.append(x)
    assert next(layers, None) is None
    return outputs


def dense(x: SparseTensor, scenes: int = 2) -> torch.Tensor:
    """(B, C, X, Y, Z)."""
    scene, i, j, k = x.coords.long().unbind(1)
    grid = x.features.new_zeros(scenes, *x.maps.shape, x.features.shape[1])
    return grid.index_put((scene, i, j, k), x.features).permute(0, 4, 1, 2, 3)


def folded(grid: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y, Z) -> (B, C * Z, Y, X), as OpenPCDet folds its (N, C, D, H, W)."""
    grid = grid.permute(0, 1, 4, 3, 2)
    scenes, channels, depth, height, width = grid.shape
    return grid.reshape(scenes, channels * depth, height, width)


@pytest.mark.parametrize("name", ["voxelnet", "voxelnet_plain"])
def test_stages_have_the_published_shapes(name: str, vectors: dict) -> None:
    network = ENCODERS[name]().eval()
    with torch.no_grad():
        outputs, bev = network.stages(street()), network(street(), 2)
    assert [list(x.maps.shape[::-1]) for x in outputs] == vectors["sparse_encoder"]["expected"]["shapes"]
    assert tuple(x.features.shape[1] for x in outputs) == network.stage_channels
    assert [x.stride for x in outputs] == [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 16)]
    assert bev.shape == (2, 256, 128, 128) == (2, network.out_channels, 128, 128)


def test_plain_encoder_has_the_published_size(vectors: dict) -> None:
    expected = vectors["sparse_encoder"]["expected"]
    assert convolution_sizes(ENCODERS["voxelnet_plain"]()) == expected["plain_params_per_conv_5ch"]
    assert sum(convolution_sizes(ENCODERS["voxelnet_plain"]())) == expected["plain_conv_params_5ch"]
    assert sum(convolution_sizes(ENCODERS["voxelnet_plain"](4))) == expected["plain_conv_params_4ch"]
    assert norm_size(ENCODERS["voxelnet_plain"]()) == expected["plain_bn_params"]


def test_residual_encoder_has_the_published_size(vectors: dict) -> None:
    expected, network = vectors["sparse_encoder"]["expected"], ENCODERS["voxelnet"]()
    assert sum(convolution_sizes(network)) == expected["res_conv_params_bias_false"]
    assert norm_size(network) == expected["res_bn_params"]
    assert sum(p.numel() for p in network.parameters()) == sum(convolution_sizes(network)) + norm_size(network)


def convolution_sizes(network: nn.Module) -> list[int]:
    return [m.weight.numel() for m in network.modules() if isinstance(m, (SubMConv3d, SparseConv3d))]


def norm_size(network: nn.Module) -> int:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    return sum(p.numel() for m in norms for p in m.parameters())


@pytest.mark.parametrize("residual", [True, False])
def test_equals_dense_convolutions_forward_and_backward(residual: bool) -> None:
    network, x = randomise(VoxelNet(residual=residual, volume=SMALL)).double(), small()
    x = x.with_features(x.features.double().requires_grad_())
    mask = dense(x.with_features(torch.ones(len(x), 1, dtype=torch.float64)))
    expected = reference(network, (dense(x), mask), DenseOps, residual)
    for y, (grid, occupied) in zip(network.stages(x), expected, strict=True):
        assert torch.equal(dense(y.with_features(torch.ones_like(y.features[:, :1]))), occupied)
        torch.testing.assert_close(dense(y), grid, rtol=1e-10, atol=1e-10)
    bev, expected = network(x, 2), folded(expected[-1][0])
    torch.testing.assert_close(bev, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(bev)
    leaves = [x.features, *network.parameters()]
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for got, want in zip(torch.autograd.grad(bev, leaves, upstream), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("residual", [True, False])
def test_equals_spconv_on_the_full_volume(residual: bool) -> None:
    spconv = pytest.importorskip("spconv.pytorch")
    network, x = randomise(VoxelNet(residual=residual)), street()
    with torch.no_grad():
        theirs = spconv.SparseConvTensor(x.features, x.coords, list(VOLUME), 2)
        expected = reference(network, theirs, SpconvOps, residual)
        for y, want in zip(network.stages(x), expected, strict=True):
            assert list(y.maps.shape) == list(want.spatial_shape)
            order, wanted = torch.argsort(pack(y.coords)), torch.argsort(pack(want.indices))
            assert torch.equal(y.coords[order], want.indices[wanted])
            assert want.features.abs().max() > 0.5
            torch.testing.assert_close(y.features[order], want.features[wanted], rtol=1e-4, atol=1e-4)
        top = SparseTensor(want.features, want.indices, maps=Maps(want.indices, tuple(want.spatial_shape)))
        torch.testing.assert_close(network(x, 2), folded(dense(top)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [25, 39, 41, 57])
def test_out_channels_follow_from_the_height_of_the_volume(height: int) -> None:
    network = VoxelNet(volume=(8, 8, height)).eval()
    with torch.no_grad():
        bev = network(cloud(torch.tensor([[0, 0, 0, 0]]), network.volume), 1)
    assert bev.shape == (1, network.out_channels, 1, 1)


def test_a_volume_too_low_for_the_last_stage_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8, 24\) voxels leaves \(1, 1, 0\) .* at least 25 in z"):
        VoxelNet(volume=(8, 8, 24))


@pytest.mark.parametrize("volume", [(64, 64, 41), (40, 24, 25)])
def test_hypercolumn_joins_each_voxel_with_its_ancestors(volume: tuple) -> None:
    network = Hypercolumn(randomise(VoxelNet(volume=volume, stem=4))).eval()
    rng = torch.Generator().manual_seed(0)
    coords = torch.stack([torch.randint(0, n, (200,), generator=rng) for n in (2, *volume)], 1).int()
    x = cloud(torch.unique(coords, dim=0), volume)
    with torch.no_grad():
        column, stages = network(x), network.network.stages(x)
    assert column.coords is x.coords and column.features.shape == (len(x), network.out_channels)
    rows = torch.arange(len(x))
    x_of = x
    for stage, level, part in zip(
        network.network.encoder.values(), stages, column.features.split(network.network.stage_channels, 1), strict=True
    ):
        conv = stage[0].conv
        if isinstance(conv, SparseConv3d):  # the voxel has a part in its ancestor: the convolution has that pair
            pairs, _ = x_of.maps.strided(conv.kernel, conv.stride, conv.padding)
            children = dict(zip(pairs.source.tolist(), [[] for _ in pairs.source], strict=True))
            for child, parent in zip(pairs.source.tolist(), pairs.target.tolist(), strict=True):
                children[child].append(parent)
            found = [
                [p for p in children[row] if torch.equal(level.features[p], f)]
                for row, f in zip(rows.tolist(), part, strict=True)
            ]
            assert all(found)
            rows = torch.tensor([candidates[0] for candidates in found])
        assert torch.equal(level.features[rows], part)
        x_of = level


def test_every_stage_learns_from_the_hypercolumn() -> None:
    network = Hypercolumn(VoxelNet(volume=SMALL, stem=4))
    network(small()).features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim == 5)


def test_map_holds_channel_c_at_height_z_in_c_times_z_plus_z() -> None:
    coords = torch.tensor([[1, 3, 5, 0], [0, 2, 7, 1]], dtype=torch.int32)
    features = torch.tensor([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])
    bev = bev_map(SparseTensor(features, coords, maps=Maps(coords, (4, 8, 2))), 2)
    expected = torch.zeros(2, 6, 8, 4)
    expected[1, [0, 2, 4], 5, 3] = features[0]
    expected[0, [1, 3, 5], 7, 2] = features[1]
    assert torch.equal(bev, expected)


def test_one_voxel_lands_in_its_own_column() -> None:
    """80, 24 are multiples of 8, so each strided kernel meets them once; z = 28 -> 14 -> 7 -> 3 -> 1."""
    network = randomise(ENCODERS["voxelnet"]())
    x = cloud(torch.tensor([[0, 80, 24, 28]]))
    with torch.no_grad():
        bev, top = network(x, 1), network.stages(x)[-1]
    assert top.coords.tolist() == [[0, 10, 3, 1]]
    assert torch.equal(bev[0, 1::2, 3, 10], top.features[0])
    assert bev.count_nonzero() == top.features.count_nonzero() > 0


def test_scene_without_voxels_has_a_map_of_zeros() -> None:
    network, x = randomise(VoxelNet(volume=SMALL)), small()
    moved = cloud(x.coords * torch.tensor([2, 1, 1, 1]) + torch.tensor([1, 0, 0, 0]), SMALL)
    with torch.no_grad():
        bev, expected = network(moved, 5), network(x, 2)
        nothing = network(cloud(torch.zeros(0, 4), SMALL), 3)
    assert bev[[0, 2, 4]].count_nonzero() == 0
    torch.testing.assert_close(bev[[1, 3]], expected, rtol=1e-5, atol=1e-5)
    assert nothing.shape == (3, *expected.shape[1:])
    assert nothing.count_nonzero() == 0


@pytest.mark.parametrize("name", ENCODERS)
def test_training_step_reaches_every_parameter(name: str) -> None:
    network = ENCODERS[name](volume=SMALL)
    network(small(), 2).square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("name", ENCODERS)
def test_folded_normalisation_gives_the_same_map(name: str) -> None:
    network, x = randomise(ENCODERS[name](volume=SMALL)), small()
    with torch.no_grad():
        before = network(x, 2)
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        torch.testing.assert_close(network(x, 2), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in network.modules())


def test_errors_name_the_volume_and_the_scene() -> None:
    network, x = VoxelNet(volume=SMALL).eval(), small()
    with pytest.raises(ValueError, match=r"volume None.*built for \(8, 13, 41\).*maps=Maps"):
        network(SparseTensor(x.features, x.coords), 2)
    with pytest.raises(ValueError, match=r"volume \(8, 13, 41\).*built for \(1024, 1024, 41\)"):
        VoxelNet()(x, 2)
    with pytest.raises(ValueError, match="scene 1 in a batch of 1"):
        network(x, 1)

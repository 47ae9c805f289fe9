"""The sparse layer against dense torch convolutions, finite differences and closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lima_core.sparse.backend import convolve
from lima_core.sparse.conv import InverseConv3d, SparseConv3d, SubMConv3d, use_backend
from lima_core.sparse.kernel_map import MAX_BATCH, REACH, CoordinateError, Maps, pack, unpack
from lima_core.sparse.tensor import SparseTensor

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
SIDE = 8


def cloud(n: int, channels: int, seed: int = 0, batches: int = 2) -> SparseTensor:
    """n distinct voxels in `batches` cubes of SIDE, rows shuffled."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randperm(batches * SIDE**3, generator=generator)[:n]
    coords = torch.stack([cell // SIDE**3, cell // SIDE**2 % SIDE, cell // SIDE % SIDE, cell % SIDE], 1).int()
    features = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    return SparseTensor(features, coords)


def dense(x: SparseTensor, side: int, low: int = 0) -> torch.Tensor:
    """(B, C, side, side, side) with zeros where there is no voxel; index 0 holds coordinate `low`."""
    batch, i, j, k = x.coords.long().unbind(1)
    grid = x.features.new_zeros(2, side, side, side, x.features.shape[1])
    return grid.index_put((batch, i - low, j - low, k - low), x.features).permute(0, 4, 1, 2, 3)


def at(grid: torch.Tensor, coords: torch.Tensor, low: int = 0) -> torch.Tensor:
    batch, i, j, k = coords.long().unbind(1)
    return grid.permute(0, 2, 3, 4, 1)[batch, i - low, j - low, k - low]


def dense_weight(conv: torch.nn.Module) -> torch.Tensor:
    return conv.weight.permute(0, 4, 1, 2, 3)


def assert_same_with_gradients(ours: torch.Tensor, reference: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(ours)
    expected = torch.autograd.grad(reference, leaves, upstream, retain_graph=True)
    for got, want in zip(torch.autograd.grad(ours, leaves, upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [2 * SIDE**3, 300, 40, 1])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_submanifold_equals_dense_convolution_on_the_occupied_voxels(n: int, kernel: int) -> None:
    x = cloud(n, 5)
    x.features.requires_grad_()
    conv = SubMConv3d(5, 7, kernel, bias=True).double()
    reference = functional.conv3d(dense(x, SIDE), dense_weight(conv), conv.bias, padding=kernel // 2)
    leaves = [x.features, conv.weight, conv.bias]
    assert_same_with_gradients(conv(x).features, at(reference, x.coords), leaves)


@pytest.mark.parametrize("n", [2 * SIDE**3, 200, 1])
@pytest.mark.parametrize("kernel", [2, 3])
def test_strided_equals_dense_convolution(n: int, kernel: int) -> None:
    x = cloud(n, 5)
    x.features.requires_grad_()
    conv = SparseConv3d(5, 6, kernel, 2).double()
    out = conv(x)
    # two empty voxels on each side, so that no output falls off the dense grid
    reference = functional.conv3d(dense(x, SIDE + 4, -2), dense_weight(conv), stride=2, padding=(kernel - 1) // 2)
    assert out.stride == (2, 2, 2)
    assert_same_with_gradients(out.features, at(reference, out.coords, -1), [x.features, conv.weight])
    reference = reference.detach().clone()
    batch, i, j, k = (out.coords.long() + torch.tensor([0, 1, 1, 1])).unbind(1)
    reference.permute(0, 2, 3, 4, 1)[batch, i, j, k] = 0
    assert reference.abs().max() == 0, "the dense result is non-zero where the sparse one has no voxel"


@pytest.mark.parametrize("n", [2 * SIDE**3, 200, 1])
def test_inverse_equals_dense_transposed_convolution(n: int) -> None:
    fine = cloud(n, 3)
    coarse = SparseConv3d(3, 4).double()(fine)
    x = coarse.with_features(coarse.features.detach().requires_grad_())
    conv = InverseConv3d(4, 5).double()
    reference = functional.conv_transpose3d(dense(x, SIDE // 2), conv.weight.permute(4, 0, 1, 2, 3), stride=2)
    out = conv(x, fine)
    assert torch.equal(out.coords, fine.coords)
    assert_same_with_gradients(out.features, at(reference, fine.coords), [x.features, conv.weight])


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
def test_gradcheck(kind: str) -> None:
    x = cloud(30, 2)
    conv = {"submanifold": SubMConv3d, "strided": SparseConv3d, "inverse": InverseConv3d}[kind](2, 3).double()
    rows = x if kind != "inverse" else SparseConv3d(2, 2).double()(x)

    def run(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        arguments = (rows.with_features(features), x) if kind == "inverse" else (rows.with_features(features),)
        return torch.func.functional_call(conv, {"weight": weight}, arguments).features

    assert torch.autograd.gradcheck(run, (rows.features.detach().requires_grad_(), conv.weight))


@pytest.mark.parametrize("conv", [SubMConv3d(4, 7, bias=True), SparseConv3d(4, 7, 3, 2, bias=True), SparseConv3d(4, 7)])
def test_result_does_not_depend_on_blocks_and_columns(conv: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = cloud(300, 4)
    conv.double()
    x.features.requires_grad_()
    whole = conv(x).features
    expected = torch.autograd.grad(whole.square().sum(), [x.features, conv.weight])
    monkeypatch.setattr("lima_core.sparse.torch_backend.CPU_PRODUCTS", 31)
    monkeypatch.setattr("lima_core.sparse.torch_backend.CPU_COLUMNS", 3)
    pieces = conv(x).features
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(pieces.square().sum(), [x.features, conv.weight])
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_training_after_inference() -> None:
    x, conv = cloud(300, 4), SubMConv3d(4, 4).double()
    with torch.inference_mode():
        expected = conv(x).features
    y = conv(x).features
    y.sum().backward()
    torch.testing.assert_close(y, expected.clone(), rtol=0, atol=0)


def test_translation_by_negative_coordinates_changes_nothing() -> None:
    x = cloud(200, 4)
    shift = torch.tensor([0, -1000, -64, -2], dtype=torch.int32)
    moved = SparseTensor(x.features, x.coords + shift)
    convs = [SubMConv3d(4, 4).double(), SparseConv3d(4, 4).double()]
    for conv in convs:
        order, order_moved = (torch.argsort(pack(y.coords)) for y in (conv(x), conv(moved)))
        torch.testing.assert_close(conv(x).features[order], conv(moved).features[order_moved], rtol=1e-12, atol=0)


def test_row_order_changes_nothing_but_the_order() -> None:
    x = cloud(200, 4)
    shuffled = torch.randperm(200)
    y = SparseTensor(x.features[shuffled], x.coords[shuffled])
    conv = SubMConv3d(4, 3).double()
    torch.testing.assert_close(conv(x).features[shuffled], conv(y).features, rtol=1e-12, atol=1e-12)


def test_clouds_of_a_batch_do_not_meet() -> None:
    x = cloud(300, 4)
    conv = SubMConv3d(4, 3).double()
    for batch in (0, 1):
        rows = x.coords[:, 0] == batch
        alone = conv(SparseTensor(x.features[rows], x.coords[rows])).features
        torch.testing.assert_close(conv(x).features[rows], alone, rtol=1e-12, atol=1e-12)


def test_empty_cloud_goes_through_forward_and_backward() -> None:
    x = SparseTensor(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, dtype=torch.int32))
    down, up = SparseConv3d(4, 6), InverseConv3d(6, 5)
    out = up(down(SubMConv3d(4, 4)(x)), x)
    assert out.features.shape == (0, 5)
    out.features.sum().backward()
    assert down.weight.grad.abs().sum() == 0


def test_one_voxel_sees_only_the_centre() -> None:
    conv = SubMConv3d(4, 3)
    x = SparseTensor(torch.randn(1, 4), torch.tensor([[0, -5, 3, 9]], dtype=torch.int32))
    torch.testing.assert_close(conv(x).features, x.features @ conv.weight[:, 1, 1, 1].T)


def test_maps_are_built_once_per_level() -> None:
    x = cloud(100, 4)
    y = SubMConv3d(4, 4).double()(x)
    assert y.maps.submanifold(3) is x.maps.submanifold(3)
    down = SparseConv3d(4, 4).double()
    assert down(x).maps is down(y).maps


def test_duplicate_voxels_are_refused() -> None:
    coords = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    x = SparseTensor(torch.zeros(3, 4), coords)
    for conv in (SubMConv3d(4, 4), SparseConv3d(4, 4)):
        with pytest.raises(CoordinateError, match=r"duplicate voxels.*\[0, 1, 2, 3\].*voxelize"):
            conv(x)


@pytest.mark.parametrize("coords", [[0, REACH + 1, 0, 0], [0, 0, 0, -REACH - 1], [-1, 0, 0, 0], [MAX_BATCH, 0, 0, 0]])
def test_coordinates_out_of_range_are_refused(coords: list[int]) -> None:
    with pytest.raises(CoordinateError, match="voxel coordinates"):
        SubMConv3d(1, 1)(SparseTensor(torch.zeros(1, 1), torch.tensor([coords], dtype=torch.int32)))


def test_neighbours_at_the_edge_of_the_range_do_not_wrap() -> None:
    edge = torch.tensor([[0, 0, 0, REACH], [0, 0, 1, -REACH], [1, -REACH, 0, 0], [0, REACH, 0, 0]], dtype=torch.int32)
    assert sum(Maps(edge).submanifold(5).counts) == 0


def test_malformed_coordinates_are_refused() -> None:
    with pytest.raises(CoordinateError, match="int32"):
        SparseTensor(torch.zeros(1, 1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="3, 1"):
        SparseTensor(torch.zeros(3, 1), torch.zeros(1, 4, dtype=torch.int32))


def test_inverse_refuses_a_stranger() -> None:
    x, stranger = cloud(50, 4), cloud(50, 4, seed=1)
    coarse = SparseConv3d(4, 4).double()(stranger)
    with pytest.raises(ValueError, match="not a strided convolution"):
        InverseConv3d(4, 4).double()(coarse, x)


axis = st.integers(-REACH, REACH)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, MAX_BATCH - 1), axis, axis, axis), min_size=1, max_size=20))
def test_keys_keep_coordinates_and_their_order(rows: list[tuple[int, int, int, int]]) -> None:
    coords = torch.tensor(rows, dtype=torch.int32)
    keys = pack(coords)
    assert torch.equal(unpack(keys), coords)
    assert [rows[i] for i in torch.argsort(keys, stable=True)] == sorted(rows)


def test_autocast_computes_in_its_type_and_gives_gradients_in_ours() -> None:
    x = cloud(300, 5)
    features = x.features.float().requires_grad_()
    x = SparseTensor(features, x.coords)
    conv = SubMConv3d(5, 7)
    exact = conv(x).features
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x).features
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    leaves = [features, conv.weight]
    upstream = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, leaves, upstream)
    for got, want in zip(torch.autograd.grad(y, leaves, upstream.bfloat16()), expected, strict=True):
        assert got.dtype == torch.float32
        assert functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    x, conv = cloud(300, 5), SubMConv3d(5, 7, bias=True)
    exact = conv(x.with_features(x.features.float())).features
    y = conv.to(dtype)(x.with_features(x.features.to(dtype))).features
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


def test_anisotropic_strides_and_the_border_are_those_of_a_dense_convolution() -> None:
    x = cloud(300, 3)
    x = SparseTensor(x.features, x.coords, maps=Maps(x.coords, (SIDE,) * 3))
    conv = SparseConv3d(3, 4, (1, 3, 2), (1, 2, 2), (0, 1, 0)).double()
    reference = functional.conv3d(dense(x, SIDE), dense_weight(conv), stride=(1, 2, 2), padding=(0, 1, 0))
    out = conv(x)
    assert out.maps.shape == tuple(reference.shape[2:])
    torch.testing.assert_close(out.features, at(reference, out.coords), rtol=1e-10, atol=1e-10)
    assert out.stride == (1, 2, 2)


def test_voxels_outside_the_volume_are_refused() -> None:
    coords = torch.tensor([[0, 0, 0, 8]], dtype=torch.int32)
    x = SparseTensor(torch.zeros(1, 2), coords, maps=Maps(coords, (8, 8, 8)))
    with pytest.raises(CoordinateError, match=r"outside the volume \(8, 8, 8\)"):
        SubMConv3d(2, 2)(x)


def test_features_of_another_cloud_are_refused() -> None:
    x, other = cloud(50, 4), cloud(60, 4, seed=1)
    with pytest.raises(ValueError, match="4 input channels"):
        SubMConv3d(4, 4).double()(x.with_features(x.features[:, :3]))
    with pytest.raises(ValueError, match="60 voxels"):
        convolve(x.features, SubMConv3d(4, 4).double().weight, None, other.maps.submanifold(3))


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, torch or spconv"):
        use_backend(SubMConv3d(2, 2), "cuda")


def test_gradient_has_the_memory_layout_of_the_weight() -> None:
    x, conv = cloud(300, 4), SubMConv3d(4, 6).double()
    conv(x).features.sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()

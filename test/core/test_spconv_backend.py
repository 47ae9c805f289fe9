"""The spconv backend against the torch backend, our kernel maps against spconv's own, and the tables for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lima_core.models.heads import build_segmenter
from lima_core.models.voxelize import VoxelConfig, network_input, voxelize
from lima_core.sparse import spconv_backend, torch_backend
from lima_core.sparse.conv import InverseConv3d, SparseConv3d, SubMConv3d, use_backend
from lima_core.sparse.kernel_map import KernelMap, Maps, Triple, pack
from lima_core.sparse.tensor import SparseTensor

sp = pytest.importorskip("spconv.pytorch", reason="needs spconv: pip install spconv (its CPU build will do)")

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
SIDE = 8
STRIDED = [(2, 2, 0), (3, 2, 1), ((3, 1, 1), (2, 1, 1), 0)]
TINY = KernelMap(torch.tensor([2, 0, 1]), torch.tensor([1, 0, 1]), (1, 0, 2), n_source=3, n_target=2)


def cloud(n: int, channels: int, seed: int = 0, shape: Triple = (SIDE,) * 3, bounded: bool = False) -> SparseTensor:
    """n distinct voxels in two volumes of `shape`, rows shuffled; float32."""
    generator = torch.Generator().manual_seed(seed)
    batch, x, y, z = torch.meshgrid(*(torch.arange(size) for size in (2, *shape)), indexing="ij")
    coords = torch.stack([batch, x, y, z], -1).reshape(-1, 4)
    coords = coords[torch.randperm(len(coords), generator=generator)[:n]].int()
    maps = Maps(coords, shape if bounded else None)
    return SparseTensor(torch.randn(n, channels, generator=generator), coords, maps=maps)


def random_bias(conv: nn.Module) -> nn.Module:
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    return conv


def assert_backends_agree(conv: nn.Module, *tensors: SparseTensor) -> None:
    with torch.no_grad():
        expected = use_backend(conv, "torch")(*tensors).features
        got = use_backend(conv, "spconv")(*tensors).features
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [2 * SIDE**3, 300, 3, 1, 0])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_submanifold_equals_the_torch_backend(n: int, kernel: int, bias: bool) -> None:
    assert_backends_agree(random_bias(SubMConv3d(5, 7, kernel, bias)), cloud(n, 5))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [2 * SIDE**3, 300, 1, 0])
@pytest.mark.parametrize("geometry", STRIDED)
def test_strided_and_inverse_equal_the_torch_backend(n: int, geometry: tuple, bias: bool) -> None:
    fine = cloud(n, 5)
    down, up = random_bias(SparseConv3d(5, 6, *geometry, bias)), random_bias(InverseConv3d(6, 4, *geometry, bias))
    assert_backends_agree(down, fine)
    with torch.no_grad():
        assert_backends_agree(up, down(fine), fine)


def test_rows_without_pairs_get_the_bias_alone() -> None:
    coords = torch.zeros(1, 4, dtype=torch.int32)
    lonely = SparseTensor(torch.randn(1, 3), coords, maps=Maps(coords, (1, 1, 1)))  # too small for any output
    down, up = (use_backend(random_bias(c), "spconv") for c in (SparseConv3d(3, 4), InverseConv3d(4, 5, bias=True)))
    with torch.no_grad():
        coarse = down(lonely)
        assert len(coarse) == 0
        torch.testing.assert_close(up(coarse, lonely).features, up.bias[None])
    assert_backends_agree(SubMConv3d(3, 4), lonely)


def test_a_network_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    network, x = build_segmenter("minkunet_tiny", 5).eval(), cloud(400, 4, shape=(20, 20, 6))
    with torch.no_grad():
        expected = use_backend(network, "torch")(x)
        got = use_backend(network, "spconv")(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_give_their_own_type(dtype: torch.dtype) -> None:
    x, conv = cloud(200, 8), SubMConv3d(8, 8)
    with torch.no_grad():
        exact = conv(x).features
        y = use_backend(conv.to(dtype), "spconv")(x.with_features(x.features.to(dtype))).features
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)


def test_autocast_computes_in_its_type() -> None:
    x, conv = cloud(200, 8), use_backend(SubMConv3d(8, 8, bias=True), "spconv")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert conv(x).features.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [1, 3])
def test_training_on_a_cpu_is_refused_at_once(kernel: int) -> None:
    x, conv = cloud(50, 4), use_backend(SubMConv3d(4, 4, kernel), "spconv")
    with pytest.raises(RuntimeError, match="cannot train on a CPU; use backend='torch'"):
        conv(x)
    conv.requires_grad_(False)
    conv(x)
    with pytest.raises(RuntimeError, match="cannot train on a CPU"):
        conv(x.with_features(x.features.clone().requires_grad_()))


def test_missing_spconv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SubMConv3d(4, 4)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(RuntimeError, match=r"pip install 'lima_ros\[cuda12\d\]'"):
        use_backend(model, "spconv")
    assert model.backend == "auto"


def test_has_cuda_wants_a_gpu_and_a_build_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(gpu: bool, cpu_only: bool) -> bool:
        spconv_backend.has_cuda.cache_clear()
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
        monkeypatch.setattr("spconv.pytorch.ops.CPU_ONLY_BUILD", cpu_only)
        return spconv_backend.has_cuda()

    try:
        assert answer(gpu=True, cpu_only=False)
        assert not answer(gpu=False, cpu_only=False)
        assert not answer(gpu=True, cpu_only=True)
        monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
        assert not answer(gpu=True, cpu_only=False)
    finally:
        spconv_backend.has_cuda.cache_clear()


# --- our maps against spconv's own search ---------------------------------------------------------------------------


def theirs(x: SparseTensor, shape: Triple) -> sp.SparseConvTensor:
    return sp.SparseConvTensor(x.features, x.coords, list(shape), batch_size=2)


def with_weight_of(ours: nn.Module, module: nn.Module) -> nn.Module:
    module.weight.data = ours.weight.detach().contiguous()
    return module.eval()


def assert_same_rows(ours: SparseTensor, other: sp.SparseConvTensor) -> None:
    mine, their = torch.argsort(pack(ours.coords)), torch.argsort(pack(other.indices))
    assert torch.equal(ours.coords[mine], other.indices[their])
    torch.testing.assert_close(ours.features[mine], other.features[their], rtol=0, atol=1e-4)


def compare_with_spconv(x: SparseTensor, shape: Triple, geometry: tuple) -> None:
    """A submanifold, a strided and an inverse convolution of ours (torch backend) and of spconv."""
    channels = x.features.shape[1]
    subm, down, up = SubMConv3d(channels, 6), SparseConv3d(channels, 5, *geometry), InverseConv3d(5, 4, *geometry)
    their_subm = with_weight_of(subm, sp.SubMConv3d(channels, 6, 3, bias=False))
    their_down = with_weight_of(down, sp.SparseConv3d(channels, 5, *geometry, bias=False, indice_key="down"))
    their_up = with_weight_of(up, sp.SparseInverseConv3d(5, 4, geometry[0], bias=False, indice_key="down"))
    for conv in (subm, down, up):
        use_backend(conv, "torch")
    with torch.no_grad():
        assert_same_rows(subm(x), their_subm(theirs(x, shape)))
        coarse, their_coarse = down(x), their_down(theirs(x, shape))
        assert_same_rows(coarse, their_coarse)
        assert coarse.maps.shape == tuple(their_coarse.spatial_shape)
        assert_same_rows(up(coarse, x), their_up(their_coarse))


@pytest.mark.parametrize("n", [700, 150])
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 8, 9)])
@pytest.mark.parametrize("geometry", STRIDED)
def test_maps_equal_those_of_spconv(n: int, shape: Triple, geometry: tuple) -> None:
    compare_with_spconv(cloud(n, 5, shape=shape, bounded=True), shape, geometry)


def test_the_border_of_the_volume_drops_outputs_here_and_there() -> None:
    bounded, free = (cloud(700, 5, bounded=bounded) for bounded in (True, False))
    down = SparseConv3d(5, 5, 3, 2, 1)
    with torch.no_grad():
        assert len(down(bounded)) < len(down(free))
    compare_with_spconv(bounded, (SIDE,) * 3, (3, 2, 1))


def test_a_real_sweep(shared: Path) -> None:
    (path,) = (shared / "data" / "nus_tiny" / "samples" / "LIDAR_TOP").glob("*.pcd.bin")
    points = torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 5))[:, :4].clone()
    points[:, 3] /= 255
    voxels = voxelize(points, VoxelConfig())
    features = network_input(points)[voxels.first_point]
    x = SparseTensor(features, voxels.coords)
    assert len(x) > 10_000 and x.coords.min() < 0
    assert_backends_agree(SubMConv3d(4, 16), x)
    assert_backends_agree(SparseConv3d(4, 16), x)
    coords = x.coords - x.coords.amin(0)  # spconv wants them at zero and above
    shape = tuple(size + 1 for size in coords[:, 1:].amax(0).tolist())
    compare_with_spconv(SparseTensor(features, coords, maps=Maps(coords, shape)), shape, (3, 2, 1))


# --- tables for a GPU -----------------------------------------------------------------------------------------------


def maps_of(x: SparseTensor) -> dict[str, KernelMap]:
    down = x.maps.strided((3, 3, 3), (2, 2, 2), (1, 1, 1))[0]
    return {"submanifold": x.maps.submanifold(3), "strided": down, "inverse": down.transposed()[0]}


def test_tables_of_a_map_made_by_hand() -> None:
    table = spconv_backend.pair_table(TINY)
    assert table.dtype == torch.int32
    assert table.tolist() == [[-1, 2], [-1, -1], [0, 1]]
    masks, order = spconv_backend.sorted_masks(table)
    assert masks.dtype == order.dtype == torch.int32
    assert masks.tolist() == [[0b100], [0b101]] and order.tolist() == [0, 1]
    masks, order = spconv_backend.sorted_masks(table.flip(1))
    assert masks.tolist() == [[0b100], [0b101]] and order.tolist() == [1, 0]
    lists, counts = spconv_backend.pair_lists(TINY)
    assert counts.tolist() == [1, 0, 2] and lists.dtype == counts.dtype == torch.int32
    assert lists.tolist() == [[[2, -1], [-1, -1], [0, 1]], [[1, -1], [-1, -1], [0, 1]]]


def test_the_identity_is_in_the_table_though_not_among_the_pairs() -> None:
    neighbours = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 5, 5, 5]], dtype=torch.int32)
    table = spconv_backend.pair_table(Maps(neighbours).submanifold(3))
    assert table[13].tolist() == [0, 1, 2]
    assert table[12].tolist() == [1, -1, -1] and table[14].tolist() == [-1, 0, -1]
    assert (table >= 0).sum() == 5


def test_masks_hold_32_offsets() -> None:
    table = torch.full((32, 2), -1, dtype=torch.int32)
    table[31, 0] = table[0, 1] = 7
    masks, order = spconv_backend.sorted_masks(table)
    assert masks.numpy().view(np.uint32)[order.argsort(), 0].tolist() == [1 << 31, 1]


@pytest.mark.parametrize("n", [600, 60, 1, 0])
@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
def test_pair_table_holds_exactly_the_pairs_of_the_map(n: int, kind: str) -> None:
    kernel_map = maps_of(cloud(n, 1))[kind]
    table = spconv_backend.pair_table(kernel_map)
    assert table.shape == (27, kernel_map.n_target)
    if kernel_map.identity is not None:
        assert torch.equal(table[kernel_map.identity], torch.arange(n, dtype=torch.int32))
        table[kernel_map.identity] = -1
    offset, target = (table >= 0).nonzero(as_tuple=True)
    found = torch.stack([offset, table[offset, target].long(), target], 1)
    every = torch.arange(27).repeat_interleave(torch.tensor(kernel_map.counts))
    expected = torch.stack([every, kernel_map.source, kernel_map.target], 1)
    assert {*map(tuple, found.tolist())} == {*map(tuple, expected.tolist())}
    assert len(found) == len(expected)


def test_the_table_of_a_symmetric_map_seen_from_its_inputs_is_mirrored() -> None:
    table = spconv_backend.pair_table(maps_of(cloud(300, 1))["submanifold"])
    offset, target = (table >= 0).nonzero(as_tuple=True)
    assert torch.equal(table.flip(0)[offset, table[offset, target].long()], target.int())


class Emulated(torch.autograd.Function):
    """What the wheel's source says implicit_gemm computes, tile by tile, from the tables that it is given."""

    TILE = 32

    @classmethod
    def products(cls, rows, weights, table, masks, order, reverse):
        """(K, C, C') weights; the masks are read in tile order, the pairs through `order`."""
        out = torch.full((table.shape[1], weights.shape[2]), torch.nan)
        for start in range(0, len(order), cls.TILE):
            here = order[start : start + cls.TILE].long()
            union = int(np.bitwise_or.reduce(masks[start : start + cls.TILE].numpy().view(np.uint32).ravel()))
            out[here] = 0
            for k in range(len(table)):
                if union >> (len(table) - 1 - k if reverse else k) & 1:
                    met = table[k, here].long()
                    out[here] += (rows[met.clamp(min=0)].float() @ weights[k].float()) * (met >= 0)[:, None]
        return out

    @staticmethod
    def forward(
        ctx, features, filters, forward, back, masks, back_masks, order, back_order, n_target, passes, training, subm
    ):
        kernel = forward.shape[0]
        assert filters.is_contiguous() and forward.is_contiguous() and back.is_contiguous()
        assert forward.shape == (kernel, n_target) and masks[0].shape == (n_target, 1)
        assert {t.dtype for t in (forward, back, masks[0], order[0])} == {torch.int32}
        assert len(masks) == len(order) == len(passes) == 1 and passes[0] == 0xFFFFFFFF
        assert features.dtype == torch.float32 or all(n % 8 == 0 for n in (filters.shape[0], filters.shape[2]))
        if training:
            assert back.shape == (kernel, len(features))
        ctx.save_for_backward(features, filters, forward, back)
        ctx.lists = (masks[0], order[0], (masks if subm else back_masks)[0], (order if subm else back_order)[0], subm)
        out = Emulated.products(features, filters.permute(1, 2, 0), forward, masks[0], order[0], False)
        return out.to(features.dtype)

    @staticmethod
    def backward(ctx, grad):
        features, filters, forward, back = ctx.saved_tensors
        _, _, masks, order, subm = ctx.lists
        grad_features = Emulated.products(grad, filters.permute(1, 0, 2), back, masks, order, subm)
        met = (forward >= 0)[..., None] * features[forward.clamp(min=0).long()]
        grad_filters = torch.einsum("tb,kta->bka", grad.float(), met.float())
        return grad_features.to(features.dtype), grad_filters.to(filters.dtype), *[None] * 16


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = SimpleNamespace(implicit_gemm=Emulated.apply), SimpleNamespace(CPU_ONLY_BUILD=False)
    monkeypatch.setattr(spconv_backend, "_load", lambda: modules)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
def test_emulated_gpu_path_equals_the_torch_backend(emulation: None, kind: str, dtype: torch.dtype) -> None:
    kernel_map = maps_of(cloud(400, 1))[kind]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(kernel_map.n_source, 5, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(3, 3, 3, 5, 7, generator=generator).permute(4, 0, 1, 2, 3).to(dtype).requires_grad_()
    exact = torch_backend.convolve(features.float(), weight.float(), None, kernel_map)
    with torch.inference_mode():  # tables made here must serve the training below
        inference = spconv_backend._on_gpu(features, weight.flatten(1, 3), kernel_map)
    y = spconv_backend._on_gpu(features, weight.flatten(1, 3), kernel_map)
    assert y.dtype == dtype and torch.equal(y, inference)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(y.float(), exact, **close)
    upstream = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, [features, weight], upstream)
    got = torch.autograd.grad(y, [features, weight], upstream.to(dtype))
    for ours, want in zip(got, expected, strict=True):
        assert ours.dtype == dtype and ours.shape == want.shape
        torch.testing.assert_close(ours.float(), want.float(), **close)


def test_tables_are_made_once(emulation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    table = spconv_backend.pair_table
    monkeypatch.setattr(spconv_backend, "pair_table", lambda kernel_map: made.append(kernel_map) or table(kernel_map))
    maps = maps_of(cloud(100, 1))
    for kernel_map in 3 * list(maps.values()):
        features = torch.randn(kernel_map.n_source, 8, requires_grad=True)
        spconv_backend._on_gpu(features, torch.randn(8, 27, 8), kernel_map)
    assert made.count(maps["submanifold"]) == made.count(maps["strided"]) == made.count(maps["inverse"]) == 1


def test_a_build_for_cpus_is_refused_on_a_gpu() -> None:
    if not sp.ops.CPU_ONLY_BUILD:
        pytest.skip("this spconv has CUDA")
    assert not spconv_backend.has_cuda()
    with pytest.raises(RuntimeError, match=r"built for CPUs only: pip install 'lima_ros\[cuda12\d\]'"):
        spconv_backend._on_gpu(torch.randn(2, 8), torch.randn(8, 3, 8), TINY)

"""Both backends of the sparse convolution on a GPU; on a CPU, test/core has the like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lima_core.models.heads import build_segmenter
from lima_core.sparse import spconv_backend
from lima_core.sparse.conv import InverseConv3d, SparseConv3d, SubMConv3d, use_backend
from lima_core.sparse.kernel_map import Maps, Triple
from lima_core.sparse.tensor import SparseTensor

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BACKENDS = ["torch", "spconv"]
KINDS = ["submanifold", "pointwise", "strided", "overlapping", "flat", "inverse"]


def need(backend: str) -> None:
    if backend == "spconv" and not spconv_backend.has_cuda():
        pytest.skip("needs a build of spconv with CUDA: pip install 'lima_ros[cuda120]' or [cuda126]")


def cloud(n: int, channels: int, shape: Triple = (15, 16, 17)) -> SparseTensor:
    """n distinct voxels in two bounded volumes, rows shuffled; the odd side leaves voxels without a coarse one."""
    generator = torch.Generator().manual_seed(0)
    batch, x, y, z = torch.meshgrid(*(torch.arange(size) for size in (2, *shape)), indexing="ij")
    coords = torch.stack([batch, x, y, z], -1).reshape(-1, 4)
    coords = coords[torch.randperm(len(coords), generator=generator)[:n]].int()
    return SparseTensor(torch.randn(n, channels, generator=generator), coords, maps=Maps(coords, shape))


def layer(kind: str, channels: int, out: int) -> nn.Module:
    torch.manual_seed(0)
    conv = {
        "submanifold": lambda: SubMConv3d(channels, out, bias=True),
        "pointwise": lambda: SubMConv3d(channels, out, 1, bias=True),
        "strided": lambda: SparseConv3d(channels, out, bias=True),
        "overlapping": lambda: SparseConv3d(channels, out, 3, 2, 1, bias=True),
        "flat": lambda: SparseConv3d(channels, out, (3, 1, 1), (2, 1, 1), 0, bias=True),
        "inverse": lambda: InverseConv3d(channels, out, bias=True),
    }[kind]()
    nn.init.normal_(conv.bias)
    return conv


def run(kind: str, backend: str, device: str, n: int = 2000, channels: int = 20, out: int = 12, dtype=torch.float32):
    """Output and gradients of features, weight and bias, on the CPU in float32."""
    fine = cloud(n, channels).to(device)
    conv = use_backend(layer(kind, channels, out).to(device, dtype), backend)
    x = fine
    if kind == "inverse":
        level = fine.maps.strided(conv.kernel, conv.stride, conv.padding)[1]
        features = torch.randn(len(level.coords), channels, generator=torch.Generator().manual_seed(1))
        x = SparseTensor(features.to(device), level.coords, (2, 2, 2), level)
    x = x.with_features(x.features.to(dtype).requires_grad_())
    y = conv(x, fine) if kind == "inverse" else conv(x)
    upstream = torch.randn(y.features.shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    gradients = torch.autograd.grad(y.features, [x.features, conv.weight, conv.bias], upstream)
    assert {t.dtype for t in (y.features, *gradients)} == {dtype}
    return [t.detach().cpu().float() for t in (y.features, *gradients)]


def assert_near(got: list[Tensor], expected: list[Tensor], relative: float) -> None:
    """Each tensor within `relative` of its own largest value: float sums in another order."""
    for ours, want in zip(got, expected, strict=True):
        assert ours.shape == want.shape
        if want.numel():
            torch.testing.assert_close(ours, want, rtol=0, atol=relative * float(want.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_equals_the_torch_backend_on_the_cpu(backend: str, kind: str) -> None:
    need(backend)
    assert_near(run(kind, backend, DEVICE), run(kind, "torch", "cpu"), 1e-4)


@pytest.mark.parametrize("channels", [(16, 32), (5, 7)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_near_single(backend: str, kind: str, channels: tuple[int, int]) -> None:
    need(backend)
    expected = run(kind, "torch", "cpu", 2000, *channels)
    assert_near(run(kind, backend, DEVICE, 2000, *channels, torch.float16), expected, 0.02)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_hardly_any_voxels(backend: str, kind: str, n: int) -> None:
    need(backend)
    assert_near(run(kind, backend, DEVICE, n), run(kind, "torch", "cpu", n), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_cloud_goes_through_forward_and_backward(backend: str, kind: str) -> None:
    need(backend)
    y, _, weight, bias = run(kind, backend, DEVICE, n=0)
    assert y.shape == (0, 12)
    assert weight.abs().sum() == bias.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_its_type_and_gives_gradients_in_ours(backend: str, dtype: torch.dtype) -> None:
    need(backend)
    x, conv = cloud(2000, 5).to(DEVICE), layer("submanifold", 5, 7).to(DEVICE)
    exact = use_backend(conv, "torch")(x).features
    with torch.autocast(DEVICE, dtype):
        y = use_backend(conv, backend)(x).features
    assert y.dtype == dtype
    leaves, upstream = [conv.weight, conv.bias], torch.randn_like(exact)
    expected = torch.autograd.grad(exact, leaves, upstream)
    for got, want in zip(torch.autograd.grad(y, leaves, upstream.to(dtype)), expected, strict=True):
        assert got.dtype == torch.float32
        assert functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.999


def test_a_kernel_too_large_for_the_masks_is_computed_all_the_same() -> None:
    need("spconv")
    x, conv = cloud(2000, 6).to(DEVICE), SubMConv3d(6, 6, kernel=5).to(DEVICE)
    with torch.no_grad():
        expected = use_backend(conv, "torch")(x).features
        torch.testing.assert_close(use_backend(conv, "spconv")(x).features, expected, rtol=1e-4, atol=1e-4)


def test_training_after_inference() -> None:
    need("spconv")
    x, conv = cloud(500, 8).to(DEVICE), use_backend(SubMConv3d(8, 8).to(DEVICE), "spconv")
    with torch.inference_mode():
        expected = conv(x).features
    y = conv(x).features
    y.sum().backward()
    torch.testing.assert_close(y, expected.clone(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_backend_is_deterministic(kind: str) -> None:
    first, second = run(kind, "torch", DEVICE), run(kind, "torch", DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def step(backend: str, device: str, dtype: torch.dtype | None = None) -> tuple[list[float], Tensor]:
    """Losses of three steps of minkunet_tiny on one cloud, and the logits after them in eval mode."""
    torch.manual_seed(0)
    network = use_backend(build_segmenter("minkunet_tiny", 5), backend).to(device)
    x = cloud(3000, 4).to(device)
    labels = (x.coords[:, 1] // 3).long()
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.05), []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(device, dtype or torch.float16, enabled=dtype is not None):
            loss = functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, network.eval()(x).cpu()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_trains_as_on_the_cpu(backend: str) -> None:
    need(backend)
    losses, logits = step(backend, DEVICE)
    expected_losses, expected = step("torch", "cpu")
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    assert_near([logits], [expected], 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_trains_with_autocast(backend: str, dtype: torch.dtype) -> None:
    need(backend)
    losses, logits = step(backend, DEVICE, dtype)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(step("torch", "cpu")[0], rel=0.05)
    assert logits.isfinite().all()


def test_auto_takes_spconv_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    need("spconv")
    calls = []
    convolve = spconv_backend.convolve
    monkeypatch.setattr(spconv_backend, "convolve", lambda *a: calls.append(a) or convolve(*a))
    SubMConv3d(4, 4).to(DEVICE)(cloud(50, 4).to(DEVICE))
    assert len(calls) == 1

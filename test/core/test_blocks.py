"""Kernel maps cut into blocks: nothing lost, nothing twice, never larger than asked for."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.sparse.blocks import blocks
from lima_core.sparse.conv import SubMConv3d
from lima_core.sparse.kernel_map import KernelMap, Maps
from lima_core.sparse.tensor import SparseTensor

Pair = tuple[int, int, int]  # source, target, offset


def pairs(kernel_map: KernelMap) -> set[Pair]:
    """Every pair of a map, those of the identity included."""
    offsets = torch.repeat_interleave(torch.arange(len(kernel_map.counts)), torch.tensor(kernel_map.counts))
    found = set(zip(kernel_map.source.tolist(), kernel_map.target.tolist(), offsets.tolist(), strict=True))
    if kernel_map.identity is not None:
        found |= {(row, row, kernel_map.identity) for row in range(kernel_map.n_target)}
    return found


def pairs_of_blocks(kernel_map: KernelMap, products: int) -> list[Pair]:
    """What the lists of products say, target by target."""
    found = []
    for block in blocks(kernel_map, products):
        of_row = []
        if kernel_map.identity is not None:
            of_row += [(row, kernel_map.identity) for row in range(block.start, block.stop)]
        for offset, sources in zip(block.offsets, block.sources, strict=True):
            of_row += [(source, offset) for source in sources.tolist()]
        lists = block.products.split(block.firsts.diff().tolist())
        for target, chosen in zip(range(block.start, block.stop), lists, strict=True):
            found += [(of_row[row][0], target, of_row[row][1]) for row in chosen.tolist()]
    return found


clouds = st.lists(st.tuples(*[st.integers(-4, 4)] * 3), max_size=60, unique=True)


@settings(max_examples=60, deadline=None)
@given(clouds, st.integers(1, 200), st.sampled_from([1, 2, 3, 5]), st.randoms())
def test_blocks_hold_every_pair_once_and_stay_below_the_limit(voxels, products: int, kernel: int, random) -> None:
    random.shuffle(voxels)
    coords = torch.tensor([[0, *voxel] for voxel in voxels], dtype=torch.int32).reshape(-1, 4)
    maps = Maps(coords)
    kernel_map = maps.submanifold(kernel) if kernel % 2 else maps.strided((kernel,) * 3, (2, 2, 2), (0, 0, 0))[0]
    for one in (kernel_map, kernel_map.transposed()[0]):
        found = pairs_of_blocks(one, products)
        assert len(found) == len(set(found))
        assert set(found) == pairs(one)
        cut = blocks(one, products)
        assert [block.start for block in cut[1:]] == [block.stop for block in cut[:-1]]
        assert not cut or (cut[0].start, cut[-1].stop) == (0, one.n_target)
        assert all(len(block.products) <= products + len(one.counts) for block in cut)


def test_transposing_twice_gives_the_map_itself() -> None:
    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [0, 9, 9, 9]], dtype=torch.int32)
    kernel_map, _ = Maps(coords).strided((2, 2, 2), (2, 2, 2), (0, 0, 0))
    assert kernel_map.transposed()[0].transposed() == (kernel_map, 1)


def test_a_large_cloud_beside_a_single_voxel() -> None:
    torch.manual_seed(0)
    grid = torch.cartesian_prod(*[torch.arange(17, dtype=torch.int32)] * 3)
    large = torch.cat([torch.zeros(len(grid), 1, dtype=torch.int32), grid], 1)
    alone = torch.tensor([[2, 5, 5, 5]], dtype=torch.int32)  # scene 1 is empty
    conv, features = SubMConv3d(4, 6), torch.randn(len(grid) + 1, 4)
    both = conv(SparseTensor(features, torch.cat([large, alone]))).features
    torch.testing.assert_close(both[:-1], conv(SparseTensor(features[:-1], large)).features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[-1], features[-1] @ conv.weight[:, 1, 1, 1].T)

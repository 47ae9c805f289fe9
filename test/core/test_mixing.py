"""Mixing labelled sweeps and jitter: who gives which point, and that recorded runs repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.data.augment import AugmentConfig, augment
from lima_core.data.labelled import Sweep
from lima_core.data.mixing import bands, mix

OPERATORS = ["lasermix", "polarmix", "frustummix"]
seeds = st.integers(0, 2**32 - 1)


def sweep(seed: int, label: int, count: int = 2000) -> Sweep:
    """Points in all directions, all of one label; the intensity numbers them."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, (10, 10, 3), (count, 3))
    return Sweep(
        np.column_stack([points, np.arange(count) / count]).astype(np.float32), np.full(count, label, np.uint8), 0
    )


def rows(points: np.ndarray) -> list[tuple]:
    return sorted(map(tuple, points.tolist()))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, operator=st.sampled_from(OPERATORS))
def test_each_point_comes_from_one_sweep_with_its_label(seed, operator):
    a, b = sweep(1, 3), sweep(2, 7)
    points, labels = mix(a, b, np.random.default_rng(seed), operator)
    assert points.dtype == np.float32 and points.shape == (len(labels), 4) and labels.dtype == np.uint8
    assert set(rows(points[labels == 3])) <= set(rows(a.points)) and set(rows(points[labels == 7])) <= set(
        rows(b.points)
    )
    assert len(set(rows(points))) == len(points), "no point comes twice"
    assert {3, 7} == set(labels), "both give something"


@settings(deadline=None, max_examples=40)
@given(seed=seeds, operator=st.sampled_from(OPERATORS))
def test_a_sweep_mixed_with_itself_is_itself(seed, operator):
    a = sweep(1, 3)
    points, labels = mix(a, a, np.random.default_rng(seed), operator)
    assert rows(points) == rows(a.points) and (labels == 3).all()


@settings(deadline=None, max_examples=40)
@given(seed=seeds, operator=st.sampled_from(OPERATORS))
def test_the_two_mixtures_share_out_all_points(seed, operator):
    """mix(a, b) and mix(b, a) by one generator: what one leaves out the other takes."""
    a, b = sweep(1, 3), sweep(2, 7)
    both = [mix(*pair, np.random.default_rng(seed), operator)[0] for pair in ((a, b), (b, a))]
    assert rows(np.concatenate(both)) == rows(np.concatenate([a.points, b.points]))


def source_of(operator: str, seed: int, inclination: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """(I, A) bool, from b: of points at these inclinations and azimuths, rad, in both sweeps."""
    i, a = (grid.ravel() for grid in np.meshgrid(inclination, azimuth, indexing="ij"))
    place = 20 * np.stack([np.cos(i) * np.cos(a), np.cos(i) * np.sin(a), np.sin(i)], 1)
    points = np.column_stack([place, np.arange(len(i)) / len(i)]).astype(np.float32)
    both = [Sweep(points, np.full(len(i), label, np.uint8), 0) for label in (0, 1)]
    mixed, labels = mix(*both, np.random.default_rng(seed), operator)
    return labels[np.argsort(mixed[:, 3])].reshape(len(inclination), len(azimuth)) == 1


AZIMUTH = np.linspace(-np.pi, np.pi, 90, endpoint=False) + 1e-3
INCLINATION = np.radians(np.linspace(-29.9, 9.9, 120))


def test_lasermix_alternates_three_to_six_bands_of_inclination():
    counts = set()
    for seed in range(40):
        from_b = source_of("lasermix", seed, INCLINATION, AZIMUTH)
        assert (from_b == from_b[:, :1]).all()
        edges = np.flatnonzero(from_b[1:, 0] != from_b[:-1, 0]) + 1
        heights = np.diff([0, *edges, len(INCLINATION)])
        counts.add(len(heights))
        assert np.ptp(heights) <= 1, "bands are equally wide"
    assert counts == {3, 4, 5, 6}


def test_polarmix_swaps_half_a_turn():
    shares = []
    for seed in range(20):
        from_b = source_of("polarmix", seed, INCLINATION[:3], AZIMUTH)
        assert (from_b == from_b[:1]).all() and from_b[0].sum() == 45
        assert (from_b[0] != np.roll(from_b[0], 1)).sum() == 2, "one piece"
        shares.append(int(np.argmax(from_b[0] & ~np.roll(from_b[0], 1))))
    assert len(set(shares)) > 10, "it starts anywhere"


def test_frustummix_is_one_or_the_other():
    kinds = [source_of("frustummix", seed, INCLINATION, AZIMUTH) for seed in range(60)]
    by_band = sum(bool((k == k[:, :1]).all()) for k in kinds)
    by_turn = sum(bool((k == k[:1]).all()) for k in kinds)
    assert by_band + by_turn == 60 and 15 < by_band < 45


def test_bands_go_on_beyond_the_field_of_view():
    straight_down_and_up = np.array([[0, 0, -5.0], [0, 0, 5.0]])
    assert bands(4, 0)(straight_down_and_up).tolist() == [True, False]
    assert bands(4, 1)(straight_down_and_up).tolist() == [False, True]


def test_an_empty_sweep_and_an_unknown_operator():
    a, empty = sweep(1, 3), Sweep(np.empty((0, 4), np.float32), np.empty(0, np.uint8), 0)
    points, labels = mix(empty, a, np.random.default_rng(0), "lasermix")
    assert 0 < len(points) == len(labels) < 2000
    assert len(mix(empty, empty, np.random.default_rng(0), "polarmix")[0]) == 0
    with pytest.raises(ValueError, match="'cutmix' is unknown; use lasermix, polarmix, frustummix"):
        mix(a, a, np.random.default_rng(0), "cutmix")


def test_jitter_is_noise_on_the_places_alone():
    points = sweep(1, 0, 20000).points
    still = AugmentConfig(jitter=0.0)
    plain = augment(points, np.random.default_rng(5), still)
    noisy = augment(points, np.random.default_rng(5), AugmentConfig(jitter=0.05))
    assert noisy.dtype == np.float32 and (noisy[:, 3] == plain[:, 3]).all()
    np.testing.assert_allclose((noisy - plain)[:, :3].std(0), 0.05, rtol=0.03)
    np.testing.assert_allclose((noisy - plain)[:, :3].mean(0), 0, atol=0.002)


def test_without_jitter_the_generator_is_left_as_it_always_was():
    """Five numbers are drawn: recorded runs draw their mixtures from the same generator afterwards."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    augment(sweep(1, 0).points, one, AugmentConfig())
    other.random(2), other.uniform(), other.uniform(), other.uniform()
    assert one.random() == other.random()

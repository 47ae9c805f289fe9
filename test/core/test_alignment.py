"""Cross-sequence mixing: both sweeps cut by one region, each operator by its own kind of region."""

from __future__ import annotations

import numpy as np
import pytest

from lima_core.lima.alignment import mix

OPERATORS = ["frustum", "laser", "cutmix"]


def sphere(rows: int = 60, columns: int = 180) -> tuple[np.ndarray, np.ndarray]:
    """Points on a grid of inclination (rad, -40..20 degrees) and azimuth, and these two angles (N, 2)."""
    inclination = np.radians(np.linspace(-40, 20, rows))
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False) + 1e-3
    angles = np.stack(np.meshgrid(inclination, azimuth, indexing="ij"), -1).reshape(-1, 2)
    i, a = angles.T
    directions = np.stack([np.cos(i) * np.cos(a), np.cos(i) * np.sin(a), np.sin(i)], 1)
    return (20 * directions).astype(np.float32), angles


def taken(operator: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which directions of the sphere come from b, and the angles."""
    points, angles = sphere()
    rows_a, rows_b = mix(points, points, operator, np.random.default_rng(seed))
    inside = np.zeros(len(points), bool)
    inside[rows_b] = True
    assert sorted([*rows_a, *rows_b]) == list(range(len(points))), "a region came from both sweeps, or from none"
    return inside, angles


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("seed", range(6))
def test_both_sweeps_share_out_space(operator, seed):
    inside, _ = taken(operator, seed)
    assert 0.05 < inside.mean() < 0.95


def is_bands(inside: np.ndarray) -> bool:
    """Every row of equal inclination comes from one sweep."""
    rows = inside.reshape(60, 180)
    return bool((rows == rows[:, :1]).all())


def is_sector(inside: np.ndarray) -> bool:
    """Every column of equal azimuth comes from one sweep, and the columns of b lie side by side."""
    columns = inside.reshape(60, 180)
    edges = (columns[0] != np.roll(columns[0], 1)).sum()
    return bool((columns == columns[:1]).all() and edges == 2)


def test_laser_alternates_bands_of_equal_inclination():
    for seed in range(20):
        inside, angles = taken("laser", seed)
        assert is_bands(inside)
        rows, inclination = inside.reshape(60, 180)[:, 0], np.degrees(angles.reshape(60, 180, 2)[:, 0, 0])
        edges = inclination[1:][rows[1:] != rows[:-1]]
        count = len(edges) + 1
        assert count in (3, 4, 5, 6)
        # bands divide -30..10 degrees evenly; the grid is about a degree wide
        np.testing.assert_allclose(edges, -30 + 40 * np.arange(1, count) / count, atol=1.1)


def test_laser_draws_every_number_of_bands_and_both_parities():
    drawn = set()
    for seed in range(60):
        rows = taken("laser", seed)[0].reshape(60, 180)[:, 0]
        drawn.add((int((rows[1:] != rows[:-1]).sum()) + 1, bool(rows[0])))
    assert drawn == {(count, parity) for count in (3, 4, 5, 6) for parity in (False, True)}


def test_cutmix_takes_one_sector_of_45_to_180_degrees():
    shares = []
    for seed in range(40):
        inside, _ = taken("cutmix", seed)
        assert is_sector(inside)
        shares.append(inside.mean())
    assert min(shares) > 1 / 8 - 0.01 and max(shares) < 1 / 2 + 0.01 and np.ptp(shares) > 0.2


def test_frustum_is_bands_or_half_a_turn_about_equally_often():
    kinds = []
    for seed in range(60):
        inside, _ = taken("frustum", seed)
        kinds.append("bands" if is_bands(inside) else "half")
        assert kinds[-1] == "bands" or (is_sector(inside) and abs(inside.mean() - 0.5) < 0.01)
    assert 15 < kinds.count("bands") < 45


@pytest.mark.parametrize("operator", OPERATORS)
def test_equal_generators_draw_equal_regions(operator):
    assert (taken(operator, 5)[0] == taken(operator, 5)[0]).all()
    assert any((taken(operator, 5)[0] != taken(operator, seed)[0]).any() for seed in range(6, 12))


def test_empty_sweeps_and_an_unknown_operator():
    points, empty = sphere()[0], np.empty((0, 4), np.float32)
    rows_a, rows_b = mix(empty, points, "laser", np.random.default_rng(0))
    assert len(rows_a) == 0 and 0 < len(rows_b) < len(points)
    with pytest.raises(ValueError, match=r"'swap'.*frustum, laser or cutmix"):
        mix(points, points, "swap", np.random.default_rng(0))

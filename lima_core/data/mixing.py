"""Two scenes become one: regions of space that one sweep gives up and the other fills.

LaserMix (Kong et al. 2023) alternates bands of inclination; PolarMix (Xiao et al. 2022) swaps half a turn of azimuth,
here without its second part, turned copies of instances; FrustumMix (FRNet) does one or the other, equally often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from lima_core.data.labelled import Sweep

Operator = Literal["lasermix", "polarmix", "frustummix"]
Region = Callable[[np.ndarray], np.ndarray]  # (N, >=3) points -> (N,) bool, inside

BANDS = (3, 4, 5, 6)
FIELD_OF_VIEW_DEG = (-30.0, 10.0)  # of a 32-beam spinning LiDAR


def mix(sweep_a: Sweep, sweep_b: Sweep, rng: np.random.Generator, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """Two labelled sweeps -> (N, 4) float32 points and (N,) uint8 labels of the mixed scene, those of a first.

    Both are cut by the same region: outside it the scene is a, inside it is b. Raises ValueError on another operator.
    """
    draw = {"lasermix": laser_region, "polarmix": half_turn, "frustummix": frustum_region}
    if operator not in draw:
        raise ValueError(f"operator {operator!r} is unknown; use {', '.join(draw)}")
    of_a, of_b = cut(sweep_a.points, sweep_b.points, draw[operator](rng))
    points = np.concatenate([sweep_a.points[of_a], sweep_b.points[of_b]])
    return points, np.concatenate([sweep_a.labels[of_a], sweep_b.labels[of_b]])


def cut(points_a: np.ndarray, points_b: np.ndarray, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """(N_a, >=3) and (N_b, >=3) points in their LiDAR frames -> rows of a outside the region, rows of b inside."""
    return np.flatnonzero(~region(points_a)), np.flatnonzero(region(points_b))


def laser_region(rng: np.random.Generator) -> Region:
    """Every second of 3 to 6 bands of inclination."""
    return bands(int(rng.choice(BANDS)), int(rng.integers(2)))


def half_turn(rng: np.random.Generator) -> Region:
    """Half a turn of azimuth, starting anywhere."""
    return sector(rng.uniform(-np.pi, np.pi), np.pi)


def frustum_region(rng: np.random.Generator) -> Region:
    """Bands of inclination or half a turn of azimuth, each with probability 1/2."""
    return laser_region(rng) if rng.random() < 0.5 else half_turn(rng)


def bands(count: int, parity: int) -> Region:
    """Every second of `count` bands of inclination; beyond the field of view the outermost bands go on."""
    low, high = np.radians(FIELD_OF_VIEW_DEG)

    def inside(points: np.ndarray) -> np.ndarray:
        inclination = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
        band = np.clip(np.floor((inclination - low) / (high - low) * count), 0, count - 1)
        return band % 2 == parity

    return inside


def sector(start: float, width: float) -> Region:
    """Azimuths from `start` on, over `width` rad."""
    return lambda points: (np.arctan2(points[:, 1], points[:, 0]) - start) % (2 * np.pi) < width

"""Cross-Sequence Memory Alignment (LiMA section 4.3): two scenes become one, each point keeps its own memory's target.

P_mix = P_a[outside R] u P_b[inside R]        R drawn at random, the same for both sweeps
The student sees P_mix, and every point is aligned to the long-term features F_d of the sequence that it came from.

The paper draws the mixed scene and does not name the operator. Default: FrustumMix of the first author's FRNet (bands
of inclination, or half a turn of azimuth); LaserMix (bands only; Kong et al. 2023) and CutMix along the azimuth are
the alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Mixing = Literal["frustum", "laser", "cutmix"]
Region = Callable[[np.ndarray], np.ndarray]  # (N, >=3) points -> (N,) bool, inside

BANDS = (3, 4, 5, 6)
FIELD_OF_VIEW_DEG = (-30.0, 10.0)  # of a 32-beam spinning LiDAR


def mix(
    points_a: np.ndarray, points_b: np.ndarray, mixing: Mixing, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(N_a, >=3) and (N_b, >=3) points in their LiDAR frames -> rows (K_a,) of a and (K_b,) of b in the mixed scene.

    Both sweeps are cut by the same region, so that what one gives up the other fills.
    """
    taken_from_b = _region(mixing, rng)
    return np.flatnonzero(~taken_from_b(points_a)), np.flatnonzero(taken_from_b(points_b))


def _region(mixing: Mixing, rng: np.random.Generator) -> Region:
    if mixing == "laser" or (mixing == "frustum" and rng.random() < 0.5):
        return _bands(int(rng.choice(BANDS)), int(rng.integers(2)))
    if mixing in ("frustum", "cutmix"):
        start = rng.uniform(-np.pi, np.pi)
        return _sector(start, np.pi if mixing == "frustum" else rng.uniform(np.pi / 4, np.pi))
    raise ValueError(f"mixing {mixing!r} is unknown; use frustum, laser or cutmix")


def _bands(count: int, parity: int) -> Region:
    """Every second of `count` bands of inclination; beyond the field of view the outermost bands go on."""
    low, high = np.radians(FIELD_OF_VIEW_DEG)

    def inside(points: np.ndarray) -> np.ndarray:
        inclination = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
        band = np.clip(np.floor((inclination - low) / (high - low) * count), 0, count - 1)
        return band % 2 == parity

    return inside


def _sector(start: float, width: float) -> Region:
    """Azimuths from `start` on, over `width` rad."""
    return lambda points: (np.arctan2(points[:, 1], points[:, 0]) - start) % (2 * np.pi) < width

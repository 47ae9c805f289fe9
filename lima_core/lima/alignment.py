"""Cross-Sequence Memory Alignment (LiMA section 4.3): two scenes become one, each point keeps its own memory's target.

P_mix = P_a[outside R] u P_b[inside R]        R drawn at random, the same for both sweeps
The student sees P_mix, and every point is aligned to the long-term features F_d of the sequence that it came from.

The paper draws the mixed scene and does not name the operator. Default: FrustumMix of the first author's FRNet (bands
of inclination, or half a turn of azimuth); LaserMix (bands only; Kong et al. 2023) and CutMix along the azimuth are
the alternatives.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lima_core.data.mixing import Region, cut, frustum_region, laser_region, sector

Mixing = Literal["frustum", "laser", "cutmix"]


def mix(
    points_a: np.ndarray, points_b: np.ndarray, mixing: Mixing, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(N_a, >=3) and (N_b, >=3) points in their LiDAR frames -> rows (K_a,) of a and (K_b,) of b in the mixed scene.

    Both sweeps are cut by the same region, so that what one gives up the other fills.
    """
    return cut(points_a, points_b, _region(mixing, rng))


def _region(mixing: Mixing, rng: np.random.Generator) -> Region:
    if mixing == "laser":
        return laser_region(rng)
    if mixing == "frustum":
        return frustum_region(rng)
    if mixing == "cutmix":
        return sector(rng.uniform(-np.pi, np.pi), rng.uniform(np.pi / 4, np.pi))
    raise ValueError(f"mixing {mixing!r} is unknown; use frustum, laser or cutmix")

"""What the network's input looked like in training, so that another sensor's can be compared with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lima_core.data.labelled import Sweep

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
GROUND_RING_M = (3.0, 15.0)  # near enough to hit the ground, far enough to miss the own roof


def input_statistics(sweeps: Sequence[Sweep]) -> dict[str, object]:
    """Distribution of intensity [0, 1], range m and z m; ground height m below the LiDAR; points, beams per sweep."""
    points = np.concatenate([sweep.points for sweep in sweeps])
    distance = np.linalg.norm(points[:, :3], axis=1)
    return {
        "intensity": _distribution(points[:, 3]),
        "range_m": _distribution(distance),
        "z_m": _distribution(points[:, 2]),
        "ground_z_m": round(float(np.median([ground_height(sweep.points) for sweep in sweeps])), 3),
        "points_per_sweep": _distribution(np.array([len(sweep.points) for sweep in sweeps])),
        "beams": int(np.median([sweep.beams for sweep in sweeps])),
    }


def ground_height(points: np.ndarray) -> float:
    """(N, 4) points -> z in m of the ground around the vehicle: the lowest decile between 3 and 15 m; nan if empty."""
    radius = np.hypot(points[:, 0], points[:, 1])
    z = points[(radius > GROUND_RING_M[0]) & (radius < GROUND_RING_M[1]), 2]
    return float(np.percentile(z, 10)) if len(z) else float("nan")


def _distribution(values: np.ndarray) -> dict[str, object]:
    percentiles = np.percentile(values, PERCENTILES)
    return {
        "min": round(float(values.min()), 4),
        "max": round(float(values.max()), 4),
        "mean": round(float(values.mean(dtype=np.float64)), 4),
        "std": round(float(values.std(dtype=np.float64)), 4),
        "percentiles": {str(p): round(float(v), 4) for p, v in zip(PERCENTILES, percentiles, strict=True)},
    }

"""Random changes of a sweep that keep its labels (spec/datasets.md 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lima_core.config import option


@dataclass(frozen=True)
class AugmentConfig:
    """Flip, rotation and scale of SuperFlow, an intensity gain, and noise on the points."""

    flip: float = option(0.5, "probability of mirroring x, and of mirroring y")
    rotation: float = option(180.0, "largest rotation about z, degrees to either side")
    scale: tuple[float, float] = option((0.95, 1.05), "least and largest factor on x, y, z")
    intensity_gain: float = option(2.0, "largest factor on, or divisor of, the intensity: sensors differ in scale")
    jitter: float = option(0.0, "standard deviation of noise on x, y and z, m")


def augment(points: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """(N, 4) float32 x, y, z in m, intensity in [0, 1] -> a changed copy.

    Without jitter nothing is drawn for it: whoever draws next from `rng` finds what was there before jitter existed.
    """
    mirror = np.where(rng.random(2) < config.flip, -1.0, 1.0)
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    factor = rng.uniform(*config.scale)
    gain = config.intensity_gain ** rng.uniform(-1, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * np.array([*mirror, 1.0]) * factor
    changed = np.empty_like(points)
    changed[:, :3] = points[:, :3] @ linear.T.astype(np.float32)
    if config.jitter > 0:
        changed[:, :3] += config.jitter * rng.standard_normal((len(points), 3), np.float32)
    changed[:, 3] = np.clip(points[:, 3] * np.float32(gain), 0, 1)
    return changed

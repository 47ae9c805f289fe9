"""Random changes of a sweep that keep its labels (spec/datasets.md 3.6, 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lima_core.config import option
from lima_core.data.boxed import BoxedSweep
from lima_core.data.frame import Boxes


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
    linear, _, gain = _draw(rng, config)
    return _changed(points, rng, linear, gain, config.jitter)


def augment_boxed(sweep: BoxedSweep, rng: np.random.Generator, config: AugmentConfig) -> BoxedSweep:
    """A changed copy: points and boxes go through one and the same similarity; labels and time lags stay.

    The draws are those of `augment`. Noise moves points only. `yaw` comes back in [-pi, pi), in rad.
    """
    linear, factor, gain = _draw(rng, config)
    points = _changed(sweep.points, rng, linear, gain, config.jitter)
    return replace(sweep, points=points, boxes=_similar(sweep.boxes, linear, factor))


def _draw(rng: np.random.Generator, config: AugmentConfig) -> tuple[np.ndarray, float, float]:
    """The similarity (3, 3) float64, mirror and scale inside; the scale in it; the factor on the intensity."""
    mirror = np.where(rng.random(2) < config.flip, -1.0, 1.0)
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    factor = rng.uniform(*config.scale)
    gain = config.intensity_gain ** rng.uniform(-1, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * np.array([*mirror, 1.0]) * factor
    return linear, factor, gain


def _changed(
    points: np.ndarray, rng: np.random.Generator, linear: np.ndarray, gain: float, jitter: float
) -> np.ndarray:
    """(N, >=4) float32 -> a copy, moved, with noise and another intensity; columns from the fifth on stay."""
    changed = np.empty_like(points)
    changed[:, :3] = points[:, :3] @ linear.T.astype(np.float32)
    if jitter > 0:
        changed[:, :3] += jitter * rng.standard_normal((len(points), 3), np.float32)
    changed[:, 3] = np.clip(points[:, 3] * np.float32(gain), 0, 1)
    changed[:, 4:] = points[:, 4:]
    return changed


def _similar(boxes: Boxes, linear: np.ndarray, factor: float) -> Boxes:
    """Boxes through a similarity; the heading goes through as a vector, so a mirror needs no case of its own."""
    heading = np.column_stack([np.cos(boxes.yaw), np.sin(boxes.yaw)]) @ linear[:2, :2].T
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    return replace(
        boxes,
        center=boxes.center @ linear.T,
        size=boxes.size * factor,
        yaw=np.where(yaw >= np.pi, -np.pi, yaw),
        velocity=boxes.velocity @ linear[:2, :2].T,
    )

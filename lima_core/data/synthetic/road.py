"""The road: a curve with smooth curvature, and what travels along it.

Everything in the street is placed in road coordinates: `s` metres along the centre line, `d` metres to its left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lima_core.geometry import se3

STEP_M = 0.25
BEHIND_M = 260.0


class Road:
    """A centre line whose heading is a sum of two sines of s, 0 at s = 0; the world's origin is at s = 0."""

    def __init__(self, rng: np.random.Generator, length_m: float) -> None:
        wave, phase = rng.uniform([220.0, 90.0], [400.0, 160.0]), rng.uniform(0, 2 * np.pi, 2)
        self._amplitude = rng.uniform([0.0, 0.0], [0.32, 0.06])
        self._wave, self._phase = 2 * np.pi / wave, phase
        self._s = np.arange(-BEHIND_M, length_m + STEP_M, STEP_M)
        heading = self.heading(self._s)
        # Summed from a fixed start, so that the length of the road does not move its points.
        middle = self.heading(self._s[:-1] + STEP_M / 2)
        steps = STEP_M * np.stack([np.cos(middle), np.sin(middle)], axis=1)
        line = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        self._line = line - line[round(BEHIND_M / STEP_M)]
        self._tangent = np.stack([np.cos(heading), np.sin(heading)], axis=1)

    def heading(self, s: np.ndarray | float) -> np.ndarray:
        """Direction of travel at s, radians from the world's x axis."""
        s = np.asarray(s, np.float64)[..., None]
        waves = np.sin(self._wave * s + self._phase) - np.sin(self._phase)
        return (self._amplitude * waves).sum(axis=-1)

    def xy(self, s: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        """(..., 2) world metres of road coordinates: cubic (Hermite) between the stored points."""
        s, d = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(d, np.float64))
        cell = ((s - self._s[0]) / STEP_M).astype(int).clip(0, len(self._s) - 2)
        u = ((s - self._s[cell]) / STEP_M)[..., None]
        p0, p1 = self._line[cell], self._line[cell + 1]
        m0, m1 = STEP_M * self._tangent[cell], STEP_M * self._tangent[cell + 1]
        a = 2 * (p0 - p1) + m0 + m1
        b = 3 * (p1 - p0) - 2 * m0 - m1
        heading = self.heading(s)
        left = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
        return ((a * u + b) * u + m0) * u + p0 + d[..., None] * left

    def pose(
        self, s: np.ndarray | float, d: np.ndarray | float, z: np.ndarray | float = 0.0, yaw: float = 0.0
    ) -> np.ndarray:
        """(..., 4, 4) world_from_object of something at (s, d), turned by `yaw` radians from the road's direction."""
        xy = self.xy(s, d)
        return se3.poses(xy[..., 0], xy[..., 1], z, self.heading(s) + yaw)


@dataclass(frozen=True)
class Drive:
    """Smooth travel: s(t) = start + speed t + sway (sin(rate t + phase) - sin(phase)); m, m/s, m, rad/s, rad."""

    start: float
    speed: float
    sway: float = 0.0
    rate: float = 0.6
    phase: float = 0.0

    def s(self, t: np.ndarray | float) -> np.ndarray | float:
        """Metres along the road at t seconds."""
        return self.start + self.speed * t + self.sway * (np.sin(self.rate * t + self.phase) - np.sin(self.phase))


@dataclass(frozen=True)
class Travel:
    """Motion along one lane of the road: `drive` gives s, `d` the lane, `z` the ground; speed < 0 = oncoming.

    Within `dips`, intervals of s where a footpath crosses a street, the ground is at z = 0.
    """

    road: Road
    drive: Drive
    d: float
    z: float = 0.0
    dips: tuple[tuple[float, float], ...] = ()

    def pose(self, t: np.ndarray | float) -> np.ndarray:
        """(..., 4, 4) world_from_object at t seconds."""
        s = np.asarray(self.drive.s(t))
        dipped = np.any([(low < s) & (s < high) for low, high in self.dips], axis=0) if self.dips else False
        return self.road.pose(s, self.d, np.where(dipped, 0.0, self.z), 0.0 if self.drive.speed > 0 else np.pi)

    def velocity(self, t: float) -> np.ndarray:
        """(2,) m/s over ground in the world, by a central difference over a millisecond."""
        return (self.pose(t + 5e-4) - self.pose(t - 5e-4))[:2, 3] / 1e-3


@dataclass(frozen=True)
class EgoMotion:
    """The recording vehicle: a lane of the road with a little pitch and roll of the body."""

    travel: Travel

    def pose(self, t: np.ndarray | float) -> np.ndarray:
        """(..., 4, 4) world_from_base at t seconds; base_link is on the ground below the rear axle."""
        t = np.asarray(t, np.float64)
        pitch, roll = 0.006 * np.sin(1.7 * t + 0.4), 0.004 * np.sin(1.1 * t + 2.0)
        return self.travel.pose(t) @ se3.poses(0.0, 0.0, 0.0, 0.0, pitch, roll)

"""A spinning LiDAR with 32 beams, in the manner of the Velodyne HDL-32E on nuScenes.

The rotor turns clockwise at 20 Hz; every second revolution is one sweep (10 Hz). A sweep ends at its stamp, and
its points are expressed in the LiDAR frame at the stamp (motion-compensated, as nuScenes does).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lima_core.data.synthetic.materials import PASSES, REFLECTIVITY
from lima_core.data.synthetic.rays import Caster
from lima_core.geometry import se3

BEAMS, COLUMNS, SWEEP_S = 32, 1085, 0.05
ELEVATION_DEG = np.linspace(-30.67, 10.67, BEAMS)
START_DEG = 104.4  # heading from the vehicle's x axis where a revolution starts: the cameras fire in its wake
RANGE_M, NOISE_M = 90.0, 0.02


@dataclass(frozen=True)
class Sweep:
    """N returns in the LiDAR frame at the stamp.

    `points` (N, 4) float32 [x, y, z m, intensity 0..1]; `ring` (N,) uint8 from the lowest beam; `time_s` (N,) float32
    <= 0; `label` (N,) uint8 train ids; `thing` (N,) int32 index of the annotated object or -1.
    """

    points: np.ndarray
    ring: np.ndarray
    time_s: np.ndarray
    label: np.ndarray
    thing: np.ndarray


def sweep(caster: Caster, base_from_lidar: np.ndarray, stamp_s: float, rng: np.random.Generator) -> Sweep:
    """One revolution that ends at `stamp_s` (simulation time, seconds)."""
    time = np.repeat((np.arange(COLUMNS) + 1 - COLUMNS) / COLUMNS * SWEEP_S, BEAMS)
    ring = np.tile(np.arange(BEAMS, dtype=np.uint8), COLUMNS)
    columns = caster.world.ego.pose(stamp_s + time[::BEAMS]) @ base_from_lidar
    origins, directions = rays(columns, base_from_lidar)
    hits = caster.cast(origins, directions, stamp_s + time, RANGE_M)
    found = hits.face >= 0
    material = caster.material[hits.face]
    intensity, kept = _echo(material, hits.cosine, hits.distance, rng)
    distance = hits.distance + rng.normal(0, NOISE_M, len(found))
    kept &= found & (distance > 1.0)
    world = origins[kept] + distance[kept, None] * directions[kept]
    points = np.empty((int(kept.sum()), 4), np.float32)
    points[:, :3] = se3.apply(se3.inverse(columns[-1]), world)
    points[:, 3] = intensity[kept]
    face = hits.face[kept]
    return Sweep(points, ring[kept], time[kept].astype(np.float32), caster.label[face], caster.thing[face])


def rays(world_from_lidar: np.ndarray, base_from_lidar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, 4, 4) poses of the columns -> origins and unit directions (T * 32, 3) float64 in the world."""
    heading = np.deg2rad(START_DEG - 360.0 * (np.arange(len(world_from_lidar)) + 1) / COLUMNS)
    azimuth = heading - se3.yaw(base_from_lidar)
    up = np.deg2rad(ELEVATION_DEG)
    level = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], axis=1)
    sensor = np.cos(up)[None, :, None] * level[:, None] + np.sin(up)[None, :, None] * np.array([0.0, 0.0, 1.0])
    directions = np.einsum("tij,tbj->tbi", world_from_lidar[:, :3, :3], sensor)
    return np.repeat(world_from_lidar[:, :3, 3], BEAMS, axis=0), directions.reshape(-1, 3)


def _echo(
    material: np.ndarray, cosine: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Intensity in [0, 1] and whether a return is detected, by material, incidence and range.

    Intensity is range-compensated by the sensor, so it falls only slowly; detection follows the received power,
    reflectivity x cosine / range^2, against a threshold with speckle.
    """
    count = len(material)
    speckle = rng.gamma(8.0, 1 / 8.0, count)
    lit = REFLECTIVITY[material] * (0.25 + 0.75 * cosine) * speckle
    intensity = (lit * np.exp(-distance / 120.0) + rng.normal(0, 0.004, count)).clip(0.0, 1.0)
    power = REFLECTIVITY[material] * (cosine + 0.05) * speckle / np.maximum(distance, 1.0) ** 2
    return intensity, (power > 1.2e-6) & (rng.random(count) > PASSES[material] + 0.01)

"""Fog, snow and wet ground: published physics in closed form, with the severities of nuScenes-C (Robo3D).

A model, not the official sets: Robo3D's generators read tables of sampled snowflakes and fit each scan's laser power in
other ways. Numbers on these sweeps compare networks with each other, not with published tables.

The intensity i in [0, 1] stands for the reflectivity. Scatter that outshines the target takes its place, its label
becomes 255; a return that sinks below what the sensor can tell vanishes with its label.
"""

from __future__ import annotations

import numpy as np

from lima_core.data.frame import IGNORE

Labelled = tuple[np.ndarray, np.ndarray]  # (N, 4) float32 points, (N,) uint8 labels

# fog: Hahner et al., ICCV 2021
LIGHT_M_PER_S = 299_792_458.0
PULSE_S = 20e-9  # half-power width of the laser's pulse
OVERLAP_M = (0.9, 1.0)  # the receiver begins to see the beam, and sees all of it
TARGET = 1e-6 / np.pi  # differential reflectivity of the hard target
FOG_BACKSCATTER = (0.008, 0.05, 0.2)  # per severity, 1/sr
FOG_ATTENUATION = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # 1/m; one is drawn for each sweep
FOG_DEPTH_M = 10.0

# snow: Gunn & Marshall 1958 for the sizes, Hahner et al., CVPR 2022 for the beam and the rate
SNOWFALL = ((0.5, 2.0), (1.0, 1.6), (2.5, 1.6))  # per severity: mm/h, terminal velocity m/s
FLAKE_DENSITY, FLAKE_DIAMETER_M, FLAKE_REFLECTIVITY = 0.1, 0.003, 0.9  # density in g/cm^3
BEAM_RAD = 3e-3  # full divergence
QUANTUM = 0.5 / 255  # less rounds to nothing in the 8 bits of a sensor

# wet ground: Hahner et al., CVPR 2022
WATER_MM, PAVEMENT_MM = (0.2, 1.0, 1.2), 1.2  # height of the water per severity, depth of the pavement's profile
NOISE_FLOOR = (0.2, 0.3, 0.7)  # per severity, of the least that dry ground returns
POWER = 15.0  # of the laser, against what average ground returns
REFRACTION = 1.33 / 1.0003  # water against air
MIN_GROUND_POINTS = 1000  # fewer, and the ground stays dry
BIN_M = 5.0


def fog(points: np.ndarray, labels: np.ndarray, severity: int, rng: np.random.Generator) -> Labelled:
    """Target i exp(-2 alpha R) against fog i R^2 beta / beta_0 max_r I(r); the stronger is what the sensor reports.

    `severity` 1-3. No point is lost: where fog wins, the point moves into the fog and is ignored.
    """
    alpha, beta = rng.choice(FOG_ATTENUATION), FOG_BACKSCATTER[severity - 1]
    distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    place, response = _fog_echo(distance, alpha)
    soft, hard = distance**2 * beta / TARGET * response, np.exp(-2 * alpha * distance)
    won = soft > hard
    depth = np.minimum(place + FOG_DEPTH_M * rng.beta(2, 20, len(points)), distance)
    moved = _at_range(points, np.where(won, depth, distance), distance)
    moved[:, 3] = np.clip(points[:, 3] * np.maximum(soft, hard), 0, 1)
    return moved, np.where(won, np.uint8(IGNORE), labels)


def _fog_echo(distance: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Where fog before a target at `distance` (N,) m echoes most, m, and the integral I there, s/m^2.

    I(R) = int_0^(2 tau) sin^2(pi t / (2 tau)) xi(r) exp(-2 alpha r) / r^2 dt with r = R - c t / 2.
    """
    grid = np.arange(0, 200.05, 0.1)
    time = (np.arange(200) + 0.5) * (2 * PULSE_S / 200)
    r = grid[:, None] - LIGHT_M_PER_S * time / 2
    seen = np.clip((r - OVERLAP_M[0]) / (OVERLAP_M[1] - OVERLAP_M[0]), 0, 1)
    echo = np.sin(np.pi * time / (2 * PULSE_S)) ** 2 * seen * np.exp(-2 * alpha * np.abs(r))
    integral = (echo / np.maximum(r, OVERLAP_M[0]) ** 2).sum(1) * (2 * PULSE_S / 200)
    strongest = np.maximum.accumulate(integral)
    place = np.maximum.accumulate(np.where(integral == strongest, grid, 0))
    at = np.clip((distance / 0.1).astype(int), 0, len(grid) - 1)
    return place[at], strongest[at]


def snow(points: np.ndarray, labels: np.ndarray, severity: int, rng: np.random.Generator) -> Labelled:
    """Flakes are a Poisson process in the beam's cone; the first thing is what returns more than the target does.

    Sizes are N0 exp(-Lambda D). A flake of D at r returns rho_s (D / (theta r))^2 / r^2, the target i' / R^2 with
    i' = i exp(-2 alpha R), alpha = pi N0 / Lambda^3. So D > theta r^2 sqrt(i' / rho_s) / R wins, and of such flakes
    mu = pi/4 theta^2 N0 / Lambda int_(r1)^R r^2 exp(-a r^2) dr are expected, a = Lambda theta sqrt(i' / rho_s) / R.
    """
    slope, density = flakes(*SNOWFALL[severity - 1])
    distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    faded = points[:, 3] * np.exp(-2 * np.pi * density / slope**3 * distance)
    limit = BEAM_RAD * np.sqrt(np.maximum(faded, QUANTUM) / FLAKE_REFLECTIVITY) / np.maximum(distance, OVERLAP_M[1])
    a = slope * limit
    near, far = (_maxwell(np.sqrt(a) * r) for r in (OVERLAP_M[1], np.maximum(distance, OVERLAP_M[1])))
    expected = np.pi / 4 * BEAM_RAD**2 * density / slope * a**-1.5 * (far - near)
    won = rng.random(len(points)) < -np.expm1(-expected)
    depth = _maxwell_inverse(near + rng.random(len(points)) * (far - near)) / np.sqrt(a)
    depth = np.clip(depth, OVERLAP_M[1], np.maximum(distance, OVERLAP_M[1]))
    diameter = limit * depth**2 + rng.exponential(1 / slope, len(points))
    moved = _at_range(points, np.where(won, depth, distance), distance)
    bright = np.minimum(FLAKE_REFLECTIVITY * (diameter / (BEAM_RAD * depth)) ** 2, 1)
    moved[:, 3] = np.where(won, bright, faded)
    kept = won | (faded >= QUANTUM) | (points[:, 3] < QUANTUM)
    return moved[kept], np.where(won, np.uint8(IGNORE), labels)[kept]


def flakes(snowfall: float, velocity: float) -> tuple[float, float]:
    """Snowfall in mm/h and terminal velocity in m/s -> Lambda in 1/m and N0 in 1/m^4 of the flakes' diameters.

    Gunn & Marshall give both for the rain that the snow melts to.
    """
    rain = (snowfall / (487 * FLAKE_DENSITY * FLAKE_DIAMETER_M * velocity)) ** 1.5
    return 2550 * rain**-0.48, 3.8e6 * rain**-0.87


_S = np.linspace(0, 6, 6001)
_MAXWELL = np.concatenate([[0.0], np.cumsum((_S[1:] - 5e-4) ** 2 * np.exp(-((_S[1:] - 5e-4) ** 2)) * 1e-3)])


def _maxwell(s: np.ndarray) -> np.ndarray:
    """int_0^s t^2 exp(-t^2) dt."""
    return np.interp(s, _S, _MAXWELL)


def _maxwell_inverse(value: np.ndarray) -> np.ndarray:
    return np.interp(value, _MAXWELL, _S)


def wet_ground(points: np.ndarray, labels: np.ndarray, severity: int, ground: np.ndarray) -> Labelled:
    """Ground (N,) bool under a film of water returns (1 - f) rho + f T in place of rho; f = film against pavement.

    What falls below the noise is lost: noise_floor times a line through the least that dry ground returns by range.
    Flat earth, LiDAR upright: cos(incidence) = -z / R. Fewer than 1000 ground points are left as they are.
    """
    if ground.sum() < MIN_GROUND_POINTS:
        return points.copy(), labels.copy()
    distance = np.linalg.norm(points[ground, :3].astype(np.float64), axis=1)
    cosine = np.clip(-points[ground, 2] / np.maximum(distance, 1e-6), 0.01, 1)
    normal = points[ground, 3] / cosine
    share = min(WATER_MM[severity - 1] / PAVEMENT_MM, 1)
    rho = np.clip(normal / (POWER * _line(distance, normal, 50)), 0.05, 1)
    wet = normal * np.minimum((1 - share) + share * film(cosine, rho) / rho, 1)
    changed, kept = points.copy(), np.ones(len(points), bool)
    changed[ground, 3] = wet * cosine
    kept[ground] = wet >= NOISE_FLOOR[severity - 1] * _line(distance, normal, 10)
    return changed[kept], labels[kept]


def film(cosine: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """cos(incidence) and reflectivity of the ground -> that through a film of water, (1 - R)^2 rho / (1 - rho R).

    R: Fresnel's share that the surface of the water mirrors away, of the better polarisation.
    """
    below = np.sqrt(1 - (1 - cosine**2) / REFRACTION**2)
    s = ((cosine - REFRACTION * below) / (cosine + REFRACTION * below)) ** 2
    p = ((REFRACTION * cosine - below) / (REFRACTION * cosine + below)) ** 2
    mirrored = np.minimum(s, p)
    return (1 - mirrored) ** 2 * rho / (1 - rho * mirrored)


def _line(distance: np.ndarray, value: np.ndarray, percent: int) -> np.ndarray:
    """A line through this percentile of `value` in bins of range, at each distance; positive."""
    bins = (distance / BIN_M).astype(int)
    middle, level = np.array([((b + 0.5) * BIN_M, np.percentile(value[bins == b], percent)) for b in np.unique(bins)]).T
    slope, offset = np.polyfit(middle, level, 1) if len(middle) > 1 else (0.0, level[0])
    return np.maximum(slope * distance + offset, 1e-6)


def _at_range(points: np.ndarray, wanted: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """A copy of the points, each on its beam at a wanted distance."""
    moved = points.copy()
    moved[:, :3] *= (wanted / np.maximum(distance, 1e-6))[:, None].astype(np.float32)
    return moved

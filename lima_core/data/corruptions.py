"""The eight corruptions of Robo3D (Kong et al. 2023) at three severities, for tests of robustness; never to train on.

points, labels = corrupt(points, labels, "fog", 3, np.random.default_rng(1205), ring, taxonomy.names)

Parameters are those of nuScenes-C. Where its generator names one level only, the others follow the steps of
SemanticKITTI-C: motion blur 0.2 / 0.25 / 0.3 m, crosstalk 3 % in the ratio 6 : 8 : 10. Beams are counted as shares, so
that 8 of 32 are 16 of 64, as there. Weather is a model of ours, see lima_core.data.weather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from lima_core.data.frame import IGNORE
from lima_core.data.weather import Labelled, fog, snow, wet_ground

Kind = Literal[
    "fog", "wet_ground", "snow", "motion_blur", "beam_missing", "crosstalk", "incomplete_echo", "cross_sensor"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERITIES = (1, 2, 3)
SEED = 1205

# by any of their names: nuScenes, SemanticKITTI, Waymo
VEHICLES = {"bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"}
VEHICLES |= {"other-vehicle", "other_vehicle"}
GROUND = {"driveable_surface", "other_flat", "sidewalk", "road", "parking", "other-ground"}
GROUND |= {"lane_marker", "other_ground", "walkable"}
BLUR_M = (0.2, 0.25, 0.3)
CROSSTALK_SHARE, CROSSTALK_M = (0.03, 0.04, 0.05), 3.0
ECHO_LOST, ECHO_POINTS = (0.75, 0.85, 0.95), 10
OWN_BODY_M = 2.0
BEAM_STEP = (4.0, 2.0, 1.33)  # every so many beams one is dropped


def corrupt(
    points: np.ndarray,
    labels: np.ndarray,
    kind: Kind,
    severity: int,
    rng: np.random.Generator,
    ring: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    beams: int = 32,
) -> Labelled:
    """(N, 4) float32 points x, y, z in m, intensity in [0, 1] and (N,) uint8 labels -> a corrupted copy, M <= N rows.

    Lost points go with their labels; noise has the label 255. `ring` (N,) the beam of each point, 0 lowest; without
    it beams are told by inclination, as `beams` of them. `class_names` of the labels: wet_ground and incomplete_echo
    change some classes only. Raises ValueError on an unknown kind or severity, or names without such a class.
    """
    _check(points, labels, kind, severity, ring)
    match kind:
        case "fog":
            return fog(points, labels, severity, rng)
        case "snow":
            return snow(points, labels, severity, rng)
        case "wet_ground":
            return wet_ground(points, labels, severity, np.isin(labels, _ids(GROUND, class_names, kind)))
        case "motion_blur":
            return motion_blur(points, BLUR_M[severity - 1], rng), labels.copy()
        case "crosstalk":
            return crosstalk(points, labels, CROSSTALK_SHARE[severity - 1], rng)
        case "incomplete_echo":
            kept = incomplete_echo(labels, _ids(VEHICLES, class_names, kind), ECHO_LOST[severity - 1], rng)
        case _:
            ring, beams = (rings(points, beams), beams) if ring is None else (ring, int(ring.max(initial=0)) + 1)
            kept = (beam_missing if kind == "beam_missing" else cross_sensor)(ring, beams, severity, rng)
    return points[kept], labels[kept]


def rings(points: np.ndarray, beams: int) -> np.ndarray:
    """(N, >=3) points -> (N,) int beam of each, 0 lowest: the nearest of `beams` even steps of inclination.

    Exact for a sensor with even steps whose outermost beams both return; else a beam is a thin cone of space.
    """
    inclination = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
    beyond = np.linalg.norm(points[:, :3], axis=1) > OWN_BODY_M  # the vehicle itself is seen at any inclination
    low, high = np.percentile(inclination[beyond], (1, 99)) if beyond.any() else (0.0, 1.0)
    steps = np.rint((inclination - low) / max(high - low, 1e-9) * (beams - 1))
    return np.clip(steps, 0, beams - 1).astype(int)


def motion_blur(points: np.ndarray, std_m: float, rng: np.random.Generator) -> np.ndarray:
    """One shift of the sweep, N(0, std) on each axis, and noise on each point of 0.1, 0.1 and 0.05 std."""
    shift = rng.normal(0, std_m, 3)
    noise = rng.normal(0, std_m, (len(points), 3)) * (0.1, 0.1, 0.05)
    blurred = points.copy()
    blurred[:, :3] += (shift + np.clip(noise, -3 * std_m, 3 * std_m)).astype(np.float32)
    return blurred


def crosstalk(points: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator) -> Labelled:
    """A share of the points gets noise of 3 m on each axis, and of 3 / 255 on the intensity; its label is 255."""
    struck = rng.choice(len(points), int(share * len(points)), replace=False)
    noisy, ignored = points.copy(), labels.copy()
    noise = rng.standard_normal((len(struck), 4)) * (CROSSTALK_M, CROSSTALK_M, CROSSTALK_M, CROSSTALK_M / 255)
    noisy[struck] += noise.astype(np.float32)
    noisy[:, 3] = np.clip(noisy[:, 3], 0, 1)
    ignored[struck] = IGNORE
    return noisy, ignored


def incomplete_echo(labels: np.ndarray, classes: Sequence[int], lost: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, kept: a share of the points of each of these classes is lost where it has more than 10."""
    kept = np.ones(len(labels), bool)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if len(rows) > ECHO_POINTS:
            kept[rng.choice(rows, int(lost * len(rows)), replace=False)] = False
    return kept


def beam_missing(ring: np.ndarray, beams: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, kept: a quarter, half or three quarters as many beams are drawn, with replacement, and lost.

    The outermost are spared: 2 to 28 of 32 are drawn from, 4 to 58 of 64.
    """
    drawn = rng.integers(beams // 16, max(round(0.92 * beams), 1), beams * severity // 4)
    return ~np.isin(ring, drawn)


def cross_sensor(ring: np.ndarray, beams: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, kept: a quarter, half or three quarters of the beams are dropped, then every second point left.

    Nothing is drawn from `rng`.
    """
    dropped = np.arange(1, beams, BEAM_STEP[severity - 1]).astype(int)
    left = np.flatnonzero(~np.isin(ring, dropped))
    kept = np.zeros(len(ring), bool)
    kept[left[::2]] = True
    return kept


def _ids(wanted: set[str], class_names: Sequence[str], kind: str) -> list[int]:
    found = [index for index, name in enumerate(class_names) if name in wanted]
    if not found:
        raise ValueError(
            f"{kind} changes {', '.join(sorted(wanted))}; none is in class_names {list(class_names)}: "
            "pass the names of the labels' classes, Taxonomy.names"
        )
    return found


def _check(points: np.ndarray, labels: np.ndarray, kind: str, severity: int, ring: np.ndarray | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"corruption {kind!r} is unknown; there are {', '.join(KINDS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; use 1 (light), 2 (moderate) or 3 (heavy)")
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points must be (N, 4) [x, y, z, intensity], got {points.shape}")
    for name, column in (("labels", labels), ("ring", points if ring is None else ring)):
        if len(column) != len(points):
            raise ValueError(f"{len(column)} {name} for {len(points)} points")

"""What differs between live sweeps and those of training, by how much it matters, and what to do about it.

Each tolerance below says why it is what it is. They lie between the largest difference among good sweeps and the
smallest that a usual mistake makes. The good sweeps, against training on simulated streets: 8 other streets, and real
ones of nuScenes, SemanticKITTI, KITTI and DDAD.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima_core.training.input_picture import Picture

# Median ratio of four percentiles. Roads and sensors differ by 1.9 (nuScenes) and 3.8 (KITTI), units by 16 at least
# (8 bit against 12). 100 against 255 passes: surfaces differ as much.
INTENSITY_FACTOR = 5.0
# Roofs and slopes moved the ground by 0.2 m at most. A cloud in the vehicle's frame moves it by 1.5 m and more.
HEIGHT_M = 0.5
# 40 beams for 32 pass; 16 or 64 do not.
BEAMS_FACTOR = 1.5
# Half the beams alone pass (0.5), as does a dense scanner of as many beams (DDAD 1.6). A 64-beam HDL-64E has 4.1.
RETURNS_FACTOR = 2.5
# Of the 99th percentile: 0.75 to 1.4 on real roads, whatever the LiDAR. A cut at 20 m gives 0.3.
RANGE_FACTOR = 2.0
# Of the median range: millimetres give 1000, centimetres 100; no place is so wide or narrow.
UNIT_FACTOR = 20.0
# A street is 4 times as wide as what is seen of it is high; of an alley of 5 m between walls of 8 m it is 0.7.
FLAT_FACTOR = 1.5
# Upright sweeps reach at least as far above their median as below it (KITTI: 1.05), a nuScenes sweep hung upside
# down 0.2. KITTI's would pass here, and be found by its height.
SKEW_FACTOR = 3.0

SCALES = (1.0, 100.0, 255.0, 4096.0, 65535.0)  # unit, percent, 8, 12 and 16 bits
UPPER = (50.0, 75.0, 95.0, 99.0)  # percentiles of intensity that are compared; many sensors send 0 for the weakest
KEYS = ("intensity", "range_m", "ground_z_m", "points_per_sweep", "beams")


@dataclass(frozen=True)
class Finding:
    """One thing that differs from training: `what` it is, values `seen` and `expected`, and what to do: `fix`."""

    what: str
    seen: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: seen {self.seen}, expected {self.expected}; {self.fix}"


class Expected:
    """Numbers of a checkpoint's `inputs`; nan, or 0 beams, where it lacks them, which `missing` names."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        inputs = inputs if isinstance(inputs, Mapping) else {}
        self.intensity = np.array([_percentile(inputs.get("intensity"), p) for p in UPPER])
        self.range_median, self.range_far = (_percentile(inputs.get("range_m"), p) for p in (50, 99))
        self.ground = _number(inputs.get("ground_z_m"))
        self.returns = _percentile(inputs.get("points_per_sweep"), 50)
        beams = _number(inputs.get("beams"))
        self.beams = beams if beams > 0 else 0.0
        told = (self.intensity, self.range_median + self.range_far, self.ground, self.returns, beams)
        self.missing = [key for key, value in zip(KEYS, told, strict=True) if not np.isfinite(value).all()]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _percentile(distribution: Any, percent: float) -> float:
    percentiles = distribution.get("percentiles") if isinstance(distribution, Mapping) else None
    return _number(percentiles.get(f"{percent:g}")) if isinstance(percentiles, Mapping) else float("nan")


def findings_of(live: Picture, expected: Expected) -> Iterator[Finding]:
    """In the order of how much they matter; what a graver one explains is left out."""
    if not live.returns:
        seen = f"none in the median of {live.sweeps} sweeps"
        yield Finding("points", seen, "finite x, y, z other than 0", "see whether the driver receives whole packets")
        return
    geometry = [*_units(live, expected), *_axes(live)]
    yield from geometry
    yield from _intensity(live, expected)
    if not geometry:
        yield from _height(live, expected)
    yield from _beams(live, expected)
    yield from _density(live, expected)
    if not geometry:
        yield from _range(live, expected)
    if expected.missing:
        seen, all_of_them = f"inputs without {', '.join(expected.missing)}", f"inputs with {', '.join(KEYS)}"
        yield Finding("checkpoint", seen, all_of_them, "these were not compared; finetune again with this lima")


def _units(live: Picture, expected: Expected) -> Iterator[Finding]:
    (median,) = live.at("range", 50)
    if _beyond(median, expected.range_median, UNIT_FACTOR):
        fix = "publish x, y and z in metres: the driver seems to send another unit"
        yield Finding("units", f"median range {median:.4g}", f"about {expected.range_median:.1f} m", fix)


def _axes(live: Picture) -> Iterator[Finding]:
    """A road scene is flat along its vertical, and most returns lie near its lower end."""
    low, middle, high = (np.array([live.at(axis, p)[0] for axis in "xyz"]) for p in (5, 50, 95))
    spread = high - low
    flat = int(spread.argmin())
    if spread[2] > FLAT_FACTOR * spread[flat]:
        down = middle[flat] - low[flat] > high[flat] - middle[flat]
        seen = f"a cloud flat along {'xyz'[flat]} ({spread[flat]:.1f} m; z: {spread[2]:.1f} m), "
        seen += f"with the ground at {'+' if down else '-'}{'xyz'[flat]}"
        fix = "publish the cloud in a frame with x forward, y left, z up (REP 103), not in an optical frame"
        yield Finding("axes", seen, "z up", fix)
    elif middle[2] - low[2] > SKEW_FACTOR * (high[2] - middle[2]):
        seen = f"most returns near the highest z ({high[2]:.1f} m)"
        yield Finding("axes", seen, "z up", "the LiDAR hangs upside down: let its driver turn the cloud by 180 degrees")


def _intensity(live: Picture, expected: Expected) -> Iterator[Finding]:
    low, high = live.at("intensity", 1, 95)
    trained = f"{_span(expected.intensity[[0, -1]])} (50th to 99th percentile)"
    if not (expected.intensity > 0).any():  # also where the checkpoint does not tell
        return
    if high <= low:
        seen = f"{high:g} at 95 % of the points or more"
        fix = "fill the field intensity in the driver; a cloud without one counts as 0"
        yield Finding("intensity", seen, trained, fix)
    elif _beyond(_brightness(live, "intensity", expected), 1.0, INTENSITY_FACTOR):
        better, top = better_scale(live, expected), live.at("raw", 99.9)[0]
        near = f"no usual one fits, {_brightness(live, 'raw', expected):.2g} would"
        fix = f"set intensity_scale: {better:g}" if better else f"set intensity_scale by the data sheet: {near}"
        seen = f"{_span(live.at('intensity', 50, 99))} (raw values up to {top:.4g})"
        yield Finding("intensity", seen, trained, fix)


def _height(live: Picture, expected: Expected) -> Iterator[Finding]:
    wanted = f"{expected.ground:.2f} m"
    if np.isnan(live.ground) and np.isfinite(expected.ground):
        fix = "see whether the driver or a filter removes the ground around the vehicle"
        yield Finding("height", "no return between 3 and 15 m, hence no ground", wanted, fix)
    elif abs(live.ground - expected.ground) > HEIGHT_M:
        yield Finding("height", f"ground at z = {live.ground:.2f} m", wanted, _height_fix(live.ground, expected.ground))


def _height_fix(seen: float, expected: float) -> str:
    if expected < -HEIGHT_M and seen > -0.2:  # no LiDAR drives so low
        return "the cloud seems to be in the vehicle's frame, or upside down: publish it in the LiDAR's own, z up"
    return (
        f"is the LiDAR mounted {-seen:.1f} m above ground? Move it, finetune, or shift z by {expected - seen:+.2f} m; "
        "base_from_lidar of the rig does not move what the network sees"
    )


def _beams(live: Picture, expected: Expected) -> Iterator[Finding]:
    if live.beams and expected.beams and _beyond(live.beams, expected.beams, BEAMS_FACTOR):
        fix = "another LiDAR, or a filter takes beams out: finetune on this one, or use a checkpoint trained on it"
        yield Finding("beams", f"{live.beams} rings", f"{expected.beams:.0f}", fix)


def _density(live: Picture, expected: Expected) -> Iterator[Finding]:
    if _beyond(live.returns, expected.returns, RETURNS_FACTOR):
        few = "publish whole revolutions, undecimated: is this one packet, or a filtered cloud?"
        many = "publish single revolutions of one LiDAR, or finetune on this one: is this several sweeps in one?"
        fix = few if live.returns < expected.returns else many
        yield Finding("density", f"{live.returns:.0f} returns per sweep", f"about {expected.returns:.0f}", fix)


def _range(live: Picture, expected: Expected) -> Iterator[Finding]:
    (far,) = live.at("range", 99)
    if _beyond(far, expected.range_far, RANGE_FACTOR):
        fix = "see max_range and crop filters of the driver; where the place itself is so, expect less accuracy"
        yield Finding("range", f"99 % of the returns within {far:.0f} m", f"{expected.range_far:.0f} m", fix)


def _brightness(live: Picture, column: str, expected: Expected) -> float:
    """How many times as bright as in training: the median over UPPER; nan where it cannot be said."""
    used = expected.intensity > 0
    return float(np.median(live.at(column, *UPPER)[used] / expected.intensity[used])) if used.any() else float("nan")


def better_scale(live: Picture, expected: Expected) -> float | None:
    """Of the scales that hold the largest raw value and are within tolerance; a smaller one where two do equally."""
    raw, top = _brightness(live, "raw", expected), live.at("raw", 99.9)[0]
    low, high = live.at("raw", 1, 95)
    if high <= low or not _beyond(_brightness(live, "intensity", expected), 1.0, INTENSITY_FACTOR):
        return None

    def cost(scale: float) -> float:
        return abs(np.log(raw / scale)) + 0.5 * np.log(scale / top)

    fitting = [s for s in SCALES if top <= 1.01 * s and not _beyond(raw / s, 1.0, INTENSITY_FACTOR)]
    return min(fitting, key=cost, default=None)


def _beyond(seen: float, expected: float, factor: float) -> bool:
    """True where one is more than `factor` times the other; False where either is unknown (nan)."""
    return bool(seen > factor * expected or seen * factor < expected)


def _span(pair: np.ndarray) -> str:
    return f"{pair[0]:.3g} to {pair[1]:.3g}"

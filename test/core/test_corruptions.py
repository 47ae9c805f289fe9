"""Robo3D's corruptions: what each may change, how much, and the physics of the weather in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.data.classes import load_taxonomy
from lima_core.data.corruptions import KINDS, SEED, corrupt, cross_sensor, rings
from lima_core.data.frame import IGNORE
from lima_core.data.semantickitti import SemanticKITTI
from lima_core.data.weather import film, flakes

NAMES = load_taxonomy("nuscenes").names
CAR, ROAD, MANMADE = NAMES.index("car"), NAMES.index("driveable_surface"), NAMES.index("manmade")
BEAMS, COLUMNS = 32, 200


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sensor 1.8 m above flat ground in a round hall of 50 m: points, labels, ring; every third wall column a car."""
    ring, column = (x.ravel() for x in np.mgrid[:BEAMS, :COLUMNS])
    inclination = np.radians(-30 + 40 * ring / (BEAMS - 1))
    azimuth = 2 * np.pi * column / COLUMNS
    with np.errstate(divide="ignore"):
        reach = np.where(inclination < 0, 1.8 / np.maximum(-np.sin(inclination), 1e-9), np.inf)
    distance = np.minimum(reach, 50)
    directions = [np.cos(inclination) * np.cos(azimuth), np.cos(inclination) * np.sin(azimuth), np.sin(inclination)]
    points = np.stack([*(d * distance for d in directions), np.full(len(ring), 0.1)], 1).astype(np.float32)
    points[:, 3] += (column % 7 * 0.01).astype(np.float32)
    labels = np.where(reach < 50, ROAD, np.where(column % 3, MANMADE, CAR)).astype(np.uint8)
    return points, labels, ring


def changed(kind: str, severity: int, seed: int = SEED, ring: np.ndarray | None = None):
    points, labels, own = scene()
    return corrupt(points, labels, kind, severity, np.random.default_rng(seed), own if ring is None else ring, NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_the_contract_of_every_corruption(kind, severity):
    points, labels, ring = scene()
    before = points.copy(), labels.copy()
    out, ids = corrupt(points, labels, kind, severity, np.random.default_rng(SEED), ring, NAMES)
    again = corrupt(points, labels, kind, severity, np.random.default_rng(SEED), ring, NAMES)
    assert (points == before[0]).all() and (labels == before[1]).all(), "the input was changed"
    assert (out == again[0]).all() and (ids == again[1]).all(), "equal generators give equal sweeps"
    assert out.dtype == np.float32 and ids.dtype == np.uint8 and len(out) == len(ids) <= len(points)
    assert np.isfinite(out).all() and out[:, 3].min() >= 0 and out[:, 3].max() <= 1
    assert set(ids) <= {*labels, IGNORE}
    assert not np.shares_memory(out, points) and not np.shares_memory(ids, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_heavier_is_worse(kind):
    """More points lost, ignored or, for the blur, moved."""
    points, _, _ = scene()
    harm = []
    for severity in (1, 2, 3):
        runs = [changed(kind, severity, seed) for seed in range(12)]
        harm.append(sum(len(points) - np.count_nonzero(ids != IGNORE) for _, ids in runs))
        if kind == "motion_blur":
            harm[-1] = sum(np.linalg.norm(out[:, :3] - points[:, :3], axis=1).mean() for out, _ in runs)
    assert 0 <= harm[0] < harm[1] < harm[2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_sweep_stays_empty(kind):
    points, labels = np.empty((0, 4), np.float32), np.empty(0, np.uint8)
    for ring in (None, labels):
        out, ids = corrupt(points, labels, kind, 3, np.random.default_rng(0), ring, NAMES)
        assert out.shape == (0, 4) and ids.shape == (0,)


def test_what_cannot_be_corrupted_is_refused():
    points, labels, ring = scene()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'rain' is unknown; there are fog"):
        corrupt(points, labels, "rain", 1, rng)
    with pytest.raises(ValueError, match="severity is 4; use 1"):
        corrupt(points, labels, "fog", 4, rng)
    with pytest.raises(ValueError, match=r"\[x, y, z, intensity\], got \(6400, 3\)"):
        corrupt(points[:, :3], labels, "fog", 1, rng)
    with pytest.raises(ValueError, match="6399 labels for 6400 points"):
        corrupt(points, labels[1:], "fog", 1, rng)
    with pytest.raises(ValueError, match="6399 ring for 6400 points"):
        corrupt(points, labels, "cross_sensor", 1, rng, ring[1:])
    for kind in ("wet_ground", "incomplete_echo"):
        with pytest.raises(ValueError, match=f"{kind} changes .*Taxonomy.names"):
            corrupt(points, labels, kind, 1, rng, ring)


@pytest.mark.parametrize("severity, most", [(1, 8), (2, 16), (3, 24)])
def test_missing_beams_are_whole_and_among_the_inner_ones(severity, most):
    points, _, ring = scene()
    lost = set()
    for seed in range(30):
        out, _ = changed("beam_missing", severity, seed)
        left = {tuple(row) for row in out}
        gone = {int(r) for r, row in zip(ring, points, strict=True) if tuple(row) not in left}
        assert 1 <= len(gone) <= most and len(out) == len(points) - COLUMNS * len(gone)
        lost |= gone
    assert lost == set(range(2, 29))


@pytest.mark.parametrize(
    "severity, dropped",
    [(1, range(1, 32, 4)), (2, range(1, 32, 2)), (3, {int(1 + 1.33 * k) for k in range(24)})],
)
def test_another_sensor_has_fewer_beams_of_half_the_points(severity, dropped):
    points, labels, ring = scene()
    out, ids = changed("cross_sensor", severity)
    left = ~np.isin(ring, list(dropped))
    assert (out == points[left][::2]).all() and (ids == labels[left][::2]).all()
    assert len(set(dropped)) == 8 * severity
    of_64 = cross_sensor(np.arange(64), 64, severity, np.random.default_rng(0))
    assert of_64.sum() == 8 * (4 - severity), "of 64 beams too a quarter, half or three quarters go"


@settings(deadline=None, max_examples=25)
@given(beams=st.integers(16, 64), low=st.floats(-35, -15), width=st.floats(20, 45), seed=st.integers(0, 2**32 - 1))
def test_beams_with_even_steps_are_told_by_inclination(beams, low, width, seed):
    ring = np.repeat(np.arange(beams), 50)
    rng = np.random.default_rng(seed)
    inclination, azimuth = np.radians(low + width * ring / (beams - 1)), rng.uniform(-np.pi, np.pi, len(ring))
    direction = [np.cos(inclination) * np.cos(azimuth), np.cos(inclination) * np.sin(azimuth), np.sin(inclination)]
    points = (np.stack(direction, 1) * rng.uniform(3, 80, (len(ring), 1))).astype(np.float32)
    shuffled = rng.permutation(len(ring))
    assert (rings(points[shuffled], beams) == ring[shuffled]).all()


def test_without_a_ring_the_same_beams_go():
    points, labels, ring = scene()
    told = corrupt(points, labels, "beam_missing", 2, np.random.default_rng(4))
    given_ = corrupt(points, labels, "beam_missing", 2, np.random.default_rng(4), ring.astype(np.uint8))
    assert (told[0] == given_[0]).all() and (told[1] == given_[1]).all()


@pytest.mark.parametrize("severity, share", [(1, 0.03), (2, 0.04), (3, 0.05)])
def test_crosstalk_strikes_a_share_and_has_it_ignored(severity, share):
    points, labels, _ = scene()
    out, ids = changed("crosstalk", severity)
    struck = ids == IGNORE
    assert struck.sum() == int(share * len(points))
    assert (out[~struck] == points[~struck]).all() and (ids[~struck] == labels[~struck]).all()
    noise = (out - points)[struck, :3]
    assert np.abs(noise.mean(0)).max() < 1 and noise.std() == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("severity, lost", [(1, 0.75), (2, 0.85), (3, 0.95)])
def test_incomplete_echoes_thin_out_vehicles_alone(severity, lost):
    _, labels, _ = scene()
    _, ids = changed("incomplete_echo", severity)
    cars = (labels == CAR).sum()
    assert (ids == CAR).sum() == cars - int(lost * cars)
    assert (ids == ROAD).sum() == (labels == ROAD).sum() and (ids == MANMADE).sum() == (labels == MANMADE).sum()


def test_ten_points_of_a_vehicle_all_return():
    points, labels, ring = scene()
    labels = np.where(np.arange(len(labels)) < 10, CAR, MANMADE).astype(np.uint8)
    out, _ = corrupt(points, labels, "incomplete_echo", 3, np.random.default_rng(0), ring, NAMES)
    assert len(out) == len(points)


@pytest.mark.parametrize("severity, std", [(1, 0.2), (2, 0.25), (3, 0.3)])
def test_the_blur_is_one_shift_and_a_tenth_of_it_per_point(severity, std):
    points, labels, _ = scene()
    shifts = []
    for seed in range(40):
        out, ids = changed("motion_blur", severity, seed)
        moved = (out - points)[:, :3]
        assert (out[:, 3] == points[:, 3]).all() and (ids == labels).all()
        np.testing.assert_allclose(moved.std(0), std * np.array([0.1, 0.1, 0.05]), rtol=0.05)
        shifts.append(moved.mean(0))
    assert np.std(shifts) == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize("kind", ["fog", "snow"])
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_scatter_lies_on_the_beam_before_the_target(kind, severity):
    """Few points may be lost in snow; of those that stay, order and direction do."""
    points, labels, _ = scene()
    for seed in range(6):
        out, ids = changed(kind, severity, seed)
        if len(out) < len(points):
            continue
        before, after = (np.linalg.norm(p[:, :3], axis=1) for p in (points, out))
        cosine = (points[:, :3] * out[:, :3]).sum(1) / (before * after)
        moved = ids == IGNORE
        assert cosine.min() > 1 - 1e-5 and (after <= before * (1 + 1e-5)).all()
        np.testing.assert_allclose(after[~moved], before[~moved], rtol=1e-5)
        assert (ids[~moved] == labels[~moved]).all()
        assert (out[~moved, 3] <= points[~moved, 3]).all(), "what still returns is attenuated"


def test_fog_attenuates_by_beer_and_lambert():
    """i' = i exp(-2 alpha R) for one of the published alphas, the same one for all points of a sweep."""
    points, _, _ = scene()
    seen = set()
    for seed in range(40):
        out, ids = changed("fog", 1, seed)
        stays = ids != IGNORE
        distance = np.linalg.norm(points[stays, :3], axis=1)
        alpha = -np.log(out[stays, 3] / points[stays, 3]) / (2 * distance)
        seen.add(round(float(np.median(alpha)), 4))
        assert np.ptp(alpha) < 1e-4
    assert seen == {0.0, 0.005, 0.01, 0.02, 0.03, 0.06}


def test_snow_hides_a_dark_far_target_more_often_than_a_bright_near_one():
    def hidden(distance: float, intensity: float) -> float:
        points = np.tile(np.array([distance, 0, 0, intensity], np.float32), (20000, 1))
        return (corrupt(points, np.zeros(20000, np.uint8), "snow", 3, np.random.default_rng(0))[1] == IGNORE).mean()

    assert hidden(10, 0.5) < hidden(10, 0.05) < hidden(40, 0.05) and hidden(1, 0.5) == 0


def test_hidden_by_snow_as_often_as_a_drawn_crowd_of_flakes_would():
    """The closed form against flakes that are drawn one by one in the beam's cone."""
    distance, intensity, theta = 15.0, 0.1, 3e-3
    slope, density = flakes(2.5, 1.6)
    faded = intensity * np.exp(-2 * np.pi * density / slope**3 * distance)
    rng, hidden, beams = np.random.default_rng(1), 0, 3000
    volume = np.pi / 12 * theta**2 * (distance**3 - 1)
    for count in rng.poisson(density / slope * volume, beams):
        r = np.cbrt(rng.uniform(1, distance**3, count))
        diameter = rng.exponential(1 / slope, count)
        hidden += bool((0.9 * (diameter / (theta * r)) ** 2 / r**2 > faded / distance**2).any())
    points = np.tile(np.array([distance, 0, 0, intensity], np.float32), (20000, 1))
    _, ids = corrupt(points, np.zeros(20000, np.uint8), "snow", 3, np.random.default_rng(0))
    assert (ids == IGNORE).mean() == pytest.approx(hidden / beams, abs=0.02)


def test_flakes_of_one_millimetre_of_rain():
    """Gunn & Marshall 1958 at 1 mm/h of melted snow: 3800 per m^3 and mm, and 25.5 per cm."""
    slope, density = flakes(487 * 0.1 * 0.003, 1.0)
    assert slope == pytest.approx(2550) and density == pytest.approx(3.8e6)


def test_the_film_of_water_follows_fresnel():
    """At normal incidence R = ((n - 1) / (n + 1))^2, at Brewster's angle one polarisation is not mirrored at all."""
    n, rho = 1.33 / 1.0003, 0.3
    mirrored = ((n - 1) / (n + 1)) ** 2
    expected = (1 - mirrored) ** 2 * rho / (1 - rho * mirrored)
    assert film(np.array([1.0]), np.array([rho]))[0] == pytest.approx(expected)
    assert film(np.array([np.cos(np.arctan(n))]), np.array([rho]))[0] == pytest.approx(rho)
    assert film(np.array([1e-6]), np.array([rho]))[0] == pytest.approx(0, abs=1e-4)


def test_wet_ground_darkens_ground_alone_and_loses_the_grazing_part_of_it():
    points, labels, _ = scene()
    out, ids = changed("wet_ground", 3)
    assert (out[ids != ROAD] == points[labels != ROAD]).all()
    dry, wet = points[labels == ROAD], out[ids == ROAD]
    assert len(wet) < len(dry)
    row = {tuple(p[:3]): p[3] for p in dry}
    assert all(p[3] <= row[tuple(p[:3])] * (1 + 1e-5) for p in wet)
    assert np.linalg.norm(wet[:, :3], axis=1).mean() <= np.linalg.norm(dry[:, :3], axis=1).mean()


def test_a_real_sweep(shared):
    frame = SemanticKITTI(shared / "data" / "semantickitti", "val")[0]
    names = load_taxonomy("semantickitti").names
    for kind in KINDS:
        out, ids = corrupt(frame.points, frame.labels, kind, 3, np.random.default_rng(SEED), None, names, beams=64)
        assert len(out) == len(ids) and np.isfinite(out).all()
        assert 0.1 * len(frame.points) < len(out) <= len(frame.points)

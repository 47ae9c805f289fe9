"""The input check names the fault that was put in, and nothing where the LiDAR is as in training."""

from __future__ import annotations

import threading
import warnings
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.checkpoint import load_checkpoint
from lima_core.data.frame import Frame
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.data.synthetic.street import Street
from lima_core.paths import STREET_CHECKPOINT
from lima_core.training.input_check import AutoScale, InputCheck, check_source
from lima_core.training.input_findings import KEYS, SCALES

EXPECTED = load_checkpoint(STREET_CHECKPOINT)[1]["inputs"]
SEEDS = (1001, 55555)  # none of them was trained on


@pytest.fixture(scope="module")
def sweeps() -> list[tuple[np.ndarray, np.ndarray]]:
    """10 sweeps of other streets: points (N, 4) and rings (N,)."""
    streets = [Street(seed, frames=5, cameras=False) for seed in SEEDS]
    frames = [street[index] for street in streets for index in range(5)]
    return [(frame.points, frame.extra["ring"]) for frame in frames]


def watched(sweeps, fault=lambda points, rings: (points, rings), scale=255.0, raw_scale=255.0, expected=EXPECTED):
    """A check that has seen the sweeps with a fault, sent as 0..raw_scale and divided by scale."""
    check = InputCheck(expected)
    for clean, ring in sweeps:
        points, rings = fault(clean.copy(), ring)
        raw = points[:, 3] * np.float32(raw_scale)
        points[:, 3] = raw / np.float32(scale)
        check.see(points, raw, rings)
    return check


def the_only(check):
    (found,) = check.findings()
    return found


def test_other_streets_are_well(sweeps):
    check = watched(sweeps)
    assert check.ready and check.findings() == [] and check.suggested_intensity_scale() is None


@pytest.mark.parametrize(
    ("raw_scale", "scale", "better"),
    [
        (255, 1, 255),
        (1, 255, 1),
        (65535, 255, 65535),
        (255, 65535, 255),
        (4096, 255, 4096),
        (4095, 1, 4096),
        (100, 1, 100),
    ],
)
def test_a_wrong_scale_is_found_and_its_value_told(sweeps, raw_scale, scale, better):
    check = watched(sweeps, raw_scale=raw_scale, scale=scale)
    found = the_only(check)
    assert found.what == "intensity" and found.fix == f"set intensity_scale: {better}"
    assert check.suggested_intensity_scale() == better


@settings(max_examples=30, deadline=None)
@given(raw=st.sampled_from(SCALES), scale=st.sampled_from(SCALES), dim=st.floats(0.6, 2.0))
def test_a_suggestion_always_cures(sweeps, raw, scale, dim):
    """Whatever the units, and on darker or brighter roads, what is suggested leaves nothing to suggest."""

    def faded(points, rings):
        points[:, 3] = (points[:, 3] * dim).clip(0, 1)
        return points, rings

    better = watched(sweeps, faded, scale, raw).suggested_intensity_scale()
    if better is None:
        assert max(raw / scale, scale / raw) < 10
    else:
        assert watched(sweeps, faded, better, raw).findings() == []


def test_no_usual_scale_fits(sweeps):
    found = the_only(watched(sweeps, raw_scale=3e6, scale=255))
    assert found.what == "intensity" and "no usual one fits, 3" in found.fix and "e+06" in found.fix


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_intensity(sweeps, value):
    def fault(points, rings):
        points[:, 3] = value
        return points, rings

    check = watched(sweeps, fault)
    found = the_only(check)
    assert found.what == "intensity" and found.seen.startswith(f"{value:g} at") and "field intensity" in found.fix
    assert check.suggested_intensity_scale() is None


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_another_mounting_height(sweeps, shift):
    found = the_only(watched(sweeps, lambda points, rings: (points + np.float32([0, 0, shift, 0]), rings)))
    assert found.what == "height" and f"z = {-1.86 + shift:.2f} m" in found.seen and found.expected == "-1.86 m"
    assert f"shift z by {-shift:+.2f} m" in found.fix and "base_from_lidar" in found.fix


def test_a_cloud_in_the_frame_of_the_vehicle(sweeps):
    found = the_only(watched(sweeps, lambda points, rings: (points + np.float32([1, 0, 1.86, 0]), rings)))
    assert found.what == "height" and "vehicle's frame" in found.fix


def test_no_ground_around(sweeps):
    def fault(points, rings):
        kept = np.hypot(points[:, 0], points[:, 1]) > 15.1
        return points[kept], rings[kept]

    assert "height" in {found.what for found in watched(sweeps, fault).findings()}


@pytest.mark.parametrize(
    ("columns", "signs", "ground"),
    [((0, 2, 1), (1, 1, -1), "at -y"), ((1, 2, 0), (-1, -1, 1), "at +y"), ((2, 1, 0), (1, 1, -1), "at -x")],
)
def test_axes_that_are_swapped(sweeps, columns, signs, ground):
    def fault(points, rings):
        points[:, :3] = points[:, columns] * np.float32(signs)
        return points, rings

    found = the_only(watched(sweeps, fault))
    assert found.what == "axes" and ground in found.seen and "REP 103" in found.fix


def test_upside_down(sweeps):
    found = the_only(watched(sweeps, lambda points, rings: (points * np.float32([1, -1, -1, 1]), rings)))
    assert found.what == "axes" and "upside down" in found.fix


def test_another_unit(sweeps):
    found = watched(sweeps, lambda points, rings: (points * np.float32([1000, 1000, 1000, 1]), rings)).findings()[0]
    assert found.what == "units" and "metres" in found.fix


def test_half_the_beams(sweeps):
    found = the_only(watched(sweeps, lambda points, rings: (points[rings % 2 == 0], rings[rings % 2 == 0])))
    assert (found.what, found.seen, found.expected) == ("beams", "16 rings", "32")


@pytest.mark.parametrize("rings", [None, 0])
def test_beams_that_are_not_told_are_not_judged(sweeps, rings):
    assert watched(sweeps, lambda p, r: (p, None if rings is None else np.zeros_like(r))).findings() == []


def test_a_range_cut_at_20_m(sweeps):
    def fault(points, rings):
        near = np.linalg.norm(points[:, :3], axis=1) < 20
        return points[near], rings[near]

    found = the_only(watched(sweeps, fault))
    assert found.what == "range" and found.seen.endswith(("within 19 m", "within 20 m")) and "max_range" in found.fix


@pytest.mark.parametrize(("share", "words"), [(0.25, "undecimated"), (4, "several sweeps")])
def test_sparse_and_dense(sweeps, share, words):
    def fault(points, rings):
        rows = np.random.default_rng(0).integers(0, len(points), int(share * len(points)))
        return points[rows], rings[rows]

    found = the_only(watched(sweeps, fault))
    assert found.what == "density" and words in found.fix


def test_the_gravest_comes_first_and_hides_what_it_explains(sweeps):
    def fault(points, rings):
        points[:, :3] = points[:, (0, 2, 1)] + np.float32([0, 1, 0])
        rows = rings % 4 == 0
        return points[rows], rings[rows]

    named = [found.what for found in watched(sweeps, fault, scale=1.0).findings()]
    assert named == ["axes", "intensity", "beams", "density"]


def test_points_that_are_no_returns_do_not_count(sweeps):
    """Organised clouds hold nan or the origin where nothing came back."""

    def padded(points, rings):
        empty = np.full((60000, 4), np.nan, np.float32)
        empty[::3] = 0
        empty[1::3, 0] = np.inf
        return np.concatenate([points, empty]), np.concatenate([rings, np.full(60000, 99, rings.dtype)])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watched(sweeps, padded).findings() == []
        found = the_only(watched(sweeps, lambda p, r: (p * np.float32(np.nan), r)))
        assert found.what == "points" and the_only(watched(sweeps, lambda p, r: (p[:0], r[:0]))) == found


def test_one_odd_sweep_is_no_news_and_old_ones_are_forgotten(sweeps):
    check, (points, rings) = InputCheck(EXPECTED), sweeps[0]
    low = points - np.float32([0, 0, 1, 0])
    for _ in range(9):
        check.see(low, low[:, 3], rings)
    assert check.findings() == [] and not check.ready
    check.see(low, low[:, 3], rings)
    assert the_only(check).what == "height"
    for _ in range(41):
        check.see(points, points[:, 3], rings)
    assert check.findings() == []
    check.reset()
    assert not check.ready


def test_columns_that_do_not_belong_together(sweeps):
    points, rings = sweeps[0]
    for columns in (
        (points[:, :3], points[:, 3], rings),
        (points, points[1:, 3], rings),
        (points, points[:, 3], rings[1:]),
    ):
        with pytest.raises(ValueError, match="a sweep is"):
            InputCheck(EXPECTED).see(*columns)


def test_findings_while_sweeps_arrive(sweeps):
    check = watched(sweeps)
    points, rings = sweeps[0]
    worker = threading.Thread(target=lambda: [check.see(points, points[:, 3], rings) for _ in range(100)])
    worker.start()
    while worker.is_alive():
        assert check.findings() == []
    worker.join()


def test_a_finding_is_one_line_with_all_of_it(sweeps):
    found = the_only(watched(sweeps, scale=1.0))
    line = str(found)
    assert "\n" not in line and all(part in line for part in (found.what, found.seen, found.expected, found.fix))


@pytest.mark.parametrize("broken", ["gone", None, "text", {"percentiles": {}}, float("nan")])
@pytest.mark.parametrize("key", KEYS)
def test_an_old_checkpoint_is_told_and_the_rest_is_compared(sweeps, key, broken):
    expected = deepcopy(EXPECTED)
    if broken == "gone":
        del expected[key]
    else:
        expected[key] = broken
    found = the_only(watched(sweeps, expected=expected))
    assert (found.what, found.seen) == ("checkpoint", f"inputs without {key}") and "finetune again" in found.fix
    named = [
        f.what
        for f in watched(
            sweeps, lambda p, r: (p[:9000] + np.float32([0, 0, 1, 0]), r[:9000]), 1.0, 255.0, expected
        ).findings()
    ]
    hidden = {"intensity": "intensity", "ground_z_m": "height", "points_per_sweep": "density"}.get(key)
    assert named == [what for what in ("intensity", "height", "density", "checkpoint") if what != hidden]


@pytest.mark.parametrize("inputs", [{}, None, []])
def test_a_checkpoint_without_statistics(sweeps, inputs):
    assert the_only(watched(sweeps, expected=inputs)).seen == f"inputs without {', '.join(KEYS)}"


def test_training_without_beams_or_intensity_is_no_fault_of_the_checkpoint(sweeps):
    expected = deepcopy(EXPECTED) | {"beams": 0}
    expected["intensity"]["percentiles"] = dict.fromkeys(expected["intensity"]["percentiles"], 0.0)
    assert watched(sweeps, expected=expected, scale=1.0).findings() == []


def test_automatic_scale_decides_once_and_holds(sweeps):
    check = InputCheck(EXPECTED)
    auto, lines, scales = AutoScale(check, 255.0), [], []
    for sensor in (1.0, 65535.0, 255.0):  # the unit changes twice more: it must not follow
        for points, rings in sweeps * 5:
            raw = points[:, 3] * np.float32(sensor)
            live = np.column_stack([points[:, :3], raw / np.float32(auto.scale)])
            check.see(live, raw, rings)
            lines.append(auto.update())
            scales.append(auto.scale)
        if sensor == 1.0:
            assert check.findings() == []
    assert [i for i, line in enumerate(lines) if line] == [9] and auto.decided
    assert "intensity_scale is now 1 in place of 255" in lines[9] and scales == [255.0] * 9 + [1.0] * (len(scales) - 9)
    assert the_only(check).fix == "set intensity_scale: 255"  # it says so instead


@pytest.mark.parametrize(("sensor", "words"), [(255.0, "as in training"), (0.0, "field intensity")])
def test_automatic_scale_that_has_nothing_to_do(sweeps, sensor, words):
    check = watched(sweeps, raw_scale=sensor)
    auto = AutoScale(check, 255.0)
    line = auto.update()
    assert line.startswith("intensity_scale stays 255") and words in line
    assert auto.update() is None and auto.scale == 255.0 and check.ready


class Recording:
    """A source of two frames in the vehicle's frame."""

    rig = Rig("one", "/lidar", "lidar", np.eye(4), intensity_scale=100.0)

    def __init__(self, sweeps):
        self._sweeps, self.read = sweeps, []

    def __len__(self):
        return len(self._sweeps)

    def __getitem__(self, index):
        self.read.append(index)
        points, rings = self._sweeps[index]
        moved = points + np.float32([0, 0, 1.9, 0])
        moved[:, 3] /= 100  # sent as 0..1, by a rig that says 0..100
        return Frame(0, "one", index, moved, np.eye(4), extra={"ring": rings})


def test_a_source_is_checked_without_ros(sweeps):
    source = Recording(sweeps)
    intensity, height = check_source(source, EXPECTED, 3)
    assert source.read == [0, 4, 9]
    assert intensity.fix == "set intensity_scale: 1" and "vehicle's frame" in height.fix
    check_source(source, EXPECTED, 50)
    assert source.read[3:] == list(range(10))
    for frames, bad in ((0, source), (51, source), (1, Recording([]))):
        with pytest.raises(ValueError, match="1 to 50 frames"):
            check_source(bad, EXPECTED, frames)


@pytest.mark.parametrize("folder", ["nus_tiny", "pclseg_as_nus", "rosbags/nuscenes_scene-0061_first_keyframe"])
def test_real_nuscenes_sweeps_are_well(shared, folder):
    """Their roads are up to twice as bright as the simulated ones, and the ground is 0.2 m lower: still at home."""
    assert check_source(open_source(str(shared / "data" / folder)), EXPECTED, 8) == []


@pytest.mark.parametrize("folder", ["ddad_as_nus", "rosbags/ddad_scene_02"])
def test_a_real_cloud_in_the_frame_of_the_vehicle(shared, folder):
    (found,) = check_source(open_source(str(shared / "data" / folder)), EXPECTED, 3)
    assert found.what == "height" and "z = 0.0" in found.seen and "vehicle's frame" in found.fix


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_real_64_beam_sweep_is_denser(shared, scale):
    """SemanticKITTI sends 0..1 and has a ground 0.2 m lower: with the right scale its density alone differs."""
    path = shared / "data/semantickitti/sequences/08/velodyne/000000.bin"
    points = np.fromfile(path, np.float32).reshape(-1, 4)
    check = watched([(points, np.zeros(len(points)))] * 10, scale=scale, raw_scale=1.0)
    assert [found.what for found in check.findings()] == ["intensity", "density"][scale == 1.0 :]
    assert check.suggested_intensity_scale() == (None if scale == 1.0 else 1.0)


def test_automatic_scale_waits_for_returns() -> None:
    check = InputCheck({}, least_sweeps=2)
    auto = AutoScale(check, 255.0)
    for _ in range(5):
        check.see(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert auto.update() is None and not auto.decided
    check.reset()
    assert auto.update() is None and not auto.decided

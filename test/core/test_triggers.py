"""Which sweeps are recorded: by time, by distance, and by novelty, against what can be said by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lima_core.data.recording import Recording
from lima_core.runtime.parameters import ParameterError, resolve
from lima_core.runtime.recorder_parameters import RECORDING
from lima_core.runtime.triggers import MEMORY, SAMPLE, Novelty, Triggers
from robots import SPEED, Taken, drive, places

POINTS = np.zeros((10, 4), np.float32)


def triggers(names: str, features=None, **settings: float) -> Triggers:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return Triggers(resolve({"triggers": names, **given}, RECORDING), features)


def chosen(one: Triggers, stamps_s: np.ndarray, places_m: np.ndarray, points=None) -> list[tuple[int, str]]:
    """Index and reason of each recorded sweep."""
    found = []
    for index, (stamp, place) in enumerate(zip(stamps_s, places_m, strict=True)):
        where, cloud = np.asarray(place, float), POINTS if points is None else points[index]
        reason = one.reason(round(stamp * 1e9), where, lambda cloud=cloud: cloud)
        if reason is not None:
            one.taken(round(stamp * 1e9), lambda cloud=cloud: cloud)
            found.append((index, reason))
    return found


def line(count: int, step: float) -> np.ndarray:
    return np.arange(count)[:, None] * [step, 0, 0]


def test_time() -> None:
    found = chosen(triggers("time", trigger__every_s=0.5), np.arange(20) * 0.1, line(20, 0))
    assert found == [(0, "time"), (5, "time"), (10, "time"), (15, "time")]


def test_time_waits_for_the_next_sweep_after_a_gap() -> None:
    stamps = np.array([0.0, 0.1, 0.9, 1.0, 1.3, 1.4, 1.5])
    assert [i for i, _ in chosen(triggers("time", trigger__every_s=0.5), stamps, line(7, 0))] == [0, 2, 5]


@pytest.mark.parametrize(("step", "every"), [(0.25, 1.0), (0.3, 1.0), (2.0, 1.0), (0.125, 0.5)])
def test_distance_on_a_line(step: float, every: float) -> None:
    found = chosen(triggers("distance", trigger__every_m=every), np.arange(40) * 0.1, line(40, step))
    assert found == [(i, "distance") for i in range(0, 40, int(np.ceil(every / step)))]


def test_distance_is_driven_and_not_as_the_crow_flies() -> None:
    """A circle of 1 m radius, 12 sweeps a round: each is a chord of 2 sin(15 deg), though the end is the start."""
    angles = np.arange(49) * np.pi / 6
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    every = 24 * float(np.sin(np.pi / 12)) - 1e-6
    assert [i for i, _ in chosen(triggers("distance", trigger__every_m=every), angles, circle)] == [0, 12, 24, 36, 48]
    assert len(chosen(triggers("distance", trigger__every_m=1.0), np.arange(50), line(50, 0))) == 1


def test_the_first_that_is_due_names_the_reason_and_counts_for_both() -> None:
    places_m = np.concatenate([line(10, 0), line(10, 1.0)])
    found = chosen(
        triggers("distance, time", trigger__every_s=0.55, trigger__every_m=2.0), np.arange(20) * 0.1, places_m
    )
    assert found == [(0, "distance"), (6, "time"), (12, "time"), (14, "distance"), (16, "distance"), (18, "distance")]


def test_a_new_sequence_begins_with_a_frame() -> None:
    one = triggers("time", trigger__every_s=10.0)
    assert len(chosen(one, np.arange(5), line(5, 0))) == 1
    one.start_over()
    assert len(chosen(one, np.arange(5) + 5, line(5, 0))) == 1
    assert chosen(triggers(""), np.arange(5), line(5, 9)) == []


def test_unknown_and_impossible_triggers() -> None:
    with pytest.raises(ParameterError, match="triggers names 'speed'; there are time, distance, novelty, all"):
        triggers("time, speed")
    with pytest.raises(ValueError, match="novelty needs a network"):
        triggers("novelty")


# ---- novelty


def direction(points: np.ndarray) -> np.ndarray:
    """A feature that can be told by hand: the unit vector (cos, sin) of the angle in a point's first column."""
    return np.stack([np.cos(points[:, 0]), np.sin(points[:, 0])], 1)


def scene(degrees: float, points: int = 700) -> np.ndarray:
    return np.full((points, 4), np.radians(degrees), np.float32)


def test_the_novelty_of_a_sweep_is_one_minus_cosine() -> None:
    one = Novelty(direction)
    distance, unit = one.look(scene(0))
    assert distance == 1.0 and unit.shape == (SAMPLE, 2)
    one.remember(unit)
    for degrees in (0, 30, 60, 90, 180):
        assert one.look(scene(degrees))[0] == pytest.approx(1 - np.cos(np.radians(degrees)), abs=1e-6)
    one.remember(one.look(scene(80))[1])
    assert one.look(scene(90))[0] == pytest.approx(1 - np.cos(np.radians(10)), abs=1e-6)  # to the nearest


@pytest.mark.parametrize(("new_percent", "is_new"), [(8, False), (12, True)])
def test_a_sweep_is_as_new_as_its_newest_tenth(new_percent: int, is_new: bool) -> None:
    one = Novelty(direction)
    one.remember(one.look(scene(0))[1])
    mixed = np.concatenate([scene(90, new_percent * 5), scene(0, (100 - new_percent) * 5)])
    assert (one.look(mixed)[0] > 0.5) == is_new


def test_points_without_features_and_empty_sweeps_are_not_new() -> None:
    one = Novelty(lambda points: np.where(points[:, :1] > 0, direction(points), np.nan))
    assert one.look(np.zeros((5, 4), np.float32))[0] == 0.0
    assert one.look(np.zeros((0, 4), np.float32))[0] == 0.0
    half = np.concatenate([scene(90, 10), scene(0, 10)])
    one.remember(one.look(half)[1])
    assert one.look(scene(90))[0] == pytest.approx(0, abs=1e-6)


def test_the_memory_is_bounded_and_keeps_the_newest() -> None:
    one = Novelty(direction)
    for degrees in [90, *[0] * MEMORY]:
        one.remember(one.look(scene(degrees, 5))[1])
    assert len(one._memory) == MEMORY and one.look(scene(90))[0] == pytest.approx(1)


def test_novelty_records_what_was_not_seen() -> None:
    """A turn by 10 degrees a sweep: 1 - cos(30 deg) = 0.134 is new, 1 - cos(20 deg) = 0.06 is not."""
    turn = [scene(10 * i) for i in range(10)]
    one = triggers("novelty", direction, trigger__novelty=0.1)
    assert chosen(one, np.arange(10), line(10, 0), turn) == [(i, "novelty") for i in (0, 3, 6, 9)]
    one.start_over()  # the memory stays: nothing here is new
    assert chosen(one, np.arange(10) + 10, line(10, 0), turn) == []


def test_what_another_trigger_records_is_known_too() -> None:
    turn = [scene(10 * i) for i in range(10)]
    one = triggers("time, novelty", direction, trigger__every_s=2.0, trigger__novelty=0.1)
    assert [reason for _, reason in chosen(one, np.arange(10), line(10, 0), turn)] == ["time"] * 5


# ---- in a recording


def test_distance_in_a_recording(tmp_path: Path) -> None:
    step = SPEED * 0.1
    taken = Taken(tmp_path / "drive", triggers="distance", trigger__every_m=2 * step - 1e-6).feed(drive(range(12)))
    assert taken.close() == {"recorded": 6, "not_chosen": 6}
    recording = Recording(tmp_path / "drive")
    assert list(places(recording)) == [("0000", i) for i in range(0, 12, 2)]
    assert {recording.line(i).trigger for i in range(6)} == {"distance"}


def test_novelty_in_a_recording_is_deterministic(tmp_path: Path) -> None:
    def height(points: np.ndarray) -> np.ndarray:
        return np.stack([np.ones(len(points)), points[:, 2].mean() + 0 * points[:, 2]], 1)

    kept = []
    for name in ("one", "two"):
        taken = Taken(tmp_path / name, height, triggers="novelty", trigger__novelty=0.01).feed(drive(range(12)))
        taken.close()
        kept.append(list(places(Recording(tmp_path / name))))
    assert kept[0] == kept[1] and 1 < len(kept[0]) < 12

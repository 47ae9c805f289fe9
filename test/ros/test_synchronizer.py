"""Every sweep out once and in order, whatever the cameras do; nuScenes offsets, bag loops, dead and late cameras."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.runtime.synchronizer import GAP, LATE, MAX_PENDING, NEVER, SILENT_AFTER, Synchronizer, Window, windows_of

MS = 1_000_000
OFFSETS_MS = {
    "CAM_FRONT_LEFT": -43.1,
    "CAM_FRONT": -35.5,
    "CAM_FRONT_RIGHT": -27.6,
    "CAM_BACK_RIGHT": -20.1,
    "CAM_BACK": -10.4,
    "CAM_BACK_LEFT": -0.5,
}
START_MS = 1_532_402_927_000.0


def nuscenes_windows(tolerance_ms=45.0):
    return windows_of([SimpleNamespace(name=n, offset_ms=o) for n, o in OFFSETS_MS.items()], tolerance_ms)


def drive(sync, events, delay_ms=2.0):
    """Feeds (stamp_ms, sensor) events in simulated time, polling every 5 ms; returns what came out."""
    out, clock, index = [], events[0][0], 0
    while index < len(events):
        clock += 5.0
        while index < len(events) and events[index][0] + delay_ms <= clock:
            out += feed(sync, events[index], events[index][0] + delay_ms)
            index += 1
        out += sync.poll(clock * 1e-3)
    return out


def feed(sync, event, now_ms):
    stamp_ms, sensor = event
    stamp_ns = round(stamp_ms * MS)
    if sensor == "lidar":
        return sync.add_sweep(stamp_ns, stamp_ns, now_ms * 1e-3)
    return sync.add_image(sensor, stamp_ns, (sensor, stamp_ns), now_ms * 1e-3)


def stream(lidar_hz, camera_hz, seconds, triggered=True):
    """One bag: sweeps, and images at each camera's offset to them (triggered) or free-running."""
    events = [(START_MS + 1000 * i / lidar_hz, "lidar") for i in range(int(seconds * lidar_hz))]
    hz = lidar_hz if triggered else camera_hz
    for name, offset in OFFSETS_MS.items():
        events += [(START_MS + 1000 * i / hz + offset, name) for i in range(int(seconds * hz))]
    return sorted(events)


def counts(out):
    """Complete sweeps, and every (camera, reason) of the others."""
    return sum(s.complete for s in out), Counter((c, reason) for s in out for c, reason in s.missing.items())


def test_nuscenes_keyframe_is_complete_at_once():
    sync = Synchronizer(nuscenes_windows(tolerance_ms=5.0), timeout_ms=50)
    out = [s for event in stream(10, 10, 0.1) for s in feed(sync, event, event[0])]
    assert len(out) == 1 and out[0].complete and sync.pending == 0
    for name, offset in OFFSETS_MS.items():
        assert out[0].images[name].stamp_ns == round((START_MS + offset) * MS)
        assert abs(out[0].images[name].dt_ms) < 1e-3
    assert out[0].spread_ms < 1e-3


def test_cameras_slower_than_the_lidar_serve_every_sweep():
    """20 Hz LiDAR, 12 Hz cameras: message_filters gives 240 of 400 (spec, "Synchroniser, measured")."""
    out = drive(Synchronizer(nuscenes_windows(), timeout_ms=100), stream(20, 12, 20, triggered=False))
    complete, _ = counts(out)
    assert len(out) == 400
    assert complete >= 398  # the first sweep has no earlier image, the last may have no later one
    for sweep in out[2:-2]:
        for name, image in sweep.images.items():
            phase = (image.stamp_ns / MS - START_MS - OFFSETS_MS[name]) % (1000 / 12)
            assert min(phase, 1000 / 12 - phase) < 0.01
            assert abs(image.dt_ms) <= 1000 / 12 / 2 + 0.01, "not the nearest image of a 12 Hz camera"


def test_a_bag_played_three_times_gives_equal_counts_each_time():
    """message_filters gives 234, 0, 0 here (spec, fact 2)."""
    for seconds in (0.4, 2.0, 5.0):
        sync = Synchronizer(nuscenes_windows(), timeout_ms=50)
        events = stream(20, 12, seconds, triggered=False)
        loops = [drive(sync, events) for _ in range(3)]
        loops[2] += sync.reset()
        # a loop's last sweep may leave at the start of the next: it belongs to where its stamp was
        merged = [s for loop in loops for s in loop]
        n = len(merged) // 3
        per_loop = [counts(merged[i * n : (i + 1) * n]) for i in range(3)]
        assert [s.stamp_ns for s in merged] == [round(t * MS) for t, sensor in events if sensor == "lidar"] * 3
        assert per_loop[0] == per_loop[1] == per_loop[2]
        assert per_loop[0][0] >= n - 3


@pytest.mark.parametrize("dead", [1, 6])
def test_a_dead_camera_costs_at_most_the_timeout_and_is_then_not_waited_for(dead):
    names = list(OFFSETS_MS)[:dead]
    sync = Synchronizer(nuscenes_windows(), timeout_ms=50)
    waits_ms = []
    for i in range(20):
        start_ms = START_MS + 100 * i
        out = [s for event in stream_of_sweep(start_ms, without=names) for s in feed(sync, event, event[0])]
        waits_ms.append(0 if out else 50)
        (sweep,) = out or sync.poll((start_ms + 50) * 1e-3)
        assert sweep.missing == dict.fromkeys(names, NEVER) and len(sweep.images) == 6 - dead
    assert waits_ms == [50] * SILENT_AFTER + [0] * (20 - SILENT_AFTER)


def stream_of_sweep(start_ms, without):
    images = [(start_ms + offset, name) for name, offset in OFFSETS_MS.items() if name not in without]
    return [*images, (start_ms, "lidar")]


def test_a_camera_that_comes_back_is_waited_for_again():
    sync = Synchronizer({"cam": Window(10.0, 5.0)}, timeout_ms=50)
    for i in range(SILENT_AFTER + 1):
        sync.add_sweep(100 * i * MS, i, 0.1 * i)
        sync.poll(0.1 * i + 0.05)
    (back,) = sync.add_sweep(1000 * MS, "silent", 1.0)
    assert back.missing
    sync.add_image("cam", 1110 * MS, None, 1.09)
    (matched,) = sync.add_sweep(1100 * MS, "matched", 1.1)
    assert matched.complete
    assert sync.add_sweep(1200 * MS, "waits", 1.2) == []


@pytest.mark.parametrize("silent", [range(0, 7), range(10, 16)])
def test_a_camera_that_follows_its_lidar_comes_back_from_a_gap(silent):
    """Its images come 30 ms after the cloud: a sweep that is not waited for would miss every one of them."""
    sync = Synchronizer({"cam": Window(0.0, 45.0)}, timeout_ms=50)
    complete = {}
    for i in range(40):
        done = sync.add_sweep(100 * i * MS, i, 0.1 * i)
        if i not in silent:
            done += sync.add_image("cam", 100 * i * MS, None, 0.1 * i + 0.03)
        done += sync.poll(0.1 * i + 0.06)
        complete |= {sweep.sweep: sweep.complete for sweep in done}
    assert [i for i in range(40) if not complete[i]] == [*silent, silent[-1] + 1]


def test_late_images_are_waited_for_until_the_timeout():
    sync = Synchronizer({"cam": Window(-30.0, 10.0)}, timeout_ms=50)
    assert sync.add_sweep(1000 * MS, "sweep", 10.0) == []
    assert sync.poll(10.049) == []
    (done,) = sync.add_image("cam", 970 * MS, "image", 10.049)
    assert done.sweep == "sweep" and done.images["cam"].message == "image" and done.complete
    assert sync.add_sweep(1100 * MS, "next", 10.1) == []
    (late,) = sync.poll(10.1501)
    assert late.missing == {"cam": LATE} and sync.pending == 0


def test_the_reason_of_every_miss():
    sync = Synchronizer({"dead": Window(0, 10), "gap": Window(0, 10), "late": Window(0, 10)}, timeout_ms=50)
    for stamp in (900, 1050):
        sync.add_image("gap", stamp * MS, None, 0.0)
    sync.add_image("late", 900 * MS, None, 0.0)
    assert sync.add_sweep(1000 * MS, None, 0.0) == []
    (done,) = sync.poll(0.05)
    assert done.missing == {"dead": NEVER, "gap": GAP, "late": LATE}


def test_the_window_is_two_sided_around_the_offset():
    for dt_ms, inside in [(-10.01, False), (-9.99, True), (0, True), (9.99, True), (10.01, False)]:
        sync = Synchronizer({"cam": Window(-35.5, 10.0)}, timeout_ms=0)
        sync.add_image("cam", round((1000 - 35.5 + dt_ms) * MS), None, 0.0)
        (done,) = sync.add_sweep(1000 * MS, None, 0.0)
        assert done.complete == inside
        if inside:
            assert done.images["cam"].dt_ms == pytest.approx(dt_ms)


def test_a_nearer_image_that_is_due_is_waited_for():
    """20 Hz camera, window wider than its period: the image 30 ms early is in the window, but one at +20 will come."""
    sync = Synchronizer({"cam": Window(0.0, 45.0)}, timeout_ms=100)
    for stamp in (870, 920, 970):
        sync.add_image("cam", stamp * MS, stamp, 0.0)
    assert sync.add_sweep(1000 * MS, None, 0.0) == []
    (done,) = sync.add_image("cam", 1020 * MS, 1020, 0.02)
    assert done.images["cam"].message == 1020


def test_no_more_than_two_sweeps_wait():
    sync = Synchronizer({"cam": Window(0.0, 10.0)}, timeout_ms=2000)
    out = []
    for i in range(5):
        out += sync.add_sweep((1000 + 10 * i) * MS, i, i * 0.01)
        assert sync.pending <= MAX_PENDING
    assert [s.sweep for s in out] == [0, 1, 2]


def test_lidar_only_passes_straight_through():
    (done,) = Synchronizer({}, timeout_ms=50).add_sweep(5, "sweep", 0.0)
    assert done.complete and done.images == {}


def test_reset_returns_what_waits_and_forgets_images():
    sync = Synchronizer({"a": Window(0, 10), "b": Window(0, 10)}, timeout_ms=50)
    sync.add_image("a", 1000 * MS, "old", 0.0)
    sync.add_sweep(1000 * MS, "waiting", 0.0)
    (done,) = sync.reset()
    assert done.sweep == "waiting" and set(done.images) == {"a"} and done.missing == {"b": NEVER}
    sync.add_sweep(1000 * MS, "new", 0.0)
    (done,) = sync.poll(1.0)
    assert done.missing == {"a": NEVER, "b": NEVER}


def test_a_waiting_sweep_keeps_its_image_when_the_camera_jumps_back_first():
    sync = Synchronizer({"a": Window(0, 10), "b": Window(0, 10)}, timeout_ms=50)
    sync.add_image("a", 1000 * MS, "old", 0.0)
    assert sync.add_sweep(1000 * MS, "last", 0.0) == []
    (last,) = sync.add_image("a", 500 * MS, "new", 0.01)
    assert last.images["a"].message == "old" and last.missing == {"b": NEVER}


def test_images_from_before_a_jump_are_not_matched_after_it():
    sync = Synchronizer({"cam": Window(0, 45)}, timeout_ms=0)
    for stamp in (1000, 500):  # the camera jumps back before the LiDAR does, as in a looped bag ...
        sync.add_image("cam", stamp * MS, stamp, 0.0)
        (sweep,) = sync.add_sweep(stamp * MS, None, 0.0)
        assert sweep.images["cam"].message == stamp
    (sweep,) = sync.add_sweep(490 * MS, None, 0.0)  # ... and then the LiDAR alone
    assert sweep.missing == {"cam": NEVER} and sync.time_jumps == 2


def test_negative_settings_are_refused():
    with pytest.raises(ValueError, match="negative"):
        Synchronizer({}, timeout_ms=-1)
    with pytest.raises(ValueError, match="negative"):
        Synchronizer({"a": Window(0, -1)}, timeout_ms=1)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["lidar", "lidar", "a", "b", "poll", "reset"]), st.integers(0, 400), st.integers(0, 60)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.integers(0, 100), st.integers(0, 60))
def test_every_sweep_comes_out_exactly_once_and_in_order(events, timeout_ms, tolerance_ms):
    """Any stamps (also backwards), any order of arrival: sweeps are conserved and images respect their windows."""
    sync = Synchronizer({"a": Window(-20.0, tolerance_ms), "b": Window(5.0, tolerance_ms)}, timeout_ms)
    out, sent, now_s = [], [], 0.0
    for kind, stamp_ms, wait_ms in events:
        now_s += wait_ms * 1e-3
        if kind == "lidar":
            sent.append(len(sent))
            out += sync.add_sweep(stamp_ms * MS, sent[-1], now_s)
        elif kind == "poll":
            out += sync.poll(now_s)
        elif kind == "reset":
            out += sync.reset()
        else:
            out += sync.add_image(kind, stamp_ms * MS, None, now_s)
        assert sync.pending <= MAX_PENDING and len(out) + sync.pending == len(sent)
    out += sync.reset()
    assert [s.sweep for s in out] == sent
    for s in out:
        assert s.images.keys() | s.missing.keys() == {"a", "b"} and not s.images.keys() & s.missing.keys()
        for name, image in s.images.items():
            offset = {"a": -20.0, "b": 5.0}[name]
            assert abs(image.stamp_ns - s.stamp_ns - offset * MS) <= tolerance_ms * MS


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(list(OFFSETS_MS)), max_size=8), min_size=1, max_size=8))
def test_polled_at_its_deadline_a_sweep_is_out(images):
    sync = Synchronizer(nuscenes_windows(), timeout_ms=50)
    for i, cameras in enumerate(images):
        out = sync.add_sweep(i * 100 * MS, i, 0.1 * i)
        for name in cameras:
            out += sync.add_image(name, (i * 100 - 20) * MS, None, 0.1 * i)
        out += sync.poll(0.1 * i + 0.05)
        assert [s.sweep for s in out] == [i]

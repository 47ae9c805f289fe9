"""From messages to frames: what belongs together, what bad input costs, and where a sequence ends."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import robots
from lima_core.data.bag import TRUTH_TOPIC
from lima_core.data.recording import Recording
from lima_core.data.recording_writer import FullError, RecordingWriter
from lima_core.data.ros_cloud import cloud_points
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder_parameters import RECORDING
from robots import MS, RIG, Sent, Taken, drive, files, places, shifted, sweep_ns, without, write_bag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "drive"


def found(taken: Taken) -> list[tuple[str, int]]:
    """Closes a recorder; sequence and sweep of each frame, of which none is broken."""
    taken.close()
    recording = Recording(taken.folder)
    assert list(recording.problems()) == []
    return list(places(recording))


def one(*indices: int) -> list[tuple[str, int]]:
    return [("0000", index) for index in indices]


def split(at: int, end: int) -> list[tuple[str, int]]:
    return [("0000" if index < at else "0001", index) for index in range(end)]


# ---- what a frame has


def test_a_frame_has_what_was_sent(folder: Path) -> None:
    taken = Taken(folder).feed(drive(range(4), labelled=True))
    assert found(taken) == one(0, 1, 2, 3)
    assert taken.recorder.counts == {"recorded": 4} and taken.warnings == []
    for index, frame in enumerate(Recording(folder)[i] for i in range(4)):
        wanted = cloud_points(robots.cloud(0, index), RIG.intensity_scale)
        np.testing.assert_array_equal(frame.points, wanted.points)
        np.testing.assert_array_equal(frame.extra["ring"], wanted.extra["ring"])
        assert (frame.labels == index).all() and len(frame.labels) == 50
        at = robots.x_at(frame.stamp_ns)
        np.testing.assert_allclose(frame.world_from_lidar[:3, 3], [at, 0, 1.8], atol=1e-9)
        for view, mount in zip(frame.cameras, RIG.cameras, strict=True):
            assert (view.name, view.stamp_ns - frame.stamp_ns) == (mount.name, mount.offset_ms * MS)
            assert view.image.jpeg() == robots.jpeg(index) and view.size == robots.SIZE
            np.testing.assert_array_equal(view.K, robots.K)
            moved = robots.SPEED * mount.offset_ms / 1e3  # of the vehicle between the two stamps
            ahead = (view.camera_from_lidar @ [10 + moved, 0, 0, 1])[2] + mount.base_from_camera[0, 3]
            assert ahead == pytest.approx(10, abs=1e-9)


def test_the_order_between_topics_does_not_matter(folder: Path, tmp_path: Path) -> None:
    """As over DDS: each topic keeps its order, and what is on the way at one time comes in any."""
    sent = drive(range(12), labelled=True)
    Taken(folder).feed(sent).close()
    rng = random.Random(0)
    for attempt in range(5):
        waiting: dict[str, list[Sent]] = {}
        mixed = []
        for message in sent:
            waiting.setdefault(message.topic, []).append(message)
            # none is late by more than a sweep, beside the truth, which must be there with the next sweep
            while sum(map(len, waiting.values())) > 9:
                topic = rng.choice([topic for topic, queue in waiting.items() if queue])
                mixed.append(waiting[topic].pop(0))
        mixed += [message for queue in waiting.values() for message in queue]
        truth = {m.stamp_ns: m for m in mixed if m.topic == TRUTH_TOPIC}
        mixed = [
            n for m in without(mixed, TRUTH_TOPIC) for n in ((truth[m.stamp_ns], m) if m.topic == "/lidar" else (m,))
        ]
        assert mixed != sent
        Taken(tmp_path / str(attempt)).feed(mixed).close()
        assert files(tmp_path / str(attempt)) == files(folder)


def test_the_calibration_is_that_of_the_picture(folder: Path) -> None:
    """It changes at sweep 3, on the way of which the LiDAR is ahead."""
    sent = []
    for message in without(drive(range(6)), "/back/image", "/back/info"):
        if message.topic == "/front/info" and message.stamp_ns > sweep_ns(3) - 50 * MS:
            message = replace(message, message=robots.info("front", message.stamp_ns, focal=25.0))
        sent.append(message)
    Taken(folder, patience_ms=250.0).feed(sent).close()
    recording = Recording(folder)
    assert [recording[i].cameras[0].K[0, 0] for i in range(6)] == [20, 20, 20, 25, 25, 25]
    assert len((folder / "calibration.json").read_text().split('"K"')) == 3


def test_pictures_of_a_slow_camera_are_shared(folder: Path) -> None:
    sent = [m for m in drive(range(6)) if m.topic != "/back/image" or round((m.stamp_ns - sweep_ns(0)) / 1e8) % 2 == 0]
    Taken(folder, tolerance_ms=105.0).feed(sent).close()
    recording = Recording(folder)
    names = [recording.line(i).cameras["back"].image.file for i in range(6)]
    assert len(set(names)) == len(list((folder / "cam" / "back").iterdir())) == 3
    assert list(recording.problems()) == []


# ---- what is missing or wrong


def test_one_of_two_cameras_is_silent(folder: Path) -> None:
    taken = Taken(folder).feed(without(drive(range(15)), "/back/image"))
    assert found(taken) == one(*range(15))
    assert [len(Recording(folder)[i].cameras) for i in range(15)] == [1] * 15
    assert taken.recorder.counts == {"recorded": 15, "back.no_image": 15}


def test_no_camera_info(folder: Path) -> None:
    taken = Taken(folder).feed(without(drive(range(12)), "/front/info"))
    assert found(taken) == one(*range(12))
    assert taken.recorder.counts["front.no_camera_info"] == 12
    assert [view.name for view in Recording(folder)[5].cameras] == ["back"]


def test_a_calibration_that_is_sent_once_is_enough(folder: Path) -> None:
    sent = drive(range(15))
    first = next(m for m in sent if m.topic == "/front/info")
    taken = Taken(folder).feed([first, *without(sent, "/front/info") * 2])
    taken.close()
    assert taken.recorder.counts == {"recorded": 30}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda data: b"no picture", "neither a JPEG nor a PNG"),
        (lambda data: data[:-40], "cut off"),
        (lambda data: b"", "neither a JPEG nor a PNG"),
        (lambda data: robots.Image(pixels=np.zeros((8, 8, 3), np.uint8)).jpeg(), "8 x 8 pixels, its CameraInfo says"),
    ],
)
def test_a_broken_picture_is_left_out(folder: Path, broken, told: str) -> None:
    sent = drive(range(4))
    at = next(i for i, m in enumerate(sent) if m.topic == "/front/image")
    picture = robots.MESSAGES.compressed(broken(robots.jpeg(0)), sent[at].stamp_ns, "front")
    sent[at] = replace(sent[at], message=picture)
    taken = Taken(folder).feed(sent)
    assert found(taken) == one(0, 1, 2, 3)
    assert [len(Recording(folder)[i].cameras) for i in range(4)] == [1, 2, 2, 2]
    assert taken.recorder.counts["front.broken"] == 1
    assert len(taken.warnings) == 1 and told in taken.warnings[0] and "/front/image" in taken.warnings[0]


def test_a_cloud_without_xyz_is_left_out(folder: Path) -> None:
    sent = drive(range(4))
    at = next(i for i, m in enumerate(sent) if m.topic == "/lidar")
    bad = robots.cloud(sent[at].stamp_ns, 0, x=np.zeros(3, np.float32), intensity=np.zeros(3, np.float32))
    taken = Taken(folder).feed([*sent[:at], replace(sent[at], message=bad), *sent[at + 1 :]])
    assert found(taken) == one(1, 2, 3)
    assert taken.recorder.counts == {"recorded": 3, "bad_cloud": 1} and "no scalar field y, z" in taken.warnings[0]
    assert not list(folder.glob(f"lidar/*{sweep_ns(0)}*")) and not list(folder.glob("cam/*/*_1699*"))


@pytest.mark.parametrize(
    "labels", [np.zeros(49, np.uint8), np.full(50, 256, np.uint16), np.full(50, np.nan, np.float32), None]
)
def test_labels_that_do_not_fit_are_left_out_alone(folder: Path, labels: np.ndarray | None) -> None:
    sent = drive(range(3), labelled=True)
    for at, message in enumerate(sent):
        if message.topic == TRUTH_TOPIC:
            bad = robots.cloud(message.stamp_ns, 0) if labels is None else robots.truth(message.stamp_ns, labels)
            sent[at] = replace(message, message=bad)
    taken = Taken(folder).feed(sent)
    assert found(taken) == one(0, 1, 2)
    assert taken.recorder.counts == {"recorded": 3, "truth.broken": 3}
    assert Recording(folder)[0].labels is None and "labels left out" in taken.warnings[0]


def test_odometry_that_is_no_pose_is_left_out(folder: Path) -> None:
    sent = drive(range(4))
    zero = robots.odometry(sweep_ns(1) + 5 * MS, 0.0)
    zero.pose.pose.orientation.w = 0.0
    for message in (robots.odometry(sweep_ns(1) + MS, float("nan")), zero):
        sent.append(Sent(sweep_ns(1) + MS, "/odom", message))
    other = Sent(sweep_ns(1) + 6 * MS, "/odom", robots.odometry(sweep_ns(1) + 6 * MS, 99.0, child="trailer"))
    sent = sorted([*sent, other], key=lambda m: m.stamp_ns)
    taken = Taken(folder).feed(sent)
    assert found(taken) == one(0, 1, 2, 3) and taken.recorder.counts == {"recorded": 4}
    assert len(taken.warnings) == 3 and any("'trailer'" in line for line in taken.warnings)
    assert any("non-finite" in line for line in taken.warnings)


def test_late_messages(folder: Path) -> None:
    """A cloud out of order is counted; an image and a pose out of order are put in their places."""
    sent = drive(range(5))
    clouds = [i for i, m in enumerate(sent) if m.topic == "/lidar"]
    sent.insert(clouds[3] + 1, sent.pop(clouds[1]))
    poses = [i for i, m in enumerate(sent) if m.topic == "/odom"]
    sent[poses[4]], sent[poses[5]] = sent[poses[5]], sent[poses[4]]
    taken = Taken(folder).feed(sent)
    assert found(taken) == one(0, 2, 3, 4)
    assert taken.recorder.counts == {"recorded": 4, "late": 1}


def test_the_first_of_two_poses_of_a_stamp_counts(folder: Path) -> None:
    """Whether the second has come when the sweep is decided depends on the way of the messages."""
    sent = []
    for message in drive(range(4)):
        sent.append(message)
        if message.topic == "/odom":
            again = robots.odometry(message.stamp_ns, robots.x_at(message.stamp_ns) + 0.5)
            sent.append(replace(message, message=again))
    assert found(Taken(folder).feed(sent)) == one(0, 1, 2, 3)
    for frame in (Recording(folder)[i] for i in range(4)):
        assert frame.world_from_lidar[0, 3] == pytest.approx(robots.x_at(frame.stamp_ns), abs=1e-9)


def test_without_poses_nothing_is_recorded(folder: Path) -> None:
    taken = Taken(folder).feed(without(drive(range(4)), "/odom"))
    assert found(taken) == [] and taken.recorder.counts == {"no_pose": 4}


# ---- sequences


def test_an_odometry_reset_ends_the_sequence(folder: Path) -> None:
    sent = [
        replace(m, message=robots.odometry(m.stamp_ns, robots.x_at(m.stamp_ns) - 500))
        if m.topic == "/odom" and m.stamp_ns > sweep_ns(3) - 40 * MS
        else m
        for m in drive(range(6))
    ]
    taken = Taken(folder).feed(sent)
    assert found(taken) == split(3, 6)
    world = [Recording(folder)[i].world_from_lidar[0, 3] for i in range(6)]
    assert max(world[:3]) < 2 and max(world[3:]) < -490  # never a mean of the two


def test_another_odometry_frame_ends_the_sequence(folder: Path) -> None:
    sent = [
        replace(m, message=robots.odometry(m.stamp_ns, robots.x_at(m.stamp_ns), "odom2"))
        if m.topic == "/odom" and m.stamp_ns > sweep_ns(3) - 40 * MS
        else m
        for m in drive(range(6))
    ]
    assert found(Taken(folder).feed(sent)) == split(3, 6)


def test_a_pose_gap_ends_the_sequence(folder: Path) -> None:
    gap = range(sweep_ns(3) - 40 * MS, sweep_ns(5) - 40 * MS)
    sent = [m for m in drive(range(8)) if m.topic != "/odom" or m.stamp_ns not in gap]
    taken = Taken(folder, pose_gap_ms=150.0).feed(sent)
    assert found(taken) == [("0000", 0), ("0000", 1), ("0000", 2), ("0001", 5), ("0001", 6), ("0001", 7)]
    assert taken.recorder.counts["no_pose"] == 2
    taken = Taken(folder.with_name("patient"), pose_gap_ms=600.0).feed(sent)
    assert found(taken) == one(*range(8))


def test_a_lidar_gap_ends_the_sequence(folder: Path) -> None:
    sent = [m for m in drive(range(8)) if m.topic != "/lidar" or not sweep_ns(3) <= m.stamp_ns < sweep_ns(6)]
    assert found(Taken(folder, max_gap_ms=350.0).feed(sent)) == [*one(0, 1, 2), ("0001", 6), ("0001", 7)]
    assert found(Taken(folder.with_name("patient")).feed(sent)) == one(0, 1, 2, 6, 7)


@pytest.mark.parametrize("first", ["/lidar", "/odom", "/front/image", "/back/info", TRUTH_TOPIC])
def test_time_that_goes_back_begins_a_new_sequence(folder: Path, first: str) -> None:
    """A bag that is played twice: nothing of one round gets into the other, whichever topic goes back first."""
    sent = drive(range(14), labelled=True)
    again = sorted(sent[:20], key=lambda m: m.topic != first) + sent[20:]
    taken = Taken(folder).feed([*sent, *again])
    assert found(taken) == [("0000", i) for i in range(14)] + [("0001", i) for i in range(14)]
    assert taken.recorder.counts == {"recorded": 28}
    recording = Recording(folder)
    for index in range(14):
        ours, theirs = recording[index], recording[14 + index]
        assert [v.stamp_ns for v in ours.cameras] == [v.stamp_ns for v in theirs.cameras] and len(ours.cameras) == 2
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_one_wild_stamp_costs_little(folder: Path) -> None:
    """An hour ahead, once, on each topic in turn."""
    for topic in ("/lidar", "/odom", "/front/image", "/front/info"):
        sent = drive(range(16))
        at = next(i for i, m in enumerate(sent) if m.topic == topic and m.stamp_ns > sweep_ns(6) - 25 * MS)
        sent[at : at + 1] = shifted([sent[at]], topic, 3600 * 1000 * MS)
        taken = Taken(folder.with_name(topic.replace("/", "_"))).feed(sent)
        kept = [index for _, index in found(taken) if index < 16]
        assert set(range(16)) - set(kept) <= set(range(4, 9)), (topic, kept, taken.recorder.counts)


# ---- wishes


def test_pause_split_and_single_frames(folder: Path) -> None:
    taken = Taken(folder)
    taken.feed(drive(range(3)))
    taken.recorder.pause()
    assert taken.recorder.paused
    taken.feed(drive(range(3, 5)))
    taken.recorder.resume()
    taken.feed(drive(range(5, 7)))
    taken.recorder.split()
    taken.feed(drive(range(7, 10)))
    assert taken.recorder.counts["paused"] == 2
    assert found(taken) == [
        ("0000", 0), ("0000", 1), ("0001", 4), ("0001", 5), ("0002", 6), ("0002", 7), ("0002", 8), ("0002", 9),
    ]  # fmt: skip

    taken = Taken(folder.with_name("asked"), triggers="")
    taken.feed(drive(range(3)))
    taken.recorder.record_frame()
    taken.feed(drive(range(3, 6)))
    assert found(taken) == [("0000", 2)]  # the next one to be decided
    assert Recording(folder.with_name("asked")).line(0).trigger == "request"


def test_what_is_lost_on_the_way_ends_the_sequence_where_it_was(folder: Path) -> None:
    taken = Taken(folder).feed(drive(range(4)))
    taken.recorder.lost()
    taken.feed(drive(range(5, 8)))
    assert found(taken) == [("0000", i) for i in range(4)] + [("0001", i) for i in range(5, 8)]


def test_reset_forgets_what_came(folder: Path) -> None:
    taken = Taken(folder).feed(drive(range(3)))
    taken.recorder.reset()
    taken.feed(drive(range(5, 8)))
    assert found(taken) == [*one(0, 1, 2), ("0001", 5), ("0001", 6), ("0001", 7)]


def test_a_snapshot_is_what_has_just_been(folder: Path) -> None:
    taken = Taken(folder, triggers="time", trigger__every_s=1.0, snapshot_s=0.5)
    taken.feed(drive(range(13)))
    assert taken.recorder.snapshot() == 6
    assert taken.recorder.snapshot() == 0
    taken.feed(drive(range(13, 22)))
    kept = [("0000", 0), ("0000", 10), ("0000", 20), *(("0001", i) for i in range(6, 12))]
    assert found(taken) == kept
    triggers = [Recording(folder).line(i).trigger for i in range(len(kept))]
    assert triggers == ["time"] * 3 + ["snapshot"] * 6


def test_a_snapshot_across_a_reset_of_odometry_is_two_sequences(folder: Path) -> None:
    sent = [
        replace(m, message=robots.odometry(m.stamp_ns, robots.x_at(m.stamp_ns) - 500))
        if m.topic == "/odom" and m.stamp_ns > sweep_ns(3) - 40 * MS
        else m
        for m in drive(range(7))
    ]
    taken = Taken(folder, triggers="", snapshot_s=60.0).feed(sent)
    assert taken.recorder.snapshot() == 6
    assert found(taken) == split(3, 6)


def test_memory_is_bounded_while_the_lidar_is_silent(folder: Path) -> None:
    taken = Taken(folder).feed(m for i in range(100) for m in without(robots.sweep(i), "/lidar"))
    held = [len(camera._images) for camera in taken.recorder._cameras.values()]
    assert max(held) <= 21  # two seconds
    assert found(taken.feed(drive(range(100, 104)))) == one(100, 101, 102, 103)


# ---- a full disk


def room(frames: int) -> float:
    """disk.quota_gb for so many frames."""
    return frames * (50 * 5 * 4 + 2 * max(len(robots.jpeg(i)) for i in range(4)) + 1500) / 1e9


def test_the_quota_ends_the_recording_before_it_is_exceeded(folder: Path) -> None:
    """Room for two frames and most of a third."""
    two = Taken(folder.with_name("two")).feed(drive(range(2)))
    two.close()
    quota = two.writer.bytes + 2000
    taken = Taken(folder, writer=RecordingWriter(folder, RIG, quota_bytes=quota)).feed(drive(range(8)))
    assert "quota" in taken.recorder.full and "raise disk.quota_gb" in taken.recorder.full
    assert found(taken) == one(0, 1) and taken.recorder.counts == {"recorded": 2, "full": 6}
    stored = files(folder)
    assert sum(len(stored[name]) for name in stored if "/" in name or name == "frames.jsonl") <= quota
    assert len(taken.warnings) == 1 and taken.warnings[0].startswith("recording stopped: ")


@pytest.mark.parametrize("call", range(1, 9))
def test_nothing_is_half_there_when_the_disk_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """At the n-th write after two frames there is no room, for two frames' time; then there is again."""
    taken = Taken(folder).feed(drive(range(3)))
    before, real, calls = files(folder), os.write, [0]

    def write(descriptor: int, content: bytes) -> int:
        calls[0] += 1
        if calls[0] < call:
            return real(descriptor, content)
        if calls[0] == call:
            return real(descriptor, bytes(content[: len(content) // 2]))  # as Linux does: what still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    taken.feed(drive(range(3, 5)))
    assert "not recorded" in taken.recorder.full and calls[0] >= call
    monkeypatch.setattr(os, "write", real)
    now, recording = files(folder), Recording(folder)
    assert list(recording.problems()) == [] and len(recording) == 2 + (call - 1) // 4
    assert now["frames.jsonl"].startswith(before["frames.jsonl"])
    named = {file for i in range(len(recording)) for file in names(recording.line(i))}
    assert {name for name in now if "/" in name} == named
    taken.feed(drive(range(5, 8)))
    assert taken.recorder.full == ""
    assert {index for _, index in found(taken)} >= {0, 1, 5, 6, 7}
    assert sorted({sequence for sequence, _ in places(Recording(folder))}) == ["0000", "0001"]  # no number is skipped


def names(line) -> list[str]:
    return [line.lidar.file, *(camera.image.file for camera in line.cameras.values())]


def test_offline_a_full_disk_is_an_error_and_more_room_lets_it_go_on(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", drive(range(8)))
    settings = {"triggers": "all", **robots.OPEN}
    record_bag(bag, tmp_path / "whole", resolve(settings, RECORDING), RIG)
    tight = resolve({**settings, "disk.quota_gb": room(3)}, RECORDING)
    with pytest.raises(FullError, match=r"quota .* is used up"):
        record_bag(bag, tmp_path / "drive", tight, RIG)
    assert 2 <= len(Recording(tmp_path / "drive")) <= 4
    counts = record_bag(bag, tmp_path / "drive", resolve(settings, RECORDING), RIG)
    assert counts["recorded"] + counts["already_there"] == 8
    assert files(tmp_path / "drive") == files(tmp_path / "whole")


# ---- resumed


@pytest.mark.parametrize("fell", range(1, 60, 7))
def test_interrupted_at_any_message_it_ends_as_if_it_had_not_been(tmp_path: Path, fell: int) -> None:
    """Ctrl-C: what waits for its images then is not decided early."""
    bag = write_bag(tmp_path / "bag", drive(range(8)))
    settings = resolve({"triggers": "all", **robots.OPEN}, RECORDING)
    record_bag(bag, tmp_path / "whole", settings, RIG)
    seen = iter(range(1000))

    def progress() -> None:
        if next(seen) == fell:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_bag(bag, tmp_path / "drive", settings, RIG, progress=progress)
    record_bag(bag, tmp_path / "drive", settings, RIG)
    assert files(tmp_path / "drive") == files(tmp_path / "whole")


def test_a_second_drive_goes_into_sequences_of_its_own(folder: Path) -> None:
    Taken(folder).feed(drive(range(3))).close()
    assert found(Taken(folder).feed(drive(range(3)))) == [*one(0, 1, 2), *(("0001", i) for i in range(3))]

"""The recorder's thread, and what the node says: order, overflow, errors, and which of them is told first."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lima_core.data.recording import Recording
from lima_core.runtime.health import ERROR, OK, WARN
from lima_core.runtime.recorder_status import Progress, recorder_status, summary_line
from lima_core.runtime.recorder_thread import RecorderThread
from robots import Taken, drive, places

WAIT_S = 20.0


class Listener:
    """In place of a recorder: `events` has what came, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.hold, self.held = threading.Event(), threading.Event()

    def lost(self) -> None:
        self.events.append("lost")

    def close(self) -> None:
        self.events.append("close")

    def block(self, _: object) -> None:
        """Until `hold` is set."""
        self.held.set()
        assert self.hold.wait(WAIT_S)


def sized(size: int) -> SimpleNamespace:
    return SimpleNamespace(data=b"x" * size)


def test_messages_and_questions_are_handled_in_their_order() -> None:
    listener = Listener()
    thread = RecorderThread(listener, 10**6, pytest.fail)
    for index in range(100):
        thread.put("/topic", listener.events.append, index)
    assert thread.ask(lambda: len(listener.events), WAIT_S) == 100
    thread.put("/topic", listener.events.append, 100)
    thread.close()
    assert listener.events == [*range(101), "close"] and not thread.lost and thread.waiting_bytes == 0


def test_what_finds_the_queue_full_is_lost_where_it_was() -> None:
    listener = Listener()
    thread = RecorderThread(listener, 2500, pytest.fail)
    thread.put("/block", listener.block, sized(1))
    assert listener.held.wait(WAIT_S)
    for index, size in enumerate((1000, 1400, 200, 300, 50, 60)):
        message = sized(size)
        message.index = index
        thread.put(f"/{index}", lambda m: listener.events.append(m.index), message)
    assert thread.waiting_bytes == 2450 and thread.lost == {"/2": 1, "/3": 1, "/5": 1}
    listener.hold.set()
    thread.close()
    assert listener.events == [0, 1, "lost", 4, "lost", "close"]


def test_one_bad_message_does_not_end_the_recording() -> None:
    listener, told = Listener(), []
    thread = RecorderThread(listener, 10**6, told.append)

    def fail(message: object) -> None:
        raise KeyError(message)

    thread.put("/bad", fail, "x")
    with pytest.raises(KeyError, match="asked"):
        thread.ask(lambda: fail("asked"), WAIT_S)
    thread.put("/good", listener.events.append, 1)
    thread.close()
    assert listener.events == [1, "close"] and [str(error) for error in told] == ["'x'"]


def test_a_question_that_nobody_answers() -> None:
    listener = Listener()
    thread = RecorderThread(listener, 10**6, pytest.fail)
    thread.put("/block", listener.block, sized(1))
    with pytest.raises(TimeoutError):
        thread.ask(lambda: 1, 0.01)
    listener.hold.set()
    thread.close()


def test_an_overflow_ends_the_sequence_of_a_recording(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "drive")
    thread = RecorderThread(taken.recorder, 10**6, pytest.fail)
    for sent in drive(range(4)):
        thread.put(sent.topic, taken.hear[sent.topic], sent.message)
    hold, held = threading.Event(), threading.Event()
    thread.put("/block", lambda _: (held.set(), hold.wait(WAIT_S)), sized(1))
    assert held.wait(WAIT_S)
    thread.put("/lidar", taken.hear["/lidar"], sized(2 * 10**6))
    hold.set()
    thread.ask(lambda: None, WAIT_S)
    for sent in drive(range(5, 7)):
        thread.put(sent.topic, taken.hear[sent.topic], sent.message)
    thread.close()
    wanted = [*(("0000", i) for i in range(4)), ("0001", 5), ("0001", 6)]
    assert list(places(Recording(tmp_path / "drive"))) == wanted


# ---- what the node says

THEN = Progress(10, 1, 10**6, 5 * 10**9, {"recorded": 10, "no_pose": 3}, {"/lidar": 2})
NOW = replace(THEN, frames=30, bytes=3 * 10**6, counts={**THEN.counts, "recorded": 30, "front.no_image": 1})


def test_values() -> None:
    status = recorder_status(NOW, THEN, 10.0, ["no message on /x"], out="/data")
    assert dict(status.values) == {
        "frames": "30",
        "sequences": "1",
        "bytes": "3000000",
        "free_gb": "5.0",
        "frames_per_s": "2.00",
        "mb_per_s": "0.20",
        "sweeps.no_pose": "3",
        "sweeps.recorded": "30",
        "camera.front.no_image": "1",
        "lost./lidar": "2",
        "silent.0": "no message on /x",
        "out": "/data",
    }


@pytest.mark.parametrize(
    ("changes", "silent", "level", "message"),
    [
        ({}, [], OK, "recording"),
        ({"paused": True}, [], OK, "paused"),
        ({"counts": {"recorded": 10, "no_pose": 7}}, [], WARN, "sweeps were left out: no_pose 4"),
        ({"counts": {"no_pose": 7}}, ["x"], WARN, "1 inputs are silent"),
        ({"lost": {"/lidar": 3, "/odom": 1}}, ["x"], WARN, "2 messages lost: the disk or the processor is too slow"),
        ({"broken": "KeyError: 1", "lost": {"/lidar": 3}}, ["x"], ERROR, "KeyError: 1"),
        ({"full": "no room", "broken": "x"}, ["x"], ERROR, "no room"),
    ],
)
def test_the_gravest_of_lately_is_told(changes: dict, silent: list[str], level: int, message: str) -> None:
    status = recorder_status(replace(THEN, **changes), THEN, 10.0, silent)
    assert (status.level, status.message) == (level, message)


def test_the_last_line() -> None:
    line = summary_line(NOW, "/data/drive")
    assert line.startswith("/data/drive has 30 frames of 1 sequences, 3.0 MB; sweeps: ")
    assert "no_pose 3" in line and line.endswith("; 2 messages lost")
    assert summary_line(replace(NOW, lost={}, counts={}), "x").endswith("sweeps: none")

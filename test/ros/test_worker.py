"""Latest-only worker: what is replaced is counted, what fails is reported, and it always ends."""

from __future__ import annotations

import threading
from collections import Counter

from lima_core.runtime.worker import SHUTDOWN, SUPERSEDED, LatestWorker


class Bench:
    """A worker whose job waits for `gate` and fails on odd-numbered text."""

    def __init__(self):
        self.gate, self.started = threading.Event(), threading.Semaphore(0)
        self.done, self.dropped, self.errors = [], [], []
        self.worker = LatestWorker(
            "test", self.job, lambda *drop: self.dropped.append(drop), lambda *error: self.errors.append(error)
        )

    def job(self, item):
        self.started.release()
        assert self.gate.wait(10)
        if isinstance(item, str):
            raise ValueError(item)
        self.done.append(item)


def test_a_newer_item_replaces_the_waiting_one():
    bench = Bench()
    bench.worker.submit(0)
    assert bench.started.acquire(timeout=10)
    for item in (1, 2, 3):
        bench.worker.submit(item)
    bench.gate.set()
    assert bench.started.acquire(timeout=10)
    bench.worker.stop()
    assert bench.done == [0, 3]
    assert bench.dropped == [(1, SUPERSEDED), (2, SUPERSEDED)]


def test_a_failing_job_is_reported_and_the_next_one_runs():
    bench = Bench()
    bench.gate.set()
    for item in ("broken", 1, "again", 2):
        bench.worker.submit(item)
        assert bench.started.acquire(timeout=10)
    bench.worker.stop()
    assert [(item, type(error), str(error)) for item, error in bench.errors] == [
        ("broken", ValueError, "broken"),
        ("again", ValueError, "again"),
    ]
    assert bench.done == [1, 2]


def test_stop_finishes_the_running_item_drops_the_waiting_one_and_may_be_repeated():
    bench = Bench()
    bench.worker.submit(0)
    assert bench.started.acquire(timeout=10)
    bench.worker.submit(1)
    stopper = threading.Thread(target=bench.worker.stop)
    stopper.start()
    bench.gate.set()
    stopper.join(10)
    assert not stopper.is_alive()
    bench.worker.stop()
    bench.worker.submit(2)
    assert bench.done == [0] and bench.dropped == [(1, SHUTDOWN), (2, SHUTDOWN)]
    assert "test" not in [thread.name for thread in threading.enumerate()]


def test_callbacks_may_submit_again():
    """A lock held over a callback would deadlock here."""
    seen = threading.Event()

    def dropped(item, reason):
        if reason == SUPERSEDED and item < 100:
            worker.submit(100)
        elif item == 100:
            seen.set()

    gate, started = threading.Event(), threading.Event()

    def job(item):
        started.set()
        gate.wait(10)

    worker = LatestWorker("test", job, dropped, lambda *_: None)
    worker.submit(0)
    assert started.wait(10)
    worker.submit(1)
    thread = threading.Thread(target=worker.submit, args=(2,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    worker.submit(3)
    assert seen.wait(10)
    gate.set()
    worker.stop()


def test_no_item_is_lost_under_load():
    counts, lock = Counter(), threading.Lock()

    def count(kind):
        def add(*_):
            with lock:
                counts[kind] += 1

        return add

    worker = LatestWorker("test", count("done"), count("dropped"), count("error"))
    threads = [threading.Thread(target=lambda: [worker.submit(i) for i in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.stop()
    assert counts["done"] + counts["dropped"] == 2000 and counts["error"] == 0


def test_what_waits_may_be_dropped_while_the_job_goes_on():
    bench = Bench()
    bench.worker.submit(0)
    assert bench.started.acquire(timeout=10)
    bench.worker.submit(1)
    bench.worker.drop("inactive")
    bench.gate.set()
    bench.worker.stop()
    assert bench.done == [0] and bench.dropped == [(1, "inactive")]

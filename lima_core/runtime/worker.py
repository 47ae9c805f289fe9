"""A thread that always works on the newest item, where a newer one replaces the one that waits; or no thread at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

SUPERSEDED = "superseded"  # a newer item came while this one waited
JOIN_S = 10.0  # launch follows its SIGINT with harder signals after 15 s
SHUTDOWN = "shutdown"  # the worker was stopped before this one's turn


class LatestWorker(Generic[Item]):
    """Runs `job(item)` in one thread, with at most one item waiting.

    An item that is not worked on is given to `on_drop(item, reason)`; one whose job raised, to `on_error(item,
    exception)`, and the thread goes on. Callbacks run without any lock held, and must not raise.
    """

    def __init__(
        self,
        name: str,
        job: Callable[[Item], None],
        on_drop: Callable[[Item, str], None],
        on_error: Callable[[Item, Exception], None],
    ) -> None:
        self._job, self._on_drop, self._on_error = job, on_drop, on_error
        self._changed = threading.Condition()
        self._waiting: list[Item] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Hands an item over; drops the one that waits (superseded), or this one after `stop`. Never blocks."""
        with self._changed:
            if self._stopping:
                dropped, reason = [item], SHUTDOWN
            else:
                dropped, reason, self._waiting = self._waiting, SUPERSEDED, [item]
                self._changed.notify()
        for old in dropped:
            self._on_drop(old, reason)

    def drop(self, reason: str) -> None:
        """Drops what waits; what runs goes on."""
        with self._changed:
            dropped, self._waiting = self._waiting, []
        for item in dropped:
            self._on_drop(item, reason)

    def stop(self) -> None:
        """Drops what waits (shutdown), finishes the running job and joins the thread. May be called again.

        A job that hangs is left behind after JOIN_S: the thread is a daemon, and the ledger must still be written.
        """
        with self._changed:
            self._stopping = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify()
        for item in dropped:
            self._on_drop(item, SHUTDOWN)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                item = self._waiting.pop()
            try:
                self._job(item)
            except Exception as error:  # one bad sweep must not end the service
                self._on_error(item, error)


class InlineWorker(Generic[Item]):
    """As LatestWorker, but `submit` does the job itself: no item is left out, and the order is that of the calls."""

    def __init__(
        self,
        name: str,
        job: Callable[[Item], None],
        on_drop: Callable[[Item, str], None],
        on_error: Callable[[Item, Exception], None],
    ) -> None:
        self._job, self._on_error = job, on_error

    def submit(self, item: Item) -> None:
        """Works on an item and returns when it is done."""
        try:
            self._job(item)
        except Exception as error:
            self._on_error(item, error)

    def drop(self, reason: str) -> None:
        """Nothing ever waits."""

    def stop(self) -> None:
        """There is no thread."""

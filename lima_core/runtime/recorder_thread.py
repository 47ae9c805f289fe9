"""A recorder in a thread of its own: writing to a disk must not hold up the reception of messages."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lima_core.runtime.recorder import Recorder

SMALL = 1000  # bytes that a message without `data` is counted as


class RecorderThread:
    """Hands messages to a recorder in the order in which they come, at most `limit_bytes` of them waiting.

    One that finds the queue full is lost, counted in `lost`, and ends the sequence: what follows it is no neighbour of
    what came before. One that the recorder fails on is told to `on_error`, and the next is taken.
    """

    def __init__(self, recorder: Recorder, limit_bytes: int, on_error: Callable[[Exception], None]) -> None:
        self._recorder, self._limit, self._on_error = recorder, limit_bytes, on_error
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Callable[[], Any]]] = deque()
        self._bytes = 0
        self._stopping = self._losing = False
        self.lost: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Size of what waits."""
        return self._bytes

    def put(self, topic: str, handle: Callable[[Any], None], message: Any) -> None:
        """A message for `handle`, a method of the recorder. Never waits."""
        size = len(getattr(message, "data", ())) or SMALL
        with self._changed:
            if self._bytes + size > self._limit:
                self.lost[topic] += 1
                if not self._losing:
                    self._waiting.append((0, self._recorder.lost))
                self._losing = True
            else:
                self._waiting.append((size, lambda: handle(message)))
                self._bytes, self._losing = self._bytes + size, False
            self._changed.notify()

    def ask(self, command: Callable[[], Any], timeout_s: float) -> Any:
        """What `command` returns, after all that came before it. Raises TimeoutError, or what `command` does."""
        answer: Future[Any] = Future()

        def work() -> None:
            try:
                answer.set_result(command())
            except Exception as error:
                answer.set_exception(error)

        with self._changed:
            self._waiting.append((0, work))
            self._changed.notify()
        return answer.result(timeout_s)

    def close(self) -> None:
        """Finishes what waits, closes the recording and ends; may be called once."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._recorder.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                size, work = self._waiting.popleft()
                self._bytes -= size
            try:
                work()
            except Exception as error:  # one message must not end the recording
                self._on_error(error)

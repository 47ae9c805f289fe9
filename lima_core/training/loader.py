"""Batches by step, read ahead by other processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader, Dataset


class StepLoader:
    """Batches of steps in ascending order, read ahead by `workers` processes (0: read when asked for).

    `batches[step]` depends on the step alone, so that workers and resuming change nothing.
    """

    def __init__(self, batches: Dataset, workers: int) -> None:
        self._batches, self._workers = batches, workers
        self._stream: Iterator[Any] | None = None
        self._next = -1

    def at(self, step: int) -> Any:
        """The batch of a step; anything but the step after the last one starts the workers anew."""
        if self._stream is None or step != self._next:
            if self._workers:
                # one thread of OpenCV in every worker, and none of its pool across the fork: a child of a process that
                # has used the pool waits for ever for threads that it does not have
                cv2.setNumThreads(1)
            loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=range(step, len(self._batches)),
                num_workers=self._workers,
                worker_init_fn=_calm,
            )
            self._stream = iter(loader)
        self._next = step + 1
        return next(self._stream)


def _calm(worker: int) -> None:
    # Ctrl-C and torchrun signal the whole process group: the trainer stops after its step, and needs workers until then
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Which sweeps are worth recording: after a time, a distance, or where they show what was not recorded yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from lima_core.paths import STREET_CHECKPOINT
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.recorder_parameters import ALL, DISTANCE, NOVELTY, TIME, chosen_triggers

SAMPLE = 512  # points of a sweep, evenly chosen, whose features stand for it
MEMORY = 200  # sweeps remembered, the newest: 200 x 512 features
SHARE_PERCENT = 90.0  # a sweep is as new as the tenth of it that is newest

Features = Callable[[np.ndarray], np.ndarray]


class Novelty:
    """How new a sweep is against a FIFO memory of what was recorded, by features of a network.

    A point's distance is 1 - cosine to the most similar remembered point; that of a sweep is the 90th percentile. The
    memory is LiMA's idea (spec/lima.md section 2) turned around: it says what to learn from next.
    """

    def __init__(self, features: Features) -> None:
        self._features = features
        self._memory: deque[np.ndarray] = deque(maxlen=MEMORY)

    def look(self, points: np.ndarray) -> tuple[float, np.ndarray]:
        """(N, 4) points -> distance in 0 .. 2, and the unit features (<= SAMPLE, C) to `remember`."""
        features = self._features(points)
        known = features[np.isfinite(features).all(1)]
        if not len(known):
            return 0.0, np.zeros((0, features.shape[1]), np.float32)
        chosen = known[np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(int)]
        unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True).clip(1e-12)
        if not self._memory:
            return 1.0, unit
        nearest = np.max([(unit @ remembered.T).max(1) for remembered in self._memory], axis=0)
        return float(np.percentile(1.0 - nearest, SHARE_PERCENT)), unit

    def remember(self, unit: np.ndarray) -> None:
        """Features of a recorded sweep."""
        if len(unit):
            self._memory.append(unit)


class Triggers:
    """Says of each sweep, in order of time, why it is recorded."""

    def __init__(self, settings: Resolved, features: Features | None = None) -> None:
        self._names, self._settings = chosen_triggers(settings), settings
        if NOVELTY in self._names and features is None:
            raise ValueError("the trigger novelty needs a network whose features it compares")
        self._novelty = Novelty(features) if NOVELTY in self._names else None
        self._last_ns: int | None = None
        self._driven_m, self._position = 0.0, None

    def reason(self, stamp_ns: int, position: np.ndarray, points: Callable[[], np.ndarray]) -> str | None:
        """The trigger that a sweep pulls, None = it is not recorded. `position` (3,) m in the world; `points` (N, 4).

        The first of a sequence is recorded whenever there is a trigger at all. `taken` must follow where it is.
        """
        if self._position is not None:
            self._driven_m += float(np.linalg.norm(position - self._position))
        self._position = position
        self._features = None
        if not self._names:
            return None
        others = [name for name in self._names if name != NOVELTY]
        if ALL in others:
            return ALL
        if self._last_ns is None and others:
            return others[0]
        if self._last_ns is None:
            return self._look(points)
        if TIME in self._names and stamp_ns - self._last_ns >= self._settings["trigger.every_s"] * 1e9:
            return TIME
        if DISTANCE in self._names and self._driven_m >= self._settings["trigger.every_m"]:
            return DISTANCE
        return self._look(points) if self._novelty else None

    def taken(self, stamp_ns: int, points: Callable[[], np.ndarray]) -> None:
        """The sweep is recorded."""
        self._last_ns, self._driven_m = stamp_ns, 0.0
        if self._novelty is not None:
            self._novelty.remember(self._novelty.look(points())[1] if self._features is None else self._features)

    def start_over(self) -> None:
        """A new sequence: times and places start anew, the memory of what was seen stays."""
        self._last_ns, self._driven_m, self._position = None, 0.0, None

    def _look(self, points: Callable[[], np.ndarray]) -> str | None:
        distance, self._features = self._novelty.look(points())
        return NOVELTY if distance >= self._settings["trigger.novelty"] else None


def features_of(settings: Resolved) -> Features | None:
    """The features that the trigger novelty compares; None without it, and then no network is loaded."""
    if NOVELTY not in chosen_triggers(settings):
        return None
    from lima_core.predictor import Predictor

    return Predictor(settings["checkpoint"] or STREET_CHECKPOINT, "cpu").features

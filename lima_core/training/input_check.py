"""Why is my network blind? Live sweeps compared with what the checkpoint saw in training (`input_statistics`).

    check = InputCheck(meta["inputs"])
    check.see(points, raw_intensity, rings)  # every sweep, a third of a ms
    for finding in check.findings():  # none where all is well
        print(finding)

What is judged, and with which tolerances: `input_findings`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from lima_core.data.frame import FrameSource
from lima_core.training.input_findings import Expected, Finding, better_scale, findings_of
from lima_core.training.input_picture import Picture, SweepPicture, picture_of, picture_of_sweep

WINDOW = 50  # sweeps in the picture: 5 s at 10 Hz


class InputCheck:
    """Keeps a picture of the last 50 sweeps and compares it with `expected`, a checkpoint's `inputs`. Thread-safe.

    Of each sweep `sample` points are looked at. Before `least_sweeps` there are no findings: one odd sweep is no news.
    """

    def __init__(self, expected: Mapping[str, Any], least_sweeps: int = 10, sample: int = 2048) -> None:
        self._expected = Expected(expected)
        self._least, self._sample = least_sweeps, sample
        self._sweeps: deque[SweepPicture] = deque(maxlen=WINDOW)
        self._lock, self._rng = Lock(), np.random.default_rng(0)

    @property
    def ready(self) -> bool:
        """True once enough sweeps were seen for findings."""
        return len(self._sweeps) >= self._least

    def see(self, points: np.ndarray, raw_intensity: np.ndarray, rings: np.ndarray | None = None) -> None:
        """(N, 4) float32 x, y, z m, intensity as the network gets it; (N,) as sent; (N,) beam numbers.

        Raises ValueError where the three do not belong together.
        """
        lengths = {len(column) for column in (points, raw_intensity, rings) if column is not None}
        if points.ndim != 2 or points.shape[1] != 4 or len(lengths) != 1:
            raise ValueError(f"a sweep is (N, 4) points and N intensities and rings, got {points.shape} and {lengths}")
        one = picture_of_sweep(points, raw_intensity, rings, self._sample, self._rng)
        with self._lock:
            self._sweeps.append(one)

    def reset(self) -> None:
        """Forgets the sweeps, as after a time jump or a change of the scale."""
        with self._lock:
            self._sweeps.clear()

    def findings(self) -> list[Finding]:
        """What differs, by how much it matters; empty where all is well, or too little was seen.

        Last comes what the checkpoint does not tell and could not be compared.
        """
        live = self._live()
        return list(findings_of(live, self._expected)) if live else []

    def suggested_intensity_scale(self) -> float | None:
        """The one of SCALES that brings intensity nearest to training; None where nothing must change or none does."""
        live = self._live()
        return better_scale(live, self._expected) if live else None

    def _live(self) -> Picture | None:
        with self._lock:
            sweeps = list(self._sweeps)
        return picture_of(sweeps) if len(sweeps) >= max(self._least, 1) else None


class AutoScale:
    """Chooses the intensity scale once, as soon as a check has seen enough, and holds it for good.

    A scale that followed the data would change what a road looks like from one street to the next.
    """

    def __init__(self, check: InputCheck, scale: float) -> None:
        self.scale, self.decided = scale, False
        self._check = check

    def update(self) -> str | None:
        """Call after each `check.see`: one line when it decides, else None. The check then starts anew."""
        # one picture for all of it, for another thread may reset the check; sweeps without a return tell nothing
        live, expected = self._check._live(), self._check._expected
        if self.decided or live is None or not live.returns > 0:
            return None
        self.decided = True
        before, better = self.scale, better_scale(live, expected)
        if better is None:
            wrong = [str(found) for found in findings_of(live, expected) if found.what == "intensity"]
            return f"intensity_scale stays {before:g}: " + (wrong[0] if wrong else "intensity is as in training")
        self.scale = better
        self._check.reset()
        return f"intensity_scale is now {better:g} in place of {before:g}: nearest to training; held from here on"


def check_source(source: FrameSource, expected: Mapping[str, Any], frames: int) -> list[Finding]:
    """Findings on up to `frames` (1 to 50) frames, spread over a bag or folder, every point of them.

    Raises ValueError on an empty source or number.
    """
    if not 1 <= frames <= WINDOW or len(source) == 0:
        raise ValueError(
            f"the input check takes 1 to {WINDOW} frames of a source with some, got {frames} of {len(source)}"
        )
    check = InputCheck(expected, least_sweeps=1, sample=1_000_000)
    for index in np.unique(np.linspace(0, len(source) - 1, frames).astype(int)):
        frame = source[int(index)]
        check.see(frame.points, frame.points[:, 3] * source.rig.intensity_scale, frame.extra.get("ring"))
    return check.findings()

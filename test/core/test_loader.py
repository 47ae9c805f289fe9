"""Batches that workers read ahead."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import cv2
import numpy as np
from lima_core.training.loader import StepLoader

class Pictures:
    def __len__(self):
        return 3

    def __getitem__(self, step):
        return int(cv2.GaussianBlur(np.full((2000, 2000, 3), step, np.uint8), (0, 0), 3).mean())

cv2.setNumThreads(4)
pictures = Pictures()
pictures[1]
loader = StepLoader(pictures, workers=1)
print([loader.at(step) for step in range(3)])
del loader
"""


def test_workers_start_after_opencv_has_used_its_threads():
    """A forked child that touches the thread pool of its parent hangs for ever, and training with it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[0] == "[0, 1, 2]"

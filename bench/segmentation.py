"""The shipped network on simulated streets: mIoU on seeds nothing was chosen on, and its latency.

`OMP_NUM_THREADS=1 python -m bench.segmentation [--seeds 200000 200008] [--checkpoint FILE]`
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lima_core.data.synthetic.street import Street
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.paths import STREET_CHECKPOINT
from lima_core.predictor import Predictor

SWEEPS = (0, 10, 20, 30)  # of each street: one a second


def main() -> None:
    """Prints mIoU with the intensity as it is and without, and milliseconds per sweep on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(200_000, 200_008), help="first and end (excluded)")
    parser.add_argument("--checkpoint", default=STREET_CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(options.checkpoint, "cpu")
    scores = {gain: ConfusionMatrix(len(predictor.class_names)) for gain in (1.0, 0.5, 0.0)}
    milliseconds = []
    for seed in range(*options.seeds):
        street = Street(seed, frames=max(SWEEPS) + 1, cameras=False)
        for index in SWEEPS:
            frame = street[index]
            for gain, confusion in scores.items():
                points = frame.points.copy()
                points[:, 3] *= gain
                start = time.perf_counter()
                confusion.update(frame.labels, predictor.segment(points).labels)
                milliseconds.append((time.perf_counter() - start) * 1e3)
    print(f"streets {options.seeds[0]} to {options.seeds[1] - 1}, {len(SWEEPS)} sweeps each")
    for gain, confusion in scores.items():
        print(f"intensity x {gain:3.1f}: mIoU {confusion.miou():.3f}")
    print(f"segment(): median {statistics.median(milliseconds):.0f} ms on one thread")


if __name__ == "__main__":
    main()

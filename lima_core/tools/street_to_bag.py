"""A simulated robot drives along streets and records them: a rosbag2 per street, with ground truth.

python -m lima_core.tools.street_to_bag OUT --seeds 0 20 --frames 40

Each bag holds LiDAR, six cameras, odometry, /tf, /tf_static, /gt/segmentation and /gt/markers (boxes). Streets whose
bag is complete are passed over: an interrupted call is simply repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import cv2
from tqdm import tqdm

from lima_core.data.drives import Strided
from lima_core.data.synthetic.street import Street
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.bag_writer import is_complete


def main(argv: Sequence[str] | None = None) -> int:
    """Writes OUT/street-<seed> for each seed; 1 with a message where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m lima_core.tools.street_to_bag", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1), metavar=("FIRST", "END"), help="END is excluded")
    parser.add_argument("--frames", type=int, default=40, help="sweeps in each bag (default 40)")
    parser.add_argument("--stride", type=int, default=1, help="from one sweep to the next, in tenths of a second")
    parser.add_argument("--image-size", type=int, nargs=2, default=(448, 224), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    settings = (options.frames, options.stride, tuple(options.image_size), options.storage)
    try:
        missing = [seed for seed in range(*options.seeds) if not is_complete(options.out / f"street-{seed}")]
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            jobs = [pool.submit(drive, options.out / f"street-{seed}", seed, *settings) for seed in missing]
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="driving", unit="street"):
                job.result()
    except (ValueError, OSError) as error:
        print(f"street_to_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def drive(path: Path, seed: int, frames: int, stride: int, image_size: tuple[int, int], storage: str) -> None:
    """One street as a bag. Raises ValueError on a street that cannot be."""
    cv2.setNumThreads(1)  # there is a process for each core
    if frames < 1 or stride < 1:
        raise ValueError(f"{frames} frames, one every {stride}: both must be at least 1")
    write_frames(Strided(Street(seed, (frames - 1) * stride + 1, image_size=image_size), stride), path, storage)


if __name__ == "__main__":
    sys.exit(main())

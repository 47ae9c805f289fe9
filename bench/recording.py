"""Recording a bag offline against reading it, in one run: `python -m bench.recording [--sweeps 100]`.

The bag holds what six cameras and a 32-beam LiDAR send: JPEGs of 160 kB, 35k points of 20 bytes, odometry at every
stamp. Peers: rosbags' plain reading of every message, reading with every message decoded, and copying the bag's files,
for recording every sweep writes as many bytes. The bag was just written: it comes from the page cache for all alike.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from lima_core.data.bag import BagMessages
from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.rig import Rig
from lima_core.geometry import se3
from lima_core.paths import config_dir
from lima_core.runtime.bag_messages import bag_messages, typestore
from lima_core.runtime.bag_writer import BagWriter
from lima_core.runtime.frame_messages import frame_messages
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder_parameters import RECORDING

SIZE, POINTS, REPEATS = (1600, 900), 35_000, 5


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bag, out, rig = Path(folder) / "bag", Path(folder) / "out", Rig.load(config_dir() / "rigs" / "nuscenes.yaml")
        write_bag(bag, rig, options.sweeps, options.storage)
        size = sum(path.stat().st_size for path in bag.iterdir())
        jobs: dict[str, Callable[[], object]] = {
            "plain reading": lambda: [len(raw) for _, _, raw in BagMessages(bag)],
            "reading and decoding": lambda: decode_all(bag),
            "copying the files": lambda: shutil.copytree(bag, out),
            "recording every sweep": lambda: record(bag, out, rig, "all"),
            "recording every 0.5 s": lambda: record(bag, out, rig, "time"),
        }
        seconds = {name: [] for name in jobs}
        for _ in range(REPEATS):
            for name, job in jobs.items():  # in turn: all meet the same machine
                started_s = time.perf_counter()
                job()
                seconds[name].append(time.perf_counter() - started_s)
                shutil.rmtree(out, ignore_errors=True)
    plain, decoded = (median(seconds[name]) for name in list(jobs)[:2])
    print(f"{options.storage}, {options.sweeps} sweeps, {size / 1e6:.0f} MB, median of {REPEATS}")
    print(f"{'':24}{'MB/s':>8}{'of plain reading':>20}{'of decoding':>14}")
    for name, all_s in seconds.items():
        took = median(all_s)
        print(f"{name:24}{size / took / 1e6:8.0f}{plain / took:20.2f}{decoded / took:14.2f}")


def record(bag: Path, folder: Path, rig: Rig, triggers: str) -> None:
    """Records into a new folder, which is left in the page cache: forcing it to the disk is the disk's time alone."""
    counts = record_bag(bag, folder, resolve({"triggers": triggers, "disk.min_free_gb": 0.0}, RECORDING), rig)
    assert counts["recorded"]


def decode_all(bag: Path) -> None:
    """Every message as an object."""
    messages = BagMessages(bag)
    for _, topic, raw in messages:
        typestore().deserialize_cdr(raw, messages.types[topic])


def write_bag(path: Path, rig: Rig, sweeps: int, storage: str) -> None:
    """A drive straight on at 10 m/s, sweeps at 20 Hz."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8), (0, 0), 2.2)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    points = rng.normal(0, 20, (POINTS, 4)).astype(np.float32)
    extra = {"ring": rng.integers(0, 32, POINTS).astype(np.uint16)}
    K = np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
    with BagWriter(path, storage) as bag:
        for index in range(sweeps):
            stamp_ns = 10**18 + index * 50_000_000
            world_from_base = se3.poses(0.5 * index, 0.0)
            world_from_lidar = world_from_base @ rig.base_from_lidar
            views = [
                CameraView(
                    name=mount.name,
                    stamp_ns=stamp_ns + round(mount.offset_ms * 1e6),
                    image=Image(encoded=jpeg),
                    size=SIZE,
                    K=K,
                    camera_from_lidar=se3.inverse(world_from_base @ mount.base_from_camera) @ world_from_lidar,
                )
                for mount in rig.cameras
            ]
            frame = Frame(stamp_ns, "bench", index, points, world_from_lidar, tuple(views), extra)
            for out in frame_messages(frame, rig, bag_messages()):
                bag.write(out.topic, out.message, out.stamp_ns)


if __name__ == "__main__":
    main()

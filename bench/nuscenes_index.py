"""How long opening full-size nuScenes tables takes: `python bench/nuscenes_index.py [--scenes 850] [--folder DIR]`.

Writes simulated tables of the size of v1.0-trainval (850 scenes, 2.6 GB of JSON in the real row format) into a
temporary folder, then measures wall seconds, processor seconds and peak resident memory in fresh processes: `NuScenes`
without a cache, `NuScenes` with one, and the peer, Python's own `json.loads` of the same tables. Imports are counted;
the tables are in the page cache.

Why msgspec reads them: MB/s of one thread on sample_data.json and ego_pose.json, typed rows of the fields in use:
msgspec 645 and 355, orjson 270 and 114, pyarrow.json 106 and 118, json 184 and 64. simdjson parses as fast and is slow
from there to Python values.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

VERSION = "v1.0-trainval"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
SAMPLES, SWEEPS, PICTURES, ECHOES = 40, 392, 236, 258  # of one scene, per sensor: 3,098 rows, as in the real tables
INSTANCES, BOXES = 76, 18  # of one scene, and keyframes in which each is seen
TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "sample_annotation", "instance",
          "category", "lidarseg")  # fmt: skip
OPEN = (
    "import resource, sys, time; from pathlib import Path; start = time.perf_counter(); {body}; "
    "own, helpers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)); "
    "print(time.perf_counter() - start, sum((*own[:2], *helpers[:2])), own.ru_maxrss / 1024, helpers.ru_maxrss / 1024)"
)
READER = "from lima_core.data.nuscenes import NuScenes; assert len(NuScenes(sys.argv[1]))"
PEER = "import json; tables = [json.loads(path.read_text()) for path in Path(sys.argv[1]).glob('*/*.json')]"


def main() -> None:
    """Prints one line per way of opening the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--folder", type=Path, help="keep the tables here, and use those that are here")
    parser.add_argument("--no-peer", action="store_true", help="leave out json.loads, which needs 14 GB for 850 scenes")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch) / "nuscenes"
        if not (root / VERSION).is_dir():
            write_tables(root / VERSION, options.scenes)
        size = sum(path.stat().st_size for path in (root / VERSION).glob("*.json"))
        print(f"{size / 1e9:.2f} GB of tables, {os.cpu_count()} cores")
        measure("cold", READER, root, f"{scratch}/cache")
        for _ in range(2):
            measure("cached", READER, root, f"{scratch}/cache")
        if not options.no_peer:
            measure("json.loads", PEER, root, scratch)


def measure(name: str, body: str, root: Path, cache: str) -> None:
    """Runs `body` in a fresh process and prints its seconds, with imports, and its peak memory."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", OPEN.format(body=body), str(root)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, processor, memory, helper = map(float, result.stdout.split())
    helpers = f", {helper:.0f} MB in the largest helper process" if helper else ""
    times = f"{seconds:6.2f} s ({processor:5.1f} s of processors)"
    print(f"  {name:12s} {times}   peak {memory:6.0f} MB{helpers}", flush=True)


def write_tables(folder: Path, scenes: int) -> None:
    """Tables of `scenes` scenes, row by row, in the layout of the real files: one value a line, no indent."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True)
    simulation = _Simulation(random.Random(0))
    files = {name: (part / f"{name}.json").open("w") for name in TABLES}
    fresh = dict.fromkeys(TABLES, True)
    for rows in (simulation.sensors(), *(simulation.scene(i) for i in tqdm(range(scenes), "simulated scenes"))):
        for table, row in rows:
            files[table].write(("[\n" if fresh[table] else ",\n") + json.dumps(row, indent=0))
            fresh[table] = False
    for file in files.values():
        file.write("\n]")
        file.close()
    part.rename(folder)


class _Simulation:
    """Rows of one scene after another, with the references between them."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.sensor_tokens = {name: self.token() for name in ("LIDAR_TOP", *CAMERAS, *RADARS)}
        self.categories = [self.token() for _ in range(23)]

    def token(self) -> str:
        return self.draw.randbytes(16).hex()

    def floats(self, count: int, size: float) -> list[float]:
        return [self.draw.random() * size for _ in range(count)]

    def sensors(self) -> Iterator[tuple[str, dict]]:
        """Rows that all scenes share."""
        for name, token in self.sensor_tokens.items():
            modality = {"L": "lidar", "C": "camera", "R": "radar"}[name[0]]
            yield "sensor", {"token": token, "channel": name, "modality": modality}
        for index, token in enumerate(self.categories):
            name = "vehicle.car" if index % 2 else "human.pedestrian.adult"
            yield "category", {"token": token, "name": name, "description": "", "index": index}

    def scene(self, number: int) -> Iterator[tuple[str, dict]]:
        """All rows of one scene."""
        start, scene = 1532402927647951 + number * 30_000_000, self.token()
        samples = [self.token() for _ in range(SAMPLES)]
        yield "scene", {
            "token": scene, "log_token": self.token(), "nbr_samples": SAMPLES, "first_sample_token": samples[0],
            "last_sample_token": samples[-1], "name": f"scene-{number:04d}", "description": "Parked truck, turn left",
        }  # fmt: skip
        for i, token in enumerate(samples):
            links = {"prev": samples[i - 1] if i else "", "next": samples[i + 1] if i + 1 < SAMPLES else ""}
            yield "sample", {"token": token, "timestamp": start + i * 500_000, "scene_token": scene, **links}
        for channel in self.sensor_tokens:
            count = {"L": SWEEPS, "C": PICTURES, "R": ECHOES}[channel[0]]
            yield from self.channel(channel, count, samples, start)
        for _ in range(INSTANCES):
            yield from self.track(samples)

    def channel(self, channel: str, count: int, samples: list[str], start: int) -> Iterator[tuple[str, dict]]:
        """Calibration, data, poses and labels of one sensor in one scene."""
        mount, tokens = self.token(), [self.token() for _ in range(count)]
        K = [self.floats(3, 1e3) for _ in range(3)] if channel[0] == "C" else []
        yield "calibrated_sensor", {
            "token": mount, "sensor_token": self.sensor_tokens[channel], "translation": self.floats(3, 2),
            "rotation": self.floats(4, 1), "camera_intrinsic": K,
        }  # fmt: skip
        size = (900, 1600) if channel[0] == "C" else (0, 0)
        kind, end = {"L": ("pcd", "pcd.bin"), "C": ("jpg", "jpg"), "R": ("pcd", "pcd")}[channel[0]]
        keys = {round(i * (count - 1) / (SAMPLES - 1)): i for i in range(SAMPLES)}
        sample = 0
        for i, token in enumerate(tokens):
            sample, stamp = keys.get(i, sample), start + i * 20_000_000 // count
            folder = "samples" if i in keys else "sweeps"
            yield "sample_data", {
                "token": token, "sample_token": samples[sample], "ego_pose_token": token,
                "calibrated_sensor_token": mount, "timestamp": stamp, "fileformat": kind, "is_key_frame": i in keys,
                "height": size[0], "width": size[1],
                "filename": f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{stamp}.{end}",
                "prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < count else "",
            }  # fmt: skip
            rotation, translation = self.floats(4, 1), [*self.floats(2, 2e3), 0.0]
            yield "ego_pose", {"token": token, "timestamp": stamp, "rotation": rotation, "translation": translation}
            if i in keys and channel == "LIDAR_TOP":
                filename = f"lidarseg/{VERSION}/{token}_lidarseg.bin"
                yield "lidarseg", {"token": token, "sample_data_token": token, "filename": filename}

    def track(self, samples: list[str]) -> Iterator[tuple[str, dict]]:
        """One instance and its annotations."""
        instance, tokens = self.token(), [self.token() for _ in range(BOXES)]
        yield "instance", {
            "token": instance, "category_token": self.draw.choice(self.categories), "nbr_annotations": BOXES,
            "first_annotation_token": tokens[0], "last_annotation_token": tokens[-1],
        }  # fmt: skip
        first = self.draw.randrange(SAMPLES - BOXES + 1)
        for i, token in enumerate(tokens):
            yield "sample_annotation", {
                "token": token, "sample_token": samples[first + i], "instance_token": instance,
                "visibility_token": "4", "attribute_tokens": [self.categories[0]],
                "translation": [round(x, 3) for x in self.floats(3, 2e3)],
                "size": [round(x, 3) for x in self.floats(3, 4)], "rotation": self.floats(4, 1),
                "prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < BOXES else "",
                "num_lidar_pts": i, "num_radar_pts": 0,
            }  # fmt: skip


if __name__ == "__main__":
    main()

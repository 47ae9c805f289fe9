"""Decoding 120,000 points of a PointCloud2, by layout, against two peers: `python bench/cloud_decode.py [--json FILE]`.

Every round runs all ways in turn, one thread; median milliseconds of the rounds, and the peers' as a multiple of ours.
All ways end in (N, 4) float32 points with scaled intensity, which are compared. The ways:

ours        lima_core.data.ros_cloud.cloud_points: points, raw intensity, ring and point times too
structured  a structured dtype over the bytes, then numpy.stack of x, y, z and intensity, as sensor_msgs_py users do
per point   struct.unpack_from in a loop over the points, as many nodes do (one round only)
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lima_core.data.ros_cloud import DTYPES, cloud_points
from lima_core.files import write_whole

COUNT, SCALE, ROUNDS, WARM_UP = 120_000, 255.0, 31, 3
STAMP_S = 1_700_000_000
U8, U16, U32, F32, F64 = 2, 4, 6, 7, 8
XYZ = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]
XYZI = [*XYZ, ("intensity", 12, F32)]
# (field, offset, datatype) of each point, point_step; the drivers are named in test/core/test_ros_layouts.py
LAYOUTS = {
    "velodyne": ([*XYZI, ("ring", 16, U16), ("time", 18, F32)], 22),
    "velodyne pcl": ([*XYZ, ("intensity", 16, F32), ("ring", 20, U16), ("time", 24, F32)], 32),
    "ouster": (
        [*XYZ, ("intensity", 16, F32), ("t", 20, U32), ("reflectivity", 24, U16), ("ring", 26, U16),
         ("ambient", 28, U16), ("range", 32, U32)],
        48,
    ),
    "hesai, robosense": ([*XYZI, ("ring", 16, U16), ("timestamp", 18, F64)], 26),
    "livox": ([*XYZI, ("tag", 16, U8), ("line", 17, U8), ("timestamp", 18, F64)], 26),
    "autoware xyzirc": ([*XYZ, ("intensity", 12, U8), ("return_type", 13, U8), ("channel", 14, U16)], 16),
    "nuscenes": ([*XYZI, ("ring", 16, F32)], 20),
    "xyzi": (XYZI, 16),
}  # fmt: skip


def main() -> None:
    """Prints one line per layout; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"numpy": np.__version__, "points": COUNT}
    for name, (fields, step) in LAYOUTS.items():
        result[name] = compared(name, message(fields, step))
    if options.json:
        print(f"wrote {write_whole(options.json, json.dumps(result, indent=2))}")


def message(fields: list[tuple[str, int, int]], step: int) -> SimpleNamespace:
    """A cloud of COUNT random points over 0.1 s."""
    table = np.zeros(COUNT, structure(fields, step))
    rng, seconds = np.random.default_rng(0), np.linspace(0.0, 0.1, COUNT)
    for name, _, datatype in fields:
        table[name] = rng.normal(0, 30, COUNT) if datatype == F32 else rng.integers(0, 128, COUNT)
    for name in {"time", "t", "timestamp"} & set(table.dtype.names):
        table[name] = {"time": seconds, "t": seconds * 1e9, "timestamp": seconds + STAMP_S}[name]
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=STAMP_S, nanosec=0)),
        fields=[SimpleNamespace(name=n, offset=o, datatype=t, count=1) for n, o, t in fields],
        width=COUNT, height=1, point_step=step, row_step=COUNT * step, is_bigendian=False, data=table.tobytes(),
    )  # fmt: skip


def compared(name: str, msg: SimpleNamespace) -> dict[str, float]:
    """Milliseconds per way. Raises AssertionError where the points differ."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: cloud_points(msg, SCALE).points,
        "structured": lambda: structured(msg),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(WARM_UP + ROUNDS):
        for way, task in ways.items():
            times[way].append(timed(task)[0])
    once, truth = timed(lambda: per_point(msg))
    for way, task in ways.items():
        np.testing.assert_allclose(task(), truth, rtol=1e-6, err_msg=f"{name}: {way}")
    best_ms = {way: min(values) for way, values in times.items()}
    result = {way: statistics.median(values[WARM_UP:]) for way, values in times.items()} | {"per point": once}
    print(f"{name:>16}: ours {result['ours']:.2f} ms (best {best_ms['ours']:.2f}), " + ratios(result))
    return result | {f"{way}, best": value for way, value in best_ms.items()}


def ratios(result: dict[str, float]) -> str:
    """The peers as multiples of ours."""
    return ", ".join(f"{way} {result[way]:.2f} ms = {result[way] / result['ours']:.1f} x" for way in list(result)[1:])


def timed(task: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Milliseconds of one call, and what it gave."""
    start = time.perf_counter()
    points = task()
    return (time.perf_counter() - start) * 1e3, points


def structure(fields: list[tuple[str, int, int]], step: int) -> np.dtype:
    """The structured dtype of a layout."""
    names, offsets, kinds = zip(*fields, strict=True)
    return np.dtype(
        {"names": names, "offsets": offsets, "formats": ["<" + DTYPES[kind] for kind in kinds], "itemsize": step}
    )


def structured(msg: SimpleNamespace) -> np.ndarray:
    """(N, 4) by a structured dtype and a stack."""
    table = np.frombuffer(msg.data, structure([(f.name, f.offset, f.datatype) for f in msg.fields], msg.point_step))
    points = np.stack([table[name].astype(np.float32) for name in ("x", "y", "z", "intensity")], axis=1)
    points[:, 3] /= SCALE
    return points


def per_point(msg: SimpleNamespace) -> np.ndarray:
    """(N, 4) by one unpack for x, y, z and one for the intensity of each point."""
    at = {f.name: f.offset for f in msg.fields}
    byte = any(f.name == "intensity" and f.datatype == U8 for f in msg.fields)
    intensity, xyz = struct.Struct("<B" if byte else "<f"), struct.Struct("<fff")
    points = []
    for start in range(0, msg.width * msg.point_step, msg.point_step):
        (raw,) = intensity.unpack_from(msg.data, start + at["intensity"])
        points.append((*xyz.unpack_from(msg.data, start + at["x"]), raw / SCALE))
    return np.array(points, np.float32)


if __name__ == "__main__":
    main()

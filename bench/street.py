"""Speed of the simulated street: `OPENBLAS_NUM_THREADS=1 python bench/street.py [--frames 7] [--seed 0]`.

CPU seconds, medians: building a street, a sweep alone, and a six-camera 448 x 224 frame with its sweep (target
< 1.5 s); and the rays of one sweep through trimesh's own Embree interface, as a ratio measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import cv2
import numpy as np
import trimesh

from lima_core.data.synthetic import lidar
from lima_core.data.synthetic.rays import Caster
from lima_core.data.synthetic.street import Street


def median_s(calls: Iterable[Callable[[], object]]) -> float:
    """Median CPU seconds of some calls."""
    seconds = []
    for call in calls:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> None:
    """Prints one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    builds = [Street(options.seed + k, options.frames + 1) for k in range(3)]
    print(f"build a street           {median_s([lambda s=s: s.world for s in builds]):7.3f} s (median of 3 seeds)")
    blind = Street(options.seed, options.frames + 1, cameras=False)
    first = median_s([lambda: blind[0]])
    sweep = median_s([lambda i=i: blind[i] for i in range(1, len(blind))])
    print(f"first sweep of a street  {first:7.3f} s (builds the street and its Embree scenes)")
    print(f"sweep, no cameras        {sweep:7.3f} s = {1 / sweep:.1f} sweeps/s (median of {options.frames})")
    street = builds[0]
    street[0]
    frame = median_s([lambda i=i: street[i] for i in range(1, len(street))])
    print(f"sweep + six cameras      {frame:7.3f} s (median of {options.frames}; target < 1.5)")
    print(f"  of it cameras          {frame - sweep:7.3f} s = {(frame - sweep) / 6:.3f} s each")
    compare_with_trimesh(blind, options.frames)


def compare_with_trimesh(street: Street, repeats: int) -> None:
    """The rays of one sweep against what stands, by our caster and by trimesh; and what the movers add to ours."""
    static = street.world.static.mesh
    stamp = street.time_s(street.stamp_ns(1))
    base_from_lidar = street.rig.base_from_lidar
    times = np.linspace(stamp - lidar.SWEEP_S, stamp, lidar.COLUMNS)
    origins, directions = lidar.rays(street.world.ego.pose(times) @ base_from_lidar, base_from_lidar)
    standing = copy.copy(street.world)
    standing.things = [thing for thing in street.world.things if thing.travel is None]
    peer = trimesh.Trimesh(static.vertices, static.faces, process=False).ray
    casts = {
        "trimesh, what stands": lambda: peer.intersects_location(origins, directions, multiple_hits=False),
        "ours, what stands": partial(Caster(standing).cast, origins, directions, stamp, lidar.RANGE_M),
        "ours, with what moves": partial(
            Caster(street.world).cast, origins, directions, np.repeat(times, lidar.BEAMS), lidar.RANGE_M
        ),
    }
    for cast in casts.values():
        cast()
    seconds = {name: median_s([cast] * repeats) for name, cast in casts.items()}
    base = seconds["trimesh, what stands"]
    print(f"{len(origins)} rays of a sweep, {len(static.faces)} triangles; trimesh by {type(peer).__module__}")
    for name, value in seconds.items():
        print(f"  {name:22s} {value:7.3f} s = {value / base:.2f} x trimesh")


if __name__ == "__main__":
    main()

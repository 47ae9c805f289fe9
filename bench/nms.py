"""Rotated non-maximum suppression of 1,000 detections against shapely: `python bench/nms.py [--json FILE]`.

Two scenes: "crowd", duplicates about 100 objects of the sizes of nuScenes on 100 x 100 m, and "spread", boxes anywhere
on it, most of which are kept. Every round runs all ways, one thread; median milliseconds of the rounds. The ways:

ours          lima_core.models.nms.rotated_nms, from tensors to rows
shapely       polygons built beforehand; each kept one is intersected with all that remain, in one vectorised call
shapely tree  polygons built beforehand; STRtree finds the pairs, one vectorised call intersects them, then a walk
double loop   polygons built beforehand; one pair at a time in Python, against the kept ones (one round only)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely
import torch
from tqdm import tqdm

from lima_core.files import write_whole
from lima_core.models.nms import rotated_nms

COUNT, THRESHOLD, ROUNDS, WARM_UP, OURS_PER_ROUND = 1000, 0.2, 9, 2, 5
SIZES = np.array(  # length and width of car, truck, bus, trailer, barrier, motorcycle, bicycle, pedestrian, cone
    [[4.63, 1.97], [6.93, 2.51], [10.5, 2.94], [12.29, 2.9], [0.5, 2.53], [2.11, 0.77], [1.7, 0.6], [0.73, 0.67],
     [0.41, 0.41]]
)  # fmt: skip
SHARES = np.array([0.45, 0.08, 0.03, 0.02, 0.1, 0.04, 0.04, 0.16, 0.08])


def main() -> None:
    """Prints one line per scene and way; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"torch": torch.__version__, "shapely": shapely.__version__, "boxes": COUNT}
    for name, make in (("crowd", crowd), ("spread", spread)):
        result[name] = compared(name, *make(np.random.default_rng(0)))
    if options.json:
        print(f"wrote {write_whole(options.json, json.dumps(result, indent=2))}")


def compared(name: str, boxes: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Milliseconds per way. Raises AssertionError where the rows kept differ."""
    shapes, tensors = polygons(boxes), (torch.from_numpy(boxes), torch.from_numpy(scores))
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: rotated_nms(*tensors, THRESHOLD, COUNT).numpy(),
        "shapely": lambda: vectorised(shapes, scores),
        "shapely tree": lambda: with_tree(shapes, scores),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(WARM_UP + ROUNDS), name, leave=False):
        for way, task in ways.items():
            repeats = OURS_PER_ROUND if way == "ours" else 1
            times[way].append(statistics.median(milliseconds(task) for _ in range(repeats)))
    medians = {way: statistics.median(values[WARM_UP:]) for way, values in times.items()}
    rows = ways["ours"]()
    for way, task in {**ways, "double loop": lambda: double_loop(shapes, scores)}.items():
        start = time.perf_counter()
        assert np.array_equal(task(), rows), f"{name}: {way} keeps other rows"
        medians.setdefault(way, 1e3 * (time.perf_counter() - start))
    print(f"{name}: {len(rows)} of {len(boxes)} boxes kept, the same rows by all ways")
    for way, value in medians.items():
        print(f"  {way:13s} {value:9.2f} ms  {value / medians['ours']:7.1f} x ours")
    return {"kept": len(rows), **medians}


def milliseconds(task: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    task()
    return 1e3 * (time.perf_counter() - start)


def crowd(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 5) boxes x, y, l, w, yaw, about ten of each object, and (N,) scores."""
    objects = np.column_stack(
        [rng.uniform(-50, 50, (100, 2)), SIZES[rng.choice(len(SIZES), 100, p=SHARES)], rng.uniform(-np.pi, np.pi, 100)]
    )
    boxes = objects[rng.integers(0, 100, COUNT)]
    boxes[:, :2] += rng.normal(0, 0.25, (COUNT, 2))
    boxes[:, 2:4] *= np.exp(rng.normal(0, 0.08, (COUNT, 2)))
    boxes[:, 4] += rng.normal(0, 0.1, COUNT)
    return boxes, rng.random(COUNT)


def spread(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 5) boxes x, y, l, w, yaw anywhere, and (N,) scores."""
    place, size = rng.uniform(-50, 50, (COUNT, 2)), rng.uniform([0.5, 0.5], [6, 2.5], (COUNT, 2))
    return np.column_stack([place, size, rng.uniform(-np.pi, np.pi, COUNT)]), rng.random(COUNT)


def polygons(boxes: np.ndarray) -> np.ndarray:
    """(N, 5) boxes -> (N,) shapely polygons."""
    x, y, length, width, yaw = boxes.T[:, :, None]
    along, across = length / 2 * [1, 1, -1, -1], width / 2 * [-1, 1, 1, -1]
    corners = [x + along * np.cos(yaw) - across * np.sin(yaw), y + along * np.sin(yaw) + across * np.cos(yaw)]
    return shapely.polygons(np.stack(corners, axis=-1))


def vectorised(shapes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each kept polygon against all that remain."""
    area, left, kept = shapely.area(shapes), np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        common = shapely.area(shapely.intersection(shapes[best], shapes[left]))
        left = left[common / (area[best] + area[left] - common) <= THRESHOLD]
    return np.array(kept)


def with_tree(shapes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The pairs whose bounds meet, all at once."""
    order = np.argsort(-scores, kind="stable")
    shapes, area = shapes[order], shapely.area(shapes[order])
    better, worse = shapely.STRtree(shapes).query(shapes)
    pairs = better < worse
    better, worse = better[pairs], worse[pairs]
    common = shapely.area(shapely.intersection(shapes[better], shapes[worse]))
    found = common / (area[better] + area[worse] - common) > THRESHOLD
    alive = np.ones(len(order), bool)
    for i, j in sorted(zip(better[found].tolist(), worse[found].tolist(), strict=True)):
        if alive[i]:
            alive[j] = False
    return order[alive]


def double_loop(shapes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """One pair at a time."""
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        for other in kept:
            common = shapes[row].intersection(shapes[other]).area
            if common / (shapes[row].area + shapes[other].area - common) > THRESHOLD:
                break
        else:
            kept.append(row)
    return np.array(kept)


if __name__ == "__main__":
    main()

"""Miniatures of the data sets with labels, each in its own layout, three points a scan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

RAW = (0.0, 51.0, 255.0)  # intensities of a miniature's three points, or 1/255 of them


def scan(
    root: Path, points: str, labels: str | None, ids: tuple[int, ...], columns: int = 4, top: float = 1.0, dtype="<u4"
) -> None:
    """Three points at 1, 2, 3 m with intensities up to `top` and their raw labels."""
    rows = np.zeros((3, columns), "<f4")
    rows[:, 0], rows[:, 3] = (1, 2, 3), np.array(RAW) / 255 * top
    if columns > 4:
        rows[:, 4] = (0, 63, 7)
    for name, array in ((points, rows), (labels, np.array(ids, dtype))):
        if name:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array) if path.suffix == ".npy" else array.tofile(path)


def kitti(root: Path) -> None:
    """Ids with an instance in the upper half: car 10, moving car 252, other-structure 52."""
    for sequence, count in {"00": 3, "08": 2, "10": 1, "11": 1}.items():
        for i in range(count):
            place = f"sequences/{sequence}/{{}}/{i:06d}"
            labels = None if sequence == "11" else place.format("labels") + ".label"
            scan(root, place.format("velodyne") + ".bin", labels, (10 + (7 << 16), 252, 52))


def scribble(root: Path) -> None:
    """Scribbles on a third of the points; full labels, which training must not see, beside them."""
    kitti(root)
    for path in [p for s in ("00", "10") for p in (root / f"sequences/{s}/labels").iterdir()]:
        target = path.parents[1] / "scribbles" / path.name
        target.parent.mkdir(exist_ok=True)
        np.array((0, 252, 0), "<u4").tofile(target)


def rellis(root: Path) -> None:
    """The middle row met nothing: it is at the origin, void."""
    lines = {"train": ["00001/{}/000002", "00000/{}/000104", "00000/{}/000007"], "val": ["00003/{}/000000"], "test": []}
    for split, places in lines.items():
        pairs = [
            (p.format("os1_cloud_node_kitti_bin"), p.format("os1_cloud_node_semantickitti_label_id")) for p in places
        ]
        (root / f"pt_{split}.lst").write_text("".join(f"{a}.bin {b}.label\n" for a, b in pairs))
        for points, labels in pairs:
            scan(root, points + ".bin", labels + ".label", (3, 0, 34), top=0.01)
            rows = np.fromfile(root / (points + ".bin"), "<f4").reshape(-1, 4)
            rows[1] = 0
            rows.tofile(root / (points + ".bin"))


def poss(root: Path) -> None:
    for sequence, count in {"00": 2, "01": 1, "02": 2, "03": 1, "05": 1}.items():
        for i in range(count):
            place = f"sequences/{sequence}/{{}}/{i:06d}"
            scan(root, place.format("velodyne") + ".bin", place.format("labels") + ".label", (5, 22, 18), top=255)


def stf(root: Path) -> None:
    for split, count in {"train": 3, "val": 1, "test": 1}.items():
        for i in range(count):
            place = f"{split}/{{}}/2018-02-0{i + 1}_12-00-00_00000"
            points, labels = place.format("velodyne") + ".bin", place.format("labels") + ".label"
            scan(root, points, labels, (1, 19, 20), columns=5, top=255, dtype="<i4")


def synlidar(root: Path) -> None:
    for i in range(11):
        scan(root, f"00/velodyne/{i:06d}.bin", f"00/labels/{i:06d}.label", (1, 32, 0))
    scan(root, "12/velodyne/000009.bin", "12/labels/000009.label", (1, 32, 0))  # place 0 of its sequence: to train on


def daps(root: Path, folder: str = "daps-2") -> None:
    for sequence, count in {"38-18_7_72_90": 4, "42-48_10_78_90": 1, "44-18_11_15_32": 1, "other": 1}.items():
        for i in range(count):
            place = f"{folder}/data/{sequence}/{{}}/{i:06d}"
            scan(root, place.format("clouds") + ".bin", place.format("labels") + ".label", (30, 70, 99), top=255)


def synth4d(root: Path) -> None:
    lists = {"training": {"Town06": ["000011"], "Town03": ["000004", "000001"]}, "validation": {"Town03": ["000002"]}}
    for split, towns in lists.items():
        path = root / f"splits/nuscenes_synth/{split}_split.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(towns))
        for town, frames in towns.items():
            for frame in frames:
                place = f"nuscenes_synth/{town}/{{}}/{frame}.npy"
                scan(root, place.format("velodyne"), place.format("labels"), (1, 22, 0), dtype="<f8")


# name -> (maker, labels of the first training frame, sequences of train, frames of val)
MINIATURES: dict[str, tuple[Callable[[Path], None], list[int], tuple[str, ...], int]] = {
    "semantickitti": (kitti, [0, 0, 255], ("00", "00", "00", "10"), 2),
    "scribblekitti": (scribble, [255, 0, 255], ("00", "00", "00", "10"), 2),
    "rellis3d": (rellis, [1, 18], ("00000", "00000", "00001"), 1),
    "semanticposs": (poss, [0, 12, 255], ("00", "00", "01", "03", "05"), 2),
    "semanticstf": (stf, [0, 18, 255], tuple(f"2018-02-0{i}_12-00-00_00000" for i in (1, 2, 3)), 1),
    "synlidar": (synlidar, [0, 31, 255], ("00",) * 10 + ("12",), 1),
    "daps3d": (daps, [1, 3, 255], ("38-18_7_72_90",) * 4, 6),
    "synth4d": (synth4d, [0, 21, 255], ("Town03", "Town03", "Town06"), 1),
}

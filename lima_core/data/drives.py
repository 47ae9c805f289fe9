"""Drives to pretrain on: one or more folders in the nuScenes layout, as one source that knows its sequences.

Simulated streets are drawn once and kept in that layout too, a folder each: rendering six pictures takes a second,
reading them back a few milliseconds, and what trains on streets trains on nuScenes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
from tqdm import tqdm

from lima_core.data.frame import Frame
from lima_core.data.nuscenes import NuScenes
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.data.synthetic import simulator_version
from lima_core.data.synthetic.street import Street
from lima_core.paths import config_dir


class DriveError(ValueError):
    """There is nothing to learn from."""


class Drives:
    """Frames of several nuScenes folders, without those of the scenes `without`.

    `sequences` (len,) the sequence of each frame. Raises DriveError when no frame is left.
    """

    def __init__(self, roots: Sequence[str | Path], version: str | None = None, without: Collection[str] = ()) -> None:
        folders = [NuScenes(root, version) for root in roots]
        where = [(f, i, name) for f, folder in enumerate(folders) for i, name in enumerate(folder.sequences)]
        kept = [place for place in where if place[2] not in without]
        if not kept:
            named = ", ".join(map(str, roots[:2]))
            raise DriveError(f"{named}: all {len(where)} frames are of scenes that are left out; use data.split=all")
        self._folders, self._where = folders, [(f, i) for f, i, _ in kept]
        self.sequences = tuple(name for _, _, name in kept)
        self.rig = folders[0].rig

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Frame:
        folder, place = self._where[index]
        return self._folders[folder][place]

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k frames of the same sequence before `index`, oldest first; fewer at its start."""
        folder, place = self._where[index]
        return self._folders[folder].window(place, k)


def validation_scenes() -> set[str]:
    """Names of the scenes of nuScenes' official validation split."""
    lines = (config_dir() / "datasets" / "nuscenes_val_scenes.txt").read_text().splitlines()
    return {name for line in lines if not line.startswith("#") for name in line.split()}


def draw_streets(
    seeds: range, sweeps: int, stride: int, image_size: tuple[int, int], folder: str | Path, processes: int = 1
) -> list[Path]:
    """Draws the streets that `folder` lacks, every `stride`-th of their 10 Hz sweeps; returns their nuScenes roots.

    Names carry a hash of the simulator's source, so that a street of another version is never taken for this one.
    Raises DriveError when there are none to draw.
    """
    if not seeds or seeds[0] < 0 or sweeps < 1 or stride < 1 or min(image_size) < 16:
        raise DriveError(
            f"no streets to draw: data.seeds {seeds}, data.sweeps {sweeps}, data.stride {stride}, data.image_size "
            f"{image_size}; seeds are [first, end), from 0; sweeps and stride at least 1, images from 16 x 16"
        )
    kind = f"{sweeps}x{stride}-{image_size[0]}x{image_size[1]}-{simulator_version()}"
    roots = {seed: Path(folder) / f"street-{seed}-{kind}" for seed in seeds}
    missing = [seed for seed, root in roots.items() if not root.is_dir()]
    draw = partial(_draw, roots=roots, sweeps=sweeps, stride=stride, image_size=image_size)
    progress = partial(tqdm, total=len(missing), desc="drawing streets", unit="street", disable=not missing)
    if processes == 1 or len(missing) < 2:
        list(progress(map(draw, missing)))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(progress(pool.map(draw, missing)))
    return list(roots.values())


def _draw(seed: int, roots: dict[int, Path], sweeps: int, stride: int, image_size: tuple[int, int]) -> None:
    """One street, written beside its place and then renamed: a folder that exists is complete."""
    cv2.setNumThreads(1)
    root = roots[seed]
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as part:
        street = Street(seed, (sweeps - 1) * stride + 1, image_size=image_size)
        Path(write_nuscenes(Strided(street, stride), Path(part) / "street")).replace(root)


class Strided:
    """Every `stride`-th frame of a street."""

    def __init__(self, street: Street, stride: int) -> None:
        self._street, self._stride, self.rig = street, stride, street.rig

    def __len__(self) -> int:
        return -(-len(self._street) // self._stride)

    def __getitem__(self, index: int) -> Frame:
        return self._street[index * self._stride]

    def window(self, index: int, k: int) -> list[Frame]:
        """The last k of these frames before `index`, oldest first."""
        return [self[i] for i in range(max(0, index - k), index)]

"""Synth4D, its part for nuScenes: `nuscenes_synth/TownXX/{velodyne,labels}/NNNNNN.npy`, split by lists of frames.

Layout: spec/datasets.md 1.2. The official lists are pickles, which run code when read and are never read here: the same
dict of town -> frames is wanted as JSON, `splits/nuscenes_synth/{training,validation}_split.json`.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np

from lima_core.data.frame import DatasetError
from lima_core.data.scans import PERIOD_NS, Scan, Scans, Split

SET = "nuscenes_synth"
LISTS = {"train": ("training",), "val": ("validation",), "test": (), "all": ("training", "validation")}
CONVERT = (
    "import json, pickle, sys; frames = pickle.load(open(sys.argv[1], 'rb')); "
    "json.dump({town: [str(f) for f in frames[town]] for town in frames}, open(sys.argv[2], 'w'))"
)


class Synth4D(Scans):
    """Simulated scans of an HDL-32E, intensity 0 to 1."""

    name = "synth4d"

    def find(self, split: Split) -> list[Scan]:
        """The frames of the split's lists, by town and name. Raises DatasetError."""
        places = sorted({place for part in LISTS[split] for place in self._listed(f"splits/{SET}/{part}_split")})
        return [
            Scan(town, index, f"{SET}/{town}/velodyne/{name}.npy", f"{SET}/{town}/labels/{name}.npy", PERIOD_NS * index)
            for index, (town, name) in enumerate(places)
        ]

    def _listed(self, name: str) -> list[tuple[str, str]]:
        """(town, frame) pairs of a list."""
        pickled, path = self.root / f"{name}.pkl", self.root / f"{name}.json"
        if pickled.is_file() and not path.is_file():
            raise DatasetError(
                f"{path} is missing, and pickles are not read here, for they may run any code. If {pickled.name} came "
                f"from the authors, convert it: python -c {shlex.quote(CONVERT)} "
                f"{shlex.quote(str(pickled))} {shlex.quote(str(path))}"
            )
        try:
            towns = json.loads(self.path(f"{name}.json").read_text())
            places = [(town, str(frame)) for town, frames in towns.items() for frame in frames]
        except (AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DatasetError(f"{path}: town -> list of frames is wanted ({error}); convert the list again") from error
        outside = [part for place in places for part in place if part in ("", "..") or "/" in part]
        if outside:
            raise DatasetError(f"{path}: {outside[0]!r} is no name of a town or a frame; convert the list again")
        return places

    def read_points(self, scan: Scan) -> np.ndarray:
        """(N, 4) float32 x, y, z in m, intensity."""
        points = self._load(scan.points)
        if points.ndim != 2 or points.shape[1] != 4 or points.dtype.kind != "f":
            found = f"{points.shape} {points.dtype}"
            raise DatasetError(f"{self.root / scan.points}: (N, 4) floats are wanted, got {found}; copy the file again")
        self.check_finite(points, scan)
        return points.astype(np.float32)

    def read_labels(self, scan: Scan) -> np.ndarray:
        """(N,) int32 CARLA tags, whatever type they are kept in."""
        kept = self._load(scan.labels).reshape(-1)
        if kept.dtype.kind not in "iuf" or not np.isfinite(kept).all() or (kept != np.round(kept)).any():
            raise DatasetError(f"{self.root / scan.labels}: whole numbers are wanted; copy the file again")
        return kept.astype(np.int32)

    def _load(self, name: str) -> np.ndarray:
        path: Path = self.path(name)
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DatasetError(f"{path} is no whole .npy file of numbers ({error}); copy it again") from error
        if not isinstance(array, np.ndarray):  # a .npz by another name
            raise DatasetError(f"{path} is an archive, one array is wanted; copy it again")
        return array

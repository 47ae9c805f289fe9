"""Every data set with labels by its name: `open_dataset("semantickitti", root, "train")`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, get_args

import numpy as np

from lima_core.data.classes import Taxonomy
from lima_core.data.frame import DatasetError, FrameSource
from lima_core.data.scans import Split
from lima_core.data.splits import Chosen, share_of_sequences

# name -> class in the module of that name; read when asked for
READERS = {
    "semantickitti": "SemanticKITTI",
    "waymo": "Waymo",
    "scribblekitti": "ScribbleKITTI",
    "rellis3d": "Rellis3D",
    "semanticposs": "SemanticPOSS",
    "semanticstf": "SemanticSTF",
    "synlidar": "SynLiDAR",
    "daps3d": "DAPS3D",
    "synth4d": "Synth4D",
}
MINI, MINI_VAL = "v1.0-mini", {"scene-0103", "scene-0916"}  # the devkit's mini_val, half of mini's scenes of val
NAMES: tuple[str, ...] = ("nuscenes", *READERS)
RECORDING = "recording"  # of one's own robot, with ground truth


class Dataset(FrameSource, Protocol):
    """A source of frames of one split, with its classes and its rule for a share of the labels.

    `sequences` (len,) the sequence of each frame.
    """

    sequences: tuple[str, ...]
    taxonomy: Taxonomy

    def labelled_share(self, percent: int) -> list[int]:
        """Indices of the frames that `percent` % of the training labels keep. Raises ValueError."""
        ...


def open_dataset(name: str, root: str | Path, split: Split) -> Dataset:
    """The frames of one split. Raises ValueError on an unknown name or split, DatasetError where files are missing."""
    if name not in (*NAMES, RECORDING):
        raise ValueError(f"no data set {name!r}; there are {', '.join((*NAMES, RECORDING))}")
    if split not in get_args(Split):
        raise ValueError(f"no split {split!r}; there are {', '.join(get_args(Split))}")
    if name == "nuscenes":
        return _NuScenesSplit(root, split)
    if name == RECORDING:
        from lima_core.data.recordings import RecordedSplit

        return RecordedSplit(root, split)
    return getattr(import_module(f"lima_core.data.{name}"), READERS[name])(root, split)


class _NuScenesSplit(Chosen):
    """Keyframes of the official split of v1.0-trainval, else of the only version there is, or all of v1.0-test.

    Of v1.0-mini the splits are mini_train and mini_val.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        from lima_core.data.drives import validation_scenes
        from lima_core.data.nuscenes import NuScenes

        wanted = "v1.0-test" if split == "test" else "v1.0-trainval"
        source = NuScenes(root, wanted if split == "test" or (Path(root) / wanted).is_dir() else None)
        mini = source.version == MINI
        scenes, held_out = set(source.sequences), MINI_VAL if mini else validation_scenes()
        kept = {"train": scenes - held_out, "val": held_out}.get(split, scenes)
        indices = [index for index, scene in enumerate(source.sequences) if scene in kept]
        if not indices:
            raise DatasetError(
                f"{source.root}/{source.version} has no keyframe of split {split!r}; "
                f"`python -m lima_core.data.check nuscenes {root}` says what belongs where"
            )
        super().__init__(source, indices)
        self.taxonomy, self.root, self.version = source.taxonomy, source.root, source.version

    def labelled_share(self, percent: int) -> list[int]:
        """Every n-th scene, all its keyframes."""
        return share_of_sequences(self.sequences, percent)

    def sweeps(self, index: int, count: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """The `count` LIDAR_TOP sweeps before a frame, newest first, as `NuScenes.sweeps` gives them."""
        return self._source.sweeps(self._indices[index], count)

    def classes(self, index: int) -> np.ndarray:
        """(n,) uint8 detection classes of the boxes with a return in a frame; no sensor file is read."""
        return self._source.classes(self._indices[index])

    def world_from_lidar(self, index: int) -> np.ndarray:
        """(4, 4) float64 pose of the LiDAR at a keyframe, without reading its files."""
        return self._source.world_from_lidar(self._indices[index])

    def tokens(self, index: int) -> tuple[str, str]:
        """Tokens of the frame's sample and of its LIDAR_TOP sample_data."""
        return self._source.tokens(self._indices[index])

"""Classes, colours and raw-label maps of a data set, read from config/datasets/<name>.yaml."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import yaml

from lima_core.data.frame import IGNORE, DatasetError
from lima_core.paths import config_dir


@dataclass(frozen=True)
class Taxonomy:
    """Train classes of one data set.

    `names` C class names; `colors` (C, 3) uint8 RGB; `train_from_raw` (R,) uint8, 255 = ignore, and `known` (R,) bool
    whether a raw id is one of the data set's, R >= 256;
    `detection_names` the classes of `Boxes.class_id`; `detection_from_category` raw category -> class name.
    """

    name: str
    names: tuple[str, ...]
    colors: np.ndarray
    train_from_raw: np.ndarray
    known: np.ndarray
    detection_names: tuple[str, ...] = ()
    detection_from_category: dict[str, str] | None = None

    def index(self, name: str) -> int:
        """Train id of a class name. Raises ValueError on an unknown one."""
        return self.names.index(name)

    def train_ids(self, raw: np.ndarray, where: object) -> np.ndarray:
        """(N,) raw ids -> (N,) uint8 train ids. Raises DatasetError naming `where` and an id the data set has not."""
        inside = (raw >= 0) & (raw < len(self.known))
        unknown = ~inside
        unknown[inside] = ~self.known[raw[inside]]
        if unknown.any():
            raise DatasetError(
                f"{where}: {unknown.sum()} labels are no ids of {self.name}, e.g. {raw[unknown][0]} at point "
                f"{unknown.argmax()}; copy the file again, or correct learning_map in config/datasets/{self.name}.yaml"
            )
        return self.train_from_raw[raw]

    def box_colors(self) -> np.ndarray:
        """(D, 3) uint8 RGB of the detection classes: that of the class of points with the same name.

        Raises ValueError where there is none.
        """
        return self.colors[[self.index(name) for name in self.detection_names]].reshape(-1, 3)

    def rgb(self, labels: np.ndarray) -> np.ndarray:
        """(N,) uint8 train ids -> (N, 3) uint8 RGB; ignored points are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colors)] = self.colors
        return table[labels]


def load_taxonomy(name: str) -> Taxonomy:
    """Taxonomy of a data set by name, e.g. `nuscenes`. Raises FileNotFoundError naming those there are."""
    path = config_dir() / "datasets" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise FileNotFoundError(f"no data set {name!r}; known: {', '.join(known)}")
    data = yaml.safe_load(path.read_text())
    raw, train = np.array(list(data["learning_map"].items())).T
    train_from_raw = np.full(max(256, raw.max() + 1), IGNORE, np.uint8)
    train_from_raw[raw] = train
    known = np.zeros(len(train_from_raw), bool)
    known[raw] = True
    colors = np.array([data["colors_rgb"][c] for c in data["classes"]], np.uint8)
    return Taxonomy(
        name=data["name"],
        names=tuple(data["classes"]),
        colors=colors,
        train_from_raw=train_from_raw,
        known=known,
        detection_names=tuple(data.get("detection_classes", ())),
        detection_from_category=data.get("detection_from_category"),
    )

"""The paper's figure 4: where networks err on one sweep; correct points grey, wrong ones red, the truth beside them.

python -m lima_core.viz.errors --checkpoints runs/random/checkpoint.safetensors runs/lima/checkpoint.safetensors \\
    --data.name nuscenes --data.root DATA/nuscenes --index 12 --out errors.png
python -m lima_core.viz.errors --data.name street --index 3

A column each for the truth and for every checkpoint: from above, and in the cameras where the frame has any.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from lima_core.config import ConfigError, option, read_config
from lima_core.data.classes import Taxonomy
from lima_core.data.frame import IGNORE, Frame
from lima_core.data.labelled import STREET, DataConfig, StreetConfig, open_frames, taxonomy_of
from lima_core.files import write_whole
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.paths import STREET_CHECKPOINT
from lima_core.predictor import Predictor
from lima_core.viz.bev import (
    BACKGROUND,
    EGO,
    IGNORED,
    RIGHT,
    RING,
    WRONG,
    caption,
    error_colors,
    legend,
    render_bev,
    to_base,
)
from lima_core.viz.overlay import overlay
from lima_core.viz.report import mosaic

WIDTH_PX = 840
EXTENT_M = 40.0
IMAGE_SIZE = (640, 360)  # of simulated cameras
DOT_PX = 0.8  # radius of a point in the finished picture


@dataclass(frozen=True)
class ErrorsConfig:
    """What to draw."""

    checkpoints: tuple[str, ...] = option((str(STREET_CHECKPOINT),), "finetuned networks, one column each")
    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["train", "val"] = option("val", "which sweeps")
    index: int = option(0, "index of the sweep in the split")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    out: str = option("errors.png", "picture to write")


def main(argv: Sequence[str]) -> None:
    """The command line. Raises ValueError: no such sweep, no labels, or a checkpoint of other classes."""
    config = read_config(ErrorsConfig, _as_list(argv), "lima_core.viz.errors", __doc__)
    taxonomy = taxonomy_of(config.data)
    frame, base_from_lidar = labelled_frame(config.data, config.split, config.index)
    predictions = {path: predict(path, frame.points, taxonomy, config.device) for path in config.checkpoints}
    picture = error_figure(frame, predictions, taxonomy, base_from_lidar)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {write_whole(Path(config.out), data.tobytes())}: {frame.where}")


def _as_list(argv: Sequence[str]) -> list[str]:
    """`--checkpoints A B` as `--checkpoints=["A", "B"]`, which the parser of the configuration reads."""
    words = list(argv)
    if "--checkpoints" in words:
        start = words.index("--checkpoints")
        end = next((i for i in range(start + 1, len(words)) if words[i].startswith("--")), len(words))
        names = ", ".join(f'"{name}"' for name in words[start + 1 : end])
        words[start:end] = [f"--checkpoints=[{names}]"]
    return words


def labelled_frame(data: DataConfig, split: Literal["train", "val"], index: int) -> tuple[Frame, np.ndarray]:
    """The frame with its cameras, and base_from_lidar (4, 4). Raises ConfigError, or DatasetError on broken files.

    Sweeps are counted as in training and evaluation with all labels.
    """
    if data.name == STREET:
        return _street_frame(data.street, split, index)
    source = open_frames(data, split)
    _check_index(index, len(source), f"{data.name} {split}")
    return source[index], source.rig.base_from_lidar


def _street_frame(street: StreetConfig, split: Literal["train", "val"], index: int) -> tuple[Frame, np.ndarray]:
    from lima_core.data.synthetic.street import Street  # Embree, which readers of data sets do not need

    seeds = street.seeds(split)
    _check_index(index, len(seeds) * street.sweeps_per_street, f"street {split}")
    place, sweep = divmod(index, street.sweeps_per_street)
    source = Street(seeds[place], street.frames, image_size=IMAGE_SIZE)
    return source[sweep * street.sweep_stride], source.rig.base_from_lidar


def _check_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise ConfigError(f"index is {index}; {what} has {count} sweeps, from 0")


def predict(
    checkpoint: str, points: np.ndarray, taxonomy: Taxonomy, device: Literal["auto", "cpu", "cuda"]
) -> np.ndarray:
    """(N, 4) points -> (N,) uint8 train ids. Raises ConfigError on other classes, CheckpointError."""
    predictor = Predictor(checkpoint, device)
    if predictor.class_names != taxonomy.names:
        raise ConfigError(
            f"{checkpoint} knows the {len(predictor.class_names)} classes {', '.join(predictor.class_names[:3])}, ...; "
            f"{taxonomy.name} has {len(taxonomy.names)}: {', '.join(taxonomy.names[:3])}, ...; "
            f"choose a checkpoint that was finetuned on {taxonomy.name}, or its own data set by --data.name"
        )
    return predictor.segment(points).labels


def error_figure(
    frame: Frame, predictions: Mapping[str, np.ndarray], taxonomy: Taxonomy, base_from_lidar: np.ndarray
) -> np.ndarray:
    """Truth and errors of each prediction (N,) uint8 train ids, by name, side by side -> (H, W, 3) uint8 RGB.

    Points without a label are left out of the errors. Raises ValueError where labels are missing or do not fit.
    """
    truth = frame.labels
    if truth is None or not (truth != IGNORE).any():
        raise ValueError(f"{frame.where} has no labels to compare with; choose another sweep")
    for name, prediction in predictions.items():
        if prediction.shape != truth.shape:
            raise ValueError(f"{name}: predictions {prediction.shape} for {truth.shape} labels of {frame.where}")
    colors = taxonomy.rgb(truth)
    colors[truth == IGNORE] = IGNORED
    facts = f"{frame.where}: {np.count_nonzero(truth != IGNORE):,} of {len(truth):,} points have a label"
    columns = [_column(frame, base_from_lidar, colors, "ground truth", facts)]
    compared = _of_points(frame, truth != IGNORE)
    for name, prediction in predictions.items():
        colors = error_colors(truth, prediction)[truth != IGNORE]
        columns.append(_column(compared, base_from_lidar, colors, name, _score(truth, prediction, taxonomy)))
    body = np.hstack([np.pad(c, ((0, 0), (0, 6), (0, 0)), constant_values=RING[0]) for c in columns])
    return np.vstack([body, _key(truth, taxonomy, body.shape[1])])


def _column(frame: Frame, base_from_lidar: np.ndarray, colors: np.ndarray, title: str, facts: str) -> np.ndarray:
    """Two lines of text, the sweep from above, and its labelled points in the cameras, all WIDTH_PX wide."""
    head = np.full((72, WIDTH_PX, 3), BACKGROUND, np.uint8)
    caption(head, _shortened(title, 0.8), (12, 30), 0.8)
    caption(head, _shortened(facts, 0.55), (12, 58), 0.55)
    above = render_bev(to_base(frame.points, base_from_lidar), colors, EXTENT_M, WIDTH_PX)
    _scale_bar(above)
    labelled = frame.labels != IGNORE  # in a picture, points without a label would hide what stands there
    return np.vstack([head, above, *_cameras(_of_points(frame, labelled), colors[labelled])])


def _scale_bar(above: np.ndarray) -> None:
    """10 m in the lower left corner: the rings' own numbers are drawn under the points."""
    length, (x, y) = round(10 * WIDTH_PX / (2 * EXTENT_M)), (16, WIDTH_PX - 16)
    cv2.rectangle(above, (x - 8, y - 30), (x + length + 8, y + 8), BACKGROUND, -1)
    cv2.line(above, (x, y), (x + length, y), EGO, 3)
    caption(above, "10 m", (x, y - 10), 0.5)


def _cameras(frame: Frame, colors: np.ndarray) -> list[np.ndarray]:
    """One picture of all cameras; none where the frame has none."""
    if not frame.cameras:
        return []
    tile = WIDTH_PX // (3 if len(frame.cameras) > 1 else 1)
    drawn = {c.name: overlay(c, frame.points, colors, max(1, round(DOT_PX * c.size[0] / tile))) for c in frame.cameras}
    if len(drawn) > 1:
        return [mosaic(drawn, tile)]
    (only,) = drawn.values()
    return [cv2.resize(only, (tile, round(tile * only.shape[0] / only.shape[1])), interpolation=cv2.INTER_AREA)]


def _of_points(frame: Frame, chosen: np.ndarray) -> Frame:
    return replace(frame, points=frame.points[chosen], labels=frame.labels[chosen], extra={})


def _score(truth: np.ndarray, prediction: np.ndarray, taxonomy: Taxonomy) -> str:
    confusion = ConfusionMatrix(len(taxonomy.names))
    confusion.update(truth, prediction)
    wrong = np.count_nonzero((truth != prediction) & (truth != IGNORE))
    return (
        f"mIoU {100 * confusion.miou():.1f} % over {confusion.classes_counted()} classes, "
        f"accuracy {100 * confusion.accuracy():.1f} %, {wrong:,} points wrong"
    )


def _key(truth: np.ndarray, taxonomy: Taxonomy, width: int) -> np.ndarray:
    """The colours: classes of the truth, points without one, correct and wrong."""
    present = [int(i) for i in np.unique(truth) if i != IGNORE]
    names = (*(taxonomy.names[i] for i in present), "no label", "errors: correct", "errors: wrong")
    return legend(names, np.array([*taxonomy.colors[present], IGNORED, RIGHT, WRONG], np.uint8), width)


def _shortened(text: str, scale: float) -> str:
    """The text, or as much of its end as fits into a column."""

    def fits(words: str) -> bool:
        return cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] <= WIDTH_PX - 24

    if fits(text):
        return text
    return next(tail for start in range(len(text)) if fits(tail := "..." + text[start:]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")

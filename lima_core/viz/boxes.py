"""The paper's figure 5: boxes that a detector found in one sweep beside the true ones, in the cameras and from above.

python -m lima_core.viz boxes --checkpoint runs/detector/checkpoint.safetensors --data street:100000 --frame 12
python -m lima_core.viz boxes --checkpoint FILE --data DATA/nuscenes --frame 12 --least_score 0.4 --out boxes.png

Truth is blue, predictions are red; a line from the middle to the front of a box shows where it heads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from lima_core.config import ConfigError, option, read_config
from lima_core.data.frame import Boxes, CameraView, Detections, Frame
from lima_core.data.multisweep import past_sweeps
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.geometry import se3
from lima_core.geometry.boxes import box_table, corners
from lima_core.geometry.camera import MIN_DEPTH_M
from lima_core.metrics.detection_matching import ERRORS_AT, nearest_free
from lima_core.predictor import Predictor
from lima_core.viz.bev import BACKGROUND, EGO, caption, render_bev, to_base
from lima_core.viz.overlay import DIM
from lima_core.viz.report import mosaic

TRUTH, FOUND, POINT = (30, 110, 255), (240, 30, 30), (160, 164, 170)
RIM = (255, 255, 255)  # about letters
TILE_PX, ABOVE_PX = 560, 1120  # a camera; the view from above, beside which a panel of one tile explains it
EXTENT_M = 50.0  # the range of nuScenes' largest classes
TICK_M = 0.8  # the line of heading goes on before the box, or a pedestrian's would not be seen
FAR_M = 25.0  # thin lines from here on, or the boxes would fill
NEAR_M = MIN_DEPTH_M + 1e-3
PIECES = 32  # of an edge: straight edges are curves behind a distorting lens
SHIFT = 4  # cv2's binary places of a pixel

# rows of `corners`: front, rear and the four between; the first four edges lie on the ground
EDGES = np.array([(2, 3), (3, 7), (7, 6), (6, 2), (0, 1), (1, 2), (3, 0), (4, 5), (5, 6), (7, 4), (0, 4), (1, 5)])
ON_GROUND = [0, 1, 2, 3, 12]  # of `segments`: all that is seen from above


@dataclass(frozen=True)
class BoxesConfig:
    """What to draw."""

    checkpoint: str = option("", "detector, a file that python -m lima_core.finetune wrote")
    data: str = option("street:100000", "street:<seed>, a nuScenes folder or a rosbag2 folder")
    frame: int = option(0, "index of the frame in the data")
    least_score: float = option(0.3, "predictions below this score are not drawn")
    scores: bool = option(False, "write the scores beside the predictions")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    out: str = option("boxes.png", "picture to write")


def main(argv: Sequence[str]) -> None:
    """The command line. Raises ValueError: no such frame, or a checkpoint that finds no boxes."""
    config = read_config(BoxesConfig, argv, "lima_core.viz boxes", __doc__)
    if not config.checkpoint:
        raise ConfigError("checkpoint is missing; give --checkpoint FILE, a detector")
    source = open_source(config.data)
    if not 0 <= config.frame < len(source):
        raise ConfigError(f"frame is {config.frame}; {config.data} has {len(source)} frames, from 0")
    predictor = Predictor(config.checkpoint, config.device)
    frame = source[config.frame]
    found = predictor.detect(frame.points, past_sweeps(source, config.frame, predictor.sweeps - 1))
    found = at_least(found, config.least_score)
    title = f"{config.checkpoint}, predictions with a score of {config.least_score:g} or more"
    names, base_from_lidar = predictor.detection_names, source.rig.base_from_lidar
    picture = figure5(frame, found, base_from_lidar, names, title, config.scores)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {write_whole(Path(config.out), data.tobytes())}: {frame.where}, {len(found)} boxes found")


def at_least(found: Detections, score: float) -> Detections:
    """Those with this score or more."""
    kept = found.score >= score
    return Detections(found.boxes.take(kept), found.score[kept])


def figure5(
    frame: Frame,
    found: Detections,
    base_from_lidar: np.ndarray,
    class_names: Sequence[str],
    title: str = "",
    scores: bool = False,
) -> np.ndarray:
    """Cameras above, the view from above and what it shows below -> (H, W, 3) uint8 RGB; all of `found` is drawn.

    Without truth, or without cameras, those parts are left out.
    """
    width = ABOVE_PX + TILE_PX
    head = np.full((76, width, 3), BACKGROUND, np.uint8)
    caption(head, f"{frame.where}: boxes found and true", (14, 34), 0.9)
    caption(head, title, (14, 62), 0.55)
    above = bev_figure(frame, found, base_from_lidar, scores)
    panel = _panel(frame, found, class_names)
    cameras = {view.name: camera_figure(view, frame.boxes, found) for view in frame.cameras}
    rows = [mosaic(cameras, TILE_PX)] if cameras else []
    return np.vstack([head, *rows, np.hstack([above, panel])])


def bev_figure(
    frame: Frame,
    found: Detections,
    base_from_lidar: np.ndarray,
    scores: bool = False,
    extent_m: float = EXTENT_M,
    size_px: int = ABOVE_PX,
) -> np.ndarray:
    """The sweep in grey from above, ahead is up, with true and found boxes -> (S, S, 3) uint8 RGB."""
    points = to_base(frame.points, base_from_lidar)
    image = render_bev(points, np.tile(np.uint8(POINT), (len(points), 1)), extent_m, size_px)
    for boxes, color in _layers(frame.boxes, found):
        lines = segments(boxes, TICK_M)[:, ON_GROUND]
        flat = lines.reshape(-1, 3)
        pixels = (extent_m - se3.apply(base_from_lidar, flat)[:, [1, 0]]) * size_px / (2 * extent_m)
        _draw(image, pixels.reshape(-1, 2, 2), color, 2)
    if scores:
        centers = (extent_m - to_base(found.boxes.center, base_from_lidar)[:, [1, 0]]) * size_px / (2 * extent_m)
        for (x, y), score in zip(centers, found.score, strict=True):
            _text(image, f"{score:.2f}", (round(x) + 10, round(y) - 8), 0.45, FOUND)
    return image


def camera_figure(view: CameraView, truth: Boxes | None, found: Detections, width_px: int = TILE_PX) -> np.ndarray:
    """A camera's picture with the boxes before it -> (H, width_px, 3) uint8 RGB."""
    rgb, scale = view.image.rgb, width_px / view.size[0]
    size = (width_px, round(view.size[1] * scale))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = (cv2.resize(rgb, size, interpolation=shrink) * np.float32(DIM)).astype(np.uint8)
    for boxes, color in _layers(truth, found):
        far = np.linalg.norm(boxes.center, axis=1) > FAR_M
        for rows, thickness in ((far, 1), (~far, 2)):
            _draw(image, projected(view, segments(boxes.take(rows))) * scale, color, thickness)
    return image


def segments(boxes: Boxes, ahead_m: float = 0.0) -> np.ndarray:
    """B boxes -> (B, 13, 2, 3) ends in the LiDAR frame, m: EDGES, and the heading on the ground, `ahead_m` longer."""
    ends = corners(box_table(boxes))
    middle, front = ends[:, [2, 3, 6, 7]].mean(axis=1), ends[:, [2, 3]].mean(axis=1)
    ahead = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw), np.zeros(len(boxes))], axis=1) * ahead_m
    heading = np.stack([middle, front + ahead], axis=1)
    return np.concatenate([ends[:, EDGES], heading[:, None]], axis=1)


def projected(view: CameraView, lines: np.ndarray) -> np.ndarray:
    """(..., 2, 3) ends of segments in the LiDAR frame -> (K, 2, 2) ends in pixels of the pieces in the picture.

    What is behind the camera, or nearer than it can see, is cut off first: there, projection turns things round.
    """
    lines = _in_front(lines.reshape(-1, 2, 3), view.camera_from_lidar)
    at = np.linspace(0, 1, PIECES + 1)[:, None]
    points = lines[:, None, 0] * (1 - at) + lines[:, None, 1] * at
    seen = view.project(points.reshape(-1, 3))
    uv, visible = seen.uv.reshape(-1, PIECES + 1, 2), seen.visible.reshape(-1, PIECES + 1)
    pieces = np.stack([uv[:, :-1], uv[:, 1:]], axis=2)
    return pieces[visible[:, :-1] | visible[:, 1:]]


def _in_front(lines: np.ndarray, camera_from_lidar: np.ndarray) -> np.ndarray:
    """(S, 2, 3) segments -> the parts of them that are NEAR_M or more before the camera."""
    depth = se3.apply(camera_from_lidar, lines.reshape(-1, 3))[:, 2].reshape(-1, 2)
    some = (depth > NEAR_M).any(axis=1)
    lines, depth = lines[some], depth[some]
    step = depth[:, ::-1] - depth
    share = np.divide(NEAR_M - depth, step, out=np.zeros_like(depth), where=depth < NEAR_M)
    return lines + share[..., None] * (lines[:, ::-1] - lines)


def _layers(truth: Boxes | None, found: Detections) -> list[tuple[Boxes, tuple[int, int, int]]]:
    """Truth below, predictions above."""
    return [*([] if truth is None else [(truth, TRUTH)]), (found.boxes, FOUND)]


def _draw(image: np.ndarray, pieces: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Lines between (K, 2, 2) pixels."""
    ends = np.rint(np.clip(pieces, -1e4, 1e4) * 2**SHIFT).astype(int)
    for start, end in ends.tolist():
        cv2.line(image, start, end, color, thickness, cv2.LINE_AA, SHIFT)


def _text(image: np.ndarray, text: str, origin: tuple[int, int], scale: float, color: tuple[int, int, int]) -> None:
    for tint, width in ((RIM, 3), (color, 1)):
        cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, tint, width, cv2.LINE_AA)


def _panel(frame: Frame, found: Detections, class_names: Sequence[str]) -> np.ndarray:
    """The key, and per class how many boxes are true, found, and found within 2 m of a true one."""
    image = np.full((ABOVE_PX, TILE_PX, 3), BACKGROUND, np.uint8)
    for row, (color, text) in enumerate(_key(frame.boxes is not None)):
        cv2.line(image, (24, 34 + 34 * row), (64, 34 + 34 * row), color, 4, cv2.LINE_AA)
        caption(image, text, (80, 40 + 34 * row), 0.6)
    columns = (24, 280, 370, 470)
    top = 230
    for x, word in zip(columns, ("class", "true", "found", "matched"), strict=True):
        _text(image, word, (x, top), 0.6, EGO)
    rows = _counts(frame.boxes, found, class_names)
    for row, line in enumerate(rows, 1):
        for x, word in zip(columns, line, strict=True):
            _text(image, word, (x, top + 34 * row), 0.6, EGO)
    caption(image, "matched: less than 2 m from a true one of its class", (24, top + 34 * (len(rows) + 2)), 0.5)
    return image


def _key(truth: bool) -> list[tuple[tuple[int, int, int], str]]:
    lines = [(FOUND, "found by the detector"), (POINT, "LiDAR points"), (EGO, "vehicle, in the middle; ahead is up")]
    return [(TRUTH, "ground truth"), *lines] if truth else lines


def _counts(truth: Boxes | None, found: Detections, class_names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Rows of name, true, found and matched boxes: of the classes that occur, and of all."""
    rows = []
    for class_id, name in enumerate(class_names):
        ours = found.boxes.class_id == class_id
        of_truth = np.zeros((0, 3)) if truth is None else truth.center[truth.class_id == class_id]
        taken = nearest_free(of_truth[:, :2], found.boxes.center[ours, :2], found.score[ours])[:, ERRORS_AT]
        if ours.any() or len(of_truth):
            rows.append((name.replace("_", " "), len(of_truth), int(ours.sum()), int((taken >= 0).sum())))
    total = ("all", *(sum(row[column] for row in rows) for column in (1, 2, 3)))
    words = [[str(word) for word in row] for row in [*rows, total]]
    return [(name, "-", ours, "-") if truth is None else (name, true, ours, hits) for name, true, ours, hits in words]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")

"""The paper's figure 3: how alike to one query point is everything else, to the teacher and to the student?

python -m lima_core.viz similarity --data FOLDER --frame 0 --query 4,12,-1 --teacher.weights FILE \\
    --checkpoint runs/lima/checkpoint.safetensors --out similarity.png

Above: cosine similarity of the query's unified image feature F_u to the teacher's patch features. Below: of the query's
LiDAR feature to those of all points, projected into the pictures; red is alike, blue is not. LiDAR features are the
student's (through its projection onto the teacher where the checkpoint holds one), or, without a checkpoint, the
long-term target features F_d that a student is to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lima_core.checkpoint import CheckpointError, load_weights, part, read_tensors, stored_inputs
from lima_core.config import option, read_config
from lima_core.data.frame import CameraView, Frame
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.lima.propagation import propagate
from lima_core.lima.step import remember
from lima_core.lima.view import View, frame_view, pictures
from lima_core.models.backbones import BACKBONES, build_backbone
from lima_core.models.inputs import encode
from lima_core.models.teacher import Teacher, TeacherConfig
from lima_core.viz.bev import BACKGROUND, caption
from lima_core.viz.overlay import draw_points
from lima_core.viz.report import mosaic

QUERY_REACH_M = 1.0
HEAT = 0.6  # share of the colour in a blended pixel
LOWEST_PERCENT = 5  # this percentile of the similarities is blue: few are far below it


@dataclass(frozen=True)
class SimilarityConfig:
    """What to draw."""

    data: str = option("street:0", "street:<seed>, a nuScenes folder or a rosbag2 folder")
    frame: int = option(0, "index of the frame in the data")
    query: str = option("10,0,0", "x,y,z of the query in the LiDAR frame, m; the nearest point is taken")
    checkpoint: str | None = option(None, "pretrained or finetuned network; null: the target features")
    frames: int = option(6, "frames fused into the target features, the current one included")
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    out: str = option("similarity.png", "picture to write")


def main(argv: Sequence[str]) -> None:
    """The command line. Raises ValueError on a query that is no point or that nothing is known about."""
    config = read_config(SimilarityConfig, _with_minus(argv), "lima_core.viz similarity", __doc__)
    source = open_source(config.data)
    frame = source[config.frame]
    teacher = Teacher(**vars(config.teacher))
    window = [*source.window(config.frame, config.frames - 1), frame]
    *past, view = [frame_view(f).with_grids(teacher(teacher.prepare(pictures(f)))) for f in window]
    query = nearest(view.points, config.query)
    target, rows = target_features(view, past)
    lidar = (target, rows) if config.checkpoint is None else student_features(config.checkpoint, view.points)
    picture = figure(frame, view, query, row_of(query, target, rows, view.where), *lidar)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(f"wrote {write_whole(Path(config.out), data.tobytes())}: query {np.round(view.points[query, :3], 2)}")


def _with_minus(argv: Sequence[str]) -> list[str]:
    """`--query -1,2,3` as `--query=-1,2,3`: argparse takes a leading minus for an option."""
    words = list(argv)
    if "--query" in words[:-1]:
        at = words.index("--query")
        words[at : at + 2] = [f"--query={words[at + 1]}"]
    return words


def nearest(points: np.ndarray, query: str) -> int:
    """Row of the point nearest to "x,y,z". Raises ValueError when it is farther than QUERY_REACH_M."""
    try:
        x, y, z = (float(number) for number in query.split(","))
    except ValueError:
        raise ValueError(f"query {query!r} is not x,y,z in m") from None
    far = np.linalg.norm(points[:, :3] - np.array([x, y, z]), axis=1)
    row = int(np.argmin(far))
    if not far[row] <= QUERY_REACH_M:
        where = ",".join(f"{value:.1f}" for value in points[row, :3])
        raise ValueError(f"query {query}: the nearest point is {far[row]:.1f} m away, at {where}")
    return row


def target_features(view: View, past: Sequence[View]) -> tuple[Tensor, Tensor]:
    """F_d (R, C) of the rows (R,) of the view's points."""
    points = torch.from_numpy(view.points[:, :3])
    return propagate(points, remember(view), [remember(earlier) for earlier in past])


@torch.inference_mode()
def student_features(checkpoint: str | Path, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (N, C) of all points from a checkpoint's backbone, and the rows (N,) of the points.

    A pretrained one's go through its projection onto the teacher; a finetuned one's head gives classes and is left
    aside. Raises CheckpointError.
    """
    weights, meta = read_tensors(checkpoint)
    if meta.get("model") not in BACKBONES:
        raise CheckpointError(f"{checkpoint}: model {meta.get('model')!r} is unknown; known: {', '.join(BACKBONES)}")
    inputs = stored_inputs(meta)
    student = build_backbone(meta["model"], inputs)
    load_weights(student, part(weights, "backbone."), str(checkpoint))
    found = encode(torch.from_numpy(points), inputs)
    features = student.eval()(found.voxels).features
    if "projection.weight" in weights:
        features = functional.linear(features, weights["projection.weight"].float(), weights["projection.bias"].float())
    rows = (found.voxel_of_point >= 0).nonzero().squeeze(1)
    return features[found.voxel_of_point[rows]], rows


def row_of(query: int, features: Tensor, rows: Tensor, where: str) -> Tensor:
    """The (C,) feature of one point. Raises ValueError when it has none."""
    found = (rows == query).nonzero()
    if len(found) == 0:
        raise ValueError(f"{where}: no camera sees the query, now or before; choose another")
    return features[found[0, 0]]


def figure(frame: Frame, view: View, query: int, image_query: Tensor, features: Tensor, rows: Tensor) -> np.ndarray:
    """Both parts in one (H, W, 3) RGB picture.

    `query` row of view.points; `image_query` (C,) feature that patches are compared with; `features` (R, C') of the
    points `rows`, the query's among them.
    """
    maps = functional.cosine_similarity(view.grids, image_query[None, :, None, None], dim=1).numpy()
    lidar = row_of(query, features, rows, view.where)
    alike = functional.cosine_similarity(features, lidar[None], dim=1).numpy()
    at, points = view.points[query : query + 1], view.points[rows.numpy()]
    low = float(np.percentile(maps, LOWEST_PERCENT)), float(np.percentile(alike, LOWEST_PERCENT))
    colors = heat(alike, low[1])
    images = {c.name: _marked(c, at, _heated(c, m, low[0])) for c, m in zip(frame.cameras, maps, strict=True)}
    clouds = {c.name: _marked(c, at, draw_points(c.image.rgb, c.project(points), colors, 4)) for c in frame.cameras}
    parts = [("image features", images, low[0]), ("LiDAR features", clouds, low[1])]
    return np.vstack([part for text, tiles, lowest in parts for part in _titled(text, mosaic(tiles), lowest)])


def heat(similarity: np.ndarray, lowest: float) -> np.ndarray:
    """(...) cosine similarities -> (..., 3) uint8 RGB, from blue (`lowest` and less) to red (1)."""
    level = np.clip((similarity - lowest) / max(1 - lowest, 1e-6), 0, 1)
    bgr = cv2.applyColorMap((level * 255).round().astype(np.uint8).reshape(-1, 1), cv2.COLORMAP_JET)
    return bgr[:, 0, ::-1].reshape(*similarity.shape, 3)


def _heated(camera: CameraView, similarity: np.ndarray, lowest: float) -> np.ndarray:
    """A camera's picture under its (h, w) map of patch similarities."""
    dense = cv2.resize(similarity, camera.size, interpolation=cv2.INTER_LINEAR)
    return (camera.image.rgb * (1 - HEAT) + heat(dense, lowest) * HEAT).astype(np.uint8)


def _marked(camera: CameraView, query: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Rings the query where the camera sees it."""
    where = camera.project(query)
    if where.visible[0]:
        centre, radius = tuple(int(p) for p in where.uv[0].round()), max(8, camera.size[0] // 50)
        for color, width in (((255, 255, 255), radius // 2), ((0, 0, 0), radius // 5)):
            cv2.circle(picture, centre, radius, color, width, cv2.LINE_AA)
    return picture


def _titled(text: str, picture: np.ndarray, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """A bar with title and colour scale, and the picture below it."""
    bar = np.full((40, picture.shape[1], 3), BACKGROUND, np.uint8)
    caption(bar, f"cosine similarity to the query (ring): {text}", (10, 26), 0.6)
    scale = heat(np.linspace(lowest, 1, 200)[None].repeat(16, 0), lowest)
    bar[12:28, -270:-70] = scale
    caption(bar, f"{lowest:.2f}", (bar.shape[1] - 320, 25))
    caption(bar, "1", (bar.shape[1] - 60, 25))
    return bar, picture

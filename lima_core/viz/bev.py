"""Bird's-eye pictures of a labelled sweep: classes, errors and boxes. RGB uint8, base_link x up, y left."""

from __future__ import annotations

import cv2
import numpy as np

from lima_core.data.frame import IGNORE
from lima_core.geometry import se3

BACKGROUND = (247, 247, 245)
RING = (214, 216, 220)
EGO = (40, 44, 52)
IGNORED = (205, 207, 211)
RIGHT, WRONG = (150, 154, 160), (214, 39, 40)


def render_bev(points_base: np.ndarray, colors: np.ndarray, extent_m: float = 40.0, size_px: int = 720) -> np.ndarray:
    """(N, >=3) points in base_link and their (N, 3) uint8 colours -> (S, S, 3) RGB, ego in the middle facing up.

    Higher points are drawn last, so that a car hides the road under it. Non-finite points are left out.
    """
    scale = size_px / (2 * extent_m)
    image = _canvas(extent_m, size_px)
    finite = np.isfinite(points_base[:, :3]).all(axis=1)
    points, colors = points_base[finite], colors[finite]
    order = np.argsort(points[:, 2], kind="stable")
    column = np.floor((extent_m - points[order, 1]) * scale).astype(int)
    row = np.floor((extent_m - points[order, 0]) * scale).astype(int)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):  # two pixels a point, or sparse far points vanish
        c, r = column + dx, row + dy
        inside = (c >= 0) & (c < size_px) & (r >= 0) & (r < size_px)
        image[r[inside], c[inside]] = colors[order][inside]
    _draw_ego(image, scale)
    return image


def error_colors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(N,) train ids -> (N, 3) uint8: correct grey, wrong red, ignored points in the background's colour."""
    colors = np.where((truth == prediction)[:, None], np.uint8(RIGHT), np.uint8(WRONG)).astype(np.uint8)
    colors[truth == IGNORE] = BACKGROUND
    return colors


def to_base(points_lidar: np.ndarray, base_from_lidar: np.ndarray) -> np.ndarray:
    """(N, >=3) points of a sweep -> (N, 3) in base_link; non-finite points stay non-finite."""
    with np.errstate(invalid="ignore"):
        return se3.apply(base_from_lidar, points_lidar)


def legend(names: tuple[str, ...], colors: np.ndarray, width_px: int, row_px: int = 26) -> np.ndarray:
    """Swatch and name of each class, in as many columns as fit -> (H, width_px, 3) RGB."""
    columns = max(1, width_px // 190)
    rows = -(-len(names) // columns)
    image = np.full((rows * row_px + 8, width_px, 3), BACKGROUND, np.uint8)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = (i % columns) * (width_px // columns) + 8, (i // columns) * row_px + 6
        cv2.rectangle(image, (x, y), (x + 16, y + 16), tuple(map(int, color)), -1)
        caption(image, name, (x + 24, y + 14))
    return image


def caption(image: np.ndarray, text: str, origin: tuple[int, int], scale: float = 0.45) -> None:
    """Writes dark text on a light plate, its baseline starting at `origin` (x, y) pixels."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), below = cv2.getTextSize(text, font, scale, 1)
    x, y = origin
    cv2.rectangle(image, (x - 3, y - height - 3), (x + width + 3, y + below), BACKGROUND, -1)
    cv2.putText(image, text, origin, font, scale, EGO, 1, cv2.LINE_AA)


def _canvas(extent_m: float, size_px: int) -> np.ndarray:
    image = np.full((size_px, size_px, 3), BACKGROUND, np.uint8)
    middle = size_px // 2
    for radius_m in range(10, int(extent_m * 1.42), 10):
        radius_px = int(radius_m * size_px / (2 * extent_m))
        cv2.circle(image, (middle, middle), radius_px, RING, 1, cv2.LINE_AA)
        if radius_m % 20 == 0 and radius_m < extent_m:
            caption(image, f"{radius_m} m", (middle + 4, middle - radius_px - 4), 0.4)
    return image


def _draw_ego(image: np.ndarray, scale: float) -> None:
    """A triangle of about the size of a car, pointing forward."""
    middle = image.shape[0] // 2
    corners = np.array([[0, -2.6], [1.0, 1.8], [-1.0, 1.8]]) * scale + middle
    cv2.fillPoly(image, [corners.astype(np.int32)], EGO, cv2.LINE_AA)

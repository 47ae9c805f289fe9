"""Pictures: where a point lands, what is drawn over what, and a report whose pictures all exist."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from lima_core.viz.bev import BACKGROUND, RIGHT, WRONG, error_colors, render_bev
from lima_core.viz.report import Run, Shot, mosaic, write_report

RED, GREEN = np.array([[255, 0, 0]], np.uint8), np.array([[0, 255, 0]], np.uint8)


def where(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(K, 2) row, column of every pixel of a colour."""
    return np.argwhere((image == color).all(axis=2))


def test_forward_is_up_and_left_is_left() -> None:
    ahead = render_bev(np.array([[30.0, 0, 0]]), RED, extent_m=40, size_px=400)
    left = render_bev(np.array([[0, 30.0, 0]]), RED, extent_m=40, size_px=400)
    assert np.abs(where(ahead, (255, 0, 0)).mean(axis=0) - [50, 200]).max() < 1.5
    assert np.abs(where(left, (255, 0, 0)).mean(axis=0) - [200, 50]).max() < 1.5


def test_the_higher_point_is_seen() -> None:
    points = np.array([[20.0, 5, 1.5], [20.0, 5, 0.0]])
    image = render_bev(points, np.vstack([RED, GREEN]), size_px=400)
    assert len(where(image, (255, 0, 0))) and not len(where(image, (0, 255, 0)))


def test_points_outside_or_without_a_place_are_left_out() -> None:
    points = np.array([[500.0, 0, 0], [np.nan, 1, 1], [-40.1, 40.1, 0]])
    image = render_bev(points, np.repeat(RED, 3, axis=0), size_px=400)
    assert not len(where(image, (255, 0, 0)))


def test_errors_are_red_and_ignored_points_vanish() -> None:
    truth, prediction = np.array([1, 2, 255], np.uint8), np.array([1, 1, 1], np.uint8)
    assert error_colors(truth, prediction).tolist() == [list(RIGHT), list(WRONG), list(BACKGROUND)]


def test_mosaic_stands_as_one_looks_out() -> None:
    shades = {"CAM_BACK": 10, "CAM_FRONT": 80, "CAM_FRONT_LEFT": 50, "CAM_FRONT_RIGHT": 120}
    image = mosaic({n: np.full((90, 160, 3), s, np.uint8) for n, s in shades.items()}, width_px=160)
    middles = [int(image[45 + 90 * r, 80 + 160 * c, 0]) for r, c in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert middles == [50, 80, 120, 10]


def summary(**changes: object) -> dict:
    facts = {
        "frames_sent": 3, "frames_published": 2, "dropped": {"superseded": 1}, "miou": 0.5, "device": "cpu",
        "latency_ms": {"p50": 40.0, "p95": 60.0}, "versions": {"python": "<3>"},
    }  # fmt: skip
    return facts | changes


def run(**changes: object) -> Run:
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (500, 3))
    labels = rng.integers(0, 2, 500).astype(np.uint8)
    shot = Shot("sweep <0>", points, labels, labels, {"CAM_FRONT": np.zeros((90, 160, 3), np.uint8)})
    facts = {
        "title": "a run", "summary": summary(), "class_names": ("road", "car"), "colors": np.vstack([RED, GREEN]),
        "latency_ms": np.array([40.0, 60.0]), "iou": np.array([0.5, np.nan]), "shots": (shot,),
    }  # fmt: skip
    return Run(**(facts | changes))


def test_every_picture_of_the_report_exists_and_can_be_read(tmp_path: Path) -> None:
    page = write_report(run(), tmp_path).read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert {"bev_0.png", "overlays_0.png", "latency.png", "iou.png", "legend.png"} == set(pictures)
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in pictures)
    assert "sweep &lt;0&gt;" in page and "&lt;3&gt;" in page and "dropped: superseded" in page
    assert not list(tmp_path.glob(".*part*"))


def test_a_run_without_labels_and_without_output_still_has_a_report(tmp_path: Path) -> None:
    empty = summary(miou=None, latency_ms={"p50": None, "p95": None}, frames_published=0)
    page = write_report(run(summary=empty, iou=None, latency_ms=np.empty(0), shots=()), tmp_path).read_text()
    assert "no labels" in page and "iou.png" not in page

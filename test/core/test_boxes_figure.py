"""Figure 5: boxes at the right pixels, from above and in cameras, also those that reach behind a camera."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drives
from lima_core.config import ConfigError
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Detections, Frame, Image
from lima_core.geometry import se3
from lima_core.geometry.camera import Distortion
from lima_core.viz import boxes as figure
from lima_core.viz.boxes import ABOVE_PX, EXTENT_M, FOUND, NEAR_M, TILE_PX, TRUTH, bev_figure, camera_figure, figure5

NAMES = load_taxonomy("nuscenes").detection_names
CAR = NAMES.index("car")
LOOKING = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # ahead is the LiDAR's x
K = np.array([[240.0, 0, 240], [0, 240, 120], [0, 0, 1]])


def cars(*rows: tuple[float, ...]) -> Boxes:
    """Cars of 4 x 2 x 2 m from x, y, z, yaw."""
    table = np.array(rows, float).reshape(-1, 4)
    size, still = np.tile([4.0, 2, 2], (len(table), 1)), np.zeros((len(table), 2))
    return Boxes(table[:, :3], size, table[:, 3], still, np.full(len(table), CAR, np.uint8))


def found(*rows: tuple[float, ...]) -> Detections:
    return Detections(cars(*rows), np.linspace(0.9, 0.5, len(rows)).astype(np.float32))


def view(name: str = "CAM_FRONT", distortion: Distortion | None = None) -> CameraView:
    black = Image(pixels=np.zeros((240, 480, 3), np.uint8))
    return CameraView(name, 0, black, (480, 240), K, LOOKING, distortion or Distortion())


def toy(truth: Boxes | None, cameras: int = 0) -> Frame:
    points = np.array([[30, 30, 0, 0]], np.float32)
    views = tuple(view(f"CAM_{i}") for i in range(cameras))
    return Frame(0, "toy", 7, points, np.eye(4), views, boxes=truth)


def near(image: np.ndarray, x: float, y: float, color: tuple[int, int, int]) -> bool:
    """Whether the colour is within two pixels of a place."""
    patch = image[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3]
    return bool((np.abs(patch.astype(int) - color).max(axis=2) < 40).any())


def above(x: float, y: float) -> tuple[float, float]:
    """Pixel of a place in base_link."""
    scale = ABOVE_PX / (2 * EXTENT_M)
    return (EXTENT_M - y) * scale, (EXTENT_M - x) * scale


def test_edges_have_the_size_of_the_box_and_the_last_line_heads_on():
    box = cars((5, 6, 7, np.pi / 2))
    ends = figure.segments(box, 0.5)[0]
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    np.testing.assert_allclose(np.sort(lengths[:12]), [2] * 8 + [4] * 4)
    np.testing.assert_allclose(ends[:12].reshape(-1, 3).mean(axis=0), [5, 6, 7])
    np.testing.assert_allclose(ends[12], [[5, 6, 6], [5, 8.5, 6]], atol=1e-12)
    ground = ends[figure.ON_GROUND]
    np.testing.assert_allclose(ground[..., 2], 6)
    assert (np.ptp(ends[:12, :, 2], axis=1) > 0).sum() == 4 and len(np.unique(ends[:12].round(6), axis=0)) == 12


def test_from_above_truth_is_blue_found_is_red_and_the_front_shows():
    image = bev_figure(toy(cars((20, 10, 0, 0))), found((-20, -10, 0, np.pi)), np.eye(4))
    for x, y, color in ((20, 10, TRUTH), (-20, -10, FOUND)):
        front = 1 if color == TRUTH else -1
        assert near(image, *above(x + 2 * front, y + 1), color) and near(image, *above(x - 2 * front, y - 1), color)
        assert near(image, *above(x + 2.6 * front, y), color) and not near(image, *above(x - 2.6 * front, y), color)
    assert not near(image, *above(20, -10), TRUTH) and not near(image, *above(20, -10), FOUND)


def test_base_from_lidar_turns_the_boxes():
    base_from_lidar = se3.poses(1.0, 0, 0, -np.pi / 2)  # nuScenes' LiDAR: y is ahead
    image = bev_figure(toy(cars((-10, 19, 0, np.pi / 2))), found(), base_from_lidar)
    assert near(image, *above(22, 11), TRUTH) and near(image, *above(18, 9), TRUTH)


def test_scores_are_written_where_asked():
    plain, written = (bev_figure(toy(None), found((10, 10, 0, 0)), np.eye(4), scores) for scores in (False, True))
    assert (plain != written).any()


def test_a_box_ahead_is_where_its_corners_are():
    image = camera_figure(view(), cars((12, 3, 0, 0)), found((12, -3, 0, 0)), 480)
    for y, color in ((3, TRUTH), (-3, FOUND)):
        for x in (10, 14):
            for side in (-1, 1):
                assert near(image, 240 - 240 * (y + side) / x, 120 - 240 * side / x, color)
    assert not (image[:, :150] == FOUND).all(2).any() and not (image[:, 330:] == TRUTH).all(2).any()


def test_what_is_behind_the_camera_is_not_seen():
    assert len(figure.projected(view(), figure.segments(cars((-12, 0, 0, 0))))) == 0
    assert not camera_figure(view(), cars((-12, 0, 0, 0)), found((-3, 0, 0, 0)), 480).any()


def test_an_edge_that_reaches_behind_the_camera_is_drawn_up_to_it():
    line = np.array([[[20.0, 1, -1], [-20, 1, -1]]])  # along the road, on the left
    pieces = figure.projected(view(), line)
    u, v = pieces.reshape(-1, 2).T
    np.testing.assert_allclose(240 - u, 240 * 1 / (240 / (v - 120)), atol=1e-6)  # one line through the vanishing point
    assert np.isclose(u.max(), 240 - 12) and (u <= 240).all() and (v >= 120).all()
    assert u.min() < 120 and v.max() > 239, "it leaves the picture"


def test_a_distorting_lens_bends_edges():
    bent = view(distortion=Distortion("plumb_bob", (-0.2, 0.05, 0.0, 0.0)))
    line = np.array([[[8.0, 6, 2], [8.0, -6, 2]]])
    v = figure.projected(bent, line)[..., 1]
    assert np.ptp(figure.projected(view(), line)[..., 1]) < 1e-9 and np.ptp(v) > 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_cut_lines_stay_on_their_line_and_in_front(seed):
    rng = np.random.default_rng(seed)
    lines, camera_from_lidar = rng.uniform(-5, 5, (20, 2, 3)), se3.poses(*rng.uniform(-3, 3, 6))
    depth = se3.apply(camera_from_lidar, lines.reshape(-1, 3))[:, 2].reshape(-1, 2)
    cut = figure._in_front(lines, camera_from_lidar)
    some = (depth > NEAR_M).any(axis=1)
    assert len(cut) == some.sum()
    assert (se3.apply(camera_from_lidar, cut.reshape(-1, 3))[:, 2] > NEAR_M - 1e-9).all()
    along = lines[some][:, 1] - lines[some][:, 0]
    assert np.abs(np.cross(cut - lines[some][:, :1], along[:, None])).max(initial=0) < 1e-9
    before = (depth[some] > NEAR_M)[..., None]
    np.testing.assert_allclose(np.where(before, cut, 0), np.where(before, lines[some], 0))


@pytest.mark.parametrize("cameras", [0, 1, 6])
def test_the_figure_has_cameras_the_view_from_above_and_the_counts(cameras):
    picture = figure5(toy(cars((20, 10, 0, 0)), cameras), found((20, 10, 0, 0)), np.eye(4), NAMES, "a title")
    height = 76 + ABOVE_PX + {0: 0, 1: 1, 6: 2}[cameras] * TILE_PX // 2
    assert picture.shape == (height, ABOVE_PX + TILE_PX, 3) and picture.dtype == np.uint8
    assert near(picture[-ABOVE_PX:], *above(22, 11), FOUND)


def test_counts_are_of_classes_that_occur():
    truth, boxes = cars((20, 10, 0, 0), (0, 9, 0, 0)), found((20, 11, 0, 0), (30, 0, 0, 0), (20, 10.5, 0, 0))
    assert figure._counts(truth, boxes, NAMES) == [("car", "2", "3", "1"), ("all", "2", "3", "1")]
    assert figure._counts(None, boxes, NAMES) == [("car", "-", "3", "-"), ("all", "-", "3", "-")]
    assert figure._counts(Boxes.joined([]), found(), NAMES) == [("all", "0", "0", "0")]


def test_weak_predictions_are_left_out():
    assert len(figure.at_least(found((1, 1, 0, 0), (2, 2, 0, 0), (3, 3, 0, 0)), 0.7)) == 2


class Fake:
    """A detector that finds a car ahead, and remembers what it saw."""

    detection_names, sweeps = NAMES, 3
    seen: ClassVar[list] = []

    def __init__(self, checkpoint: str, device: str) -> None:
        assert checkpoint == "net.safetensors" and device == "cpu"

    def detect(self, points: np.ndarray, past: list) -> Detections:
        Fake.seen.append((len(points), len(past)))
        return found((10, 3, 0, 0), (5, -8, 0, 0))


class Drive:
    """Four frames one second apart."""

    rig = drives.ToyDrive(1, 1).rig

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Frame:
        return replace(toy(cars((10, 3, 0, 0))), stamp_ns=index * 10**9, index=index)

    def window(self, index: int, k: int) -> list[Frame]:
        return [self[i] for i in range(max(0, index - k), index)]


def test_the_command_line_draws_a_street(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figure, "Predictor", Fake)
    monkeypatch.setattr(figure, "open_source", lambda spec: Drive())
    words = ["--checkpoint", "net.safetensors", "--device", "cpu", "--frame", "2"]
    figure.main([*words, "--least_score", "0.6", "--out", "new/boxes.png"])
    assert cv2.imread("new/boxes.png").shape[1] == ABOVE_PX + TILE_PX
    assert Fake.seen == [(1, 2)] and "1 boxes found" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"checkpoint is missing"):
        figure.main([])
    with pytest.raises(ConfigError, match="frame is 9; street:100000 has 4 frames"):
        figure.main([*words[:-1], "9"])

"""Figure 4: grey where right, red where wrong, in the right columns; and its command line."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from lima_core.config import ConfigError
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import IGNORE, CameraView, Frame, Image
from lima_core.data.labelled import DataConfig, StreetConfig
from lima_core.data.semantickitti import SemanticKITTI
from lima_core.viz import errors
from lima_core.viz.bev import RIGHT, WRONG
from lima_core.viz.errors import EXTENT_M, WIDTH_PX, error_figure, labelled_frame
from networks import save_random

NUSCENES = load_taxonomy("nuscenes")
CAR, ROAD = NUSCENES.index("car"), NUSCENES.index("driveable_surface")
LOOKING = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
K = np.array([[240.0, 0, 240], [0, 240, 120], [0, 0, 1]])


def toy(cameras: int = 0) -> Frame:
    """A row of points 10 m ahead, from left to right; cars on the left, road on the right, the last one unlabelled."""
    y = np.linspace(8, -8, 33)
    points = np.stack([np.full(33, 10.0), y, np.zeros(33), np.zeros(33)], 1).astype(np.float32)
    labels = np.where(y > 0, CAR, ROAD).astype(np.uint8)
    labels[-1] = IGNORE
    black = Image(pixels=np.zeros((240, 480, 3), np.uint8))
    views = tuple(CameraView(f"CAM_{i}", 0, black, (480, 240), K, LOOKING) for i in range(cameras))
    return Frame(0, "toy", 7, points, np.eye(4), views, labels=labels)


def column(picture: np.ndarray, number: int) -> np.ndarray:
    """Below its lines of text, without the border."""
    assert picture.shape[1] % (WIDTH_PX + 6) == 0
    return picture[72:, number * (WIDTH_PX + 6) :][:, :WIDTH_PX]


def at(panel: np.ndarray, frame: Frame, row: int) -> tuple[int, ...]:
    """Colour of a point seen from above."""
    scale = WIDTH_PX / (2 * EXTENT_M)
    x, y = frame.points[row, :2]
    return tuple(int(c) for c in panel[int((EXTENT_M - x) * scale), int((EXTENT_M - y) * scale)])


def test_right_is_grey_wrong_is_red_and_without_a_label_nothing_is_drawn():
    frame = toy()
    all_road = np.full(33, ROAD, np.uint8)
    picture = error_figure(frame, {"right": frame.labels, "road": all_road}, NUSCENES, np.eye(4))
    assert picture.dtype == np.uint8 and picture.shape[1] == 3 * (WIDTH_PX + 6)
    truth, right, road = (column(picture, number) for number in range(3))
    assert at(truth, frame, 2) == tuple(NUSCENES.colors[CAR]) and at(truth, frame, 30) == tuple(NUSCENES.colors[ROAD])
    assert at(right, frame, 2) == at(right, frame, 30) == at(road, frame, 30) == RIGHT
    assert at(road, frame, 2) == WRONG
    assert at(right, frame, 32) not in (RIGHT, WRONG)


def test_a_point_that_got_no_class_is_wrong():
    frame = toy()
    nothing = np.full(33, IGNORE, np.uint8)
    assert at(column(error_figure(frame, {"none": nothing}, NUSCENES, np.eye(4)), 1), frame, 2) == WRONG


def test_base_from_lidar_turns_the_sweep():
    frame = toy()
    turned = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    seen = replace(frame, points=(frame.points @ turned.T).astype(np.float32))
    picture = error_figure(frame, {"right": frame.labels}, NUSCENES, turned)
    assert at(column(picture, 1), seen, 2) == RIGHT


@pytest.mark.parametrize("cameras", [1, 3])
def test_cameras_show_the_errors_too(cameras):
    frame = toy(cameras)
    picture = error_figure(frame, {"road": np.full(33, ROAD, np.uint8)}, NUSCENES, np.eye(4))
    views = column(picture, 1)[WIDTH_PX:].astype(int)
    tile = views[: WIDTH_PX // (2 if cameras == 1 else 6), : WIDTH_PX // cameras]
    red, grey = tile[..., 0] - tile[..., 2] > 60, (np.ptp(tile, axis=2) < 15) & (tile[..., 0] > 60)
    middle = tile.shape[0] // 2
    red, grey = (np.flatnonzero(mask[middle - 3 : middle + 4].any(0)) for mask in (red, grey))
    assert len(red) and len(grey) and red.max() < grey.min(), "cars on the left, road on the right"


def test_the_score_is_of_labelled_points():
    frame = toy()
    text = errors._score(frame.labels, np.full(33, ROAD, np.uint8), NUSCENES)
    assert text == "mIoU 25.0 % over 2 classes, accuracy 50.0 %, 16 points wrong"


def test_what_cannot_be_compared_is_refused():
    frame = toy()
    with pytest.raises(ValueError, match="toy frame 7 has no labels"):
        error_figure(replace(frame, labels=None), {}, NUSCENES, np.eye(4))
    with pytest.raises(ValueError, match="toy frame 7 has no labels"):
        error_figure(replace(frame, labels=np.full(33, IGNORE, np.uint8)), {}, NUSCENES, np.eye(4))
    with pytest.raises(ValueError, match=r"a: predictions \(32,\) for \(33,\) labels of toy frame 7"):
        error_figure(frame, {"a": frame.labels[1:]}, NUSCENES, np.eye(4))


def test_a_long_name_keeps_its_end():
    picture = error_figure(toy(), {"folder/" * 40 + "checkpoint.safetensors": toy().labels}, NUSCENES, np.eye(4))
    assert picture.shape[1] == 2 * (WIDTH_PX + 6)
    short = errors._shortened("folder/" * 40 + "checkpoint.safetensors", 0.8)
    assert short.startswith("...") and short.endswith("/checkpoint.safetensors")
    assert errors._shortened("run", 0.8) == "run"


def test_the_command_line_draws_a_street_with_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        save_random(tmp_path / f"{name}.safetensors")
    small = ["--data.street.sweeps_per_street", "2", "--data.street.sweep_stride", "1"]
    words = ["--checkpoints", "one.safetensors", "two.safetensors", "--index", "1", *small, "--device", "cpu"]
    errors.main([*words, "--out", "errors.png"])
    picture = cv2.imread("errors.png")
    assert picture.shape[1] == 3 * (WIDTH_PX + 6) and picture.shape[0] > 72 + WIDTH_PX + 2 * WIDTH_PX // 6


def test_streets_are_counted_as_in_evaluation():
    data = DataConfig(street=StreetConfig(sweeps_per_street=2, sweep_stride=3))
    frame, _ = labelled_frame(data, "val", 5)
    assert frame.sequence == "street-100002" and frame.index == 3 and len(frame.cameras) == 6
    with pytest.raises(ConfigError, match="index is 40; street val has 40 sweeps"):
        labelled_frame(data, "val", 40)


def test_a_real_sweep_and_a_checkpoint_of_other_classes(shared, tmp_path):
    root = str(shared / "data" / "semantickitti")
    frame, base_from_lidar = labelled_frame(DataConfig(name="semantickitti", root=root), "val", 0)
    picture = error_figure(frame, {"truth": frame.labels}, SemanticKITTI(root, "val").taxonomy, base_from_lidar)
    assert not (column(picture, 1) == WRONG).all(2)[:WIDTH_PX].any()
    with pytest.raises(ConfigError, match=r"knows the 16 classes barrier.*semantickitti has 19: car"):
        errors.predict(
            str(save_random(tmp_path / "a.safetensors")), frame.points, load_taxonomy("semantickitti"), "cpu"
        )
    with pytest.raises(ConfigError, match=r"needs data.root"):
        labelled_frame(DataConfig(name="semantickitti"), "val", 0)

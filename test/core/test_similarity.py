"""Figure 3: red where alike, blue where not, in the right places of the right pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lima_core.checkpoint import CheckpointError, write_tensors
from lima_core.config import plain
from lima_core.data.frame import CameraView, Frame, Image
from lima_core.data.synthetic.street import Street
from lima_core.lima.view import frame_view
from lima_core.models.minkunet import MODELS
from lima_core.models.voxelize import VoxelConfig
from lima_core.predictor import Predictor
from lima_core.viz import similarity
from lima_core.viz.__main__ import main
from lima_core.viz.similarity import figure, heat, nearest, row_of, student_features
from networks import save_random


def reddish(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0].astype(int) - rgb[..., 2]


def test_heat_goes_from_blue_to_red():
    colors = heat(np.array([-1.0, 0.2, 0.6, 1.0]), 0.2)
    assert (colors[0] == colors[1]).all(), "below the lowest all is blue"
    assert reddish(colors).tolist() == sorted(reddish(colors)) and reddish(colors)[1] < 0 < reddish(colors)[3]


def test_the_nearest_point_is_the_query():
    points = np.array([[5, 0, 0, 1], [6, 0, 0, 1], [50, 0, 0, 1]], np.float32)
    assert nearest(points, "5.9,0.1,0") == 1
    with pytest.raises(ValueError, match=r"14.0 m away, at 6.0,0.0,0.0"):
        nearest(points, "20,0,0")
    for wrong in ("5,0", "a,b,c", "", "nan,0,0"):
        with pytest.raises(ValueError, match="query"):
            nearest(points, wrong)


def test_a_query_that_nothing_is_known_about():
    with pytest.raises(ValueError, match="drive frame 3: no camera sees the query"):
        row_of(7, torch.zeros(2, 4), torch.tensor([1, 2]), "drive frame 3")


def test_what_is_alike_is_red_in_both_parts():
    """Left half of the picture, and the points in it, are like the query; the right half is not."""
    looking = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    K = np.array([[240.0, 0, 240], [0, 240, 120], [0, 0, 1]])
    black = Image(pixels=np.zeros((240, 480, 3), np.uint8))
    cameras = (CameraView("CAM_FRONT", 0, black, (480, 240), K, looking),)
    y = np.linspace(-8, 8, 33)
    points = np.stack([np.full(33, 10.0), y, np.zeros(33), np.zeros(33)], 1).astype(np.float32)
    frame = Frame(0, "toy", 0, points, np.eye(4), cameras)
    grid = torch.zeros(1, 2, 2, 4)
    grid[0, 0, :, :2], grid[0, 1, :, 2:] = 1, 1
    view = frame_view(frame).with_grids(grid)
    left = torch.tensor([[1.0, 0.0] if value > 0 else [0.0, 1.0] for value in y])
    picture = figure(frame, view, query=24, image_query=torch.tensor([1.0, 0.0]), features=left, rows=torch.arange(33))
    bar, tile = 40, 240
    assert picture.shape == (2 * (bar + tile), 3 * 480, 3)
    for top in (bar, 2 * bar + tile):
        part = picture[top + 40 : top + tile, :480]
        colored = np.abs(reddish(part)) > 30
        columns = np.broadcast_to(np.arange(480), colored.shape)
        assert colored[:, :160].any() and colored[:, 320:].any()
        assert (reddish(part)[colored & (columns < 160)] > 0).all()
        assert (reddish(part)[colored & (columns > 320)] < 0).all()
        assert (part == 255).all(axis=2).any(), "the query is not marked"


def pretrained(path, projection: int | None):
    """A checkpoint as pretraining leaves it, weights random, with or without a projection onto that many channels."""
    torch.manual_seed(1)
    backbone = MODELS["minkunet_tiny"]()
    weights = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    if projection:
        weights |= {"projection.weight": torch.randn(projection, 32), "projection.bias": torch.randn(projection)}
    return write_tensors(path, weights, {"model": "minkunet_tiny", "config": {"voxels": plain(VoxelConfig())}})


def scattered(count: int = 100) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.c_[rng.uniform(-20, 20, (count, 2)), rng.uniform(-2, 2, count), rng.random(count)].astype(np.float32)


def test_the_students_features_go_through_the_projection(tmp_path):
    plain_features, rows = student_features(pretrained(tmp_path / "plain.safetensors", None), scattered())
    features, _ = student_features(pretrained(tmp_path / "head.safetensors", 7), scattered())
    torch.manual_seed(1)
    MODELS["minkunet_tiny"]()
    weight, bias = torch.randn(7, 32), torch.randn(7)
    assert plain_features.shape == (100, 32) and rows.tolist() == list(range(100))
    torch.testing.assert_close(features, plain_features @ weight.T + bias)


def test_of_a_finetuned_checkpoint_the_backbone_is_shown(tmp_path):
    path = save_random(tmp_path / "finetuned.safetensors")
    features, _ = student_features(path, scattered())
    expected = Predictor(path, "cpu").features(scattered())
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-4)


def test_a_checkpoint_of_an_unknown_model(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {}, {"model": "resnet"})
    with pytest.raises(CheckpointError, match=r"'resnet' is unknown; known: minkunet34"):
        student_features(tmp_path / "x.safetensors", scattered())


@pytest.fixture(scope="module")
def random_teacher(tmp_path_factory):
    import timm

    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0, img_size=70).state_dict()
    path = tmp_path_factory.mktemp("teacher") / "random.safetensors"
    save_file(state, path)
    return str(path)


class Stored:
    """Two simulated frames, cast once."""

    def __init__(self) -> None:
        self._frames = [Street(3, frames=2, image_size=(112, 56))[i] for i in range(2)]

    def __getitem__(self, index: int) -> Frame:
        return self._frames[index]

    def window(self, index: int, k: int) -> list[Frame]:
        return self._frames[max(0, index - k) : index]


def test_command_line(tmp_path, capsys, random_teacher, monkeypatch):
    frames = Stored()
    monkeypatch.setattr(similarity, "open_source", {"street:3": frames}.__getitem__)
    out, checkpoint = tmp_path / "deep" / "figure.png", pretrained(tmp_path / "p.safetensors", 384)
    common = ["similarity", "--data", "street:3", "--frame", "1", "--frames", "2", "--teacher.weights", random_teacher]
    common += ["--teacher.image_size", "[84,42]", "--query"]
    points = frames[1].points[frame_view(frames[1]).seen.point]
    x, y, z = points[points[:, 0].argmin(), :3]
    assert x < 0, "no query that begins with a minus"
    main([*common, f"{x},{y},{z}", "--checkpoint", str(checkpoint), "--out", str(out)])
    assert f"wrote {out}" in capsys.readouterr().out
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 1440 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_an_unknown_figure_is_answered_by_those_there_are():
    with pytest.raises(SystemExit, match="similarity"):
        main(["histogram"])

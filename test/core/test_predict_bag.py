"""`python -m lima_core.predict BAG`: the whole pipeline without ROS, exact and repeatable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bags import BagWriter
from lima_core.data.bag import BagMessages
from lima_core.data.ros_cloud import read_cloud
from lima_core.data.synthetic.street import Street
from lima_core.predict import main
from lima_core.predictor import Predictor
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.bag_messages import typestore
from lima_core.runtime.parameters import PARAMETERS, ParameterError
from lima_core.tools.settings import given_settings
from networks import save_random

FRAMES = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in another order would be other numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("network") / "random.safetensors")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    street = Street(3, frames=FRAMES, image_size=(64, 32))
    return write_frames(street, tmp_path_factory.mktemp("bags") / "street")


def predict(bag: Path, out: Path, checkpoint: Path, *more: str) -> int:
    return main([str(bag), "--out", str(out), "--checkpoint", str(checkpoint), "--device", "cpu", *more])


def clouds(out: Path, topic: str = "segmentation") -> dict[int, dict[str, np.ndarray]]:
    """Columns by bag time."""
    messages, name = BagMessages(out), f"/perception/output/{topic}"
    return {
        stamp: read_cloud(typestore().deserialize_cdr(raw, messages.types[name]))
        for stamp, topic, raw in messages
        if topic == name
    }


def test_every_sweep_gets_what_the_predictor_says(bag: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert predict(bag, tmp_path / "out", checkpoint) == 0
    assert f"{FRAMES} sweeps, {FRAMES} published, dropped {{}}" in capsys.readouterr().out
    found, street = clouds(tmp_path / "out"), Street(3, frames=FRAMES, image_size=(64, 32))
    predictor = Predictor(checkpoint, "cpu")
    assert list(found) == [street.stamp_ns(index) for index in range(FRAMES)]
    for index, columns in enumerate(found.values()):
        points = street[index].points
        sent = np.stack([columns[axis] for axis in "xyz"] + [columns["intensity"] / np.float32(255)], 1)
        np.testing.assert_allclose(sent, points, atol=1e-6)
        np.testing.assert_array_equal(columns["label"], predictor.segment(sent).labels)
    assert set(BagMessages(tmp_path / "out").types) == {"/perception/output/segmentation"}


def test_twice_the_same_bytes_with_overlays_and_filter(bag: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        given = ("--overlays", "--set", "filter.classes=car,manmade")
        assert predict(bag, tmp_path / name / "out", checkpoint, *given) == 0
    for path in (tmp_path / "a" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "out" / path.name).read_bytes(), path.name
    counts = BagMessages(tmp_path / "a" / "out").counts
    assert counts["/perception/output/CAM_FRONT/overlay/compressed"] == FRAMES
    assert counts["/perception/output/filtered"] == FRAMES


def test_a_looped_recording_starts_over(checkpoint: Path, tmp_path: Path) -> None:
    """Stamps go back while bag time goes on: nothing of the first loop holds up the second."""
    with BagWriter(tmp_path / "bag") as made:
        for loop in range(2):
            for index in range(3):
                stamp = 10**9 + index * 10**8
                made.odometry("/odom", stamp, np.eye(4))
                xyz = {axis: np.linspace(2, 9, 50, dtype=np.float32) for axis in "xyz"}
                made.cloud("/lidar", stamp, "base_link", delay_ns=loop * 10**10, **xyz)
    assert predict(tmp_path / "bag", tmp_path / "out", checkpoint) == 0
    assert sum(BagMessages(tmp_path / "out").counts.values()) == 6


def test_a_missing_lidar_is_answered_with_the_topics(bag: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    street = Street(3, frames=1)
    rig = tmp_path / "rig.yaml"
    street.rig.save(rig)
    rig.write_text(rig.read_text().replace(street.rig.lidar_topic, "/velodyne"))
    assert predict(bag, tmp_path / "out", checkpoint, "--rig", str(rig)) == 1
    told = capsys.readouterr().err
    assert "no cloud on /velodyne" in told and "/odom: nav_msgs/msg/Odometry" in told
    assert not (tmp_path / "out").exists()


def test_what_is_no_bag_or_is_there_already(bag: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert predict(tmp_path, tmp_path / "out", checkpoint) == 1
    assert "not a readable rosbag2" in capsys.readouterr().err
    broken = shutil.copytree(bag, tmp_path / "street")
    file = broken / "street.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert predict(broken, tmp_path / "out", checkpoint) == 1
    assert str(broken) in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert predict(bag, tmp_path / "out", checkpoint) == 1
    assert "exists already" in capsys.readouterr().err


def test_parameters_of_a_file_and_of_words(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("/**:\n  ros__parameters:\n    sync: {tolerance_ms: 20.0}\n    detections: {min_score: 0.5}\n")
    settings = given_settings(PARAMETERS, file, ["sync.tolerance_ms=30", "filter.classes="])
    assert (settings["sync.tolerance_ms"], settings["detections.min_score"]) == (30.0, 0.5)
    for words, told in (
        (["sync"], "no NAME=VALUE"),
        (["sync.tolerance=1"], "did you mean"),
        (["speed=1"], "there is no"),
    ):
        with pytest.raises(ParameterError, match=told):
            given_settings(PARAMETERS, None, words)
    file.write_text("a: 1\n")
    with pytest.raises(ParameterError, match="no parameter file"):
        given_settings(PARAMETERS, file, [])


@pytest.mark.parametrize("name", ["ddad_scene_02", "nuscenes_scene-0061_first_keyframe"])
def test_real_bags(shared: Path, checkpoint: Path, tmp_path: Path, name: str) -> None:
    assert predict(shared / "data" / "rosbags" / name, tmp_path / "out", checkpoint) == 0
    assert len(clouds(tmp_path / "out")) == {"d": 3, "n": 1}[name[0]]

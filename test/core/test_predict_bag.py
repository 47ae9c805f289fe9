"""`python -m lima_core.predict BAG`: the whole pipeline without ROS, exact and repeatable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bags import BagWriter
from lima_core.data.bag import BagMessages
from lima_core.data.classes import load_taxonomy
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_boxes import detection_boxes, marker_boxes
from lima_core.data.ros_cloud import read_cloud
from lima_core.data.synthetic.street import Street
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.predict import main
from lima_core.predictor import Predictor
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.bag_messages import typestore
from lima_core.runtime.offline import predict_bag
from lima_core.runtime.parameters import PARAMETERS, ParameterError, resolve
from lima_core.tools.settings import given_settings
from networks import save_detector, save_random

FRAMES = 3
MS = 1_000_000
NAMES = load_taxonomy("nuscenes").detection_names
CLOUD = {axis: np.linspace(2, 9, 50, dtype=np.float32) for axis in "xyz"}
LIDAR_ONLY = Rig("lidar", "/lidar", "base_link", np.eye(4))


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
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes and no labels, of two sweeps."""
    torch.manual_seed(0)
    bounds = RangeConfig((-12.8, -12.8, -5.0), (12.8, 12.8, 3.0), (0.2, 0.2, 0.2))
    config = DetectorConfig(bev_width=8, head_channels=8, sweeps=2)
    network = Detector("voxelnet_tiny", bounds, config, NAMES)
    with torch.no_grad():  # as initialised the best cells are the empty ones, whatever it is shown
        for weights in network.parameters():
            weights.mul_(2 if weights.ndim > 1 else 1)
    return save_detector(tmp_path_factory.mktemp("detector") / "boxes.safetensors", network, bounds, config)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    street = Street(3, frames=FRAMES, image_size=(64, 32))
    return write_frames(street, tmp_path_factory.mktemp("bags") / "street")


def predict(bag: Path, out: Path, checkpoint: Path, *more: str) -> int:
    return main([str(bag), "--out", str(out), "--checkpoint", str(checkpoint), "--device", "cpu", *more])


def outputs(out: Path, topic: str) -> dict[int, object]:
    """Messages by bag time."""
    messages, name = BagMessages(out), f"/perception/output/{topic}"
    return {
        stamp: typestore().deserialize_cdr(raw, messages.types[name]) for stamp, topic, raw in messages if topic == name
    }


def clouds(out: Path) -> dict[int, dict[str, np.ndarray]]:
    """Columns of the segmentation by bag time."""
    return {stamp: read_cloud(message) for stamp, message in outputs(out, "segmentation").items()}


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
                made.cloud("/lidar", stamp, "base_link", delay_ns=loop * 10**10, **CLOUD)
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


@pytest.mark.parametrize("key", ["lidar_topic", "odometry_topic", "image_topic", "info_topic"])
def test_a_topic_of_another_type_is_refused(bag: Path, checkpoint: Path, tmp_path: Path, capsys, key: str) -> None:
    street, rig = Street(3, frames=1), tmp_path / "rig.yaml"
    street.rig.save(rig)
    topic = getattr(street.rig if hasattr(street.rig, key) else street.rig.cameras[0], key)
    rig.write_text(rig.read_text().replace(topic, "/tf"))
    assert predict(bag, tmp_path / "out", checkpoint, "--rig", str(rig)) == 1
    assert "/tf has no" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_only_the_node_can_do_is_refused(bag: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    for given in (("--set", "sync.policy=exact"), ("--overlays", "--set", "overlay.enabled=never")):
        assert predict(bag, tmp_path / "out", checkpoint, *given) == 1
        assert given[-1].partition("=")[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_boxes_of_odometry_or_tf_are_the_same_and_of_two_sweeps(bag: Path, detector: Path, tmp_path: Path) -> None:
    for name, words in {"odometry": (), "tf": ("transforms=tf",), "one": ("sweeps.count=1",)}.items():
        given = ("--set", "detections.min_score=0.05", *words)
        assert predict(bag, tmp_path / name, detector, *given) == 0
    found = {name: outputs(tmp_path / name, "markers") for name in ("odometry", "tf", "one")}
    scores = {name: [marker_boxes(m, NAMES).score for m in found[name].values()] for name in found}
    centers = {name: [marker_boxes(m, NAMES).boxes.center for m in found[name].values()] for name in found}
    assert all(len(np.unique(score)) > 10 for score in scores["odometry"])
    for ours, theirs in zip(centers["odometry"], centers["tf"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.array_equal(scores["odometry"][0], scores["one"][0])  # nothing came before the first
    assert not np.array_equal(scores["odometry"][1], scores["one"][1])


def test_boxes_are_written_as_markers_and_detections_with_their_names(
    bag: Path, detector: Path, tmp_path: Path
) -> None:
    assert predict(bag, tmp_path / "out", detector, "--set", "detections.min_score=0.05") == 0
    messages = BagMessages(tmp_path / "out")
    topics = {f"/perception/output/{name}" for name in ("markers", "detections", "label_info")}
    assert set(messages.types) == topics and messages.latched == {"/perception/output/label_info"}
    (names,) = outputs(tmp_path / "out", "label_info").values()
    assert [item.class_name for item in names.class_map] == list(NAMES)
    markers, detections = (outputs(tmp_path / "out", name) for name in ("markers", "detections"))
    assert list(markers) == list(detections) == [Street(3, frames=FRAMES).stamp_ns(index) for index in range(FRAMES)]
    for stamp, marked in markers.items():
        drawn, listed = marker_boxes(marked, NAMES).boxes, detection_boxes(detections[stamp], NAMES)
        assert len(drawn) > 10
        np.testing.assert_array_equal(drawn.class_id, listed.class_id)
        np.testing.assert_allclose(drawn.center, listed.center)


def test_the_last_sweep_goes_on_with_its_picture_and_the_poses(checkpoint: Path, tmp_path: Path) -> None:
    """A better picture may still come for it when the bag ends."""
    forward = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    camera = CameraMount("cam", "cam", "/cam/image", "/cam/info", forward)
    jpeg = Street(3, frames=FRAMES, image_size=(64, 32))[0].cameras[0].image.jpeg()
    with BagWriter(tmp_path / "bag") as made:
        for at_ms in range(970, 1101, 10):
            made.odometry("/odom", at_ms * MS, np.eye(4))
            if at_ms in (980, 1010, 1050, 1080):  # each 30 ms: one at 1110 would be nearer to the sweep at 1100
                K = np.array([[50.0, 0, 32], [0, 50, 16], [0, 0, 1]])
                made.info("/cam/info", at_ms * MS, "cam", K, (64, 32))
                made.jpeg("/cam/image", at_ms * MS, "cam", jpeg)
            if at_ms in (1000, 1100):
                made.cloud("/lidar", at_ms * MS, "base_link", **CLOUD)
    rig = Rig("r", "/lidar", "base_link", np.eye(4), (camera,))
    account = predict_bag(
        tmp_path / "bag", tmp_path / "out", Predictor(checkpoint, "cpu"), resolve({}), rig, overlays=True
    )
    assert (account.received, account.published, account.open) == (2, 2, 0)
    assert account.cameras == {"cam": {"matched": 2, "overlay.drawn": 2}}


def test_broken_messages_are_named_once_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as made:
        for index in range(4):
            made.cloud("/lidar", 10**9 + index * 10**8, "base_link", **CLOUD)
    file = tmp_path / "bag" / "bag.mcap"
    data, name = file.read_bytes(), b"base_link\0"
    assert data.count(name) == 4
    file.write_bytes(data.replace(name, b"\xff" * 9 + b"\0", 2))  # no text
    said: list[str] = []
    account = predict_bag(
        tmp_path / "bag", tmp_path / "out", Predictor(checkpoint, "cpu"), resolve({}), LIDAR_ONLY, say=said.append
    )
    assert account.received == account.published == 2
    told = [line for line in said if "/lidar" in line]
    assert len(told) == 2 and "at 1000000000 ns" in told[0] and told[1].endswith("2 times in all")


def test_interrupted_it_leaves_nothing(bag: Path, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    first = iter([Predictor.perceive])

    def perceive(*given: object) -> object:
        once = next(first, None)
        if once is None:  # the second sweep
            raise KeyboardInterrupt
        return once(*given)

    monkeypatch.setattr(Predictor, "perceive", perceive)
    assert predict(bag, tmp_path / "out", checkpoint) == 130
    assert list(tmp_path.iterdir()) == []


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

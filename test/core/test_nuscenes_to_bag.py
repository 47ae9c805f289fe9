"""nuScenes -> rosbag2 -> frames: equal, in order, the same bytes each time; and clear words where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lima_core.data.bag import Bag, BagMessages
from lima_core.data.frame import Frame
from lima_core.data.nuscenes import NuScenes
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.data.synthetic.street import Street
from lima_core.runtime.bag_messages import typestore
from lima_core.tools.nuscenes_to_bag import main


def equal(found: Frame, wanted: Frame, pose_m: float = 1e-7) -> None:
    """But for returns and attributes of boxes, for which there is no message."""
    assert found.stamp_ns == wanted.stamp_ns
    np.testing.assert_allclose(found.points, wanted.points, atol=1e-6)
    np.testing.assert_array_equal(found.extra["ring"], wanted.extra["ring"])
    np.testing.assert_allclose(found.world_from_lidar, wanted.world_from_lidar, atol=1e-7)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for view, other in zip(found.cameras, wanted.cameras, strict=True):
        assert (view.name, view.stamp_ns, view.size) == (other.name, other.stamp_ns, other.size)
        assert view.distortion.model == "none" and view.image.jpeg() == other.image.jpeg()
        np.testing.assert_array_equal(view.K, other.K)
        np.testing.assert_allclose(view.camera_from_lidar, other.camera_from_lidar, atol=pose_m)
    for name in ("center", "size", "velocity", "class_id"):
        np.testing.assert_allclose(getattr(found.boxes, name), getattr(wanted.boxes, name), atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * found.boxes.yaw), np.exp(1j * wanted.boxes.yaw), atol=1e-9)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("name", ["nus_tiny", "ddad_as_nus"])
def test_real_keyframes_come_back(shared: Path, tmp_path: Path, name: str, storage: str) -> None:
    source = NuScenes(shared / "data" / name)
    assert main([str(source.root), str(tmp_path), "--storage", storage]) == 0
    bag = Bag(tmp_path / source.sequences[0])
    assert len(bag) == len(source)
    assert {mount.image_topic for mount in bag.rig.cameras} == {mount.image_topic for mount in source.rig.cameras}
    for index in range(len(source)):
        # DDAD's cameras share a stamp and yet have poses up to a centimetre apart, of which /tf holds one
        equal(bag[index], source[index], 1e-2 if name == "ddad_as_nus" else 1e-7)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A street of four frames in the nuScenes layout, the second and fourth of which are sweeps between keyframes."""
    root = write_nuscenes(Street(5, frames=4, image_size=(64, 32)), tmp_path_factory.mktemp("nuscenes") / "data")
    tables = root / "v1.0-mini"
    samples = json.loads((tables / "sample.json").read_text())
    keyframe = {sample["token"]: samples[i - i % 2]["token"] for i, sample in enumerate(samples)}
    data = json.loads((tables / "sample_data.json").read_text())
    for row in data:
        row["is_key_frame"] = keyframe[row["sample_token"]] == row["sample_token"]
        row["sample_token"] = keyframe[row["sample_token"]]
    kept = samples[::2]
    for sample, after in zip(kept, [*kept[1:], {"token": ""}], strict=True):
        sample["next"] = after["token"]
    (tables / "sample.json").write_text(json.dumps(kept))
    (tables / "sample_data.json").write_text(json.dumps(data))
    annotations = json.loads((tables / "sample_annotation.json").read_text())
    there = {sample["token"] for sample in kept}
    kept_boxes = [dict(row, prev="", next="") for row in annotations if row["sample_token"] in there]
    (tables / "sample_annotation.json").write_text(json.dumps(kept_boxes))
    return root


def test_sweeps_between_keyframes(swept: Path, tmp_path: Path) -> None:
    assert main([str(swept), str(tmp_path)]) == 0
    source = NuScenes(swept)
    bag = Bag(tmp_path / source.sequences[0])
    assert (len(source), len(bag)) == (2, 4)
    for index in (0, 1):
        equal(bag[2 * index], source[index])
        between = bag[2 * index + 1]
        assert between.labels is None and between.boxes is None and len(between.cameras) == 6
        assert len(between.points) > 1000
    messages = BagMessages(tmp_path / source.sequences[0])
    stamps = [stamp for stamp, _, _ in messages]
    assert stamps == sorted(stamps)
    assert messages.latched == {"/tf_static"}
    assert messages.counts["/tf"] == messages.counts["/odom"] == len(set(stamps)) == 28
    assert messages.types["/gt/detections"] == "vision_msgs/msg/Detection3DArray"
    assert messages.counts["/gt/detections"] == messages.counts["/gt/markers"] == 2


def test_keyframes_alone_and_lower_case(swept: Path, tmp_path: Path) -> None:
    assert main([str(swept), str(tmp_path), "--keyframes-only", "--lower"]) == 0
    messages = BagMessages(tmp_path / NuScenes(swept).sequences[0])
    assert messages.counts["/lidar_top"] == messages.counts["/cam_front/image_rect_compressed"] == 2
    assert not any(topic.isupper() for topic in messages.types)


def test_camera_info_is_that_of_a_rectified_camera(swept: Path, tmp_path: Path) -> None:
    assert main([str(swept), str(tmp_path), "--keyframes-only"]) == 0
    messages = BagMessages(tmp_path / NuScenes(swept).sequences[0])
    for stamp_ns, topic, raw in messages:
        if topic.endswith("camera_info"):
            info = typestore().deserialize_cdr(raw, messages.types[topic])
            assert info.header.stamp.sec * 10**9 + info.header.stamp.nanosec == stamp_ns
            np.testing.assert_array_equal(info.r, np.eye(3).ravel())
            assert info.distortion_model == "plumb_bob" and not info.d.any()
            np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))


def test_the_same_tables_give_the_same_bytes(swept: Path, tmp_path: Path) -> None:
    scene = NuScenes(swept).sequences[0]
    for name in "ab":
        assert main([str(swept), str(tmp_path / name)]) == 0
    for path in (tmp_path / "a" / scene).iterdir():
        assert path.read_bytes() == (tmp_path / "b" / scene / path.name).read_bytes(), path.name


def test_a_complete_bag_stays_and_a_part_of_one_is_refused(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bag = tmp_path / NuScenes(swept).sequences[0]
    assert main([str(swept), str(tmp_path), "--keyframes-only"]) == 0
    before = {path.name: path.read_bytes() for path in bag.iterdir()}
    assert main([str(swept), str(tmp_path)]) == 0
    assert "is complete and stays" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in bag.iterdir()} == before
    (bag / "metadata.yaml").unlink()
    assert main([str(swept), str(tmp_path)]) == 1
    assert f"{bag} is there and is no complete bag" in capsys.readouterr().err


def damaged(swept: Path, tmp_path: Path) -> tuple[Path, Path]:
    root = shutil.copytree(swept, tmp_path / "copy")
    return root, root / "v1.0-mini"


def test_missing_sweeps_are_named(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, tables = damaged(swept, tmp_path)
    row = next(r for r in json.loads((tables / "sample_data.json").read_text()) if not r["is_key_frame"])
    (root / row["filename"]).unlink()
    assert main([str(root), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert row["filename"] in told and "--keyframes-only" in told
    assert list((tmp_path / "out").iterdir()) == []
    assert main([str(root), str(tmp_path / "out"), "--keyframes-only"]) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"translation": [9.0, 0.0, 0.0]}, "is mounted at"),
        ({"camera_intrinsic": [[9.0, 0, 1], [0, 9.0, 1], [0, 0, 1]]}, "is calibrated as"),
    ],
)
def test_a_sensor_that_changes_is_refused(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, told: str
) -> None:
    root, tables = damaged(swept, tmp_path)
    mounts = json.loads((tables / "calibrated_sensor.json").read_text())
    data = json.loads((tables / "sample_data.json").read_text())
    camera = next(mount for mount in mounts if mount["camera_intrinsic"])
    last = [row for row in data if row["calibrated_sensor_token"] == camera["token"]][-1]
    last["calibrated_sensor_token"] = "changed"
    (tables / "calibrated_sensor.json").write_text(json.dumps([*mounts, {**camera, **change, "token": "changed"}]))
    (tables / "sample_data.json").write_text(json.dumps(data))
    assert main([str(root), str(tmp_path / "out")]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--scenes", "scene-9"], "has no scene-9"), ([], "name one nuScenes")]
)
def test_clear_words(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], told: str
) -> None:
    root = swept if arguments else tmp_path
    assert main([str(root), str(tmp_path / "out"), *arguments]) == 1
    assert told in capsys.readouterr().err

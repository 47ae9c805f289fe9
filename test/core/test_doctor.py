"""The doctor: every fault put into a recording comes first in the list, with the fix for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from bags import BagWriter
from lima_core.checkpoint import write_tensors
from lima_core.data.bag_check import Check
from lima_core.data.rig import CameraMount, Rig
from lima_core.doctor import diagnose, main
from lima_core.geometry import se3

MS = 1_000_000
BEGIN_NS = 100 * 1000 * MS
K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
BASE_FROM_LIDAR = se3.transform(np.eye(3), np.array([1.0, 0, 2]))
BASE_FROM_CAMERA = se3.transform(np.array([0.5, -0.5, 0.5, -0.5]), np.array([1.5, 0, 1.5]))
JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
MOUNT = CameraMount("front", "front", "/front/image/compressed", "/front/camera_info", BASE_FROM_CAMERA, -30.0)
RIG = Rig("car", "/lidar/points", "lidar", BASE_FROM_LIDAR, (MOUNT,))
STREET = Path(__file__).resolve().parents[2] / "lima_core" / "assets" / "street.safetensors"

Sweeps = dict[str, np.ndarray]


def same(index: int) -> int:
    """The stamp of a good recording: one message in 100 ms."""
    return BEGIN_NS + index * 100 * MS


def cloud(index: int, highest: float = 255.0, **more: np.ndarray) -> Sweeps:
    points = np.random.default_rng(index).uniform(-20, 20, (50, 3)).astype(np.float32)
    return {**dict(zip("xyz", points.T, strict=True)), "intensity": np.linspace(0, highest, 50, dtype="f4"), **more}


def record(
    path: Path,
    storage: str = "mcap",
    lidar: str = "/lidar/points",
    sweep: Callable[[int], Sweeps] = cloud,
    sweep_ns: Callable[[int], int] = same,
    image_ns: Callable[[int], int] = lambda index: same(index) - 30 * MS,
    info: np.ndarray | None = K,
    silent: range = range(0),
    mounts: bool = True,
    data: bytes = JPEG,
) -> Path:
    """20 sweeps at 10 Hz, a camera 30 ms before them, odometry at 20 Hz; bag times are those of a good recording."""
    with BagWriter(path, storage) as bag:
        static = [("base_link", "lidar", BASE_FROM_LIDAR)]
        bag.transforms("/tf_static", BEGIN_NS, *static, *([("base_link", "front", BASE_FROM_CAMERA)] if mounts else []))
        for half in (h for h in range(-2, 42) if h not in silent):
            bag.odometry("/odom", BEGIN_NS + half * 50 * MS, np.eye(4))
        for index in range(20):
            if info is not None:
                bag.info("/front/camera_info", image_ns(index), "front", info, (64, 48))
            bag.jpeg("/front/image/compressed", image_ns(index), "front", data)
            stamp_ns = sweep_ns(index)
            bag.cloud(lidar, stamp_ns, "lidar", delay_ns=same(index) - stamp_ns, **sweep(index))
    return path


def first(path: Path, rig: Rig | None = RIG, **options: object) -> Check:
    """The first line of the list."""
    file = path.parent / "rig.yaml"
    if rig:
        rig.save(file)
    return diagnose(str(path), file if rig else None, **options)[0]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("rig", [RIG, None], ids=["rig", "no-rig"])
def test_a_good_recording_has_no_fault(tmp_path: Path, storage: str, rig: Rig | None) -> None:
    RIG.save(tmp_path / "rig.yaml")
    checks = diagnose(str(record(tmp_path / "bag", storage)), tmp_path / "rig.yaml" if rig else None)
    assert [check for check in checks if check.level != "ok"] == []
    text = {check.what: check.text for check in checks}
    assert "-30.0 ms" in text["offset front"]
    assert "100% of 20 sweeps have a pose from /odom" in text["motion"]
    assert text["/lidar/points"] == "PointCloud2, 20 messages, 10.0 Hz"


FAULTS = {
    "wrong topic": ({"lidar": "/points"}, "lidar", "bad", "set lidar.topic in the rig to /points"),
    "no camera_info": ({"info": None}, "camera front", "bad", "record /front/camera_info"),
    "uncalibrated": ({"info": np.zeros((3, 3))}, "camera front", "bad", "calibrate the camera"),
    "no picture": ({"data": b"nonsense"}, "camera front", "bad", "a JPEG or PNG"),
    "late camera": ({"image_ns": lambda i: same(i) - 5 * MS}, "offset front", "look", "offset_ms: -5.0"),
    "later camera": ({"image_ns": lambda i: same(i) + 19 * MS}, "offset front", "bad", "offset_ms: 19.0"),
    "camera silent": (
        {"image_ns": lambda i: same(i if i < 10 else i + 10) - 30 * MS},
        "stamps /front/image/compressed",
        "look",
        "--max-cache-size",
    ),
    "16-bit": ({"sweep": lambda i: cloud(i, 65535.0)}, "intensity", "bad", "set intensity_scale: 65535"),
    "unit": ({"sweep": lambda i: cloud(i, 1.0)}, "intensity", "bad", "set intensity_scale: 1 "),
    "black": ({"sweep": lambda i: cloud(i, 0.0)}, "intensity", "bad", "let the driver fill it"),
    "odometry gap": ({"silent": range(10, 30)}, "motion", "look", "set odometry.max_gap_ms: 1050"),
    "odometry ends": ({"silent": range(20, 42)}, "motion", "look", "until after the last"),
    "loop": ({"sweep_ns": lambda i: same(i % 15)}, "stamps /lidar/points", "bad", "cut the bag there"),
    "swapped": ({"sweep_ns": lambda i: same(i ^ 1)}, "stamps /lidar/points", "bad", "one publisher"),
    "twice": ({"sweep_ns": lambda i: same(i - i % 2)}, "stamps /lidar/points", "bad", "two drivers"),
    "no stamp": ({"sweep_ns": lambda i: 0}, "stamps /lidar/points", "bad", "header.stamp"),
    "other clock": ({"sweep_ns": lambda i: same(i) - 7000 * MS}, "offset front", "bad", "synchronise the two (PTP)"),
    "ms for s": (
        {"sweep": lambda i: cloud(i, time=np.linspace(0, 100, 50, dtype="f4"))},
        "point times",
        "look",
        "sweeps.deskew: false",
    ),
    "no intensity": (
        {"sweep": lambda i: {k: v for k, v in cloud(i).items() if k != "intensity"}},
        "intensity",
        "bad",
        "reflectivity",
    ),
    "no z": ({"sweep": lambda i: {k: v for k, v in cloud(i).items() if k != "z"}}, "points", "bad", "with x, y, z"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_comes_first_with_its_fix(tmp_path: Path, name: str) -> None:
    options, what, level, fix = FAULTS[name]
    check = first(record(tmp_path / "bag", **options))
    assert (check.what, check.level) == (what, level), check
    assert fix in check.fix, check


def test_without_a_rig_mounts_and_the_lidar_must_be_told(tmp_path: Path) -> None:
    check = first(record(tmp_path / "unmounted", mounts=False), rig=None)
    assert (check.what, check.level) == ("mount front", "bad")
    assert "cameras.front.base_from_camera" in check.fix
    with BagWriter(tmp_path / "two") as bag:
        bag.cloud("/left", BEGIN_NS, "left", **cloud(0))
        bag.cloud("/right", BEGIN_NS, "right", **cloud(1))
    check = first(tmp_path / "two", rig=None)
    assert (check.what, check.level) == ("lidar", "bad")
    assert "/left, /right" in check.text


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_broken_files_are_explained(tmp_path: Path, storage: str) -> None:
    path = record(tmp_path / "bag", storage)
    (file,) = (f for f in path.iterdir() if f.suffix != ".yaml")
    assert first(file).level == "ok"  # one file alone can be read too
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    check = first(path)
    assert (check.what, check.level) == ("bag", "bad")
    assert "cut off" in check.fix
    (path / "metadata.yaml").unlink()
    assert "ros2 bag reindex" in first(path).fix


def test_the_network_is_asked_when_there_is_one(tmp_path: Path) -> None:
    check = first(record(tmp_path / "bag", sweep=lambda i: cloud(i, 65535.0)), checkpoint=STREET)
    assert check.what.startswith("input ")
    assert check.level == "bad"
    assert not [c for c in diagnose("street:3", checkpoint=STREET, frames=2) if c.level == "bad"]


@pytest.mark.parametrize(
    ("sweeps", "silent", "level", "fix"),
    [
        (10, range(0), "ok", ""),
        (21, range(0), "look", "sweeps.max_age_ms: 2000"),
        (10, range(-2, 42), "bad", "sweeps.count: 1"),
    ],
)
def test_a_detector_needs_its_past_sweeps(tmp_path: Path, sweeps: int, silent: range, level: str, fix: str) -> None:
    meta = {key: {} for key in ("classes", "inputs", "metrics", "versions", "provenance")}
    meta |= {"format": 1, "model": "voxelnet_tiny", "detection": {}, "config": {"detector": {"sweeps": sweeps}}}
    file = write_tensors(tmp_path / "net.safetensors", {}, meta)
    RIG.save(tmp_path / "rig.yaml")
    checks = diagnose(str(record(tmp_path / "bag", silent=silent)), tmp_path / "rig.yaml", file)
    (check,) = (check for check in checks if check.what == "sweeps")
    assert check.level == level
    assert fix in check.fix


def test_what_cannot_be_opened_is_a_line_not_a_traceback(tmp_path: Path) -> None:
    checks = diagnose(str(tmp_path / "none"), tmp_path / "rig.yaml", tmp_path / "net.safetensors")
    assert [(check.what, check.level) for check in checks] == [(w, "bad") for w in ("rig", "checkpoint", "source")]
    with pytest.raises(ValueError, match="1 to 50"):
        diagnose("street:1", frames=0)


def test_exit_code_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main([str(record(tmp_path / "good")), "--json", str(report)]) == 0
    assert {entry["level"] for entry in json.loads(report.read_text())} == {"ok"}
    capsys.readouterr()
    assert main([str(record(tmp_path / "bad", info=None))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bad  camera front/image/compressed: no CameraInfo")
    assert lines[1].startswith("     -> record /front/image/camera_info")


def test_real_recordings(shared: Path) -> None:
    bags = shared / "data" / "rosbags"
    checks = diagnose(str(bags / "nuscenes_scene-0061_first_keyframe"))
    assert {check.level for check in checks} == {"ok"}
    (bad,) = (check for check in diagnose(str(bags / "ddad_scene_02")) if check.level == "bad")
    assert bad.fix.startswith("set intensity_scale: 1 ")  # DDAD's intensity is in [0, 1]
    checks = diagnose(str(shared / "data" / "nus_tiny"))
    assert {check.level for check in checks} == {"ok"}

"""The nuScenes reader on the real keyframe, the real drive and broken copies of a miniature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lima_core.data.frame import DatasetError
from lima_core.data.nuscenes import NuScenes, NuScenesError
from lima_core.data.sources import open_source
from lima_core.geometry import se3


@pytest.fixture(scope="module")
def keyframe(shared: Path) -> NuScenes:
    return NuScenes(shared / "data" / "nus_tiny")


@pytest.fixture
def copy(shared: Path, tmp_path: Path) -> Path:
    """A writable copy of the real keyframe, to be broken."""
    root = tmp_path / "nus"
    shutil.copytree(shared / "data" / "nus_tiny", root, copy_function=shutil.copyfile)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def the_file(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def test_points_per_camera_are_those_of_the_real_frame(keyframe: NuScenes, vectors: dict) -> None:
    expected = vectors["real_nuscenes_frame"]["expected"]
    frame = keyframe[0]
    visible = {c.name: c.project(frame.points).visible for c in frame.cameras}
    assert len(frame.points) == expected["num_points"]
    assert {n: int(v.sum()) for n, v in visible.items()} == expected["points_per_camera_slidr_mask"]
    assert (
        np.bincount(sum(v.astype(int) for v in visible.values())).tolist() == expected["points_seen_by_0_1_2_cameras"]
    )
    assert frame.points[:, 3].mean() * 255 == pytest.approx(expected["intensity_mean"], abs=1e-3)


def test_offsets_and_images_of_the_real_frame(keyframe: NuScenes) -> None:
    """The offsets are finding 10 of spec/ros.md, read from the file names of the same keyframe."""
    offsets = {m.name: m.offset_ms for m in keyframe.rig.cameras}
    expected = {"CAM_FRONT_LEFT": -43.1, "CAM_FRONT": -35.5, "CAM_FRONT_RIGHT": -27.6}
    expected |= {"CAM_BACK_RIGHT": -20.1, "CAM_BACK": -10.4, "CAM_BACK_LEFT": -0.5}
    assert offsets == pytest.approx(expected, abs=0.05)
    assert all(c.image.rgb.shape == (900, 1600, 3) for c in keyframe[0].cameras)


def test_boxes_stand_on_their_points(keyframe: NuScenes) -> None:
    """Labels of the sample were made from its boxes: nearly every labelled car point lies inside a car box."""
    frame, names = keyframe[0], keyframe.taxonomy.names
    cars = frame.boxes.class_id == keyframe.taxonomy.detection_names.index("car")
    points = frame.points[frame.labels == names.index("car"), :3]
    inside = np.zeros(len(points), bool)
    for center, size, yaw in zip(frame.boxes.center[cars], frame.boxes.size[cars], frame.boxes.yaw[cars], strict=True):
        turn = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        local = se3.apply(se3.inverse(se3.transform(turn, center)), points)
        inside |= (np.abs(local) <= size / 2 + 0.05).all(axis=1)
    assert len(points) > 50 and inside.mean() > 0.95


def test_boxes_have_the_returns_of_their_table(keyframe: NuScenes) -> None:
    """All 68 boxes stay, also those without a return; a table of attributes without rows gives none."""
    rows = json.loads((keyframe.root / keyframe.version / "sample_annotation.json").read_text())
    boxes = keyframe[0].boxes
    assert sorted(boxes.points.tolist()) == sorted(row["num_lidar_pts"] + row["num_radar_pts"] for row in rows)
    assert boxes.points.dtype == np.int32 and boxes.attribute is None


def test_box_in_the_lidar_frame_matches_the_devkit(vectors: dict) -> None:
    vector = vectors["box_global_to_lidar"]
    given, expected = vector["inputs"], vector["expected"]
    poses = [
        se3.transform(np.array(given[k]["rotation"]), np.array(given[k]["translation"])) for k in ("ego", "calibrated")
    ]
    lidar_from_world = se3.inverse(poses[0] @ poses[1])
    yaw = given["global_box"]["yaw"]
    box = se3.transform(np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]), np.array(given["global_box"]["center"]))
    np.testing.assert_allclose((lidar_from_world @ box)[:3, 3], expected["center"], atol=1e-6)
    assert se3.yaw(lidar_from_world @ box) == pytest.approx(expected["yaw"], abs=1e-6)


def test_the_drive_has_three_frames_and_a_growing_window(shared: Path) -> None:
    drive = open_source(str(shared / "data" / "ddad_as_nus"))
    assert [f.index for f in (drive[0], drive[1], drive[2])] == [0, 1, 2]
    assert [f.index for f in drive.window(2, 5)] == [0, 1]
    assert drive.window(0, 5) == []
    moved = np.linalg.norm(drive[1].world_from_lidar[:3, 3] - drive[0].world_from_lidar[:3, 3])
    assert moved == pytest.approx(1.27, abs=0.02)


def test_lidarseg_of_the_labelled_drive(shared: Path) -> None:
    drive = open_source(str(shared / "data" / "pclseg_as_nus"))
    assert len(drive) == 32 and drive.window(31, 5)[0].index == 26
    road = drive.taxonomy.names.index("driveable_surface")
    heights = drive[0].points[drive[0].labels == road, 2]
    assert np.median(heights) == pytest.approx(-1.84, abs=0.25)  # the sensor stands 1.84 m above the ground


@pytest.mark.parametrize(
    ("pattern", "break_it", "message"),
    [
        ("samples/LIDAR_TOP/*.bin", lambda p: p.write_bytes(p.read_bytes()[:-3]), r"LIDAR_TOP.*truncated"),
        ("samples/LIDAR_TOP/*.bin", lambda p: p.write_bytes(p.read_bytes()[:-20]), r"34688 labels for 34687 points"),
        ("samples/LIDAR_TOP/*.bin", lambda p: p.unlink(), r"is missing; unpack the sensor blobs"),
        (
            "lidarseg/*/*.bin",
            lambda p: p.write_bytes(bytes([77]) * 34688),
            r"34688 labels are no ids of nuscenes, e.g. 77",
        ),
        (
            "samples/LIDAR_TOP/*.bin",
            lambda p: p.write_bytes(b"\xff" * 4 + p.read_bytes()[4:]),
            r"1 of 34688 .* not finite",
        ),
        ("v1.0-mini/ego_pose.json", lambda p: p.write_text("[]"), r"ego_pose.json lacks pose"),
        ("v1.0-mini/sample_data.json", lambda p: p.write_text(p.read_text()[:-2]), r"sample_data.json is not a nuSc"),
        ("v1.0-mini/scene.json", lambda p: p.write_text("[]"), r"scene.json has no scene"),
        ("v1.0-mini/sensor.json", lambda p: p.write_text("[]"), r"names sensor .*, which sensor.json lacks"),
        ("v1.0-mini/calibrated_sensor.json", lambda p: p.write_text("[]"), r"names calibrated sensor"),
        (
            "v1.0-mini/category.json",
            lambda p: p.write_text("[]"),
            r"sample_annotation.json names a sample or an instance",
        ),
        ("v1.0-mini/sample_data.json", lambda p: p.write_text(p.read_text().replace("true", "1")), r"Expected `bool`"),
        ("v1.0-mini/ego_pose.json", lambda p: p.unlink(), r"ego_pose.json is missing"),
        ("v1.0-mini/sample.json", lambda p: p.write_text("[{"), r"sample.json is not a nuScenes table"),
    ],
)
def test_a_broken_copy_is_named(copy: Path, pattern: str, break_it: object, message: str) -> None:
    break_it(the_file(copy, pattern))
    with pytest.raises(DatasetError, match=message):
        NuScenes(copy)[0]


def test_a_path_out_of_the_data_root_is_refused(copy: Path) -> None:
    table = copy / "v1.0-mini" / "sample_data.json"
    rows = json.loads(table.read_text())
    for row in rows:
        row["filename"] = "../../etc/passwd"
    table.write_text(json.dumps(rows))
    with pytest.raises(NuScenesError, match="leads out of"):
        NuScenes(copy)[0]


def test_a_link_out_of_the_data_root_is_refused(copy: Path) -> None:
    lidar = the_file(copy, "samples/LIDAR_TOP/*.bin")
    outside = copy.parent / "outside.bin"
    lidar.rename(outside)
    lidar.symlink_to(outside)
    with pytest.raises(NuScenesError, match="leads out of"):
        NuScenes(copy)[0]


@pytest.mark.parametrize("spec", ["street:x", "nowhere", "."])
def test_a_source_that_is_none_says_what_would_be_one(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"street:|nuScenes tables"):
        open_source(spec)

"""The reader of Waymo Open Dataset v2 on a miniature in the exact layout, with points known in closed form."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from lima_core.data.frame import DatasetError
from lima_core.data.waymo import Waymo, at_the_frame, cartesian
from lima_core.geometry import se3

arrow = pytest.importorskip("pyarrow", reason="the extra `waymo` is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

H, W = 5, 8
STAMPS = (1_500_000_000_000_000, 1_500_000_000_100_000, 1_500_000_000_200_000)  # the middle one has no labels
SEGMENTS = ("1001_000", "1002_000")
INCLINATIONS = np.radians([-20.0, -10.0, 0.0, 1.0, 2.5])  # as in the file: from the lowest beam
VEHICLE_FROM_LIDAR = se3.poses(1.4, 0.1, 2.2, yaw=2.6, pitch=0.02, roll=-0.01)
WORLD_FROM_VEHICLE = se3.poses(-2300.0, 8100.0, 12.0, yaw=0.7, pitch=0.01)
PLANE = 12.0  # a wall at this x of the vehicle, seen by the pixels that look forward


def directions() -> np.ndarray:
    """(H, W, 3) unit vectors in the vehicle frame, pixel by pixel, written out as the documentation words it."""
    yaw = np.arctan2(VEHICLE_FROM_LIDAR[1, 0], VEHICLE_FROM_LIDAR[0, 0])
    rays = np.empty((H, W, 3))
    for row in range(H):
        for column in range(W):
            up = INCLINATIONS[H - 1 - row]
            turn = (((W - column) - 0.5) / W * 2 - 1) * np.pi - yaw
            rays[row, column] = np.cos(turn) * np.cos(up), np.sin(turn) * np.cos(up), np.sin(up)
    return rays @ VEHICLE_FROM_LIDAR[:3, :3].T


def wall() -> tuple[np.ndarray, np.ndarray]:
    """(H, W) ranges to the wall at x = PLANE, -1 where a pixel does not meet it, and the points (N, 3)."""
    rays, origin = directions(), VEHICLE_FROM_LIDAR[:3, 3]
    ranges = np.where(rays[..., 0] > 0.1, (PLANE - origin[0]) / np.maximum(rays[..., 0], 0.1), -1)
    return ranges, (origin + ranges[..., None] * rays)[ranges > 0]


def image(ranges: np.ndarray, intensity: float) -> np.ndarray:
    return np.stack([ranges, np.full((H, W), intensity), np.zeros((H, W)), np.full((H, W), -1.0)], axis=-1)


def write(path: Path, columns: dict[str, tuple[list, object]], rows_per_group: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({name: arrow.array(values, kind) for name, (values, kind) in columns.items()})
    parquet.write_table(table, path, row_group_size=rows_per_group)


def keys(stamps: list[int], lasers: list[int] | None) -> dict:
    columns = {"key.segment_context_name": (["s"] * len(stamps), arrow.string())}
    columns["key.frame_timestamp_micros"] = (stamps, arrow.int64())
    return columns if lasers is None else {**columns, "key.laser_name": (lasers, arrow.int8())}


def images(component: str, number: int, cells: list[np.ndarray | None], kind: object) -> dict:
    prefix = f"[{component}].range_image_return{number}"
    return {
        f"{prefix}.values": ([None if c is None else c.ravel().tolist() for c in cells], arrow.list_(kind)),
        f"{prefix}.shape": ([None if c is None else list(c.shape) for c in cells], arrow.list_(arrow.int32(), 3)),
    }


def write_segment(folder: Path, name: str, pixel_pose: np.ndarray | None = None) -> None:
    """A wall and a second return 2 m behind it at every second pixel; lasers TOP and FRONT in each frame."""
    ranges, _ = wall()
    second = np.where((ranges > 0) & (np.arange(W) % 2 == 0), ranges + 2, -1)
    stamps = [stamp for stamp in STAMPS for _ in range(2)]
    front, near = np.zeros((2, 2, 4)), image(ranges, 0.5)
    first = [near if i % 2 == 0 else front for i in range(6)]
    behind = [image(second, 3.0) if i % 2 == 0 else None for i in range(6)]
    float32, int32, matrix = arrow.float32(), arrow.int32(), arrow.list_(arrow.float64(), 16)
    lidar = images("LiDARComponent", 1, first, float32) | images("LiDARComponent", 2, behind, float32)
    write(folder / f"lidar/{name}.parquet", keys(stamps, [1, 2] * 3) | lidar, rows_per_group=4)
    classes = [np.stack([np.full((H, W), 9), np.full((H, W), raw)], axis=-1) for raw in (13, 14)]
    labels = "LiDARSegmentationLabelComponent"
    label_images = images(labels, 1, [classes[0]] * 2, int32) | images(labels, 2, [classes[1], None], int32)
    write(folder / f"lidar_segmentation/{name}.parquet", keys([STAMPS[0], STAMPS[2]], [1, 1]) | label_images)
    prefix = "[LiDARCalibrationComponent]"
    calibration = {
        "key.laser_name": ([2, 1], arrow.int8()),
        f"{prefix}.extrinsic.transform": ([[1.0] * 16, VEHICLE_FROM_LIDAR.ravel().tolist()], matrix),
        f"{prefix}.beam_inclination.min": ([-1.0, -0.4], arrow.float64()),
        f"{prefix}.beam_inclination.max": ([1.0, 0.1], arrow.float64()),
        f"{prefix}.beam_inclination.values": ([None, INCLINATIONS.tolist()], arrow.list_(arrow.float64())),
    }
    write(folder / f"lidar_calibration/{name}.parquet", calibration)
    transform = {
        "[VehiclePoseComponent].world_from_vehicle.transform": ([WORLD_FROM_VEHICLE.ravel().tolist()] * 3, matrix)
    }
    write(folder / f"vehicle_pose/{name}.parquet", keys(list(STAMPS), None) | transform)
    if pixel_pose is not None:
        poses = images("LiDARPoseComponent", 1, [pixel_pose] * 3, arrow.float32())
        write(folder / f"lidar_pose/{name}.parquet", keys(list(STAMPS), [1] * 3) | poses)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in SEGMENTS:
        write_segment(tmp_path / "training", name)
    write_segment(tmp_path / "validation", "2001_000")
    return tmp_path


def test_only_labelled_frames_are_frames(root: Path) -> None:
    train = Waymo(root)
    assert train.sequences == ("1001_000", "1001_000", "1002_000", "1002_000")
    assert [train[i].stamp_ns for i in range(2)] == [STAMPS[0] * 1000, STAMPS[2] * 1000]
    assert [f.index for f in train.window(3, 5)] == [0] and train.window(2, 5) == []
    assert len(Waymo(root, "val")) == 2 and len(Waymo(root, "all")) == 6
    assert train.labelled_share(50) == [0, 2]
    assert train.rig.name == "waymo" and len(train.taxonomy.names) == 22


def test_a_wall_comes_back_where_it_stands(root: Path) -> None:
    frame, (ranges, points) = Waymo(root)[0], wall()
    first = int((ranges > 0).sum())
    assert first > 8
    np.testing.assert_allclose(frame.points[:first, 0], PLANE, atol=1e-4)
    np.testing.assert_allclose(frame.points[:first, :3], points, atol=1e-4)
    np.testing.assert_allclose(frame.world_from_lidar, WORLD_FROM_VEHICLE)


def test_the_second_return_lies_behind_the_first(root: Path) -> None:
    frame, ranges = Waymo(root)[0], wall()[0]
    first, origin = int((ranges > 0).sum()), VEHICLE_FROM_LIDAR[:3, 3]
    behind = (np.arange(W) % 2 == 0) & (ranges > 0)
    distance = np.linalg.norm(frame.points[first:, :3] - origin, axis=1)
    np.testing.assert_allclose(distance, ranges[behind] + 2, atol=1e-4)
    np.testing.assert_allclose(frame.points[:first, 3], np.tanh(0.5), atol=1e-6)
    np.testing.assert_allclose(frame.points[first:, 3], np.tanh(3.0), atol=1e-6)


def test_labels_are_those_of_the_pixels(root: Path) -> None:
    source, first = Waymo(root), int((wall()[0] > 0).sum())
    labels = source[0].labels
    assert (labels[:first] == source.taxonomy.index("motorcycle")).all()  # raw 13
    assert (labels[first:] == source.taxonomy.index("building")).all()  # raw 14
    assert (source[1].labels[first:] == 255).all()  # the second frame has no labels of its second return


def test_points_move_with_the_pose_of_their_pixel(tmp_path: Path) -> None:
    """The vehicle drove on by 1 m along its x when a pixel was measured: that pixel's point lies 1 m further."""
    ahead = WORLD_FROM_VEHICLE @ se3.poses(1.0, 0.0)
    pixel_pose = np.tile([0.0, 0.01, 0.7, *ahead[:3, 3]], (H, W, 1))
    write_segment(tmp_path / "training", "1", pixel_pose)
    frame, points = Waymo(tmp_path)[0], wall()[1]
    moved = frame.points[: len(points), :3] - points
    np.testing.assert_allclose(moved, np.broadcast_to([1, 0, 0], moved.shape), atol=2e-3)  # poses are float32 km


def test_poses_of_pixels_are_yaw_then_pitch_then_roll() -> None:
    world_from_vehicle = se3.poses(5.0, -3.0, 1.0, yaw=0.3)
    pose = np.array([[0.1, -0.2, 1.1, 6.0, -3.5, 1.2]])
    point = np.array([[10.0, 2.0, -1.0]])
    at_pixel = se3.poses(6.0, -3.5, 1.2, yaw=1.1, pitch=-0.2, roll=0.1)
    expected = se3.apply(se3.inverse(world_from_vehicle) @ at_pixel, point)
    np.testing.assert_allclose(at_the_frame(point, pose, world_from_vehicle), expected, atol=1e-12)


def test_the_middle_of_the_image_looks_ahead() -> None:
    """Whatever the yaw of the sensor: columns run clockwise from behind."""
    for yaw in (0.0, 1.0, -2.5):
        points = cartesian(np.full((1, 4), 10.0), np.zeros(1), se3.poses(0.0, 0.0, yaw=yaw))
        angles = np.arctan2(points[0, :, 1], points[0, :, 0])
        np.testing.assert_allclose(angles, np.radians([135, 45, -45, -135]), atol=1e-12)


def test_uniform_inclinations_follow_from_their_limits(root: Path) -> None:
    path = root / "training/lidar_calibration/1001_000.parquet"
    table = parquet.read_table(path)
    name = "[LiDARCalibrationComponent].beam_inclination.values"
    place = table.schema.get_field_index(name)
    empty = arrow.array([None, None], arrow.list_(arrow.float64()))
    parquet.write_table(table.set_column(place, name, empty), path)
    source = Waymo(root)
    inclination, _ = source._calibration(source.scans[0], H)
    np.testing.assert_allclose(inclination, [0.05, -0.05, -0.15, -0.25, -0.35], atol=1e-12)


def test_a_pickled_source_reads_the_same(root: Path) -> None:
    source = Waymo(root)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1].points, source[1].points)


def replace(path: Path, name: str, cells: list, kind: object) -> None:
    table = parquet.read_table(path)
    place = table.schema.get_field_index(name)
    parquet.write_table(table.set_column(place, name, arrow.array(cells, kind)), path)


LIDAR = "training/lidar/1001_000.parquet"
LABELS = "training/lidar_segmentation/1001_000.parquet"
CALIBRATION = "training/lidar_calibration/1001_000.parquet"
LABEL_VALUES = "[LiDARSegmentationLabelComponent].range_image_return1.values"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: (r / LIDAR).unlink(), r"lidar/1001_000.parquet is missing"),
        (lambda r: (r / LIDAR).write_bytes((r / LIDAR).read_bytes()[:-9]), r"no readable parquet"),
        (lambda r: (r / LABELS).write_bytes(b"PAR1"), r"lidar_segmentation/1001_000.parquet is no readable"),
        (lambda r: write(r / LIDAR, keys([STAMPS[0]], [1])), r"no column \[LiDARComponent\]"),
        (lambda r: write(r / CALIBRATION, {"key.laser_name": ([2], arrow.int8())}), r"no column|lacks the TOP"),
        (
            lambda r: write(r / "training/vehicle_pose/1001_000.parquet", keys([7], None)),
            r"no row of the frame|no column",
        ),
        (
            lambda r: replace(r / LABELS, LABEL_VALUES, [[1, 2]] * 2, arrow.list_(arrow.int32())),
            r"2 values are no range",
        ),
        (
            lambda r: replace(r / LABELS, LABEL_VALUES, [[0, 99] * H * W] * 2, arrow.list_(arrow.int32())),
            r"labels are no ids of waymo, e.g. 99",
        ),
        (
            lambda r: replace(
                r / LIDAR,
                "[LiDARComponent].range_image_return1.values",
                [[float("nan")] * H * W * 4] * 6,
                arrow.list_(arrow.float32()),
            ),
            r"return 1 has values that are not finite",
        ),
    ],
)
def test_a_broken_copy_is_named(root: Path, break_it: object, message: str) -> None:
    break_it(root)
    with pytest.raises(DatasetError, match=message):
        Waymo(root)[0]


def test_a_split_without_labels_says_so(root: Path) -> None:
    with pytest.raises(DatasetError, match="no scans of split 'test'"):
        Waymo(root, "test")


def test_without_pyarrow_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"lima_ros\[waymo\]"):
        Waymo(root)

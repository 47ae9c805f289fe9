"""The whole step on scenes small enough to know every target, and what bad frames become."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lima_core.data.augment import AugmentConfig
from lima_core.data.frame import CameraView, Frame, Image
from lima_core.lima.alignment import mix
from lima_core.lima.cross_view import Sightings
from lima_core.lima.memory import MemoryBank
from lima_core.lima.step import Lima, LimaConfig, Scene
from lima_core.lima.view import View, ViewError, frame_view, pictures
from lima_core.models.voxelize import VoxelConfig
from lima_core.sparse.tensor import SparseTensor

STILL = AugmentConfig(flip=0.0, rotation=0.0, scale=(1.0, 1.0), intensity_gain=1.0)
VOXELS = VoxelConfig("cartesian", (0.1, 0.1, 0.1), "floor")


class Pointwise(nn.Module):
    """A student without neighbours: an MLP on each voxel's own input."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 16))

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_features(self.layers(x.features))


class Intensity(nn.Module):
    """A student that has learnt: intensity 1 -> (1, 0), intensity 0 -> (0, 1)."""

    out_channels = 2

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_features(torch.stack([x.features[:, 3], 1 - x.features[:, 3]], 1))


def lima(student: nn.Module | None = None, channels: int = 2, **config) -> Lima:
    torch.manual_seed(0)
    model = Lima(student or Pointwise(), channels, LimaConfig(**config), VOXELS, STILL)
    if isinstance(student, Intensity):
        model.head = nn.Linear(2, 2, bias=False)
        model.head.weight.data.copy_(torch.eye(2))
    return model


def cloud(seed: int, intensity: float, count: int = 400) -> np.ndarray:
    """Points in the middle of different 0.1 m voxels, all around, of one intensity."""
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers([-200, -200, -60], [200, 200, 20], (count, 3)), axis=0)
    return np.c_[cells * 0.1 + 0.05, np.full(len(cells), intensity)].astype(np.float32)


def view(points: np.ndarray, feature: list[float], seen: list[int] | None = None, x: float = 0.0) -> View:
    """One camera that shows one feature everywhere and sees the rows `seen`, or all."""
    rows = torch.arange(len(points)) if seen is None else torch.tensor(seen, dtype=torch.int64)
    pose = np.eye(4)
    pose[0, 3] = x
    found = Sightings(torch.zeros_like(rows), rows, torch.full((len(rows), 2), 0.5))
    grids = torch.tensor(feature)[None, :, None, None].expand(1, -1, 2, 2)
    return View("toy frame 0", points, pose, found, cameras=1, dropped_points=0).with_grids(grids)


def two_scenes(swapped: bool = False) -> list[Scene]:
    """Sequence a is bright and seen as (1, 0), b is dark and seen as (0, 1); or the features the other way round."""
    one, other = ([0.0, 1.0], [1.0, 0.0]) if swapped else ([1.0, 0.0], [0.0, 1.0])
    return [
        Scene("a", 0, view(cloud(1, 1.0), one), seed=1),
        Scene("b", 0, view(cloud(2, 0.0), other), seed=2),
    ]


@pytest.mark.parametrize("mixing", ["frustum", "laser", "cutmix"])
def test_every_point_is_aligned_to_its_own_sequence_also_when_mixed(mixing):
    """A student that knows is right about every point; with the targets swapped it is wrong about every point."""
    right = lima(Intensity(), mixing=mixing).step(two_scenes()).parts
    wrong = lima(Intensity(), mixing=mixing).step(two_scenes(swapped=True)).parts
    assert right["distill"].item() == pytest.approx(0, abs=1e-6)
    assert right["mix"].item() == pytest.approx(0, abs=1e-6)
    assert wrong["distill"].item() == pytest.approx(math.sqrt(2), rel=1e-5)
    assert wrong["mix"].item() == pytest.approx(math.sqrt(2), rel=1e-5)


def test_one_wrong_source_shows_in_the_mixed_scene_by_its_share():
    scenes = two_scenes()
    scenes[1] = two_scenes(swapped=True)[1]
    parts = lima(Intensity()).step(scenes).parts
    shares = []
    for a, b in ((0, 1), (1, 0)):
        rng = np.random.default_rng(scenes[a].seed)
        rng.random(2), rng.uniform(), rng.uniform(), rng.uniform()  # what augmenting scene a has drawn
        rows = mix(scenes[a].current.points, scenes[b].current.points, "frustum", rng)
        shares.append(len(rows[1 - a]) / (len(rows[0]) + len(rows[1])))
    assert parts["distill"].item() == pytest.approx(math.sqrt(2) / 2, rel=1e-5)
    assert parts["mix"].item() == pytest.approx(math.sqrt(2) * np.mean(shares), rel=1e-5)


def test_parts_add_up_and_are_named():
    loss = lima(mix_weight=0.25).step(two_scenes())
    parts = loss.parts
    assert set(parts) == {"distill", "mix", "targets", "blind", "unmixed", "dropped_points"}
    assert loss.total.item() == pytest.approx(parts["distill"].item() + 0.25 * parts["mix"].item())
    assert not any(part.requires_grad for part in parts.values()) and loss.total.requires_grad
    assert parts["targets"] == sum(len(s.current.points) for s in two_scenes())
    assert parts["blind"] == parts["unmixed"] == parts["dropped_points"] == 0


def test_one_sequence_alone_is_not_mixed_and_counted():
    scene = two_scenes()[0]
    parts = lima().step([scene, replace(scene, index=1)]).parts
    assert parts["unmixed"] == 2 and "mix" not in parts
    three = lima().step([scene, replace(scene, index=1), two_scenes()[1]]).parts
    assert three["unmixed"] == 0 and "mix" in three
    assert "unmixed" not in lima(mixing=None).step(two_scenes()).parts


def test_the_loss_falls_when_two_scenes_are_learnt_by_heart():
    model, scenes = lima(), two_scenes()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for step in range(30):
        loss = model.step([replace(scene, seed=2 * step + i) for i, scene in enumerate(scenes)])
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[0] > 1.0 and losses[-1] < 0.2 * losses[0]


def test_equal_seeds_give_equal_losses_and_other_seeds_others():
    model = lima(distance="infonce")
    first, again = model.step(two_scenes()).total.item(), model.step(two_scenes()).total.item()
    other = model.step([replace(scene, seed=scene.seed + 10) for scene in two_scenes()]).total.item()
    assert first == again != other


def test_two_halves_of_a_batch_average_to_the_whole():
    """Scenes of different sizes, one without any target: what two processes need to equal one."""
    scenes = [
        *two_scenes(),
        Scene("c", 3, view(cloud(3, 0.5, 90), [0.6, 0.8], seen=[]), seed=3),
        Scene("d", 5, view(cloud(4, 0.2, 700), [0.8, -0.6], seen=list(range(50))), seed=4),
    ]
    model = lima()

    def gradient(batch: list[Scene]) -> torch.Tensor:
        model.zero_grad()
        model.step(batch).total.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(scenes)
    halves = (gradient(scenes[:2]) + gradient(scenes[2:])) / 2
    torch.testing.assert_close(halves, whole, atol=1e-6, rtol=1e-5)


def test_targets_come_from_the_past_as_well():
    """The row that no camera sees now was seen one frame ago, 2 m further back."""
    points = cloud(5, 0.5)
    before = points.copy()
    before[:, 0] += 2
    now, past = view(points, [1.0, 0.0], seen=[0, 1, 2]), view(before, [0.0, 1.0], seen=[1, 7], x=-2.0)
    target = lima(mixing=None).target(Scene("a", 1, now, (past,)))
    assert target.rows.tolist() == [0, 1, 2, 7]
    torch.testing.assert_close(target.features, torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]))
    assert lima(frames=1).target(Scene("a", 1, now, (past,))).rows.tolist() == [0, 1, 2]


def test_only_the_last_frames_are_used_and_a_short_past_is_enough():
    points = cloud(5, 0.5)
    past = tuple(view(points, [0.0, 1.0], seen=[i]) for i in range(4))
    current = view(points, [1.0, 0.0], seen=[9])
    assert lima(frames=3).target(Scene("a", 9, current, past)).rows.tolist() == [2, 3, 9]
    assert lima(frames=20).target(Scene("a", 4, current, past)).rows.tolist() == [0, 1, 2, 3, 9]


def test_a_stream_gives_the_targets_of_windows():
    points = cloud(5, 0.5)
    angles = np.linspace(0, 1, 5)
    views = [view(points, [math.cos(a), math.sin(a)], seen=[i, i + 1]) for i, a in enumerate(angles)]
    model, bank = lima(frames=3), MemoryBank(2)
    for index, current in enumerate(views):
        streamed = model.target(Scene("a", index, current), bank)
        window = model.target(Scene("a", index, current, tuple(views[max(0, index - 2) : index])))
        assert streamed.rows.tolist() == window.rows.tolist()
        torch.testing.assert_close(streamed.features, window.features)
    other = model.target(Scene("b", 5, views[0]), bank)
    assert other.rows.tolist() == [0, 1], "the bank let one sequence's memory into another"


def overlapping() -> View:
    """Three points: the first seen by camera 0, the second by both, the third by none."""
    points = cloud(6, 0.5)[:3]
    seen = Sightings(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.full((3, 2), 0.5))
    grids = torch.tensor([[2.0, 0.0], [0.0, 3.0]])[:, :, None, None].expand(-1, -1, 2, 2)
    return View("toy frame 1", points, np.eye(4), seen, cameras=2, dropped_points=0).with_grids(grids)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("mean", [(0, 1.0, 0.0), (1, 0.5, 0.5)]),
        ("max", [(0, 1.0, 0.0), (1, 1.0, 1.0)]),
        ("apart", [(0, 1.0, 0.0), (1, 1.0, 0.0), (1, 0.0, 1.0)]),
    ],
)
def test_cross_view_operators(operator, expected):
    target = lima(cross_view=operator).target(Scene("a", 0, overlapping()))
    found = [(row, *feature) for row, feature in zip(target.rows.tolist(), target.features.tolist(), strict=True)]
    assert sorted(found) == sorted(expected)


def test_apart_each_camera_meets_the_past_and_what_is_only_remembered_counts_once():
    current = overlapping()
    past = view(current.points, [-1.0, 0.0], seen=[1, 2])
    target = lima(cross_view="apart").target(Scene("a", 1, current, (past,)))
    found = sorted(zip(target.rows.tolist(), target.features.tolist(), strict=True))
    assert found == [(0, [1.0, 0.0]), (1, [-0.5, 0.5]), (1, [0.0, 0.0]), (2, [-1.0, 0.0])]
    loss = lima(cross_view="apart").step([Scene("a", 1, current, (past,)), two_scenes()[1]])
    assert torch.isfinite(loss.total)


def test_a_view_without_features_is_an_error():
    bare = replace(view(cloud(1, 1.0), [1.0, 0.0]), grids=None)
    with pytest.raises(ValueError, match="toy frame 0: no patch features"):
        lima().step([Scene("a", 0, bare)])


# From Frame to View: what bad input becomes.


def camera(name: str = "CAM_FRONT", size: tuple[int, int] = (64, 48), **changes) -> CameraView:
    """Looks along the LiDAR's x axis."""
    looking = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    K = np.array([[size[0] / 2, 0, size[0] / 2], [0, size[0] / 2, size[1] / 2], [0, 0, 1]])
    image = Image(pixels=np.zeros((size[1], size[0], 3), np.uint8), source=f"{name}.jpg")
    return replace(CameraView(name, 0, image, size, K, looking), **changes)


AHEAD = np.array([[10, 0, 0, 0.5], [10, 1, 0, 0.5], [-10, 0, 0, 0.5]], np.float32)


def frame(points: np.ndarray = AHEAD, cameras: tuple[CameraView, ...] | None = None, **changes) -> Frame:
    cameras = (camera(),) if cameras is None else cameras
    return replace(Frame(0, "drive-3", 17, points, np.eye(4), cameras), **changes)


def test_a_frame_becomes_a_view():
    found = frame_view(frame())
    assert found.where == "drive-3 frame 17" and found.cameras == 1 and found.dropped_points == 0
    assert found.seen.point.tolist() == [0, 1]
    torch.testing.assert_close(found.seen.uv[0], torch.tensor([32.5 / 64, 24.5 / 48]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1001.0])
@pytest.mark.parametrize("column", [0, 2])
def test_points_that_are_none_are_dropped_and_counted(bad, column):
    points = np.insert(AHEAD, 0, [10, 0.5, 0, 0.5], axis=0)
    points[0, column] = bad
    found = frame_view(frame(points, labels=np.zeros(4, np.uint8)))
    np.testing.assert_array_equal(found.points, AHEAD)
    assert found.dropped_points == 1 and found.seen.point.tolist() == [0, 1], "rows no longer fit the points"
    scene = Scene("a", 0, found.with_grids(torch.ones(1, 2, 2, 2)))
    assert lima().step([scene]).parts["dropped_points"] == 1


def test_a_nan_intensity_is_no_point_either():
    points = AHEAD.copy()
    points[1, 3] = np.nan
    assert frame_view(frame(points)).dropped_points == 1


def test_a_missing_camera_leaves_the_others():
    found = frame_view(frame(cameras=(camera("CAM_BACK"),)))
    assert found.cameras == 1 and found.seen.point.tolist() == [0, 1]
    none = frame_view(frame(cameras=()))
    assert none.cameras == 0 and none.seen.point.tolist() == [] and pictures(frame(cameras=())) == []
    parts = lima().step([Scene("a", 0, none.with_grids(torch.empty(0, 2, 2, 2)))]).parts
    assert parts["blind"] == 1 and parts["targets"] == 0 and parts["distill"] == 0


def test_a_frame_that_no_camera_sees_is_counted_and_moves_nothing():
    behind = frame_view(frame(AHEAD[2:])).with_grids(torch.ones(1, 2, 2, 2))
    model = lima()
    loss = model.step([Scene("a", 0, behind)])
    loss.total.backward()
    assert loss.parts["blind"] == 1 and loss.total.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_pictures_of_different_sizes_see_the_same_places():
    cameras = (camera("CAM_FRONT", (64, 48)), camera("CAM_WIDE", (640, 480)))
    found = frame_view(frame(cameras=cameras))
    assert [p.shape for p in pictures(frame(cameras=cameras))] == [(48, 64, 3), (480, 640, 3)]
    torch.testing.assert_close(found.seen.of(0).uv, found.seen.of(1).uv, atol=0.01, rtol=0)


NAN_POSE, HALF_POSE = np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: frame(world_from_lidar=NAN_POSE), "drive-3 frame 17: world_from_lidar is missing"),
        (lambda: frame(world_from_lidar=np.zeros((4, 4))), "drive-3 frame 17: world_from_lidar is no rigid"),
        (lambda: frame(world_from_lidar=HALF_POSE), "drive-3 frame 17: world_from_lidar is no rigid"),
        (
            lambda: frame(cameras=(camera(camera_from_lidar=NAN_POSE),)),
            "drive-3 frame 17, CAM_FRONT: camera_from_lidar is missing",
        ),
        (lambda: frame(cameras=(camera(K=np.zeros((3, 3))),)), "drive-3 frame 17, CAM_FRONT: intrinsics"),
        (lambda: frame(np.full((5, 4), np.nan, np.float32)), "drive-3 frame 17: none of its 5 points"),
        (lambda: frame(AHEAD[:0]), "drive-3 frame 17: none of its 0 points"),
    ],
)
def test_frames_that_cannot_be_learnt_from(bad, message):
    with pytest.raises(ViewError, match=message):
        frame_view(bad())


@pytest.mark.parametrize("bytes_", [b"", b"\xff\xd8\xff\xe0 no jpeg"])
def test_a_corrupt_jpeg_is_named_by_file_frame_and_camera(bytes_):
    broken = camera(image=Image(encoded=bytes_, source="/data/CAM_FRONT/1.jpg"))
    frame_view(frame(cameras=(broken,)))  # a cached frame needs no picture
    with pytest.raises(ViewError, match=r"drive-3 frame 17, CAM_FRONT: /data/CAM_FRONT/1.jpg"):
        pictures(frame(cameras=(broken,)))


def test_a_picture_that_its_calibration_is_not_for():
    small = camera(image=Image(pixels=np.zeros((24, 32, 3), np.uint8)))
    with pytest.raises(ViewError, match=r"drive-3 frame 17, CAM_FRONT: .*32 x 24.*64 x 48"):
        pictures(frame(cameras=(small,)))


def test_one_grid_per_camera():
    with pytest.raises(ViewError, match=r"drive-3 frame 17: .*\(2, 8, 2, 2\) for 1 cameras"):
        frame_view(frame()).with_grids(torch.zeros(2, 8, 2, 2))

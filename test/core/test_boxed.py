"""Sweeps with boxes of every source: what is in them, shares, what is kept on disk, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drives import ToyDrive
from lima_core.config import ConfigError
from lima_core.data import boxed
from lima_core.data.boxed import BoxedSweep, open_boxed, read_boxed, simulate_boxed, street_folder, write_boxed
from lima_core.data.frame import Boxes, DatasetError, Frame
from lima_core.data.labelled import DataConfig, StreetConfig
from lima_core.data.multisweep import aggregate, past_sweeps
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.data.splits import share_of_frames
from lima_core.data.synthetic.street import Street

STREETS = StreetConfig((3, 5), (9, 10), sweeps_per_street=2, sweep_stride=2)
FRAMES = 11  # of each of the two sequences of the drive


class BoxedDrive(ToyDrive):
    """The toy drive without cameras; frame i of a sequence has i boxes, the first one without a return."""

    def __init__(self) -> None:
        super().__init__(sequences=2, frames=FRAMES)
        self.rig = replace(self.rig, cameras=())

    def __getitem__(self, index: int) -> Frame:
        frame, count = super().__getitem__(index), index % FRAMES
        return replace(frame, cameras=(), boxes=some_boxes(count))


def some_boxes(count: int) -> Boxes:
    rng = np.random.default_rng(count)
    yaw, velocity = rng.uniform(-3, 3, count), rng.normal(size=(count, 2))
    class_id, points = rng.integers(0, 10, count).astype(np.uint8), np.arange(count, dtype=np.int32)
    return Boxes(rng.uniform(-40, 40, (count, 3)), rng.uniform(1, 4, (count, 3)), yaw, velocity, class_id, points)


def assert_same(a: BoxedSweep, b: BoxedSweep) -> None:
    assert (a.current, a.beams) == (b.current, b.beams)
    np.testing.assert_array_equal(a.points, b.points)
    np.testing.assert_array_equal(a.labels, b.labels)
    for name, column in vars(a.boxes).items():
        np.testing.assert_array_equal(column, getattr(b.boxes, name), err_msg=name)
        assert getattr(column, "dtype", None) == getattr(getattr(b.boxes, name), "dtype", None), name


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuscenes(BoxedDrive(), tmp_path_factory.mktemp("nus"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_frames_of_nuscenes_have_boxes_and_the_sweeps_before(drive: Path) -> None:
    source, sweeps = BoxedDrive(), open_boxed(DataConfig("nuscenes", str(drive)), "train", 3, 1)
    assert len(sweeps) == 2 * FRAMES and sweeps.sequences == source.sequences
    for index in (0, 1, 2, 5, FRAMES):
        found, past = sweeps[index], past_sweeps(source, index, 2)
        np.testing.assert_allclose(found.points, aggregate(source[index].points, past), atol=1e-5)
        assert found.current == len(source[index].points) and found.beams == 1 and found.labels is None
        assert len(found.boxes) == index % FRAMES
        np.testing.assert_allclose(found.boxes.center, source[index].boxes.center, atol=1e-9)
    assert np.unique(sweeps[5].points[:, 4]).tolist() == [0, 0.5, 1]
    assert not sweeps[0].points[:, 4].any()  # nothing before it


def test_one_sweep_is_the_current_one(drive: Path) -> None:
    found = open_boxed(DataConfig("nuscenes", str(drive)), "train", 1, 1)[5]
    assert len(found.points) == found.current and not found.points[:, 4].any()


@pytest.mark.parametrize(("share", "kept"), [(10, [0, 10, 20]), (20, [0, 5, 10, 15, 20]), (100, list(range(22)))])
def test_the_share_is_of_frames_in_order(drive: Path, share: int, kept: list[int]) -> None:
    """Every n-th keyframe, over the ends of scenes (spec/datasets.md 3.7), not every n-th scene."""
    found = open_boxed(DataConfig("nuscenes", str(drive), share), "train", 2, 1)
    source = BoxedDrive()
    assert [sweep.current for sweep in found] == [len(source[i].points) for i in kept]


def test_the_share_keeps_as_many_keyframes_as_published() -> None:
    """Of the 28130 of v1.0-trainval (nuscenes_detection.yaml, fractions)."""
    assert [len(share_of_frames(28130, percent)) for percent in (5, 10, 20)] == [1407, 2813, 5626]


def test_the_real_keyframe_has_its_boxes(shared: Path) -> None:
    (found,) = open_boxed(DataConfig("nuscenes", str(shared / "data" / "nus_tiny")), "train", 10, 1)
    assert found.points.shape == (34688, 5) and found.current == 34688 and found.beams == 32
    assert len(found.boxes) == 68 and found.boxes.attribute is None and found.boxes.points.min() == 0
    assert len(found.trainable().boxes) == np.count_nonzero(found.boxes.points)


def test_a_real_drive_has_its_past(shared: Path) -> None:
    found = open_boxed(DataConfig("nuscenes", str(shared / "data" / "ddad_as_nus")), "train", 10, 1)
    assert [len(np.unique(sweep.points[:, 4])) for sweep in found] == [1, 2, 3]


def test_a_data_set_without_annotations_is_named(shared: Path) -> None:
    found = open_boxed(DataConfig("nuscenes", str(shared / "data" / "pclseg_as_nus")), "train", 2, 1)
    with pytest.raises(DatasetError, match=r"frame 3 has no boxes.*sample_annotation.json"):
        found[3]


def test_streets_are_those_of_the_simulator(cache: Path) -> None:
    """The first sweep is taken once there are enough before it, the next ones at the stride."""
    found = open_boxed(DataConfig(street=STREETS), "train", 3, 1)
    assert found.sequences == ("street-3", "street-3", "street-4", "street-4")
    street = Street(4, frames=5, cameras=False)
    for sweep, index in ((found[2], 2), (found[3], 4)):
        frame = street[index]
        expected = aggregate(frame.points, past_sweeps(street, index, 2))
        beams = len(np.unique(frame.extra["ring"]))
        assert_same(sweep, BoxedSweep(expected, len(frame.points), frame.boxes, frame.labels, beams))
        assert np.unique(sweep.points[:, 4]) == pytest.approx([0, 0.1, 0.2])
        assert (sweep.boxes.points > 0).all() and len(sweep.trainable().boxes) == len(sweep.boxes) > 10


def test_streets_that_are_kept_are_not_simulated_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share asks for some of them, a larger one for the others only; without a missing one nothing is drawn."""
    street = replace(STREETS, train_seeds=(3, 6))
    few = open_boxed(DataConfig(street=street, share=25), "train", 1, 1)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert sorted(path.name for path in files) == ["street-3-0.safetensors", "street-5-0.safetensors"]
    assert {path.parent for path in files} == {street_folder(street, 1)}
    more = open_boxed(DataConfig(street=street, share=50), "train", 1, 1)
    assert len(list(cache.rglob("*.safetensors"))) == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in files.items())
    assert_same(few[0], more[0])
    monkeypatch.setattr(boxed, "for_each_street", None)
    assert_same(open_boxed(DataConfig(street=street, share=50), "train", 1, 1)[2], more[2])


def test_what_a_street_depends_on_names_its_folder(cache: Path) -> None:
    kinds = [
        (STREETS, 2),
        (STREETS, 3),
        (replace(STREETS, sweep_stride=3), 2),
        (replace(STREETS, train_seeds=(0, 9)), 2),
    ]
    folders = [street_folder(*kind) for kind in kinds]
    assert len(set(folders)) == 3 and folders[3] == folders[0]  # seeds are in the names of the files
    assert all(folder.parent == cache / "lima" for folder in folders)


@pytest.mark.slow
def test_more_workers_draw_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = list(simulate_boxed([(3, 0), (4, 1)], STREETS, 2, 1, "streets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))
    two = simulate_boxed([(3, 0), (4, 1)], STREETS, 2, 2, "streets")
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)


@pytest.fixture
def sweep() -> BoxedSweep:
    points = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    return BoxedSweep(points, 12, some_boxes(4), np.arange(12, dtype=np.uint8), 32)


@pytest.mark.parametrize("change", [{}, {"labels": None}, {"boxes": Boxes.joined([])}])
def test_a_kept_sweep_comes_back(sweep: BoxedSweep, tmp_path: Path, change: dict) -> None:
    sweep = replace(sweep, **change)
    write_boxed(sweep, tmp_path / "a" / "sweep.safetensors")
    assert_same(read_boxed(tmp_path / "a" / "sweep.safetensors"), sweep)
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_nothing_at_all_can_be_kept(tmp_path: Path) -> None:
    nothing = BoxedSweep(np.zeros((0, 5), np.float32), 0, Boxes.joined([]), np.zeros(0, np.uint8), 0)
    write_boxed(nothing, tmp_path / "sweep")
    assert_same(read_boxed(tmp_path / "sweep"), nothing)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:5], lambda b: b"", lambda b: b"x" * 99])
def test_a_broken_kept_sweep_is_named(sweep: BoxedSweep, tmp_path: Path, damage: object) -> None:
    path = tmp_path / "street-1-0.safetensors"
    write_boxed(sweep, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"street-1-0.safetensors is no kept sweep .*delete it"):
        read_boxed(path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"street-1-0.safetensors is no kept sweep"):
        read_boxed(path)


def test_boxes_without_a_return_are_no_target(sweep: BoxedSweep) -> None:
    assert sweep.trainable().boxes.points.tolist() == [1, 2, 3]
    uncounted = replace(sweep, boxes=replace(sweep.boxes, points=None))
    assert uncounted.trainable() is uncounted


def test_columns_that_do_not_fit_are_refused(sweep: BoxedSweep) -> None:
    with pytest.raises(ValueError, match=r"\(N, 5\) float32, got \(20, 4\)"):
        replace(sweep, points=sweep.points[:, :4])
    with pytest.raises(ValueError, match=r"12 labels for 11 points"):
        replace(sweep, current=11)
    with pytest.raises(ValueError, match=r"21 of 20 points"):
        replace(sweep, current=21)


@pytest.mark.parametrize(
    ("config", "sweeps", "message"),
    [
        (DataConfig("semantickitti", "."), 10, r"semantickitti has no boxes to detect; there are nuscenes, street"),
        (DataConfig("nusenes", "."), 10, r"nusenes has no boxes"),
        (DataConfig("nuscenes"), 10, r"needs data.root"),
        (DataConfig(share=3), 10, r"data.share: a share of 3 % is not defined.* 5, 10, 20, 25"),
        (DataConfig(), 0, r"0 sweeps are none"),
    ],
)
def test_contradictions_are_refused(config: DataConfig, sweeps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_boxed(config, "train", sweeps, 1)


def test_classes_are_those_of_trainable_boxes(drive: Path, cache: Path) -> None:
    for config in (DataConfig("nuscenes", str(drive)), DataConfig(street=replace(STREETS, train_seeds=(3, 4)))):
        found = open_boxed(config, "train", 1, 1)
        for index, sweep in enumerate(found):
            classes = found.classes(index)
            assert classes.dtype == np.uint8
            assert classes.tolist() == sorted(set(sweep.trainable().boxes.class_id.tolist()))


def test_classes_of_a_broken_kept_sweep_are_named(cache: Path) -> None:
    street = replace(STREETS, train_seeds=(3, 4), sweeps_per_street=1)
    found = open_boxed(DataConfig(street=street), "train", 1, 1)
    (path,) = cache.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"street-3-0.safetensors is no kept sweep"):
        found.classes(0)


def test_they_can_be_pickled(drive: Path, cache: Path) -> None:
    for config in (DataConfig("nuscenes", str(drive)), DataConfig(street=replace(STREETS, sweeps_per_street=1))):
        found = open_boxed(config, "train", 1, 1)
        assert_same(pickle.loads(pickle.dumps(found))[1], found[1])

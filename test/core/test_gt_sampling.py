"""The database of objects: what is collected comes back, what does not fit is refused, what is pasted lies right."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lima_core.config import ConfigError
from lima_core.data.boxed import BoxedSweep, open_boxed
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, DatasetError
from lima_core.data.gt_sampling import GROUPS, GtDatabase, made_with
from lima_core.data.labelled import DataConfig, StreetConfig
from lima_core.geometry.boxes import box_table, points_in_boxes
from lima_core.tools import gt_database
from lima_core.tools.gt_database import MIN_POINTS, GtDatabaseConfig, Objects, build, objects_of, write_database

DATA = DataConfig(name="nuscenes", root="/somewhere", share=5)
META = {"format": 1, "made_with": made_with(DATA, 10), "frames": 3}
NO_LAG, LAG = 0.0, 0.05


def row_of_boxes(seed: int, class_ids: list[int], y: float = 0.0, points: int = 12) -> BoxedSweep:
    """Boxes of 2 x 1 x 1 m every 5 m along x at `y`, points inside them, and 30 points at y + 20, far from any.

    The first half of the points of each box is the current sweep's.
    """
    rng = np.random.default_rng(seed)
    count = len(class_ids)
    center = np.column_stack([5.0 * np.arange(count), np.full(count, y), np.ones(count)])
    boxes = Boxes(
        center, np.tile([2.0, 1, 1], (count, 1)), rng.uniform(-3, 3, count), rng.normal(size=(count, 2)),
        np.array(class_ids, np.uint8), np.full(count, points, np.int32),
    )  # fmt: skip
    inside = center.repeat(points, 0) + rng.uniform(-0.3, 0.3, (count * points, 3))
    xyz = np.concatenate([inside, rng.uniform((0, y + 20, 0), (30, y + 50, 30), (30, 3))])
    lag = np.concatenate([np.tile(np.where(np.arange(points) < points // 2, NO_LAG, LAG), count), np.full(30, LAG)])
    table = np.column_stack([xyz, rng.random(len(xyz)), lag]).astype(np.float32)
    order = np.argsort(lag, kind="stable")
    current = int((lag == NO_LAG).sum())
    return BoxedSweep(table[order], current, boxes, rng.integers(0, 16, current).astype(np.uint8), 32)


def database(path: Path, sweeps: list[BoxedSweep]) -> GtDatabase:
    return GtDatabase(write_database(path, map(objects_of, sweeps), META)[0])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> GtDatabase:
    """Sixteen objects of each class, none near another."""
    sweeps = [row_of_boxes(c, [c] * 16, y=30.0 * c + 3) for c in range(10)]
    return database(tmp_path_factory.mktemp("gt") / "many.safetensors", sweeps)


def rows(points: np.ndarray) -> set[tuple]:
    return set(map(tuple, points.round(3).tolist()))


def test_groups_are_of_the_classes_of_the_task_and_as_specified(shared: Path) -> None:
    import yaml

    sheet = yaml.safe_load((shared / "spec" / "datasets" / "nuscenes_detection.yaml").read_text())["gt_sampling"]
    assert sheet == {"min_points": MIN_POINTS, "groups": GROUPS}


def test_groups_follow_the_order_of_the_classes() -> None:
    assert tuple(GROUPS) == load_taxonomy("nuscenes").detection_names


def test_objects_have_their_points_relative_to_the_centre_and_enough_of_them() -> None:
    sweep = row_of_boxes(0, [0, 8])
    few = replace(sweep, points=np.concatenate([sweep.points, [[100, 0, 1, 0.5, LAG]] * 4]).astype(np.float32))
    lonely = Boxes(np.array([[100.0, 0, 1]]), np.ones((1, 3)), np.zeros(1), np.zeros((1, 2)), np.array([3], np.uint8))
    few = replace(few, boxes=Boxes.joined([sweep.boxes, lonely]))
    objects = objects_of(few)
    assert objects.class_id.tolist() == [0, 8] and objects.count.tolist() == [12, 12]
    assert np.abs(objects.points[:, :3]).max() <= 0.3 + 1e-5
    back = objects.points.copy()
    back[:12, :3] += sweep.boxes.center[0]
    back[12:, :3] += sweep.boxes.center[1]
    assert rows(back) <= rows(sweep.points)


def test_an_object_of_five_points_is_kept_and_one_of_four_is_not() -> None:
    assert objects_of(row_of_boxes(0, [0], points=5)).count.tolist() == [5]
    assert objects_of(row_of_boxes(0, [0], points=4)).count.tolist() == []


def test_the_file_is_plain_safetensors_with_a_header_of_json(tmp_path: Path) -> None:
    path, counts = write_database(tmp_path / "a.safetensors", map(objects_of, [row_of_boxes(0, [0, 0, 8])]), META)
    tensors = load_file(path)  # the library's own reader
    assert {name: value.shape for name, value in tensors.items()} == {
        "points": (36, 5), "boxes": (3, 9), "count": (3,), "class_id": (3,),
    }  # fmt: skip
    with safe_open(path, framework="np") as file:
        meta = json.loads(file.metadata()["lima"])
    assert meta["made_with"] == {"data.name": "nuscenes", "data.share": 5, "sweeps": 10} and meta["frames"] == 3
    assert meta["counts"] == counts and counts["car"] == 2 and counts["pedestrian"] == 1 and sum(counts.values()) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_collected_is_pasted(tmp_path: Path) -> None:
    """Into an empty sweep: points, box, velocity and class come back where they were recorded."""
    recorded = row_of_boxes(3, [0, 8])
    recorded.boxes.velocity[1] = np.nan
    empty = BoxedSweep(np.zeros((0, 5), np.float32), 0, Boxes.joined([]), None, 0)
    pasted = database(tmp_path / "a.safetensors", [recorded]).paste(empty, np.random.default_rng(0))
    np.testing.assert_allclose(box_table(pasted.boxes), box_table(recorded.boxes), atol=1e-5)
    np.testing.assert_allclose(pasted.boxes.velocity, recorded.boxes.velocity, atol=1e-6)
    assert pasted.boxes.class_id.tolist() == [0, 8]
    assert rows(pasted.points) == rows(recorded.points[recorded.points[:, 1] < 10])
    assert pasted.current == 12 and pasted.labels is None


def test_groups_are_filled_up_to_their_size(many: GtDatabase) -> None:
    sweep = row_of_boxes(1, [0, 1, 1, 8, 8, 8], y=-20)
    pasted = many.paste(sweep, np.random.default_rng(0))
    present = np.bincount(pasted.boxes.class_id, minlength=10)
    assert present.tolist() == [2, 3, 7, 4, 6, 2, 6, 6, 3, 2], "three pedestrians were there, they stay"
    np.testing.assert_allclose(box_table(pasted.boxes)[:6], box_table(sweep.boxes))
    assert len(np.unique(box_table(pasted.boxes), axis=0)) == len(pasted.boxes), "no object twice"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_current_points_lead_and_labels_stay_with_their_points(many: GtDatabase, seed: int) -> None:
    sweep = row_of_boxes(seed % 50, [0, 8], y=3)  # where the database has objects too
    pasted = many.paste(sweep, np.random.default_rng(seed))
    assert (pasted.points[: pasted.current, 4] == NO_LAG).all() and (pasted.points[pasted.current :, 4] > NO_LAG).all()
    assert pasted.points.dtype == np.float32 and len(pasted.labels) == pasted.current
    before = dict(zip(map(tuple, sweep.points.tolist()), sweep.labels.tolist(), strict=False))
    after = zip(map(tuple, pasted.points.tolist()), pasted.labels.tolist(), strict=False)
    assert all(label == before.get(point, 255) for point, label in after)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_pasted_box_overlaps_another(many: GtDatabase, seed: int) -> None:
    """By peers: polygons of Shapely."""
    shapely = pytest.importorskip("shapely")
    from lima_core.geometry.boxes import bev_corners

    pasted = many.paste(row_of_boxes(seed % 50, [0, 8], y=3), np.random.default_rng(seed))
    polygons = shapely.polygons(bev_corners(box_table(pasted.boxes)))
    pairs = shapely.area(shapely.intersection(polygons[:, None], polygons[None]))
    assert pairs[~np.eye(len(polygons), dtype=bool)].max() < 1e-6


def test_an_object_that_overlaps_is_left_out_and_the_first_of_two_wins(tmp_path: Path) -> None:
    same_place = [row_of_boxes(seed, [8], y=0) for seed in range(4)]
    found = database(tmp_path / "a.safetensors", same_place)
    assert (found.paste(row_of_boxes(9, [8], y=0), np.random.default_rng(0)).boxes.class_id == 8).sum() == 1
    assert (found.paste(row_of_boxes(9, [0], y=50), np.random.default_rng(0)).boxes.class_id == 8).sum() == 1


def test_a_sweep_that_lacks_nothing_stays_as_it_is(tmp_path: Path) -> None:
    sweep = row_of_boxes(9, [0, 0, 0], y=50)
    assert database(tmp_path / "a.safetensors", [row_of_boxes(0, [0])]).paste(sweep, np.random.default_rng(0)) is sweep


def test_points_of_the_scene_inside_a_pasted_box_go(tmp_path: Path) -> None:
    found = database(tmp_path / "a.safetensors", [row_of_boxes(0, [8])])
    sweep = row_of_boxes(1, [0], y=40)
    rng = np.random.default_rng(0)
    blocking = np.column_stack([rng.uniform(-0.2, 0.2, (40, 2)), rng.uniform(0.9, 1.1, 40), np.zeros((40, 2))])
    sweep = replace(
        sweep, points=np.concatenate([blocking.astype(np.float32), sweep.points]), current=sweep.current + 40,
        labels=np.concatenate([np.full(40, 7, np.uint8), sweep.labels]),
    )  # fmt: skip
    pasted = found.paste(sweep, rng)
    assert len(pasted.boxes) == 2 and len(pasted.points) == len(sweep.points) - 40 + 12
    assert len(points_in_boxes(pasted.points, box_table(pasted.boxes))[1]) == 12
    assert pasted.labels.tolist() == sweep.labels[40:].tolist() + [255] * 6


def test_one_generator_one_result_also_after_pickling(many: GtDatabase) -> None:
    sweep = row_of_boxes(1, [0], y=-20)
    again: GtDatabase = pickle.loads(pickle.dumps(many))
    results = [source.paste(sweep, np.random.default_rng(5)) for source in (many, again)]
    np.testing.assert_array_equal(results[0].points, results[1].points)
    np.testing.assert_array_equal(box_table(results[0].boxes), box_table(results[1].boxes))
    other = many.paste(sweep, np.random.default_rng(6))
    assert not np.array_equal(box_table(other.boxes), box_table(results[0].boxes))
    assert len(pickle.dumps(many)) < 1000, "a path, not the objects"


def _points_pasted(found: GtDatabase) -> int:
    return len(found.paste(row_of_boxes(1, [0], y=-20), np.random.default_rng(5)).points)


def test_another_process_reads_it_too(many: GtDatabase) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_points_pasted, (many,)) == _points_pasted(many)


def test_objects_of_other_labels_are_refused(many: GtDatabase) -> None:
    many.check(replace(DATA, root="/moved"), 10, 3)
    for data, sweeps, named in [
        (replace(DATA, share=10), 10, "data.share=5, this training has data.share=10"),
        (DATA, 1, "sweeps=10, this training has sweeps=1"),
        (replace(DATA, name="street"), 10, "data.name=nuscenes, this training has data.name=street"),
    ]:
        with pytest.raises(ConfigError, match=named):
            many.check(data, sweeps, 3)


def test_objects_of_another_version_are_refused(many: GtDatabase) -> None:
    with pytest.raises(ConfigError, match="made of 3 frames, this training has 1407: of another version"):
        many.check(DATA, 10, 1407)


def test_other_streets_are_refused(tmp_path: Path) -> None:
    streets = DataConfig(street=StreetConfig(train_seeds=(0, 2)))
    meta = {**META, "made_with": made_with(streets, 1)}
    found = GtDatabase(write_database(tmp_path / "a", [objects_of(row_of_boxes(0, [0]))], meta)[0])
    found.check(replace(streets, street=replace(streets.street, val_seeds=(9, 10))), 1, 3)
    with pytest.raises(ConfigError, match=r"data.street.train_seeds=\[0, 2\]"):
        found.check(DataConfig(street=StreetConfig(train_seeds=(0, 4))), 1, 3)


def interrupted() -> Iterator[Objects]:
    yield objects_of(row_of_boxes(0, [0]))
    raise KeyboardInterrupt


def test_an_interrupted_command_leaves_the_older_file_and_no_half_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    with pytest.raises(KeyboardInterrupt):
        write_database(path, interrupted(), META)
    assert list(tmp_path.iterdir()) == []
    database(path, [row_of_boxes(0, [0, 8])])
    with pytest.raises(KeyboardInterrupt):
        write_database(path, interrupted(), META)
    assert list(tmp_path.iterdir()) == [path] and len(GtDatabase(path)) == 2


def test_frames_without_objects_make_no_database(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no object in 1 frames has 5 points"):
        write_database(tmp_path / "a", [objects_of(row_of_boxes(0, []))], META)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "absent", "pickle", "other"])
def test_a_broken_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    database(path, [row_of_boxes(0, [0, 8])])
    whole = path.read_bytes()
    content = {
        "truncated": whole[:-20], "header": b"\xff" * 30 + whole[30:], "empty": b"",
        "pickle": pickle.dumps({"points": [1.0]}),
    }.get(damage, whole)  # fmt: skip
    path.write_bytes(content)
    if damage == "absent":
        path.unlink()
    if damage == "other":
        save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(DatasetError, match=r"a.safetensors is no database of objects.*lima_core.tools.gt_database"):
        GtDatabase(path)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("count", np.array([12, 11], np.int32), "23 points, there are 24"),
        ("count", np.array([24, 0], np.int32), "24 points"),
        ("class_id", np.array([0, 10], np.uint8), "class 10"),
        ("boxes", np.zeros((2, 7), np.float32), "boxes is"),
        ("boxes", np.zeros((1, 9), np.float32), "1 boxes, 2 counts"),
        ("points", np.zeros((24, 5), np.float16), "F16"),
    ],
)
def test_columns_that_do_not_belong_together_are_named(tmp_path: Path, column: str, value, named: str) -> None:
    path = tmp_path / "a.safetensors"
    meta = database(path, [row_of_boxes(0, [0, 8])]).meta
    save_file({**load_file(path), column: value}, path, {"lima": json.dumps(meta)})
    with pytest.raises(DatasetError, match=named):
        GtDatabase(path)


@pytest.mark.parametrize("change", [{"format": 2}, {"class_names": ["car"]}, {"made_with": None}])
def test_another_format_or_other_classes_are_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "a.safetensors"
    meta = database(path, [row_of_boxes(0, [0])]).meta
    save_file(load_file(path), path, {"lima": json.dumps({**meta, **change})})
    with pytest.raises(DatasetError, match="is no database of objects"):
        GtDatabase(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_command_collects_what_the_training_split_has(tmp_path, monkeypatch, workers: int) -> None:
    opened = []

    def open_two(data: DataConfig, split: str, sweeps: int, workers: int) -> list[BoxedSweep]:
        opened.append((data.share, split, sweeps))
        return [row_of_boxes(0, [0, 8]), row_of_boxes(1, [1])]

    monkeypatch.setattr(gt_database, "open_boxed", open_two)
    path, counts = build(GtDatabaseConfig(data=DATA, sweeps=3, workers=workers, out=str(tmp_path)))
    assert opened == [(5, "train", 3)]
    found = GtDatabase(path)
    found.check(DATA, 3, 2)
    assert len(found) == 3 and found.meta["frames"] == 2
    assert {name: count for name, count in counts.items() if count} == {"car": 1, "truck": 1, "pedestrian": 1}


def test_objects_of_two_streets_are_pasted_into_a_third(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where streets are kept
    gt_database.main(["--data.street.train_seeds=[0,2]", "--data.street.sweeps_per_street=1", "--sweeps=1",
                      "--workers=1", f"--out={tmp_path}"])  # fmt: skip
    assert "wrote" in capsys.readouterr().out
    found = GtDatabase(tmp_path / "objects.safetensors")
    streets = StreetConfig(train_seeds=(2, 3), sweeps_per_street=1)
    sweep = open_boxed(DataConfig(street=streets), "train", 1, 1)[0]
    pasted = found.paste(sweep, np.random.default_rng(0))
    inside = points_in_boxes(pasted.points, box_table(pasted.boxes))
    assert len(pasted.boxes) > len(sweep.boxes)
    assert all(len(inside[box]) >= 4 for box in range(len(sweep.boxes), len(pasted.boxes)))

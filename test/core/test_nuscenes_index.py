"""The index of nuScenes' tables: pieces, references, sweeps, velocities and the cache."""

from __future__ import annotations

import json
import pickle
import random
import sys
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima_core.data import nuscenes_index, nuscenes_tables
from lima_core.data.attributes import ATTRIBUTES, NO_ATTRIBUTE
from lima_core.data.nuscenes import NuScenes, NuScenesError
from lima_core.data.nuscenes_index import Index, build_index, cache_path, open_index
from lima_core.data.nuscenes_tables import follow, links, read_columns, strings
from lima_core.geometry import se3

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from nuscenes_index import VERSION, write_tables


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nuscenes")
    write_tables(folder / VERSION, 2)
    return folder


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small tables are cached as well, in the folder that is returned."""
    monkeypatch.setattr(nuscenes_index, "CACHE_FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def table(root: Path, name: str) -> list[dict]:
    return json.loads((root / VERSION / f"{name}.json").read_text())


def assert_equal(a: Index, b: Index) -> None:
    for field in fields(Index):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("processes", [1, 2])
def test_pieces_of_any_size_give_one_index(root: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    whole = build_index(root / VERSION)
    monkeypatch.setattr(nuscenes_tables, "MAX_PROCESSES", processes)
    monkeypatch.setattr(nuscenes_tables, "PIECE_BYTES", 50_021)
    assert_equal(whole, build_index(root / VERSION))


def test_every_keyframe_has_the_rows_of_the_tables(root: Path) -> None:
    source = NuScenes(root)
    rows = {row["token"]: row for row in table(root, "sample_data")}
    poses = {row["token"]: row for row in table(root, "ego_pose")}
    assert len(source) == 80 and len(set(source.sequences)) == 2
    for index in (0, 39, 40, 79):
        sample, lidar = source.tokens(index)
        data, number = source._data(index)
        assert list(data) == sorted([*(f"CAM_{s}" for s in SIDES), "LIDAR_TOP"])
        assert rows[lidar]["sample_token"] == sample and rows[lidar]["filename"] == source._filename(number)
        pose = poses[rows[lidar]["ego_pose_token"]]
        np.testing.assert_array_equal(source._index.pose[number], pose["rotation"] + pose["translation"])


SIDES = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK", "BACK_LEFT", "BACK_RIGHT")


def test_boxes_and_velocities_are_those_of_the_tables(root: Path) -> None:
    """Centred differences of neighbours in time, one-sided at the ends, in the world."""
    source, samples = NuScenes(root), {row["token"]: row for row in table(root, "sample")}
    rows = {row["token"]: row for row in table(root, "sample_annotation")}
    token, _ = source.tokens(20)
    mine = [row for row in rows.values() if row["sample_token"] == token]
    start, end = source._index.box_start[20:22]
    box = source._index.box[start:end]
    assert len(mine) == len(box) > 10
    for row, found in zip(mine, box, strict=True):
        np.testing.assert_array_equal(found[:10], row["translation"] + row["size"] + row["rotation"])
        before, after = rows.get(row["prev"], row), rows.get(row["next"], row)
        seconds = (samples[after["sample_token"]]["timestamp"] - samples[before["sample_token"]]["timestamp"]) / 1e6
        moved = np.subtract(after["translation"], before["translation"])
        np.testing.assert_allclose(found[10:], moved / seconds)
    assert source._index.box_points[start:end].tolist() == [row["num_lidar_pts"] for row in mine]
    assert source._boxes(20, np.eye(4)).points.tolist() == [row["num_lidar_pts"] for row in mine]
    assert source._boxes(20, np.eye(4)).attribute is None  # there is no table of them


ATTRIBUTE_ROWS = [{"token": "a", "name": "vehicle.stopped"}, {"token": "b", "name": "robot.waving"}]


@pytest.fixture
def with_attributes(tmp_path: Path) -> Path:
    """Tables whose first boxes have: nuScenes' attribute and another, one that is not nuScenes', none."""
    write_tables(tmp_path / VERSION, 1)
    (tmp_path / VERSION / "attribute.json").write_text(json.dumps(ATTRIBUTE_ROWS))
    rows = table(tmp_path, "sample_annotation")
    for row in rows:
        row["attribute_tokens"] = []
    rows[0] |= {"attribute_tokens": ["a", "b"], "num_lidar_pts": 30, "num_radar_pts": 4}
    rows[1]["attribute_tokens"] = ["b"]
    (tmp_path / VERSION / "sample_annotation.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_first_attribute_is_taken_and_radar_counts(with_attributes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuscenes_tables, "PIECE_BYTES", 50_000)
    index = build_index(with_attributes / VERSION)
    stopped = np.flatnonzero(index.box_attribute == ATTRIBUTES.index("vehicle.stopped"))
    assert len(stopped) == 1 and index.box_points[stopped].tolist() == [34]
    assert (np.delete(index.box_attribute, stopped) == NO_ATTRIBUTE).all()
    keyframe = int(np.searchsorted(index.box_start, stopped[0], "right")) - 1
    boxes = NuScenes(with_attributes)._boxes(keyframe, np.eye(4))
    assert len(boxes.attribute) == len(boxes) and boxes.attribute.dtype == np.uint8
    assert boxes.points[boxes.attribute != NO_ATTRIBUTE].tolist() == [34]


def test_an_attribute_that_its_table_lacks_is_named(with_attributes: Path) -> None:
    (with_attributes / VERSION / "attribute.json").write_text(json.dumps(ATTRIBUTE_ROWS[:1]))
    with pytest.raises(NuScenesError, match=r"sample_annotation.json names attribute 'b', which attribute.json lacks"):
        NuScenes(with_attributes)


@pytest.mark.parametrize("key", ["num_lidar_pts", "num_radar_pts", "attribute_tokens"])
def test_an_annotation_without_its_counts_is_named(with_attributes: Path, key: str) -> None:
    path = with_attributes / VERSION / "sample_annotation.json"
    path.write_text(path.read_text().replace(key, "gone", 1))
    with pytest.raises(NuScenesError, match=rf"sample_annotation.json is not a nuScenes table.*{key}"):
        NuScenes(with_attributes)


def test_the_cache_notices_new_attributes(root: Path, cached: Path, tmp_path: Path) -> None:
    write_tables(tmp_path / VERSION, 1)
    assert len(open_index(tmp_path / VERSION).box_attribute) == 0
    tokens = {token for row in table(tmp_path, "sample_annotation") for token in row["attribute_tokens"]}
    rows = [{"token": token, "name": "vehicle.parked"} for token in tokens]
    (tmp_path / VERSION / "attribute.json").write_text(json.dumps(rows))
    assert set(open_index(tmp_path / VERSION).box_attribute.tolist()) == {ATTRIBUTES.index("vehicle.parked")}


def test_the_order_of_rows_does_not_matter(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References that leave their piece are followed."""
    (tmp_path / VERSION).mkdir()
    for path in (root / VERSION).glob("*.json"):
        rows = json.loads(path.read_text())
        if path.stem != "scene":
            random.Random(1).shuffle(rows)
        (tmp_path / VERSION / path.name).write_text(json.dumps(rows))
    monkeypatch.setattr(nuscenes_tables, "PIECE_BYTES", 50_000)
    a, b = NuScenes(root), NuScenes(tmp_path)
    assert a.sequences == b.sequences
    for index in (0, 17, 55):
        assert a.tokens(index) == b.tokens(index)
        x, y = a._boxes(index, np.eye(4)), b._boxes(index, np.eye(4))
        a_order, b_order = np.lexsort(x.center.T), np.lexsort(y.center.T)
        np.testing.assert_array_equal(x.velocity[a_order], y.velocity[b_order])
        assert [a._filename(r) for r in walk(a, index)] == [b._filename(r) for r in walk(b, index)]


def walk(source: NuScenes, index: int) -> list[int]:
    """Rows of all sweeps before a keyframe."""
    rows = [source._data(index)[1]]
    while (row := source._before(rows[-1])) >= 0:
        rows.append(row)
    return rows


def test_sweeps_are_walked_to_the_start_of_their_scene(root: Path) -> None:
    source = NuScenes(root)
    assert len(walk(source, 0)) == len(walk(source, 40)) == 1
    assert len(walk(source, 79)) == 392  # all of the scene


def sweeps_folder(root: Path, vector: dict) -> Path:
    """A scene of three sweeps, the last one the only keyframe, as in the vector."""
    inputs, count = vector["inputs"], len(vector["inputs"]["timestamps_us"])
    tables = {
        "scene": [{"token": "s", "name": "scene-1", "first_sample_token": "k"}],
        "sample": [{"token": "k", "timestamp": inputs["timestamps_us"][-1], "next": ""}],
        "sensor": [{"token": "l", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [{"token": "c", "sensor_token": "l", "camera_intrinsic": [], **inputs["calibrated"]}],
        "ego_pose": [{"token": f"e{i}", **pose} for i, pose in enumerate(inputs["ego_poses"])],
        "sample_data": [
            {
                "token": f"d{i}", "sample_token": "k", "ego_pose_token": f"e{i}", "calibrated_sensor_token": "c",
                "timestamp": stamp, "is_key_frame": i == count - 1, "filename": f"{i}.bin",
                "prev": f"d{i - 1}" if i else "",
            }
            for i, stamp in enumerate(inputs["timestamps_us"])
        ],
    }  # fmt: skip
    (root / VERSION).mkdir()
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    for i, points in enumerate(inputs["raw_points"]):
        np.array(points, "<f4").tofile(root / f"{i}.bin")
    return root


def test_sweeps_are_those_of_the_vector(tmp_path: Path, vectors: dict) -> None:
    vector = vectors["multi_sweep"]
    source = NuScenes(sweeps_folder(tmp_path, vector))
    found = [(source[0].points, np.eye(4), 0.0), *source.sweeps(0, 9)]
    assert len(found) == 3
    clouds, lags = [], []
    for points, lidar_from_sweep, seconds in found:
        kept = points[~(np.abs(points[:, :2]) < 1).all(1)]  # the vector leaves close points out, in their own frame
        clouds.append(np.column_stack([se3.apply(lidar_from_sweep, kept[:, :3]), kept[:, 3] * 255]))
        lags += [seconds] * len(kept)
    np.testing.assert_allclose(np.concatenate(clouds), vector["expected"]["points_xyzi"], atol=vector["tol"])
    np.testing.assert_allclose(lags, vector["expected"]["time_lag"], atol=1e-9)
    assert len(source.sweeps(0, 1)) == 1 and source.sweeps(0, 0) == []
    assert source[0].boxes is None and source[0].labels is None  # as v1.0-test


def test_a_sweep_that_the_tables_lack_is_named(tmp_path: Path, vectors: dict) -> None:
    path = sweeps_folder(tmp_path, vectors["multi_sweep"]) / VERSION / "sample_data.json"
    path.write_text(path.read_text().replace('"prev": "d1"', '"prev": "gone"'))
    source = NuScenes(tmp_path)
    assert len(source[0].points) == 3
    with pytest.raises(NuScenesError, match=r"sample_data.json lacks the row before 2.bin"):
        source.sweeps(0, 2)


class Row(msgspec.Struct):
    token: str


def tokens(rows: list[Row], given: None) -> dict[str, np.ndarray]:
    return {"token": strings([row.token for row in rows])}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=40))
def test_any_string_survives_the_cut(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    """Even one that looks like the gap between two rows."""
    path = tmp_path_factory.getbasetemp() / "strings.json"
    values = [*values, "a},{b", '"},\n{"', "é},{", "}"]
    path.write_text(json.dumps([{"token": value} for value in values], indent=0, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_tables, "PIECE_BYTES", 30)
        patch.setattr(nuscenes_tables, "MAX_PROCESSES", 1)
        found = read_columns(path, Row, tokens, None)["token"]
    assert [token.decode() for token in found.tolist()] == values


@given(st.permutations(range(12)), st.integers(1, 12), st.lists(st.integers(-1, 13), min_size=12, max_size=12))
def test_links_lead_to_their_rows(order: list[int], size: int, references: list[int]) -> None:
    """Against a dictionary: 12 rows in pieces of `size`; -1 refers to nothing, 12 and 13 to no row there is."""
    names = [f"t{i}" for i in order]
    wanted = ["" if r < 0 else f"t{r}" for r in references]
    parts = [links(names[i : i + size], wanted[i : i + size]) for i in range(0, 12, size)]
    steps, far = (np.concatenate(part) for part in zip(*parts, strict=True))
    place = {name: i for i, name in enumerate(names)}
    expected = [place.get(name, -7) if name else i for i, name in enumerate(wanted)]
    assert follow(strings(names), steps, far, -7).tolist() == expected


def test_the_cache_gives_the_same_and_nothing_is_parsed(
    root: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_index(root / VERSION)
    assert [p.parent for p in cached.rglob("*.npz")] == [cached / "lima"]
    monkeypatch.setattr(nuscenes_index, "build_index", None)
    assert_equal(first, open_index(root / VERSION))


def test_a_changed_table_is_read_again(tmp_path: Path, cached: Path) -> None:
    write_tables(tmp_path / VERSION, 1)
    open_index(tmp_path / VERSION)
    path = tmp_path / VERSION / "scene.json"
    path.write_text(path.read_text().replace("scene-0000", "scene-0009"))  # of the same size
    assert open_index(tmp_path / VERSION).scene_names.tolist() == [b"scene-0009"]
    assert len(list(cached.rglob("*.npz"))) == 1


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not a zip", None])
def test_a_broken_cache_is_made_anew(root: Path, cached: Path, content: bytes | None) -> None:
    first, path = open_index(root / VERSION), cache_path(root / VERSION)
    stored = path.read_bytes()
    flipped = bytearray(stored)
    flipped[len(stored) // 2] ^= 0xFF
    path.write_bytes(bytes(flipped) if content is None else content)
    with pytest.warns(UserWarning, match="is broken"):
        assert_equal(first, open_index(root / VERSION))
    assert path.stat().st_size == len(stored)


def test_a_cache_never_runs_what_is_in_it(root: Path, cached: Path) -> None:
    """An object array would be unpickled; it is refused."""
    open_index(root / VERSION)
    np.savez(cache_path(root / VERSION), key=np.array([print], object))
    with pytest.warns(UserWarning, match="is broken"):
        open_index(root / VERSION)


def test_without_a_place_for_the_cache_there_is_a_warning(
    root: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written"):
        open_index(root / VERSION)


def test_small_tables_leave_no_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    NuScenes(root)
    assert not list(tmp_path.iterdir())


def test_a_source_can_be_pickled(root: Path) -> None:
    source = NuScenes(root)
    again = pickle.loads(pickle.dumps(source))
    assert again.sequences == source.sequences and again.tokens(3) == source.tokens(3)


def test_a_chain_that_bites_its_tail_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path / VERSION, 1)
    rows = table(tmp_path, "sample")
    rows[5]["next"] = rows[2]["token"]
    (tmp_path / VERSION / "sample.json").write_text(json.dumps(rows))
    with pytest.raises(NuScenesError, match=r"sample.json names twice"):
        NuScenes(tmp_path)

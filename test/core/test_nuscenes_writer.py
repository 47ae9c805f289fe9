"""Frames written to the nuScenes layout come back equal through the reader."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lima_core.data.attributes import ATTRIBUTES, NO_ATTRIBUTE
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, Frame
from lima_core.data.nuscenes import NuScenes
from lima_core.data.nuscenes_writer import CATEGORIES, raw_from_train, write_nuscenes
from lima_core.data.synthetic.street import Street


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    street = Street(11, frames=3, image_size=(96, 48))
    root = tmp_path_factory.mktemp("nus")
    assert write_nuscenes(street, root, camera_quality=95) == root
    return street, root


@pytest.fixture(scope="module")
def pairs(written):
    street, root = written
    read = NuScenes(root)
    assert len(read) == len(street)
    return [(street[i], read[i]) for i in range(len(street))]


def test_points_and_labels_are_exact(pairs):
    for frame, back in pairs:
        assert (back.stamp_ns, back.sequence, back.index) == (frame.stamp_ns, frame.sequence, frame.index)
        np.testing.assert_array_equal(back.points[:, :3], frame.points[:, :3])
        np.testing.assert_allclose(back.points[:, 3], frame.points[:, 3], atol=1e-6)
        np.testing.assert_array_equal(back.labels, frame.labels)
        np.testing.assert_array_equal(back.extra["ring"], frame.extra["ring"])


def test_poses_and_cameras_agree(pairs):
    for frame, back in pairs:
        np.testing.assert_allclose(back.world_from_lidar, frame.world_from_lidar, atol=1e-9)
        views = {view.name: view for view in frame.cameras}
        assert {view.name for view in back.cameras} == set(views)
        for view in back.cameras:
            expected = views[view.name]
            assert (view.stamp_ns, view.size) == (expected.stamp_ns, expected.size)
            np.testing.assert_allclose(view.camera_from_lidar, expected.camera_from_lidar, atol=1e-9)
            np.testing.assert_array_equal(view.K, expected.K)
            difference = np.abs(view.image.rgb.astype(int) - expected.image.rgb.astype(int))
            assert difference.mean() < 6  # JPEG


def test_rig_comes_back(written):
    street, root = written
    rig = NuScenes(root).rig
    np.testing.assert_allclose(rig.base_from_lidar, street.rig.base_from_lidar, atol=1e-12)
    for mount in street.rig.cameras:
        assert rig.camera(mount.name).offset_ms == pytest.approx(mount.offset_ms, abs=1e-9)
        np.testing.assert_allclose(rig.camera(mount.name).base_from_camera, mount.base_from_camera, atol=1e-9)


def test_boxes_agree_and_tracks_carry_their_velocity(pairs):
    for frame, back in pairs:
        assert len(frame.boxes) > 10
        for name in ("center", "size", "class_id", "points"):
            np.testing.assert_allclose(getattr(back.boxes, name), getattr(frame.boxes, name), atol=1e-9)
        turn = np.angle(np.exp(1j * (back.boxes.yaw - frame.boxes.yaw)))
        np.testing.assert_allclose(turn, 0, atol=1e-9)
        assert back.boxes.attribute is None
    frame, back = pairs[1]
    known = np.isfinite(back.boxes.velocity).all(axis=1)
    assert known.mean() > 0.8
    error = np.linalg.norm(back.boxes.velocity - frame.boxes.velocity, axis=1)[known]
    assert np.quantile(error, 0.95) < 0.1
    assert np.linalg.norm(frame.boxes.velocity[known], axis=1).max() > 3


def test_tables_have_the_layout_of_the_real_ones(written, shared):
    real, mine = shared / "data/nus_tiny/v1.0-mini", written[1] / "v1.0-mini"
    assert {p.name for p in mine.glob("*.json")} == {p.name for p in real.glob("*.json")}
    for path in real.glob("*.json"):
        rows, expected = json.loads((mine / path.name).read_text()), json.loads(path.read_text())
        if expected:
            assert set(rows[0]) == set(expected[0]), path.name
    names = [row["name"] for row in sorted(json.loads((real / "category.json").read_text()), key=lambda r: r["index"])]
    assert names == list(CATEGORIES)


def test_references_resolve(written):
    folder = written[1] / "v1.0-mini"
    tables = {p.stem: {r["token"]: r for r in json.loads(p.read_text())} for p in folder.glob("*.json")}
    for rows in tables.values():
        for row in rows.values():
            for key, token in row.items():
                table = key.removesuffix("_token")
                if table in tables and table != key:
                    assert token in tables[table], (key, token)
    chain = [r for r in tables["sample_annotation"].values() if r["next"]]
    assert chain
    for row in chain:
        following = tables["sample_annotation"][row["next"]]
        assert following["prev"] == row["token"] and following["instance_token"] == row["instance_token"]
    for instance in tables["instance"].values():
        owned = [r for r in tables["sample_annotation"].values() if r["instance_token"] == instance["token"]]
        assert len(owned) == instance["nbr_annotations"]


def test_the_same_source_gives_the_same_tables(written, tmp_path):
    _, root = written
    write_nuscenes(Street(11, frames=3, image_size=(96, 48)), tmp_path, camera_quality=95)
    for path in sorted((root / "v1.0-mini").glob("*.json")):
        assert path.read_bytes() == (tmp_path / "v1.0-mini" / path.name).read_bytes()


def test_representative_raw_ids_invert_the_learning_map():
    taxonomy = load_taxonomy("nuscenes")
    table = raw_from_train(taxonomy)
    train = np.arange(len(taxonomy.names))
    np.testing.assert_array_equal(taxonomy.train_from_raw[table[train]], train)
    assert taxonomy.train_from_raw[table[255]] == 255
    assert CATEGORIES[table[taxonomy.index("pedestrian")]] == "human.pedestrian.adult"


class _One:
    """A source of one frame."""

    def __init__(self, frame, rig):
        self.frame, self.rig = frame, rig

    def __len__(self):
        return 0 if self.frame is None else 1

    def __getitem__(self, index):
        return self.frame


def boxes_in_a_row(**columns):
    """Three cars."""
    at, zeros = np.array([[5.0, 0, 0], [15.0, 0, 0], [25.0, 0, 0]]), np.zeros(3)
    return Boxes(at, np.tile([4.0, 2, 2], (3, 1)), zeros, np.zeros((3, 2)), zeros.astype(np.uint8), **columns)


@pytest.mark.parametrize("attribute", [[7, 0, NO_ATTRIBUTE], [NO_ATTRIBUTE] * 3, None])
def test_attributes_come_back(written, tmp_path, attribute):
    column = None if attribute is None else np.array(attribute, np.uint8)
    frame = Frame(1000, "row", 0, np.zeros((1, 4), np.float32), np.eye(4), boxes=boxes_in_a_row(attribute=column))
    write_nuscenes(_One(frame, replace(written[0].rig, cameras=())), tmp_path)
    np.testing.assert_array_equal(NuScenes(tmp_path)[0].boxes.attribute, column)
    names = [row["name"] for row in json.loads((tmp_path / "v1.0-mini/attribute.json").read_text())]
    assert names == ([] if attribute is None else list(ATTRIBUTES))


def test_returns_are_counted_where_the_source_does_not(written, tmp_path):
    points = np.array([[5, 0, 0, 0], [7, 1, 1, 0], [7.1, 0, 0, 0], [25, 0, 0, 0]], np.float32)
    for points_on, expected in ((None, [2, 0, 1]), (np.array([9, 8, 0], np.int32), [9, 8, 0])):
        root = tmp_path / str(expected[0])
        frame = Frame(1000, "row", 0, points, np.eye(4), boxes=boxes_in_a_row(points=points_on))
        write_nuscenes(_One(frame, replace(written[0].rig, cameras=())), root)
        assert NuScenes(root)[0].boxes.points.tolist() == expected


def test_bad_sources_are_named(written, tmp_path):
    rig = written[0].rig
    with pytest.raises(ValueError, match="no frames"):
        write_nuscenes(_One(None, rig), tmp_path)
    odd = Frame(123, "odd", 0, np.zeros((1, 4), np.float32), np.eye(4))
    with pytest.raises(ValueError, match="123 ns"):
        write_nuscenes(_One(odd, rig), tmp_path)

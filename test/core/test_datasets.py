"""Readers of labelled data sets: a miniature of each in its own layout, and real frames of KITTI."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from lima_core.data.classes import load_taxonomy
from lima_core.data.datasets import NAMES, open_dataset
from lima_core.data.frame import DatasetError
from lima_core.data.splits import share_of_frames
from lima_core.paths import config_dir
from miniatures import MINIATURES, daps, kitti, scan, scribble, stf, synlidar

MADE = pytest.mark.parametrize("name", MINIATURES)


@pytest.fixture
def root(name: str, tmp_path: Path) -> Path:
    MINIATURES[name][0](tmp_path)
    return tmp_path


@MADE
def test_a_miniature_is_read_as_computed_by_hand(name: str, root: Path) -> None:
    _, labels, sequences, in_val = MINIATURES[name]
    train = open_dataset(name, root, "train")
    frame = train[0]
    assert train.sequences == sequences == tuple(train[i].sequence for i in range(len(train)))
    assert len(open_dataset(name, root, "val")) == in_val
    assert frame.labels.tolist() == labels and frame.labels.dtype == np.uint8
    metres, intensity = ([1, 3], [0, 0.01]) if name == "rellis3d" else ([1, 2, 3], [0, 0.2, 1])
    assert frame.points[:, 0].tolist() == metres
    assert frame.points[:, 3] == pytest.approx(intensity, abs=1e-6)
    assert train.taxonomy.name == name
    assert np.isnan(frame.world_from_lidar).all()


@MADE
def test_windows_stay_in_their_sequence_and_sources_pickle(name: str, root: Path) -> None:
    train = open_dataset(name, root, "train")
    again = pickle.loads(pickle.dumps(train))
    for i in reversed(range(len(train))):
        np.testing.assert_array_equal(again[i].points, train[i].points)
        before = [j for j in range(max(0, i - 2), i) if train.sequences[j] == train.sequences[i]]
        assert [(f.sequence, f.index) for f in train.window(i, 2)] == [
            (train[j].sequence, train[j].index) for j in before
        ]
    with pytest.raises(IndexError):
        train[len(train)]


@MADE
def test_shares_of_the_labels(name: str, root: Path) -> None:
    train = open_dataset(name, root, "train")
    everything = list(range(len(train)))
    assert train.labelled_share(100) == everything
    assert train.labelled_share(25) == everything[::4]
    assert train.labelled_share(50) == ([0, 1, 2] if name == "semanticposs" else everything[::2])
    with pytest.raises(ValueError, match=r"3 % is not defined; there are 1, 5"):
        train.labelled_share(3)


def test_counts_of_the_shares_are_those_of_the_literature(vectors: dict) -> None:
    inputs, expected = vectors["subset_counts"]["inputs"], vectors["subset_counts"]["expected"]
    assert len(share_of_frames(inputs["kitti_train_scans"], 1)) == expected["kitti_1pct"]
    assert len(share_of_frames(inputs["kitti_train_scans"], 10)) == expected["kitti_10pct"]


class Tables:
    """In place of the tables of v1.0-trainval: two keyframes of each scene."""

    def __init__(self, scenes: list[str]) -> None:
        self.sequences = tuple(scene for scene in scenes for _ in range(2))
        self.rig = self.taxonomy = None
        self.root, self.version = Path("nus"), "v1.0-trainval"


@pytest.fixture
def trainval(shared: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The official scenes of train and val, as nuScenes to read."""
    splits = yaml.safe_load((shared / "spec" / "datasets" / "nuscenes.yaml").read_text())["splits"]
    scenes = {name: splits[name] for name in ("train", "val")}
    import lima_core.data.drives  # noqa: F401  derives from the class that is replaced

    tables = Tables(sorted(scenes["train"] + scenes["val"]))
    monkeypatch.setattr("lima_core.data.nuscenes.NuScenes", lambda root, version: tables)
    return scenes


def test_nuscenes_splits_are_the_official_ones(trainval: dict[str, list[str]], tmp_path: Path) -> None:
    for split, scenes in trainval.items():
        assert open_dataset("nuscenes", tmp_path, split).sequences == tuple(s for s in sorted(scenes) for _ in range(2))
    assert len(open_dataset("nuscenes", tmp_path, "all")) == 2 * 850


def test_nuscenes_shares_keep_whole_scenes(trainval: dict, vectors: dict, tmp_path: Path) -> None:
    train = open_dataset("nuscenes", tmp_path, "train")
    for percent, scenes in vectors["subset_counts"]["expected"]["nuscenes_scenes"].items():
        kept = [train.sequences[i] for i in train.labelled_share(int(percent))]
        assert len(set(kept)) == scenes and len(kept) == 2 * scenes


def test_nuscenes_shares_are_slidrs_scenes(trainval: dict, vectors: dict, tmp_path: Path) -> None:
    train = open_dataset("nuscenes", tmp_path, "train")
    expected = vectors["subset_counts"]["expected"]["if_table_is_name_sorted_1pct"]
    assert list(dict.fromkeys(train.sequences[i] for i in train.labelled_share(1))) == expected


def test_real_nuscenes_drive_as_a_training_set(shared: Path) -> None:
    """scene-9001 is in no official list: all its keyframes are to train on."""
    root = shared / "data" / "pclseg_as_nus"
    train = open_dataset("nuscenes", root, "train")
    assert len(train) == 32 and set(train.sequences) == {"scene-9001"}
    assert train.labelled_share(100) == list(range(32))
    assert [f.index for f in train.window(3, 2)] == [1, 2]
    with pytest.raises(DatasetError, match=r"no keyframe of split 'val'.*data\.check nuscenes"):
        open_dataset("nuscenes", root, "val")


def test_scribbles_train_and_full_labels_validate(tmp_path: Path) -> None:
    scribble(tmp_path)
    assert open_dataset("scribblekitti", tmp_path, "val")[0].labels.tolist() == [0, 0, 255]
    assert [f.labels.tolist() for f in map(open_dataset("scribblekitti", tmp_path, "all").__getitem__, (0, 3))] == [
        [255, 0, 255],
        [0, 0, 255],
    ]


def test_semanticstf_keeps_the_ring(tmp_path: Path) -> None:
    stf(tmp_path)
    assert open_dataset("semanticstf", tmp_path, "test")[0].extra["ring"].tolist() == [0, 63, 7]


def test_synlidar_holds_out_the_tenth_scan_of_each_sequence(tmp_path: Path) -> None:
    synlidar(tmp_path)
    train, val = (open_dataset("synlidar", tmp_path, split) for split in ("train", "val"))
    assert [s.points for s in val.scans] == ["00/velodyne/000009.bin"]
    assert not {s.points for s in train.scans} & {s.points for s in val.scans}


def test_either_spelling_of_daps(tmp_path: Path) -> None:
    daps(tmp_path, "DAPS-2")
    assert len(open_dataset("daps3d", tmp_path, "train")) == 4 and len(open_dataset("daps3d", tmp_path, "all")) == 7


def test_kitti_times_poses_and_test_scans(tmp_path: Path) -> None:
    kitti(tmp_path)
    folder = tmp_path / "sequences/00"
    (folder / "times.txt").write_text("0.0\n0.103\n0.3\n")
    rows = np.tile(np.eye(4)[:3].ravel(), (3, 1))
    rows[:, 3] = (0, 1, 2)
    np.savetxt(folder / "poses.txt", rows)
    line = "1 0 0 0 0 1 0 0 0 0 1 {}"
    (folder / "calib.txt").write_text(f"P2: {line.format(0)}\nTr: {line.format(-0.25)}\n")
    train = open_dataset("semantickitti", tmp_path, "train")
    assert [train[i].stamp_ns for i in range(4)] == [0, 103_000_000, 300_000_000, 0]
    assert train[2].world_from_lidar[:3, 3].tolist() == [2, 0, -0.25]
    assert open_dataset("semantickitti", tmp_path, "test")[0].labels is None
    (folder / "times.txt").write_text("0.0\n0.103\n")
    with pytest.raises(DatasetError, match=r"00/times.txt has 2 lines, none for 000002.bin; copy it again"):
        open_dataset("semantickitti", tmp_path, "train")


def test_kitti_labels_are_the_lower_half(vectors: dict, tmp_path: Path) -> None:
    scan(tmp_path, "sequences/00/velodyne/000000.bin", None, ())
    np.zeros((6, 4), "<f4").tofile(tmp_path / "sequences/00/velodyne/000000.bin")
    (tmp_path / "sequences/00/labels").mkdir()
    vector = vectors["kitti_label_mask"]
    np.array(vector["inputs"]["uint32"], "<u4").tofile(tmp_path / "sequences/00/labels/000000.label")
    source = open_dataset("semantickitti", tmp_path, "train")
    assert source.read_labels(source.scans[0]).tolist() == vector["expected"]["semantic"]
    assert source[0].labels.tolist() == [0, 8, 0, 255, 255, 255]


def test_real_semantickitti_frame(shared: Path, vectors: dict) -> None:
    expected = vectors["real_semantickitti_frame"]["expected"]
    frame = open_dataset("semantickitti", shared / "data" / "semantickitti", "val")[0]
    ids, counts = np.unique(frame.labels, return_counts=True)
    assert dict(zip(map(str, ids), counts.tolist(), strict=True)) == expected["train_id_histogram"]
    assert [frame.points[:, 3].min(), frame.points[:, 3].max()] == pytest.approx(expected["intensity_range"], abs=1e-6)


def test_real_training_scans_stand_on_their_road(shared: Path) -> None:
    train = open_dataset("semantickitti", shared / "data" / "semantickitti", "train")
    assert len(train) == 21 and set(train.sequences) == {"00"}
    for frame in (train[0], train[20]):
        near = np.linalg.norm(frame.points[:, :2], axis=1) < 15
        road = frame.points[near & (frame.labels == train.taxonomy.index("road"))]
        assert np.median(road[:, 2]) == pytest.approx(-1.73, abs=0.15)  # m, height of KITTI's LiDAR over the ground


def test_real_camera_and_poses_of_kitti(shared: Path) -> None:
    drive = open_dataset("semantickitti", shared / "data" / "kitti", "all")
    frame, later = drive[0], drive[19]
    (camera,) = frame.cameras
    seen = camera.project(frame.points)
    assert camera.size == camera.image.rgb.shape[1::-1] and camera.stamp_ns == frame.stamp_ns
    assert (frame.points[seen.visible, 0] > 0).all() and 0.1 < seen.visible.mean() < 0.2  # forward, 81 degrees of 360
    ground = frame.points[seen.visible & (np.abs(frame.points[:, 2] + 1.7) < 0.2)]
    assert np.median(camera.project(ground).uv[:, 1]) > camera.size[1] / 2  # the road is in the lower half
    moved = (np.linalg.inv(frame.world_from_lidar) @ later.world_from_lidar)[:3, 3]
    assert moved[0] > 3 and np.abs(moved[1:]).max() < 0.5  # m, forward in the LiDAR frame


@pytest.mark.parametrize("name", NAMES)
def test_every_taxonomy_is_complete(name: str, shared: Path) -> None:
    ours = yaml.safe_load((config_dir() / "datasets" / f"{name}.yaml").read_text())
    fact = yaml.safe_load((shared / "spec" / "datasets" / f"{name}.yaml").read_text())
    taxonomy = load_taxonomy(name)
    assert list(taxonomy.names) == fact["classes"] and len(taxonomy.names) == fact["num_classes"]
    assert ours["learning_map"] == fact["learning_map"]
    assert set(ours["learning_map"].values()) - {255} == set(range(len(taxonomy.names)))
    assert set(ours["colors_rgb"]) == set(taxonomy.names)

"""Broken copies of the labelled data sets: each error names the file and the fix; `lima_core.data.check` finds them."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima_core.data import check
from lima_core.data.datasets import READERS, open_dataset
from lima_core.data.frame import DatasetError
from lima_core.paths import config_dir
from miniatures import MINIATURES, kitti, rellis, synth4d

MADE = pytest.mark.parametrize("name", MINIATURES)


@pytest.fixture
def root(name: str, tmp_path: Path) -> Path:
    MINIATURES[name][0](tmp_path)
    return tmp_path


def break_truncated(root: Path, points: Path, labels: Path) -> str:
    points.write_bytes(points.read_bytes()[:-2])
    return r"copy (it|the file) again"


def break_one_point_less(root: Path, points: Path, labels: Path) -> str:
    points.write_bytes(points.read_bytes()[:-16])
    return r"copy .* again"


def break_empty(root: Path, points: Path, labels: Path) -> str:
    points.write_bytes(b"")
    return r"(holds no point|no whole .npy).*copy .* again"


def break_labels_short(root: Path, points: Path, labels: Path) -> str:
    if labels.suffix == ".npy":
        np.save(labels, np.load(labels)[:2])
    else:
        labels.write_bytes(labels.read_bytes()[:8])
    return rf"{labels.name}: 2 labels for 3 points of .*{points.name}; copy both"


def break_unknown_id(root: Path, points: Path, labels: Path) -> str:
    if labels.suffix == ".npy":
        np.save(labels, np.array([1, 2, 9999]))
    else:
        np.array([0, 1, 9999], "<u4").tofile(labels)
    return rf"{labels.name}: 1 labels are no ids of .*9999 at point 2; copy .*learning_map in config"


def break_not_finite(root: Path, points: Path, labels: Path) -> str:
    if points.suffix == ".npy":
        rows = np.load(points)
        rows[2, 1] = np.inf
        np.save(points, rows)
    else:
        rows = np.fromfile(points, "<f4")
        rows[1] = np.nan
        rows.tofile(points)
    return rf"{points.name}: 1 of 3 points are not finite, the first is .*; copy"


def break_labels_missing(root: Path, points: Path, labels: Path) -> str:
    labels.unlink()
    return rf"{labels.name} is missing; unpack"


def break_link_outside(root: Path, points: Path, labels: Path) -> str:
    outside = root.parent / f"{root.name}-outside{points.suffix}"
    points.rename(outside)
    points.symlink_to(outside)
    return rf"{points.name} leads out of .*; put the file itself there"


BREAKAGES = [function for key, function in dict(globals()).items() if key.startswith("break_")]


@MADE
@pytest.mark.parametrize("damage", BREAKAGES, ids=lambda f: f.__name__)
def test_broken_files_are_named_with_the_fix(name: str, root: Path, damage: Callable[..., str]) -> None:
    train = open_dataset(name, root, "train")
    points, labels = root / train.scans[0].points, root / train.scans[0].labels
    wanted = damage(root, points, labels)
    with pytest.raises(DatasetError, match=wanted) as caught:
        train[0]
    assert points.name in str(caught.value) or labels.name in str(caught.value)
    train[1]  # the others are still there


@MADE
def test_an_empty_root_and_no_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(lima_core\.data\.check|unpack)"):
        open_dataset(name, tmp_path, "train")
    with pytest.raises(DatasetError, match=r"absent is no folder; .* belongs there"):
        open_dataset(name, tmp_path / "absent", "train")
    with pytest.raises(ValueError, match="no split 'validation'; there are train, val, test, all"):
        open_dataset(name, tmp_path, "validation")


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="no data set 'kitty'; there are nuscenes, semantickitti"):
        open_dataset("kitty", ".", "train")


@pytest.mark.parametrize("line", ["../a/b/000001.bin x.label", "/etc/b/000001.bin x.label", "00000/b/000001.bin ../x"])
def test_rellis_lists_lead_nowhere_else(line: str, tmp_path: Path) -> None:
    rellis(tmp_path)
    (tmp_path / "pt_train.lst").write_text(f"\n{line}\n")
    with pytest.raises(DatasetError, match=r"pt_train.lst line 2 leads out of .*unpack the lists again"):
        open_dataset("rellis3d", tmp_path, "train")


def test_an_empty_rellis_list_is_an_empty_split(tmp_path: Path) -> None:
    rellis(tmp_path)
    with pytest.raises(DatasetError, match="no scans of split 'test'"):
        open_dataset("rellis3d", tmp_path, "test")


@given(st.text(max_size=60) | st.sampled_from(["a b", "a/b/1.bin b", "00000/a/1.bin 00000/b/1.label"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rellis_list_is_scans_or_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "pt_train.lst").write_text(text)
    try:
        open_dataset("rellis3d", tmp_path, "train")
    except DatasetError as error:
        assert "pt_train.lst" in str(error) or "no scans" in str(error)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "pt_train.lst").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"pt_train.lst line 1: .*unpack the official lists again"):
        open_dataset("rellis3d", tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("calib.txt", "P2: 1 2 3\n", r"calib.txt: P2 and Tr with 12 numbers each are wanted .*copy it again"),
        ("times.txt", "0.0\nzero\n", r"times.txt: .*copy it again"),
        ("poses.txt", "1 2 3\n", r"poses.txt: 3 numbers a line, 12 are wanted; copy it again"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n", r"poses.txt has 1 lines, none for 000002.bin; copy it again"),
        ("image_2/000002.png", "\x89PNG", r"000002.png is no PNG picture; copy it again"),
        ("image_2/000001.png", "", r"000002.png is missing; unpack"),
    ],
)
def test_broken_odometry_files_are_named(file: str, content: str, error: str, tmp_path: Path) -> None:
    kitti(tmp_path)
    folder = tmp_path / "sequences/00"
    (folder / "calib.txt").write_text("P2: 1 0 0 0 0 1 0 0 0 0 1 0\nTr: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    with pytest.raises(DatasetError, match=error):
        open_dataset("semantickitti", tmp_path, "train")[2]


@given(st.binary(max_size=200), st.binary(max_size=60), st.sampled_from(sorted(MINIATURES)))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_frame_or_an_error(tmp_path: Path, points: bytes, labels: bytes, name: str) -> None:
    root = tmp_path / name
    if not root.is_dir():
        root.mkdir()
        MINIATURES[name][0](root)
    train = open_dataset(name, root, "train")
    (root / train.scans[0].points).write_bytes(points)
    (root / train.scans[0].labels).write_bytes(labels)
    try:
        frame = train[0]
    except DatasetError:
        return
    assert len(frame.labels) == len(frame.points) and np.isfinite(frame.points).all()


def test_a_pickled_split_is_never_read_but_converted_by_the_printed_command(tmp_path: Path) -> None:
    root = tmp_path / "it's here"
    root.mkdir()
    synth4d(root)
    path = root / "splits/nuscenes_synth/training_split.json"
    before = open_dataset("synth4d", root, "train").scans
    path.with_suffix(".pkl").write_bytes(pickle.dumps(json.loads(path.read_text())))
    path.unlink()
    with pytest.raises(DatasetError, match="pickles are not read here") as caught:
        open_dataset("synth4d", root, "train")
    command = shlex.split(re.search(r"python -c .*", str(caught.value))[0])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert open_dataset("synth4d", root, "train").scans == before


def test_synth4d_reads_no_objects(tmp_path: Path) -> None:
    synth4d(tmp_path)
    train = open_dataset("synth4d", tmp_path, "train")
    np.save(tmp_path / train.scans[0].points, np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"000001.npy is no whole .npy file of numbers .*copy it again"):
        train[0]


@pytest.mark.parametrize("content", ["[]", "{", '{"Town03": 5}', '{"..": ["1"]}', '{"Town03": ["../../1"]}'])
def test_synth4d_split_lists_are_checked(content: str, tmp_path: Path) -> None:
    synth4d(tmp_path)
    (tmp_path / "splits/nuscenes_synth/training_split.json").write_text(content)
    with pytest.raises(DatasetError, match=r"training_split.json: .*convert the list again"):
        open_dataset("synth4d", tmp_path, "train")


@MADE
def test_check_counts_and_names_what_is_broken(name: str, root: Path, capsys: pytest.CaptureFixture) -> None:
    train = open_dataset(name, root, "train")
    (root / train.scans[0].labels).unlink()
    assert check.main([name, str(root)]) == 1
    out = capsys.readouterr().out
    assert train.scans[0].labels in out and "is missing; unpack" in out and "val: " in out
    if name in ("semantickitti", "semanticstf", "rellis3d"):
        assert f"train: {len(train)} frames, expected" in out


def test_check_says_that_a_copy_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    synth4d(tmp_path)  # the only data set whose number of frames is not known
    assert check.main(["synth4d", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train: 3 frames, 9 points, 66.7 % of them with a class" in out and f"{tmp_path} is whole" in out


def test_check_misses_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kitti(tmp_path)
    assert check.main(["scribblekitti", str(tmp_path)]) == 1
    assert "00 frame 2 has no labels; unpack them too" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nuscenes", *(name for name in READERS if name != "waymo")])
def test_check_says_what_to_download(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    facts = yaml.safe_load((config_dir() / "datasets" / f"{name}.yaml").read_text())
    assert check.main([name, str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"Download {facts['download']}" in out and facts["url"] in out and f"so that {tmp_path} holds" in out

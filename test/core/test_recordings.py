"""Thousands of recordings as one source: by manifest, a few open at a time, and as data to learn from."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_entry

from lima_core.data import recordings
from lima_core.data.datasets import open_dataset
from lima_core.data.drives import DriveError
from lima_core.data.frame import DatasetError
from lima_core.data.recording import Recording
from lima_core.data.recording_format import RecordingError
from lima_core.data.recording_writer import RecordingWriter, TakenFrame
from lima_core.data.recordings import MANIFEST, Entry, Recordings, SequenceRuns, append_entries, read_manifest
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.lima.scenes import paired_order
from lima_core.pretrain import DataConfig, open_drive

RIG = Rig("toy", "/lidar", "lidar", np.eye(4))
MANY = 2000


def tiny(
    root: Path, name: str, frames: tuple[int, ...], labelled: bool = True, rig: Rig = RIG, label: int = 0
) -> Entry:
    """A recording of sequences of one-point frames, whose x is the number of the sequence and y that of the frame."""
    writer = RecordingWriter(root / name, rig)
    for count in frames:
        sequence = writer.start_sequence()
        for index in range(count):
            table = np.array([[sequence, index, 0, 1]], np.float32)
            labels = np.array([label], np.uint8) if labelled else None
            taken = TakenFrame(10**9 + index, "all", np.eye(4), ("x", "y", "z", "intensity"), table, {}, labels)
            writer.add(sequence, taken)
    writer.close()
    return Entry(name, frames, writer.bytes)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    append_entries(tmp_path, [tiny(tmp_path, "b", (2, 3)), tiny(tmp_path, "a", (4,)), tiny(tmp_path, "c", (1,))])
    return tmp_path


def test_recordings_follow_by_name_whatever_was_finished_first(three: Path) -> None:
    source = Recordings(three)
    assert list(source.sequences) == ["a/0"] * 4 + ["b/0"] * 2 + ["b/1"] * 3 + ["c/0"]
    assert [source.sequences[i] for i in range(-10, 10)] == list(source.sequences) * 2
    for index, name in enumerate(source.sequences):
        frame = source[index]
        assert frame.sequence == name and frame.points[0, 0] == int(name[-1])
    assert [frame.points[0, 1] for frame in source.window(8, 5)] == [0, 1]  # never across a sequence
    assert source.window(4, 3) == []
    with pytest.raises(IndexError):
        source[10]


def test_several_roots_and_single_recordings(three: Path) -> None:
    both = Recordings([three / "a", three])
    assert len(both) == 14 and both.sequences[0].endswith("/a/a/0") and both.sequences[13] == f"{three.name}/c/0"
    assert list(Recordings(three / "b").sequences) == ["b/0"] * 2 + ["b/1"] * 3


def test_roots_of_one_name_stay_apart(tmp_path: Path) -> None:
    roots = [tmp_path / robot / "recordings" for robot in ("one", "two")]
    for root in roots:
        root.mkdir(parents=True)
        append_entries(root, [tiny(root, "monday", (2,))])
    assert list(dict.fromkeys(Recordings(roots).sequences)) == [f"{r}/recordings/monday/0" for r in ("one", "two")]
    with pytest.raises(RecordingError, match="named twice"):
        Recordings([roots[0], roots[0]])


def test_a_sequence_that_grew_since_moves_no_other(three: Path) -> None:
    source = Recordings(three)
    writer = RecordingWriter(three / "b", RIG)
    table = np.array([[0, 2, 0, 1]], np.float32)
    writer.add(0, TakenFrame(2 * 10**9, "all", np.eye(4), ("x", "y", "z", "intensity"), table))
    writer.close()
    assert [tuple(source[i].points[0, :2]) for i in range(4, 9)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [frame.points[0, 0] for frame in source.window(8, 9)] == [1, 1]


def test_vehicles_may_differ_but_not_where_one_rig_must_hold(tmp_path: Path) -> None:
    raised = np.eye(4)
    raised[2, 3] = 2.0
    told_by_another_bag = replace(RIG, name="tuesday")
    for name, rig in (("a", RIG), ("b", told_by_another_bag), ("c", replace(RIG, base_from_lidar=raised))):
        append_entries(tmp_path, [tiny(tmp_path, name, (1,), rig=rig)])
    assert [frame.world_from_lidar[2, 3] for frame in map(Recordings(tmp_path).__getitem__, range(3))] == [0, 0, 2]
    source = open_source(str(tmp_path))
    assert source[1].sequence == "b/0"
    with pytest.raises(RecordingError, match="c: the sensors of toy are not those of toy"):
        source[2]


def test_cameras_are_needed_to_pretrain(three: Path) -> None:
    with pytest.raises(DriveError, match="toy has no cameras to learn from"):
        open_drive(DataConfig(kind="recording", root=str(three)), 1)


def test_of_two_lines_for_a_recording_the_later_one_holds(three: Path) -> None:
    append_entries(three, [Entry("a", (3,), 1)])
    assert [(entry.recording, entry.sequences) for entry in read_manifest(three)][1] == ("a", (3,))
    assert len(Recordings(three)) == 9


def test_two_processes_do_not_write_one_manifest(three: Path) -> None:
    def meanwhile() -> Iterator[Entry]:
        with pytest.raises(RecordingError, match="another process is recording"):
            append_entries(three, [])
        yield Entry("d", (1,), 1)

    append_entries(three, meanwhile())
    assert [entry.recording for entry in read_manifest(three)] == ["b", "a", "c", "d"]


def test_thousands_of_recordings_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny(tmp_path, "r0000", (2,))
    names = [f"r{index:04d}" for index in range(MANY)]
    for name in names[1:]:
        shutil.copytree(tmp_path / entry.recording, tmp_path / name)
    append_entries(tmp_path, [replace_entry(entry, recording=name) for name in names])
    opened: list[Path] = []
    real = Recording.__init__
    monkeypatch.setattr(Recording, "__init__", lambda self, path: (opened.append(path), real(self, path))[1])
    tracemalloc.start()
    source = Recordings(tmp_path)
    assert len(source) == 2 * MANY and len(opened) == 1
    for index in np.random.default_rng(0).permutation(len(source))[:200].tolist():
        assert source[index].points[0, 1] == index % 2
        assert len(source._open) <= recordings.OPEN
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    assert len(paired_order(source.sequences, np.random.default_rng(0))) == 2 * MANY
    again = pickle.loads(pickle.dumps(source))
    assert len(again._open) == 0 and again[3].sequence == source[3].sequence


def test_runs_count_as_the_names_would() -> None:
    runs = SequenceRuns(("a", "b", "c"), (2, 0, 3))
    assert list(runs) == ["a", "a", "c", "c", "c"] == [runs[i] for i in range(5)]
    numbers = runs.numbers()
    assert [numbers[i] == numbers[j] for i in range(5) for j in range(5)] == [a == b for a in runs for b in runs]


def test_a_torn_manifest_line_is_none_and_is_cut_off(three: Path) -> None:
    with (three / MANIFEST).open("ab") as file:
        file.write(b'{"recording":"d","seq')
    assert [entry.recording for entry in read_manifest(three)] == ["b", "a", "c"]
    append_entries(three, [tiny(three, "d", (2,))])
    assert [entry.recording for entry in read_manifest(three)] == ["b", "a", "c", "d"]
    assert len(Recordings(three)) == 12


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"recording":"../out","sequences":[1],"bytes":1}', "leads out of"),
        ('{"recording":"/etc","sequences":[1],"bytes":1}', "leads out of"),
        ('{"recording":"a","sequences":"x","bytes":1}', "Expected"),
        ("not json", "malformed"),
    ],
)
def test_a_broken_manifest_is_named(three: Path, line: str, told: str) -> None:
    with (three / MANIFEST).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordingError, match=told) as error:
        Recordings(three)
    assert "line 4" in str(error.value)


def test_nothing_recorded(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="neither a recording"):
        Recordings(tmp_path)
    tiny(tmp_path, "empty", ())
    with pytest.raises(RecordingError, match="no frame is recorded"):
        Recordings(tmp_path / "empty")


def test_a_recording_that_lost_frames_is_named(three: Path) -> None:
    file = three / "a" / "frames.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(True)[:2]))
    with pytest.raises(RecordingError, match=r"2 frames, \[2\] by sequence; its manifest says 4, \[4\]"):
        Recordings(three)


def test_labelled_split_holds_out_every_fifth_sequence(tmp_path: Path) -> None:
    append_entries(tmp_path, [tiny(tmp_path, f"r{i}", (20, 20)) for i in range(5)])
    train, val = (open_dataset("recording", tmp_path, split) for split in ("train", "val"))
    assert set(val.sequences) == {"r2/0", "r4/1"} and not set(val.sequences) & set(train.sequences)
    assert len(train) == 160 and train.labelled_share(1) == [0, 100]
    assert train[0].labels.tolist() == [0] and len(train.taxonomy.names) == 16
    with pytest.raises(DatasetError, match="no frame of split 'test' has labels"):
        open_dataset("recording", tmp_path, "test")
    tiny(tmp_path, "unlabelled", (2, 2), labelled=False)
    with pytest.raises(DatasetError, match="has labels"):
        open_dataset("recording", tmp_path / "unlabelled", "train")


@pytest.mark.parametrize(("label", "good"), [(15, True), (255, True), (16, False), (254, False)])
def test_labels_are_of_the_classes(tmp_path: Path, label: int, good: bool) -> None:
    tiny(tmp_path, "a", (1, 1), label=label)
    frames = open_dataset("recording", tmp_path / "a", "train")
    if good:
        assert frames[0].labels.tolist() == [label]
    else:
        with pytest.raises(DatasetError, match=f"a/0 frame 0: label {label} is none of the 16 classes"):
            frames[0]


def test_manifest_is_plain_json(three: Path) -> None:
    rows = [json.loads(line) for line in (three / MANIFEST).read_text().splitlines()]
    assert rows[0]["recording"] == "b" and rows[0]["sequences"] == [2, 3]

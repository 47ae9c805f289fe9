"""A recording on disk: what one reads is what was written, and damage is found or passed over, never read."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robots
from lima_core.data.frame import DatasetError
from lima_core.data.recording import Recording, main
from lima_core.data.recording_format import RecordingError, opened, sealed
from lima_core.data.recording_writer import FullError, RecordingWriter, TakenFrame
from lima_core.data.rig import CameraMount
from robots import RIG, Taken, drive, files

FRAMES = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Taken(tmp_path / "drive").feed(drive(range(FRAMES), labelled=True)).close()
    return tmp_path / "drive"


def lines(folder: Path) -> list[bytes]:
    return (folder / "frames.jsonl").read_bytes().splitlines(True)


def change(folder: Path, index: int, **values: object) -> None:
    """Another frame in place of one, with a checksum that holds: what an attacker would write."""
    found = lines(folder)
    frame = msgspec.structs.replace(opened(found[index][:-1]), **values)
    found[index] = sealed(frame)
    (folder / "frames.jsonl").write_bytes(b"".join(found))


def read_all(folder: Path) -> Iterator[object]:
    recording = Recording(folder)
    return [recording[i] for i in range(len(recording))]


# ---- the reader


def test_windows_and_order(folder: Path) -> None:
    Taken(folder).feed(drive(range(10, 13))).close()
    recording = Recording(folder)
    assert recording.sequences == ("drive/0000",) * 4 + ("drive/0001",) * 3
    assert [frame.index for frame in recording.window(3, 2)] == [1, 2]
    assert recording.window(4, 3) == [] and len(recording.window(6, 9)) == 2
    assert recording[-1].stamp_ns == recording[6].stamp_ns
    with pytest.raises(IndexError):
        recording[7]


def test_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "drive").feed(drive(range(4)))
    before = Recording(tmp_path / "drive")
    taken.feed(drive(range(4, 8)))
    assert len(before) == 3 and list(before.problems()) == [] and len(Recording(tmp_path / "drive")) == 7
    taken.close()


def test_an_empty_recording(tmp_path: Path) -> None:
    RecordingWriter(tmp_path / "drive", RIG).close()
    assert len(Recording(tmp_path / "drive")) == 0 and Recording(tmp_path / "drive").sequences == ()


def test_the_command_line_checks_everything(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(folder)]) == 0
    assert f"{FRAMES} frames, robot" in capsys.readouterr().out
    next((folder / "labels").iterdir()).write_bytes(b"")
    assert main([str(folder)]) == 1
    assert "0 bytes, not the 50" in capsys.readouterr().out
    assert main([str(folder.parent)]) == 1
    assert "is no recording" in capsys.readouterr().err


# ---- damage


def test_a_torn_last_line_is_no_frame(folder: Path) -> None:
    whole = b"".join(lines(folder))
    start = len(whole) - len(lines(folder)[-1])
    for end in [*range(start, len(whole), 23), len(whole) - 2, len(whole) - 1]:
        (folder / "frames.jsonl").write_bytes(whole[:end])
        assert len(Recording(folder)) == FRAMES - 1
    assert len(read_all(folder)) == FRAMES - 1


def test_the_next_writer_cleans_up(folder: Path) -> None:
    before = files(folder)
    (folder / "frames.jsonl").write_bytes(before["frames.jsonl"] + lines(folder)[-1][:100])
    for litter in ("lidar/0001_5.bin", "cam/front/0001_-5.jpg", "labels/10000_5.bin", ".calibration.json.77.part"):
        (folder / litter).write_bytes(b"half")
    (folder / "cam" / "front" / "mine.txt").write_text("somebody's")
    RecordingWriter(folder, RIG).close()
    assert files(folder) == before | {"cam/front/mine.txt": b"somebody's"}


def test_a_broken_line_before_others_is_an_error(folder: Path) -> None:
    found = lines(folder)
    for broken in (found[1][:-20] + b"\n", b"\n", found[1].replace(b'"sequence":0', b'"sequence":1')):
        (folder / "frames.jsonl").write_bytes(b"".join([found[0], broken, *found[2:]]))
        for read in (Recording, lambda path: RecordingWriter(path, RIG)):
            with pytest.raises(RecordingError, match=r"frames\.jsonl, line 2: not whole, though others follow"):
                read(folder)


@pytest.mark.parametrize("kind", ["lidar", "cam/front", "labels"])
def test_a_changed_file_is_found(folder: Path, kind: str) -> None:
    path = sorted((folder / kind).iterdir())[1]
    content = path.read_bytes()
    for bad in (bytes([*content[:20], content[20] ^ 1, *content[21:]]), content[:-1], content + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(RecordingError, match=f"{path.name}: .*the disk lost or changed it"):
            read_all(folder)
    path.unlink()
    with pytest.raises(RecordingError, match="names a file that cannot be read"):
        read_all(folder)
    assert len(list(Recording(folder).problems())) == 1


def test_the_line_changes_after_it_was_opened(folder: Path) -> None:
    recording = Recording(folder)
    whole = (folder / "frames.jsonl").read_bytes()
    (folder / "frames.jsonl").write_bytes(b" " + whole)
    with pytest.raises(RecordingError, match="has changed since it was opened"):
        recording[2]


@pytest.mark.parametrize("where", ["absolute", "../secret.bin", "lidar/../../secret.bin", "link"])
def test_files_outside_of_the_folder_are_not_read(folder: Path, where: str) -> None:
    secret = folder.parent / "secret.bin"
    first = opened(lines(folder)[0][:-1])
    secret.write_bytes((folder / first.lidar.file).read_bytes())
    if where == "link":
        (folder / "lidar" / "link.bin").symlink_to(secret)
    name = {"absolute": str(secret), "link": "lidar/link.bin"}.get(where, where)
    change(folder, 0, lidar=msgspec.structs.replace(first.lidar, file=name))
    with pytest.raises(RecordingError, match=r"leads out of .*secret\.bin"):
        read_all(folder)
    picture = first.cameras["front"]
    moved = msgspec.structs.replace(picture, image=msgspec.structs.replace(picture.image, file=name))
    change(folder, 0, lidar=first.lidar, cameras={"front": moved})
    with pytest.raises(RecordingError, match="leads out of"):
        read_all(folder)


@pytest.mark.parametrize("name", ["../x", "/etc", "", "a/b", ".", "..", "a b", "x" * 65, "-x"])
def test_cameras_whose_name_is_no_folder(folder: Path, tmp_path: Path, name: str) -> None:
    mounts = (replace(RIG.cameras[0], name=name),)
    with pytest.raises(RecordingError, match="has no folder; use letters, digits"):
        RecordingWriter(tmp_path / "other", replace(RIG, cameras=mounts))
    assert not (tmp_path / "other").exists()
    change(folder, 0, cameras={name: opened(lines(folder)[0][:-1]).cameras["front"]})
    with pytest.raises(RecordingError, match="has no camera"):
        read_all(folder)


def test_values_that_cannot_be(folder: Path) -> None:
    first = opened(lines(folder)[0][:-1])
    pose = first.world_from_base
    for values, told in (
        ({"world_from_base": pose[:-1]}, "no pose of 12 finite numbers"),
        ({"world_from_base": (*pose[:-1], 1e999)}, "world_from_base"),
        ({"columns": ("x", "y", "intensity", "z")}, "columns"),
        ({"columns": (*first.columns, "rcs")}, "columns"),
        ({"columns": (*first.columns, "ring")}, "columns"),
        ({"lidar": msgspec.structs.replace(first.lidar, bytes=7)}, "no whole points"),
        ({"labels": msgspec.structs.replace(first.lidar)}, "labels for 50 points"),
        ({"cameras": {"front": msgspec.structs.replace(first.cameras["front"], calibration=3)}}, "no calibration 3"),
        ({"cameras": {"front": msgspec.structs.replace(first.cameras["front"], calibration=-1)}}, "no calibration -1"),
    ):
        change(folder, 0, **values)
        with pytest.raises(ValueError, match=told):
            read_all(folder)
        (folder / "frames.jsonl").write_bytes(b"".join([sealed(first), *lines(folder)[1:]]))
    assert len(read_all(folder)) == FRAMES


def test_other_formats_and_versions(folder: Path) -> None:
    path = folder / "recording.json"
    facts = json.loads(path.read_text())
    for changed, told in (
        ({**facts, "version": 2}, "version 2; this lima reads lima-recording version 1: update lima"),
        ({**facts, "format": "other"}, "format 'other'"),
        ([1], "Expected `object`"),
    ):
        path.write_text(json.dumps(changed))
        for read in (Recording, lambda path: RecordingWriter(path, RIG)):
            with pytest.raises(RecordingError, match=told):
                read(folder)
    path.write_text("{")
    with pytest.raises(RecordingError, match=r"recording\.json"):
        Recording(folder)
    path.unlink()
    with pytest.raises(RecordingError, match=r"is no recording: it has no recording\.json"):
        Recording(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tail=st.binary(max_size=300), cut=st.integers(0, 60))
def test_any_bytes_after_whole_lines(folder: Path, tail: bytes, cut: int) -> None:
    """Either they are passed over as torn, or the file is said to be broken; frames before them stay the same."""
    whole = b"".join(opened_lines(folder))
    (folder / "frames.jsonl").write_bytes(whole[: len(whole) - cut] + tail)
    try:
        found = [frame.stamp_ns for frame in read_all(folder)]
    except RecordingError:
        return
    assert found == [robots.sweep_ns(i) for i in range(FRAMES)][: len(found)] and len(found) >= FRAMES - 1


KEPT: dict[Path, list[bytes]] = {}


def opened_lines(folder: Path) -> list[bytes]:
    """The lines as they were at first."""
    return KEPT.setdefault(folder, lines(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    key=st.sampled_from(["sequence", "trigger", "world_from_base", "columns", "lidar", "cameras", "labels"]), value=JSON
)
def test_any_value_with_a_checksum_that_holds(folder: Path, key: str, value: object) -> None:
    """A frame, or a DatasetError: never another exception, and never a file of elsewhere."""
    text = json.dumps({**json.loads(opened_lines(folder)[0]), key: value}, allow_nan=False) if finite(value) else "{"
    content = text.encode().partition(b', "line_crc32"')[0]
    (folder / "frames.jsonl").write_bytes(content + b',"line_crc32":"%08x"}\n' % zlib.crc32(content))
    try:
        assert len(read_all(folder)[0].points) == 50
    except DatasetError:
        return


def finite(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


# ---- the writer


def test_another_rig_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    other = replace(RIG, cameras=(*RIG.cameras, CameraMount("left", "left", "/l", "/i", np.eye(4))))
    with pytest.raises(RecordingError, match="is another rig than robot; record into another folder"):
        RecordingWriter(folder, other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RecordingError, match="is not empty and no recording; choose another folder"):
        RecordingWriter(tmp_path / "mine", RIG)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_record_into_one_folder(folder: Path) -> None:
    writer = RecordingWriter(folder, RIG)
    code = (
        "import sys; from lima_core.data.rig import Rig; from lima_core.data.recording_writer import RecordingWriter\n"
    )
    code += "RecordingWriter(sys.argv[1], Rig.load(sys.argv[1] + '/rig.yaml'))"
    root = str(Path(__file__).resolve().parents[2])

    def other() -> subprocess.CompletedProcess:
        line = [sys.executable, "-c", code, str(folder)]
        return subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})

    assert "is being recorded by another process; choose another folder" in other().stderr
    writer.close()
    assert other().returncode == 0


def test_another_drive_does_not_go_on_with_this_one(folder: Path) -> None:
    taken = Taken(folder, writer=RecordingWriter(folder, RIG, resume=True)).feed(drive(range(2)))
    with pytest.raises(RecordingError, match="other settings or another bag; take an empty folder"):
        taken.feed(drive(range(3, 6)))


def test_a_shared_picture_is_never_written_again(tmp_path: Path) -> None:
    """A writer that goes on after a kill shares the last frame's picture: to open it for writing would empty it."""
    sent = [m for m in drive(range(6)) if m.topic != "/back/image" or m.stamp_ns < robots.sweep_ns(1)]
    whole = Taken(tmp_path / "whole", tolerance_ms=1000.0).feed(sent)
    whole.close()
    cut = tmp_path / "cut"
    Taken(cut, tolerance_ms=1000.0).feed(sent).close()
    kept = lines(cut)[:3]
    (cut / "frames.jsonl").write_bytes(b"".join(kept))
    picture = next((cut / "cam" / "back").iterdir())
    picture.chmod(0o444)
    before = picture.stat()
    taken = Taken(cut, writer=RecordingWriter(cut, RIG, resume=True), tolerance_ms=1000.0).feed(sent)
    taken.close()
    assert picture.stat().st_mtime_ns == before.st_mtime_ns and files(cut) == files(tmp_path / "whole")
    assert taken.writer.bytes == whole.writer.bytes


def test_counts_are_those_of_the_folder(folder: Path) -> None:
    writer = RecordingWriter(folder, RIG)
    stored = files(folder)
    assert (writer.frames, writer.sequences) == (FRAMES, 1)
    assert writer.bytes == sum(len(c) for n, c in stored.items() if "/" in n or n == "frames.jsonl")
    assert writer.start_sequence() == 1
    writer.close()
    writer.close()


def test_free_space_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = os.statvfs(tmp_path)
    writer = RecordingWriter(tmp_path / "drive", RIG, min_free_bytes=usage.f_frsize * usage.f_blocks)
    with pytest.raises(FullError, match=r"GB are free, disk\.min_free_gb keeps"):
        writer.add(writer.start_sequence(), frame())
    assert (writer.frames, writer.sequences) == (0, 0) and not list(tmp_path.rglob("*.bin"))


def test_a_limit_of_the_kernel_leaves_whole_frames(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: frames.jsonl may not grow any more, in the middle of a line."""
    writer = RecordingWriter(tmp_path / "drive", RIG)
    writer.add(writer.start_sequence(), frame())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines(writer.root)[0]) + 100, hard))
    try:
        with pytest.raises(FullError, match="frame at 6 ns not recorded"):
            writer.add(0, frame(6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read_all(writer.root)) == 1 and len(list(tmp_path.rglob("*.bin"))) == 1
    assert writer.add(0, frame(6)) and len(read_all(writer.root)) == 2
    writer.close()


def test_a_frame_without_points(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "drive", RIG, sync_s=1e-9)
    writer.add(writer.start_sequence(), replace(frame(), table=np.zeros((0, 4), np.float32)))
    writer.close()
    assert len(read_all(writer.root)[0].points) == 0


def frame(stamp_ns: int = 5) -> TakenFrame:
    return TakenFrame(stamp_ns, "all", np.eye(4), ("x", "y", "z", "intensity"), np.ones((3, 4), np.float32))

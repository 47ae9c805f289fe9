"""`python -m lima_core.tools.record`: bags of a fleet become recordings that pretraining and finetuning read."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lima_core.checkpoint import load_checkpoint
from lima_core.data.bag import Bag
from lima_core.data.recording import Recording
from lima_core.data.recording_writer import RecordingWriter
from lima_core.data.recordings import MANIFEST, Recordings, read_manifest
from lima_core.data.rig import CameraMount
from lima_core.data.semantickitti import SemanticKITTI
from lima_core.data.sources import open_source
from lima_core.data.splits import Chosen
from lima_core.data.synthetic.street import Street
from lima_core.evaluate import main as evaluate
from lima_core.finetune import main as finetune
from lima_core.geometry import se3
from lima_core.pretrain import main as pretrain
from lima_core.runtime.bag_frames import write_frames
from lima_core.tools import record
from lima_core.tools.record import Job, Outcome, _with_processes, main

SMALL = ["--teacher.image_size=[56,28]", "--teacher.cache=null", "--workers=0", "--epochs=1", "--device=cpu"]
SMALL += ["--voxels.size=[0.8,4.0,0.8]"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two robots, three drives."""
    root = tmp_path_factory.mktemp("fleet")
    for seed, place in ((1, "one/monday"), (2, "one/tuesday"), (3, "two/monday")):
        write_frames(Street(seed, frames=3, image_size=(64, 32)), root / place)
    return root


@pytest.fixture(scope="module")
def recorded(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded")
    assert main([str(fleet), "--out", str(out), "--set", "triggers=all"]) == 0
    return out


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_bag_of_the_fleet_is_recorded_as_it_is(fleet: Path, recorded: Path) -> None:
    names = ["one__monday", "one__tuesday", "two__monday"]
    assert sorted(entry.recording for entry in read_manifest(recorded)) == names
    source = Recordings(recorded)
    assert len(source) == 9
    for number, name in enumerate(names):
        bag = Bag(fleet / name.replace("__", "/"))
        for index in range(3):
            found, wanted = source[3 * number + index], bag[index]
            assert found.stamp_ns == wanted.stamp_ns
            np.testing.assert_array_equal(found.points, wanted.points)
            np.testing.assert_array_equal(found.labels, wanted.labels)
            np.testing.assert_allclose(found.world_from_lidar, wanted.world_from_lidar, atol=1e-7)
            for name_of_column, column in wanted.extra.items():
                np.testing.assert_array_equal(found.extra[name_of_column], column)
            assert len(found.cameras) == len(wanted.cameras) == 6
            for view, other in zip(found.cameras, wanted.cameras, strict=True):
                assert (view.name, view.stamp_ns, view.size) == (other.name, other.stamp_ns, other.size)
                np.testing.assert_allclose(view.camera_from_lidar, other.camera_from_lidar, atol=1e-7)
                assert view.image.jpeg() == other.image.jpeg()


def test_repeated_it_does_nothing_and_interrupted_it_goes_on(
    fleet: Path, recorded: Path, tmp_path: Path, capsys
) -> None:
    out = shutil.copytree(recorded, tmp_path / "out")
    whole = files(out)
    assert main([str(fleet), "--out", str(out), "--set", "triggers=all"]) == 0
    assert "3 of 3 bags are recorded already" in capsys.readouterr().out and files(out) == whole
    manifest = (out / MANIFEST).read_bytes().splitlines(True)
    (out / MANIFEST).write_bytes(b"".join(manifest[:2]))  # killed while it recorded the third
    third = read_manifest(recorded)[2].recording
    lines = (out / third / "frames.jsonl").read_bytes()
    (out / third / "frames.jsonl").write_bytes(lines[: len(lines) - 50])
    assert main([str(fleet), "--out", str(out), "--set", "triggers=all"]) == 0
    assert files(out) == whole


def test_a_broken_bag_holds_up_no_other(fleet: Path, tmp_path: Path, capsys) -> None:
    bags = shutil.copytree(fleet, tmp_path / "fleet")
    file = next((bags / "one" / "tuesday").glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:1000])
    assert main([str(bags), "--out", str(tmp_path / "out"), "--set", "triggers=all"]) == 1
    told = capsys.readouterr()
    assert "tuesday" in told.err and "1 bags could not be recorded" in told.out
    assert sorted(e.recording for e in read_manifest(tmp_path / "out")) == ["one__monday", "two__monday"]


class Fatal(Job):
    """A bag that kills the process that takes it, as where there is too little memory."""

    def __reduce__(self) -> tuple[Callable, tuple[int]]:
        return os._exit, (9,)


def test_a_process_that_dies_takes_no_other_bag_with_it(tmp_path: Path) -> None:
    jobs = [(Fatal if name == "b" else Job)(tmp_path / name, name, (name, 1, 1, "")) for name in "abcd"]
    outcomes = list(_with_processes(partial(record.record, out=tmp_path, settings=None, rig=None), jobs, 2))
    problems = {outcome.job.name: outcome.problem for outcome in outcomes}
    assert sorted(outcome.job.name for outcome in outcomes) == ["a", "b", "c", "d"]
    assert problems.pop("b") == f"{tmp_path / 'b'}: its process died; there may be too little memory"
    assert not any("died" in problem for problem in problems.values())


def test_what_no_one_expected_is_a_problem_of_that_bag(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(bag: Path, *_: object) -> None:
        if bag.parent.name == "one":
            raise AssertionError("an array of no length")

    monkeypatch.setattr(record, "record_bag", broken)
    out = tmp_path / "out"
    RecordingWriter(out / "two__monday", Street(1, frames=1).rig).close()
    assert main([str(fleet), "--out", str(out), "--processes", "1"]) == 1
    told = capsys.readouterr()
    assert told.err.count("AssertionError: an array of no length") == 2 and "2 bags could not be recorded" in told.out


def test_a_bag_without_metadata_is_not_passed_over(fleet: Path, tmp_path: Path, capsys) -> None:
    bags = shutil.copytree(fleet / "two", tmp_path / "two")
    (bags / "monday" / "metadata.yaml").unlink()
    assert main([str(bags), "--out", str(tmp_path / "out")]) == 1
    assert "ros2 bag reindex" in capsys.readouterr().err
    assert main([str(next((fleet / "two" / "monday").glob("*.mcap"))), "--out", str(tmp_path / "out")]) == 1
    assert "is a file; name its folder" in capsys.readouterr().err


def test_room_on_the_disk_is_no_other_recording_but_a_missing_one_is_made(
    fleet: Path, recorded: Path, tmp_path: Path, capsys
) -> None:
    out = shutil.copytree(recorded, tmp_path / "out")
    shutil.rmtree(out / "two__monday")
    settings = ["--set", "triggers=all", "disk.quota_gb=1"]
    assert main([str(fleet), "--out", str(out), *settings]) == 0
    told = capsys.readouterr().out
    assert "2 of 3 bags are recorded already" in told and "3 recordings with 9 frames" in told
    assert files(out / "two__monday") == files(recorded / "two__monday")


class Cluster(ModuleType):
    """Ray's functions as the tool calls them; the call for one bag fails as where a machine is lost."""

    exceptions = SimpleNamespace(RayError=LookupError)

    def init(self, **_: object) -> None:
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def remote(self, function: Callable) -> Any:
        task = SimpleNamespace(remote=lambda job, **words: (lambda: function(job, **words), job.name))
        return SimpleNamespace(options=lambda **_: task)

    def wait(self, waiting: list) -> tuple[list, list]:
        return waiting[-1:], waiting[:-1]

    def get(self, reference: tuple[Callable, str]) -> Outcome:
        if reference[1] == "one__tuesday":
            raise LookupError("the machine is gone")
        return reference[0]()


def test_a_cluster_records_the_same(
    fleet: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "ray", Cluster("ray"))
    command = [str(fleet), "--out", str(tmp_path), "--set", "triggers=all", "--engine", "ray"]
    assert main(command) == 1
    assert "tuesday: the machine is gone" in capsys.readouterr().err and not sys.modules["ray"].up
    for name in ("one__monday", "two__monday"):
        assert files(tmp_path / name) == files(recorded / name)
    assert not (tmp_path / "one__tuesday").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command) == 1
    assert "pip install '.[fleet]'" in capsys.readouterr().err


def test_other_settings_do_not_mix(fleet: Path, recorded: Path, tmp_path: Path, capsys) -> None:
    out = shutil.copytree(recorded, tmp_path / "out")
    assert main([str(fleet), "--out", str(out), "--set", "triggers=time", "trigger.every_s=0.2"]) == 1
    assert "other settings or another bag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "triggers=speed"], "triggers names 'speed'"),
        (["--set", "trigger.every=1"], "did you mean"),
        (["--rig", "none.yaml"], "none.yaml does not exist"),
        (["--processes", "0"], "at least one"),
    ],
)
def test_clear_words(fleet: Path, tmp_path: Path, capsys, words: list[str], told: str) -> None:
    assert main([str(fleet), "--out", str(tmp_path / "out"), *words]) == 1
    assert told in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "holds no rosbag2 folder" in capsys.readouterr().err


def test_a_rig_of_another_robot_is_answered_with_the_topics(fleet: Path, tmp_path: Path, capsys) -> None:
    rig = tmp_path / "rig.yaml"
    Street(1, frames=1).rig.save(rig)
    rig.write_text(rig.read_text().replace("/LIDAR_TOP", "/velodyne"))
    assert main([str(fleet / "two"), "--out", str(tmp_path / "out"), "--rig", str(rig)]) == 1
    told = capsys.readouterr().err
    assert "no messages on /velodyne" in told and "/odom: nav_msgs/msg/Odometry" in told


def test_pretraining_and_finetuning_read_recordings(recorded: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lima = tmp_path / "lima"
    pretrain(["--data.kind=recording", f"--data.root={recorded}", f"--out={lima}", *SMALL])
    meta = load_checkpoint(lima / "checkpoint.safetensors")[1]
    assert meta["provenance"]["data"] == "recording, 9 frames of 3 sequences" and meta["metrics"]["steps"] == 4
    options = ["--data.name=recording", f"--data.root={recorded}", "--epochs=1", "--batch_size=2", "--workers=0"]
    options += [f"--init={lima / 'checkpoint.safetensors'}", "--voxels.size=[0.8,4.0,0.8]", f"--out={tmp_path / 'seg'}"]
    finetune(options)
    evaluate(
        [f"--checkpoint={tmp_path / 'seg' / 'checkpoint.safetensors'}", *options[:2], f"--out={tmp_path / 'eval'}"]
    )
    assert json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert 0 <= load_checkpoint(tmp_path / "seg" / "checkpoint.safetensors")[1]["metrics"]["val_miou"] <= 1


def test_a_player_takes_a_recording_for_a_source(recorded: Path) -> None:
    source = open_source(str(recorded / "one__monday"))
    assert len(source) == 3 and len(source[0].cameras) == 6


@pytest.mark.parametrize("name", ["rosbags", "kitti"])
def test_real_drives_reach_a_pretraining_step(shared: Path, tmp_path: Path, name: str) -> None:
    bags = shared / "data" / "rosbags"
    if name == "kitti":
        drive = SemanticKITTI(shared / "data" / "kitti", "all")
        view = drive[0].cameras[0]  # the data set says where its camera is with each frame, a robot in its rig
        topics = (f"/{view.name}/image", f"/{view.name}/camera_info")
        mount = CameraMount(view.name, view.name, *topics, se3.inverse(view.camera_from_lidar))
        drive.rig = replace(drive.rig, cameras=(mount,))
        bags = tmp_path / "bags"
        write_frames(Chosen(drive, range(4)), bags / "drive")
    out = tmp_path / "out"
    assert main([str(bags), "--out", str(out), "--set", "triggers=all"]) == 0
    source = Recordings(out)
    assert len(source) == 4
    pretrain(["--data.kind=recording", f"--data.root={out}", f"--out={tmp_path / 'lima'}", "--batch_size=2", *SMALL])
    assert np.isfinite(load_checkpoint(tmp_path / "lima" / "checkpoint.safetensors")[1]["metrics"]["first_loss"])
    assert len(Recording(out / read_manifest(out)[0].recording)) > 0

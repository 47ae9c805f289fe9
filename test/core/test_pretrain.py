"""The pretrain verb: run folder, resume after kill -9, cache, order of the scenes, command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drives import CAMERAS, ToyDrive, write_drive
from lima_core import finetune, pretrain
from lima_core.checkpoint import CheckpointError, load_checkpoint
from lima_core.config import read_config
from lima_core.data import labelled
from lima_core.data.labelled import Sweep
from lima_core.data.synthetic.street import Street
from lima_core.lima.scenes import SceneBatches, paired_length, paired_order
from lima_core.models.backbones import BACKBONES
from lima_core.models.minkunet import MODELS
from lima_core.models.teacher import Teacher
from lima_core.models.voxelize import VoxelConfig
from lima_core.paths import config_dir
from lima_core.tools import cache_teacher
from lima_core.training.initial import load_backbone
from lima_core.training.loader import StepLoader

FRAMES, STEPS_PER_EPOCH = 12, 6
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drive(tmp_path_factory.mktemp("drive"))


@pytest.fixture
def arguments(drive: Path, tmp_path: Path) -> list[str]:
    """A run of 4 epochs of 6 steps that takes seconds."""
    return [
        "--data.kind=nuscenes", f"--data.root={drive}", "--data.split=all", "--teacher.image_size=[56,28]",
        f"--teacher.cache={tmp_path / 'features'}", "--voxels.kind=cartesian", "--voxels.size=[1.0,1.0,1.0]",
        "--method.frames=3", "--method.voxel_m=1.0", "--epochs=4", "--workers=0", "--device=cpu",
        "--optim.peak_lr=5e-3", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[float, float, float]]:
    return [(record["loss"], record["distill"], record["mix"]) for record in records(folder)]


def test_run_leaves_everything_in_its_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pretrain.main(arguments)
    run = tmp_path / "run"
    log = records(run)
    assert [record["step"] for record in log] == list(range(4 * STEPS_PER_EPOCH))
    assert np.mean(losses(run)[-STEPS_PER_EPOCH:], axis=0)[0] < 0.9 * np.mean(losses(run)[:STEPS_PER_EPOCH], axis=0)[0]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["method"]["frames"] == 3
    facts = json.loads((run / "run.json").read_text())
    assert facts["command"].startswith("python -m lima_core.pretrain --data.kind=nuscenes")
    assert {"revision", "versions"} <= facts.keys()
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(4 * STEPS_PER_EPOCH))
    np.testing.assert_allclose([event.value for event in board.Scalars("distill")], [r["distill"] for r in log])
    assert len(board.Images("features")) == 4
    weights, meta = load_checkpoint(run / "checkpoint.safetensors")
    assert {name.split(".")[0] for name in weights} == {"backbone", "projection"}
    assert meta["config"] == config
    assert meta["provenance"]["data"] == "nuscenes, 12 frames of 3 sequences"
    assert "UNTRAINED" in caplog.text
    printed = capsys.readouterr().out
    assert printed.index("12 frames to store, 0.00 GB") < printed.index("loss")


def test_later_epochs_do_not_run_the_teacher(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    pretrain.main([*arguments, "--epochs=2"])
    ends = [record for record in records(tmp_path / "run") if "epoch" in record]
    assert [record["teacher_computed"] for record in ends] == [FRAMES, 0]
    monkeypatch.setattr(Teacher, "forward", lambda *_: pytest.fail("the teacher was run"))
    pretrain.main([*arguments, "--epochs=2", f"--out={tmp_path / 'again'}"])
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_without_cache_the_losses_are_the_same(arguments: list[str], tmp_path: Path) -> None:
    pretrain.main([*arguments, "--epochs=1"])
    pretrain.main([*arguments, "--epochs=1", "--teacher.cache=null", f"--out={tmp_path / 'bare'}"])
    assert losses(tmp_path / "bare") == losses(tmp_path / "run")


def test_corrupt_shard_is_computed_again_and_changes_nothing(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain.main([*arguments, "--epochs=1"])
    (shard,) = (tmp_path / "features").rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    pretrain.main([*arguments, "--epochs=1", f"--out={tmp_path / 'again'}"])
    assert f"{shard} is corrupt" in caplog.text
    assert [r["teacher_computed"] for r in records(tmp_path / "again") if "epoch" in r] == [1]
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_cache_tool_fills_what_is_missing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_teacher.main(arguments)
    assert "12 frames computed, 0 were there" in capsys.readouterr().out
    (shard,) = (tmp_path / "features").rglob("*.safetensors")
    assert all(features.shape == (CAMERAS, 384, 2, 4) for features in load_file(shard).values())
    cache_teacher.main(arguments)
    assert "0 frames computed, 12 were there" in capsys.readouterr().out
    pretrain.main([*arguments, "--epochs=1"])
    assert [r["teacher_computed"] for r in records(tmp_path / "run") if "epoch" in r] == [0]


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lima_core.pretrain", *arguments, "--epochs=6", "--save_minutes=0"]
    log = tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 8):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    pretrain.main([*arguments, "--epochs=6", "--resume"])
    pretrain.main([*arguments, "--epochs=6", f"--out={tmp_path / 'whole'}"])
    assert len(losses(tmp_path / "run")) == 6 * STEPS_PER_EPOCH
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("run", "whole"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_workers_change_nothing() -> None:
    def read(workers: int) -> list[list[tuple]]:
        batches = SceneBatches(ToyDrive(), 3, 4, 0, 5, lambda pictures: torch.zeros(len(pictures), 1))
        loader = StepLoader(batches, workers)
        return [[(s.sequence, s.index, s.seed, len(s.frames)) for s in loader.at(step)] for step in (0, 1, 2, 4, 3)]

    assert read(0) == read(2)


def test_batches_are_shared_out_among_processes() -> None:
    def scenes(process: int, processes: int) -> list[tuple[str, int, int]]:
        batches = SceneBatches(
            ToyDrive(), 2, 4, 0, 6, lambda pictures: torch.zeros(1), process=process, processes=processes
        )
        return [[(s.sequence, s.index, s.seed) for s in batches[step]] for step in range(6)]

    together = [a + b for a, b in zip(scenes(0, 2), scenes(1, 2), strict=True)]
    assert together == scenes(0, 1)
    first = [scene[:2] for batch in scenes(0, 1)[:3] for scene in batch]
    assert sorted(first) == sorted((name, i) for name in ("toy-0", "toy-1", "toy-2") for i in range(4))


def test_windows_stay_in_their_sequence_and_are_as_long_as_it_allows() -> None:
    batches = SceneBatches(ToyDrive(), 3, 4, 0, 3, lambda pictures: torch.zeros(1))
    for scene in (scene for step in range(3) for scene in batches[step]):
        names = [frame.view.where for frame in scene.frames]
        assert names == [f"{scene.sequence} frame {i}" for i in range(max(0, scene.index - 2), scene.index + 1)]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(0, 99))
def test_pairs_are_of_two_sequences(sequences: list[str], seed: int) -> None:
    order = paired_order(sequences, np.random.default_rng(seed))
    assert len(order) == paired_length(sequences)
    assert len(set(order)) == len(order)
    if len(set(sequences)) == 1:
        assert len(order) == len(sequences)
        return
    for a, b in order.reshape(-1, 2):
        assert sequences[a] != sequences[b]
    left_out = len(sequences) - len(order)
    surplus = 2 * max(map(sequences.count, sequences)) - len(sequences)
    assert left_out == max(surplus, len(sequences) % 2)


def test_pretrained_backbone_is_finetuned_and_probed(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    pretrain.main([*arguments, "--epochs=1"])
    path = tmp_path / "run" / "checkpoint.safetensors"
    given, _ = load_checkpoint(path)
    sweeps = [Sweep(f.points, (f.points[:, 0] > 0).astype(np.uint8), 1) for f in map(ToyDrive().__getitem__, range(4))]
    monkeypatch.setattr(labelled, "simulate", lambda *_: sweeps)
    probe = [f"--init={path}", "--linear_probe", f"--out={tmp_path / 'probe'}", "--epochs=3", "--batch_size=2"]
    voxels = ["--voxels.kind=cartesian", "--voxels.size=[1.0,1.0,1.0]"]
    finetune.main([*probe, *voxels])
    learned, _ = load_checkpoint(tmp_path / "probe" / "checkpoint.safetensors")
    for name, value in given.items():
        if name.startswith("backbone."):
            torch.testing.assert_close(learned[name], value, rtol=0, atol=0)
    finetune.main([f"--init={path}", f"--out={tmp_path / 'tuned'}", "--epochs=1", "--batch_size=2", *voxels])
    tuned, _ = load_checkpoint(tmp_path / "tuned" / "checkpoint.safetensors")
    assert not torch.equal(tuned["backbone.stem.0.conv.weight"], given["backbone.stem.0.conv.weight"])
    with pytest.raises(SystemExit, match=r"error: .*make them equal"):
        finetune.main(probe)


def test_backbone_of_another_model_is_refused(arguments: list[str], tmp_path: Path) -> None:
    pretrain.main([*arguments, "--epochs=1"])
    with pytest.raises(CheckpointError, match="is a minkunet_tiny, not a minkunet18; set --model=minkunet_tiny"):
        load_backbone(
            tmp_path / "run" / "checkpoint.safetensors", "minkunet18", MODELS["minkunet18"](),
            VoxelConfig("cartesian", (1.0, 1.0, 1.0)),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methd.frames=3"], "unknown key methd.frames; did you mean method.frames"),
        (["--method.frames=six"], "method.frames: .*int.*six"),
        (["--student=minkunet"], "student 'minkunet' is unknown; there are minkunet34"),
        (["--data.root="], "needs data.root"),
        (["--data.root=/nowhere"], "/nowhere: name one nuScenes version folder"),
        (["--data.kind=street", "--data.seeds=[3,3]"], "data.seeds"),
        (["--teacher.weights=/nowhere/vit.pth"], "/nowhere/vit.pth do not exist; get model.safetensors from https"),
        (["--teacher.image_size=[50,28]"], "both must be multiples of 14"),
        (["--teacher.layer=12"], "has 12 blocks"),
        (["--resume"], "nothing to resume"),
        (["--precision=bf16"], "precision bf16 needs a GPU"),
        (["--batch_size=40"], "12 frames of 3 sequences fill no batch of 40"),
    ],
)
def test_wrong_settings_end_with_one_line(arguments: list[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        pretrain.main([*arguments, *options])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_absent_gpu_is_explained(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^error: device is cuda, but PyTorch finds no GPU; use --device=auto or cpu"):
        pretrain.main([*arguments, "--device=cuda"])


def test_too_little_disk_is_an_error_before_training(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lima_core.training.feature_cache.RESERVE_BYTES", 1 << 60)
    with pytest.raises(SystemExit, match=r"error: feature cache .* 12 frames to store"):
        pretrain.main(arguments)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("path", sorted((config_dir() / "pretrain").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    config = read_config(pretrain.PretrainConfig, ["--config", str(path)], "test")
    assert config.student in BACKBONES


def test_help_shows_keys_with_unit_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--method.frames",
        "--teacher.image_size",
        "pixels, multiples of 14",
        "--save_minutes",
        "default: 10.0",
    ):
        assert part in text


@pytest.mark.slow
def test_no_argument_draws_streets_and_learns(tmp_path: Path) -> None:
    small = ["--data.seeds=[0,2]", "--data.sweeps=2", "--epochs=1", "--voxels.size=[0.4,2.0,0.4]"]
    places = [f"--data.folder={tmp_path}/streets", f"--teacher.cache={tmp_path}/features", f"--out={tmp_path}/run"]
    pretrain.main([*small, *places])
    roots = sorted((tmp_path / "streets").iterdir())
    assert len(roots) == 2
    config = read_config(pretrain.PretrainConfig, [*small, *places], "test")
    found = pretrain.open_drive(config.data, 1)[1]
    drawn = Street(0, 6, image_size=(112, 56))[5]
    np.testing.assert_allclose(found.points, drawn.points, atol=1e-6)
    np.testing.assert_allclose(found.world_from_lidar, drawn.world_from_lidar, atol=1e-9)
    assert losses(tmp_path / "run")

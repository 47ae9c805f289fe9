"""Two processes compute what one would: normalisation, gradients of the whole step, and a run under torchrun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, multiprocessing, nn

from drives import write_drive
from lima_core.checkpoint import read_tensors
from lima_core.data.augment import AugmentConfig
from lima_core.lima.cross_view import Sightings
from lima_core.lima.step import Lima, LimaConfig, Scene
from lima_core.lima.view import View
from lima_core.models.minkunet import MinkUNet
from lima_core.models.voxelize import VoxelConfig
from lima_core.training.loop import average_gradients, leave_processes, open_fabric
from lima_core.training.sync_norm import SyncBatchNorm, synchronise

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 6


def view(seed: int, points: int, cameras: int = 2) -> View:
    """Random points of which half are seen; none without cameras."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    cloud = rng.uniform([-8, -8, -2, 0], [8, 8, 2, 1], (points, 4)).astype(np.float32)
    seen = points // 2 if cameras else 0
    sightings = Sightings(
        torch.randint(max(cameras, 1), (seen,), generator=generator),
        torch.randperm(points, generator=generator)[:seen],
        torch.rand(seen, 2, generator=generator),
    )
    grids = torch.randn(cameras, CHANNELS, 3, 4, generator=generator)
    return View(f"scene {seed}", cloud, np.eye(4), sightings, cameras, 0, grids)


def scenes() -> list[Scene]:
    """Four, of very different sizes; no camera sees anything in the third."""
    sizes, cameras = (900, 200, 500, 50), (2, 2, 0, 2)
    return [
        Scene(f"sequence-{i}", 1, view(i, sizes[i], cameras[i]), (view(10 + i, 300, cameras[i]),), seed=i)
        for i in range(4)
    ]


def objective(distance: str) -> Lima:
    torch.manual_seed(0)
    student = MinkUNet(4, stem=4, planes=(4, 6, 6, 4), blocks=(1, 1, 1, 1), norm_momentum=0.05)
    config = LimaConfig(frames=2, voxel_m=0.5, distance=distance)
    return Lima(student, CHANNELS, config, VoxelConfig("cartesian", (1.0, 1.0, 1.0)), AugmentConfig())


def state_after(model: nn.Module) -> dict[str, Tensor]:
    """Gradients and buffers by name."""
    gradients = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return {**gradients, **{name: b.clone() for name, b in model.named_buffers()}}


def enter(process: int, port: int) -> None:
    """What torchrun sets for the processes it starts."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(process), LOCAL_RANK=str(process), GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip


def half_step(process: int, port: int, folder: Path, distance: str) -> None:
    enter(process, port)
    fabric = open_fabric()
    model = objective(distance)
    synchronise(model)
    loss = model.step(scenes()[2 * process : 2 * process + 2])
    fabric.backward(loss.total)
    average_gradients(fabric, model)
    torch.save({**state_after(model), "loss": loss.total.detach()}, folder / f"{process}.pt")
    leave_processes()


def in_two_processes(function, folder: Path, *arguments: object) -> list[dict[str, Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(function, (port, folder, *arguments), nprocs=2)
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


@pytest.mark.parametrize("distance", ["l2", "infonce"])
def test_gradients_of_two_processes_equal_those_of_one(tmp_path: Path, distance: str) -> None:
    model = objective(distance)
    loss = model.step(scenes())
    loss.total.backward()
    expected = state_after(model)
    first, second = in_two_processes(half_step, tmp_path, distance)
    assert float(first["loss"] + second["loss"]) / 2 == pytest.approx(float(loss.total.detach()), abs=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
    assert max(float(value.abs().max()) for name, value in expected.items() if "grad" in name) > 1e-2


def test_without_shared_statistics_the_gradients_differ() -> None:
    """That the test above can fail: halves normalised apart are another function."""
    model = objective("l2")
    model.step(scenes()).total.backward()
    together = state_after(model)
    model = objective("l2")
    for half in (scenes()[:2], scenes()[2:]):
        (model.step(half).total / 2).backward()
    apart = state_after(model)
    assert max(float((together[n] - apart[n]).abs().max()) for n in together if "grad" in n) > 1e-3


def normalise(process: int, port: int, folder: Path, shape: tuple[int, ...]) -> None:
    enter(process, port)
    open_fabric()
    x, weight = normal_input(shape)
    mine = x[:7] if process == 0 else x[7:]
    mine.requires_grad_()
    norm = SyncBatchNorm(3, momentum=0.3)
    y = norm(mine)
    (y * (weight[:7] if process == 0 else weight[7:])).sum().backward()
    out = {"y": y.detach(), "dx": mine.grad, "mean": norm.running_mean, "var": norm.running_var}
    torch.save(out, folder / f"{process}.pt")
    leave_processes()


def normal_input(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * 3 + 100, torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (30, 3)), (nn.BatchNorm2d, (12, 3, 4, 5))])
def test_normalisation_over_two_processes_is_torch_s_over_all_rows(kind: type, shape: tuple, tmp_path: Path) -> None:
    x, weight = normal_input(shape)
    x.requires_grad_()
    norm = kind(3, momentum=0.3)
    y = norm(x)
    (y * weight).sum().backward()
    first, second = in_two_processes(normalise, tmp_path, shape)
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), y.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([first["dx"], second["dx"]]), x.grad, rtol=1e-4, atol=1e-4)
    for part in (first, second):
        torch.testing.assert_close(part["mean"], norm.running_mean)
        torch.testing.assert_close(part["var"], norm.running_var)


def normalise_half(process: int, port: int, folder: Path) -> None:
    enter(process, port)
    open_fabric()
    norm = SyncBatchNorm(2)
    y = norm(torch.randn(1, 2, 300, 300, generator=torch.Generator().manual_seed(process)).half())
    torch.save({"y": y.detach(), "var": norm.running_var}, folder / f"{process}.pt")
    leave_processes()


def test_half_precision_counts_more_than_it_can_hold(tmp_path: Path) -> None:
    """180,000 cells are beyond float16, whose largest number is 65504."""
    for part in in_two_processes(normalise_half, tmp_path):
        assert part["y"].dtype == torch.float16 and float(part["y"].float().std()) == pytest.approx(1, abs=0.02)
        torch.testing.assert_close(part["var"], torch.ones(2), atol=0.01, rtol=0)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def command(folder: Path, launcher: list[str], *options: str) -> list[str]:
    return [
        *launcher, "-m", "lima_core.pretrain", "--data.kind=nuscenes", f"--data.root={write_drive(folder / 'drive')}",
        "--data.split=all", "--teacher.image_size=[28,28]", f"--teacher.cache={folder / 'features'}",
        "--voxels.size=[1.0,4.0,1.0]", "--method.frames=2", "--batch_size=4", "--device=cpu", f"--out={folder / 'run'}",
        *options,
    ]  # fmt: skip


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_run_under_torchrun_follows_the_run_of_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, launcher in ((two, TORCHRUN), (one, [sys.executable])):
        run = command(folder, launcher, "--epochs=1", "--workers=0")
        subprocess.run(run, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    assert len(log(two)) == len(log(one)) == 3
    for ours, theirs in zip(log(two), log(one), strict=True):
        assert ours["targets"] == theirs["targets"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert (two / "run" / "checkpoint.safetensors").is_file()


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    """torchrun signals whole process groups, the workers that read ahead included."""
    run = command(tmp_path, TORCHRUN, "--epochs=50", "--workers=1")
    process = subprocess.Popen(run, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate()
    steps = len(log(tmp_path))
    assert 3 < steps < 150
    assert errors.count(f"stopped after step {steps} of 150; continue with --resume") == 2
    assert read_tensors(tmp_path / "run" / "state.safetensors")[1]["step"] == steps


@pytest.mark.slow
def test_finetuning_under_torchrun_follows_the_run_of_one_process(tmp_path: Path) -> None:
    """Not to the last digit: the losses of two processes are means over their own voxels."""
    options = [
        "--data.street.train_seeds=[0,4]", "--data.street.val_seeds=[9,11]", "--data.street.sweeps_per_street=1",
        "--voxels.size=[0.5,2.0,0.5]", "--epochs=1", "--batch_size=2", "--workers=1",
    ]  # fmt: skip
    for name, launcher in (("two", TORCHRUN), ("one", [sys.executable])):
        run = [*launcher, "-m", "lima_core.finetune", *options, f"--out={tmp_path / name / 'run'}"]
        subprocess.run(run, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
    assert two[-1]["val_miou"] == pytest.approx(one[-1]["val_miou"], abs=0.02)
    assert {path.name for path in (tmp_path / "two" / "run").glob("*.safetensors")} == {
        "best.safetensors",
        "checkpoint.safetensors",
        "state.safetensors",
    }

"""Configuration, augmentation, the training loop and the finetune verb."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

from lima_core import finetune
from lima_core.checkpoint import load_checkpoint
from lima_core.config import ConfigError, option, plain, read_config, to_yaml
from lima_core.data.augment import AugmentConfig, augment
from lima_core.data.labelled import DataConfig, StreetConfig, Sweep, open_labelled
from lima_core.models.heads import Segmenter
from lima_core.models.loss import Loss
from lima_core.models.minkunet import MinkUNet
from lima_core.models.voxelize import VoxelConfig
from lima_core.paths import config_dir
from lima_core.tools import finetune_configs
from lima_core.training import segmentation_task
from lima_core.training.input_statistics import input_statistics
from lima_core.training.loop import StoppedError, fit
from lima_core.training.loss import segmentation_loss
from lima_core.training.optim import OptimConfig, build_optimizer, learning_rate, one_cycle
from lima_core.training.sweeps import TrainingSweeps, evaluate

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
VOXELS = VoxelConfig("cartesian", (1.0, 1.0, 0.5))


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "how fast, 1/s")
    kind: Literal["round", "square"] = option("round", "which")


@dataclass(frozen=True)
class Outer:
    steps: int = option(3, "how many")
    seeds: tuple[int, ...] = option((1, 2), "which ones")
    inner: Inner = field(default_factory=Inner)
    resume: bool = option(False, "go on")


def read(*argv: str) -> Outer:
    return read_config(Outer, argv, "test")


def test_config_takes_yaml_then_options_and_round_trips(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("steps: 5\nseeds: [7]\ninner: {rate: 1e-3}\n")
    config = read("--config", str(file), "--inner.kind=square", "--steps=6", "--resume")
    assert config == Outer(6, (7,), Inner(1e-3, "square"), True)
    again = tmp_path / "b.yaml"
    again.write_text(to_yaml(config))
    assert read("--config", str(again)) == config
    assert plain(config)["inner"] == {"rate": 1e-3, "kind": "square"}
    assert read() == Outer()
    assert read("--config", str(again), "--resume=false").resume is False


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (["--inner.rat=1"], "", r"unknown key inner.rat.*did you mean inner.rate\?"),
        (["--stesp=1"], "", r"unknown key stesp; did you mean steps\?"),
        (["--step=1"], "", r"unknown key step; did you mean steps\?"),
        ([], "inner: {rat: 1}", r"unknown key inner.rat; did you mean inner.rate\?"),
        ([], "iner: {rate: 1}", r"unknown key iner.rate; did you mean inner.rate\?"),
        ([], "zzz: 1", r"unknown key zzz; known are steps, seeds, inner.rate"),
        (["--steps=2.5"], "", r"steps: .*int.*2\.5"),
        ([], "inner: {rate: fast}", r"inner.rate: .*float.*fast"),
        (["--resume=perhaps"], "", r"resume: .*bool.*perhaps"),
        ([], "inner: 3", r"inner is a group of keys \(rate, kind\), got 3"),
        (["--inner.kind=oval"], "", r"inner.kind: .*round.*oval"),
        ([], "steps: [", r"parsing config"),
    ],
)
def test_wrong_config_is_explained(tmp_path: Path, argv: list[str], content: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content or "{}")
    with pytest.raises(ConfigError, match=message):
        read("--config", str(file), *argv)


def test_missing_config_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read("--config", "nowhere.yaml")


def test_help_shows_every_key_with_its_line_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--inner.rate", "how fast, 1/s (type: float, default: 0.5)", "--seeds", "default: (1, 2)"):
        assert part in text


@pytest.mark.parametrize("path", sorted((config_dir() / "finetune").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    config = read_config(finetune.FinetuneConfig, ["--config", str(path)], "test")
    assert yaml.safe_load(path.read_text())["model"] == config.model


def test_augmentation_is_a_similarity_and_depends_on_the_seed_alone() -> None:
    points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    points[:, 3] = np.linspace(0, 1, 50)
    first, same, other = (augment(points, np.random.default_rng(s), AugmentConfig()) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    lengths = np.linalg.norm(first[:, None, :3] - first[None, :, :3], axis=2)
    before = np.linalg.norm(points[:, None, :3] - points[None, :, :3], axis=2)
    factor = lengths[0, 1] / before[0, 1]
    assert 0.95 <= factor <= 1.05
    np.testing.assert_allclose(lengths, before * factor, atol=1e-4)
    np.testing.assert_allclose(first[:, 2], points[:, 2] * factor, rtol=1e-5)
    assert 0 <= first[:, 3].min() <= first[:, 3].max() <= 1


def test_augmentation_mirrors_half_of_the_sweeps() -> None:
    triangle = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    config = AugmentConfig(rotation=0.0, scale=(1.0, 1.0))
    seen = {tuple(augment(triangle, np.random.default_rng(s), config)[[0, 1], [0, 1]]) for s in range(40)}
    assert seen == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def sweeps(n: int) -> list[Sweep]:
    """Flat ground (0) with boxes (1) whose intensity differs a little."""
    made = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        points = (rng.random((600, 4)) * [20, 20, 0.2, 0.5] - [10, 10, 1.8, 0]).astype(np.float32)
        box = np.abs(points[:, :2] - rng.uniform(-6, 6, 2)).max(1) < 3
        points[box, 2] += rng.random(box.sum()).astype(np.float32) * 2
        made.append(Sweep(points, box.astype(np.uint8), 32))
    return made


class Run:
    """A small training run on `sweeps`, which a signal can stop."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = Segmenter(MinkUNet(4, stem=8, planes=(8, 8, 8, 8), blocks=(1, 1, 1, 1), norm_momentum=0.2), 2)
        self.data = TrainingSweeps(sweeps(8), 2, VOXELS, AugmentConfig(), seed=3, epochs=6)
        self.folder, self.stop_at = folder, stop_at

    def loss_at(self, step: int) -> Loss:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        batch = self.data[step]
        return segmentation_loss(self.network(batch.voxels), batch.labels)

    def evaluate(self) -> dict[str, Any]:
        return {"val_miou": evaluate(self.network, sweeps(10)[8:], VOXELS, 2).miou()}

    def fit(self, resume: bool = False) -> list[dict[str, Any]]:
        spe = self.data.steps_per_epoch
        return fit(self.network, self.loss_at, self.evaluate, 24, spe, OptimConfig(5e-3), self.folder, resume=resume)


def test_training_learns(tmp_path: Path) -> None:
    log = Run(tmp_path).fit()
    assert [record["epoch"] for record in log if "epoch" in record] == [1, 2, 3, 4, 5, 6]
    assert log[3]["val_miou"] < 0.5 < 0.7 < log[-1]["val_miou"]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == log


@pytest.mark.parametrize("stop_at", [0, 9, 11])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = Run(tmp_path / "whole")
    expected = whole.fit()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=f"stopped after step {stop_at + 1} of 24") as stopped:
        Run(tmp_path / "cut", stop_at).fit()
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    resumed = Run(tmp_path / "cut")
    log = resumed.fit(resume=True)
    assert log == expected
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_optimiser_is_adamw_under_torch_s_one_cycle() -> None:
    weight = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(weight, OptimConfig())
    reference = torch.optim.AdamW(weight.parameters(), 1e-3, (0.9, 0.999), 1e-6, 0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        reference, 1e-3, total_steps=60, pct_start=0.2, div_factor=25, final_div_factor=100, cycle_momentum=False
    )
    assert {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "lr", "factor")} == {
        k: v
        for k, v in reference.param_groups[0].items()
        if k in optimizer.param_groups[0] and k not in ("params", "lr")
    }
    for step in range(60):
        assert one_cycle(step, 60, 1e-3) == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9)
        reference.step()
        if step < 59:
            cycle.step()


def test_sgd_follows_a_cosine_of_epochs_and_the_head_its_own_rate(tmp_path: Path) -> None:
    config = OptimConfig(0.02, 1e-4, kind="sgd", head_lr_factor=100.0)
    network = Segmenter(MinkUNet(4, stem=8, planes=(8, 8), blocks=(1, 1)), 2)
    optimizer = build_optimizer(network, config)
    rest, head = optimizer.param_groups
    assert (rest["factor"], head["factor"]) == (1.0, 100.0)
    assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}
    assert sum(len(group["params"]) for group in (rest, head)) == len(list(network.parameters()))
    assert (rest["momentum"], rest["dampening"], rest["weight_decay"]) == (0.9, 0.1, 1e-4)
    reference = torch.optim.SGD(network.parameters(), 0.02)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 5)
    for step in range(20):  # five epochs of four steps
        assert learning_rate(step, 20, 4, config) == pytest.approx(reference.param_groups[0]["lr"], abs=1e-12)
        if step % 4 == 3:
            reference.step()
            cosine.step()
    run = Run(tmp_path)
    fit(
        run.network, run.loss_at, run.evaluate, 4, 4, OptimConfig(0.01, 1e-4, kind="sgd", head_lr_factor=10.0), tmp_path
    )


def test_frozen_backbone_leaves_the_head_to_the_optimiser() -> None:
    network = Segmenter(MinkUNet(4, stem=8, planes=(8, 8), blocks=(1, 1)), 2)
    network.backbone.requires_grad_(False)
    (group,) = build_optimizer(network, OptimConfig(head_lr_factor=10.0)).param_groups
    assert group["factor"] == 10.0
    assert {id(p) for p in group["params"]} == {id(p) for p in network.head.parameters()}


def test_processes_share_out_the_batch_that_one_would_take() -> None:
    marked = [Sweep(np.full((1, 4), i, np.float32), np.array([i], np.uint8), 1) for i in range(8)]
    whole = TrainingSweeps(marked, 4, VOXELS, AugmentConfig(), 0, epochs=2)
    parts = [TrainingSweeps(marked, 4, VOXELS, AugmentConfig(), 0, 2, process=rank, processes=2) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == 4
    for step in range(4):
        labels = torch.cat([part[step].labels for part in parts]).tolist()
        assert sorted(labels) == sorted(whole[step].labels.tolist())


@pytest.mark.parametrize("mixing", ["lasermix", "polarmix", "frustummix"])
def test_mixed_batches_keep_labels_with_their_points_and_repeat(mixing: str) -> None:
    data = TrainingSweeps(sweeps(4), 4, VOXELS, AugmentConfig(flip=0, rotation=0, scale=(1, 1)), 0, 20, mixing)
    plain_data = TrainingSweeps(sweeps(4), 4, VOXELS, AugmentConfig(flip=0, rotation=0, scale=(1, 1)), 0, 20)
    for step in range(3):
        first, again = data[step], data[step]
        torch.testing.assert_close(first.voxels.features, again.voxels.features, rtol=0, atol=0)
        assert set(first.labels.tolist()) <= {0, 1}
    assert any(len(data[step].voxels) != len(plain_data[step].voxels) for step in range(3))


def test_share_of_streets_is_every_nth_of_them() -> None:
    street = StreetConfig((0, 20), (50, 51), sweeps_per_street=1)
    drawn = open_labelled(DataConfig(share=10, street=street), "train", 1)
    whole = open_labelled(DataConfig(share=100, street=StreetConfig((10, 11), (50, 51), 1)), "train", 1)
    assert len(drawn) == 2
    np.testing.assert_array_equal(drawn[1].points, whole[0].points)


def test_configs_of_the_paper_s_tables_are_those_of_the_template() -> None:
    folder = config_dir() / "finetune"
    made = finetune_configs.configs()
    assert {path.name for kind in ("seg", "det_nuscenes") for path in folder.glob(f"{kind}_*.yaml")} == set(made)
    assert all((folder / name).read_text() == content for name, content in made.items())


@pytest.mark.slow
def test_one_real_frame_is_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    for number in ("00", "08"):
        for kind, suffix in (("velodyne", "bin"), ("labels", "label")):
            (root / "sequences" / number / kind).mkdir(parents=True)
            real = shared / f"data/semantickitti/sequences/00/{kind}/000000.{suffix}"
            (root / "sequences" / number / kind / f"000000.{suffix}").write_bytes(real.read_bytes())
    threads = torch.get_num_threads()
    try:
        finetune.main([
            "--data.name=semantickitti", f"--data.root={root}", "--voxels.size=[0.1,1.0,0.1]", "--epochs=200",
            "--batch_size=1", "--validate_every=100", "--optim.peak_lr=0.01", "--augment.flip=0",
            "--augment.rotation=0", "--augment.scale=[1,1]", "--augment.intensity_gain=1", "--workers=0",
            f"--out={tmp_path}/run",
        ])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert load_checkpoint(tmp_path / "run/checkpoint.safetensors")[1]["metrics"]["val_accuracy"] > 0.95


def test_nan_loss_stops_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    nan = torch.tensor(float("nan"), requires_grad=True)
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        fit(run.network, lambda step: Loss(nan, {}), run.evaluate, 4, 2, OptimConfig(), tmp_path)


def test_each_epoch_uses_every_sweep_once_in_its_own_order() -> None:
    marked = [Sweep(np.full((1, 4), i, np.float32), np.array([i], np.uint8), 1) for i in range(6)]
    data = TrainingSweeps(marked, 2, VOXELS, AugmentConfig(), seed=0)
    labels = torch.cat([data[step].labels for step in range(2 * data.steps_per_epoch)]).tolist()
    first, second = labels[:6], labels[6:]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_input_statistics_describe_the_sweeps() -> None:
    radius = np.linspace(1, 20, 1000, dtype=np.float32)
    ground = np.stack([radius, 0 * radius, 0 * radius - 1.7, np.linspace(0, 1, 1000)], 1).astype(np.float32)
    found = input_statistics([Sweep(ground, np.zeros(1000, np.uint8), 32)] * 2)
    assert found["ground_z_m"] == pytest.approx(-1.7)
    assert found["beams"] == 32
    assert found["points_per_sweep"]["mean"] == 1000
    assert found["intensity"]["percentiles"]["25"] == pytest.approx(0.25, abs=1e-3)
    assert found["range_m"]["max"] == pytest.approx(np.hypot(20, 1.7), abs=1e-3)
    json.dumps(found)


SMALL = [
    "--data.street.train_seeds=[0,2]",
    "--data.street.val_seeds=[9,10]",
    "--data.street.sweeps_per_street=1",
    "--data.street.sweep_stride=1",
    "--voxels.size=[1.0,3.0,0.5]",
    "--epochs=1",
    "--batch_size=2",
    "--workers=1",
]


def test_finetune_writes_a_checkpoint_that_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        finetune.main([*SMALL, f"--out={tmp_path}"])
    finally:
        torch.set_num_threads(threads)
    assert "val mIoU" in capsys.readouterr().out
    _, meta = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert meta["model"] == "minkunet_tiny"
    assert meta["metrics"]["val_seeds"] == [9, 10]
    assert meta["metrics"]["best_epoch"] == load_checkpoint(tmp_path / "best.safetensors")[1]["metrics"]["epoch"] == 1
    assert 0.01 <= meta["temperature"] <= 100
    assert 0 <= meta["metrics"]["val_miou"] <= 1
    assert meta["inputs"]["beams"] == 32
    assert meta["provenance"]["command"].startswith("python -m lima_core.finetune")
    assert meta["config"] == yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert meta["config"]["voxels"]["size"] == [1.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.street.val_seeds=[1,5]"], "overlap"),
        (["--data.street.val_seeds=[5,5]"], "must not be empty"),
        (["--model=minkunet"], "there are minkunet34"),
        (["--resume"], "nothing to resume"),
        (["--data.name=semantickitti"], "needs data.root"),
        (["--data.name=semantickitti", "--data.root=nowhere"], "is no folder"),
        (["--data.share=3"], "a share of 3 % is not defined"),
        (["--batch_size=9"], "do not fill a batch of 9"),
        (["--data.street.vall_seeds=[1,5]"], "did you mean data.street.val_seeds"),
    ],
)
def test_wrong_settings_end_with_one_line(tmp_path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        finetune.main([*SMALL, f"--out={tmp_path}/run", *argv])
    assert list(tmp_path.iterdir()) == []


def test_stopped_run_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SMALL, "--data.street.train_seeds=[0,4]", "--epochs=2", "--workers=0"]
    threads, at = torch.get_num_threads(), []
    original = segmentation_task.segmentation_loss

    def stopping(logits: torch.Tensor, labels: torch.Tensor) -> Loss:
        at.append(len(labels))
        if len(at) == 3:  # the first step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(logits, labels)

    try:
        finetune.main([*options, f"--out={tmp_path}/whole"])
        with monkeypatch.context() as patch:
            patch.setattr(segmentation_task, "segmentation_loss", stopping)
            with pytest.raises(SystemExit) as stopped:
                finetune.main([*options, f"--out={tmp_path}/cut"])
        finetune.main([*options, f"--out={tmp_path}/cut", "--resume"])
    finally:
        torch.set_num_threads(threads)
    assert stopped.value.code == 128 + signal.SIGTERM
    log = "metrics.jsonl"
    assert (tmp_path / "cut" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
    for name in ("checkpoint.safetensors", "best.safetensors"):
        (cut, meta), (whole, expected) = (load_checkpoint(tmp_path / run / name) for run in ("cut", "whole"))
        torch.testing.assert_close(cut, whole, rtol=0, atol=0)
        assert meta["metrics"] == expected["metrics"]
        assert meta["temperature"] == expected["temperature"]

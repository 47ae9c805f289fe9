"""Detection from the command line: finetune, its start from a pretrained encoder, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_detector import BOUNDS, NAMES, SMALL

import drives
import networks
from lima_core import evaluate, finetune
from lima_core.checkpoint import load_checkpoint, save_checkpoint
from lima_core.config import plain, read_config
from lima_core.data.frame import Boxes, Frame
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.models.backbones import build_backbone
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.predictor import Predictor
from lima_core.training.finetune_config import FinetuneConfig
from toy_boxes import BOUNDS as BOUND_OPTIONS
from toy_boxes import NETWORK, ToyBoxes

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
OPTIONS = [*BOUND_OPTIONS, *NETWORK, "--detector.sweeps=2", "--augment.rotation=0", "--batch_size=2", "--workers=0"]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streets of all commands are toy sweeps."""
    for module in ("training.detection_task", "evaluate_boxes"):
        monkeypatch.setattr(f"lima_core.{module}.open_boxed", lambda *_: ToyBoxes(4))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("head", ["center", "anchor"])
@pytest.mark.parametrize("task", ["detection", "both"])
def test_training_lowers_the_loss_and_leaves_a_checkpoint(task: str, head: str, tmp_path: Path, capsys) -> None:
    schedule = ["--epochs=20", "--boxes.balance=false", "--optim.kind=adam_onecycle", "--optim.peak_lr=0.01"]
    finetune.main([*OPTIONS, *schedule, f"--task={task}", f"--detector.head={head}", f"--out={tmp_path}"])
    log = losses(tmp_path)
    assert np.mean(log[-4:]) < 0.75 * log[0]
    _, meta = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert meta["task"] == task and meta["detection"]["names"] == list(NAMES)
    assert meta["metrics"].keys() >= {"val_map", "val_nds", "val_ap", "best_val_map", "best_epoch"}
    assert ("val_miou" in meta["metrics"]) == (task == "both") == bool(meta["classes"]["names"])
    printed = capsys.readouterr().out
    assert "val mAP" in printed and ("val mIoU" in printed) == (task == "both")
    predictor = Predictor(tmp_path / "checkpoint.safetensors", "cpu")
    assert predictor.detection_names == NAMES and (predictor.perceive(np.zeros((0, 4), np.float32))[0] is None) == (
        task == "detection"
    )


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*OPTIONS, "--task=detection", "--optim.kind=adam_onecycle"]
    finetune.main([*words, "--epochs=2", f"--out={tmp_path}/whole"])
    config = read_config(FinetuneConfig, [*words, "--epochs=2", f"--out={tmp_path}/cut"], "test")
    from lima_core.training import detection_task

    original, calls = detection_task.DetectionTask.loss, []

    def stopping(self: detection_task.DetectionTask, batch: object) -> object:
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(detection_task.DetectionTask, "loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config, ["x"])
    finetune.main([*words, "--epochs=2", f"--out={tmp_path}/cut", "--resume"])
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def pretrained(path: Path, bounds: RangeConfig = BOUNDS) -> Path:
    """What pretraining leaves: an encoder of four columns, and a projection."""
    torch.manual_seed(1)
    backbone = build_backbone("voxelnet_tiny", bounds)
    model = torch.nn.ModuleDict({"backbone": backbone, "projection": torch.nn.Linear(backbone.out_channels, 3)})
    meta = {
        "format": 1, "model": "voxelnet_tiny", "classes": {"names": [], "colors": []},
        "config": {"voxels": plain(VoxelConfig()), "bounds": plain(bounds)},
        **{key: {} for key in ("inputs", "metrics", "versions", "provenance")},
    }  # fmt: skip
    return save_checkpoint(path, model, meta)


def test_pretrained_encoder_is_taken_over_whole(tmp_path: Path, capsys) -> None:
    path = pretrained(tmp_path / "lima")
    finetune.main([*OPTIONS, "--task=detection", f"--init={path}", "--epochs=1", "--optim.peak_lr=0",
                   "--optim.weight_decay=0", f"--out={tmp_path}/run"])  # fmt: skip
    report = capsys.readouterr().out
    assert "all 72 tensors" in report and "conv1.0.conv.weight: zeros for input columns" in report
    assert "not used: projection.bias, projection.weight" in report
    given, _ = load_checkpoint(path)
    taken, _ = load_checkpoint(tmp_path / "run/checkpoint.safetensors")
    first = "backbone.network.encoder.conv1.0.conv.weight"
    assert torch.equal(taken[first][..., :4], given[first]) and not taken[first][..., 4].any()
    for name, value in given.items():
        if name.startswith("backbone.") and name.endswith("conv.weight") and name != first:
            assert torch.equal(taken[name], value), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=minkunet_tiny"], "needs a model with a bird's-eye view: voxelnet, voxelnet_plain, voxelnet_tiny"),
        (["--linear_probe"], "linear_probe and mixing are for task segmentation"),
        (["--mixing=lasermix"], "linear_probe and mixing are for task segmentation"),
        (["--detector.sweeps=0"], "at least 1"),
        (["--optim.head_lr_factor=10"], "head_lr_factor is for task segmentation"),
        (["--detector.head=anchor", "--detector.nms=circle"], "circle is for head center"),
        (["--data.name=semantickitti"], "semantickitti has no classes of boxes; nuscenes and street have"),
        (["--bounds.low=[-5.2,-6.4,-5]", "--bounds.high=[6.0,6.4,3]"], "give an odd map of .7, 8. cells"),
        (["--boxes.gt_database=nowhere"], "nowhere is no database of objects"),
        (["--batch_size=400"], "do not fill a batch of 400; set --batch_size"),
    ],
)
def test_wrong_settings_are_explained(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*({message})"):
        finetune.main([*OPTIONS, "--task=detection", *options, f"--out={tmp_path}/run"])
    assert list(tmp_path.iterdir()) == []


def test_objects_to_paste_need_boxes_to_learn(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: boxes.gt_database is for boxes"):
        finetune.main(["--boxes.gt_database=x", f"--out={tmp_path}/run"])


def test_encoder_of_other_voxels_is_refused(tmp_path: Path) -> None:
    path = pretrained(tmp_path / "lima", RangeConfig((-6.4, -6.4, -5.0), (6.4, 6.4, 3.0), (0.1, 0.1, 0.2)))
    with pytest.raises(SystemExit, match=r"error: .*make them equal"):
        finetune.main([*OPTIONS, "--task=detection", f"--init={path}", f"--out={tmp_path}/run"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Detector("voxelnet_tiny", BOUNDS, SMALL, NAMES)
    return networks.save_detector(tmp_path_factory.mktemp("boxes") / "a.safetensors", network, BOUNDS, SMALL)


def test_evaluate_writes_table_page_and_numbers(checkpoint: Path, tmp_path: Path, capsys) -> None:
    evaluate.main([f"--checkpoint={checkpoint}", "--task=detection", f"--out={tmp_path}"])
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["sweeps"] == 4 and record["true_boxes"]["car"] == 4 and record["official"] is None
    assert record["errors"]["attribute"] == 1.0 and 0 <= record["mean_ap"] <= 1
    assert (tmp_path / "evaluation.md").read_text() in capsys.readouterr().out
    assert "Precision over recall" in (tmp_path / "evaluation.html").read_text()
    assert not (tmp_path / "results_nusc.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tta"], "tta and predictions are for segmentation"),
        (["--devkit=python3"], "devkit is nuScenes' evaluator; use it with --data.name nuscenes --split val"),
        (["--data.name=semantickitti"], "semantickitti has no boxes"),
    ],
)
def test_evaluation_that_makes_no_sense_is_refused(options: list[str], message: str, checkpoint: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate.main([f"--checkpoint={checkpoint}", *options])


def test_a_segmenter_has_no_boxes_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: the checkpoint finds no boxes; street has car, truck"):
        evaluate.main([f"--checkpoint={networks.save_random(tmp_path / 'a')}", "--task=detection"])


class BoxedDrive(drives.ToyDrive):
    """The toy drive under the name of a validation scene, with a box in every frame."""

    def __getitem__(self, index: int) -> Frame:
        frame = super().__getitem__(index)
        boxes = Boxes(
            np.array([[3.0, 1.0, -1.0]]),
            np.array([[4.0, 2.0, 1.5]]),
            np.zeros(1),
            np.zeros((1, 2)),
            np.zeros(1, np.uint8),
        )
        return Frame(**{**vars(frame), "sequence": "scene-0103", "boxes": boxes, "cameras": ()})


def test_nuscenes_results_name_every_sample(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    drive = BoxedDrive(sequences=1, frames=3)
    object.__setattr__(drive.rig, "cameras", ())
    root = write_nuscenes(drive, tmp_path / "data")
    words = [f"--checkpoint={checkpoint}", "--data.name=nuscenes", f"--data.root={root}", f"--out={tmp_path}/out"]
    evaluate.main(words)
    results = json.loads((tmp_path / "out/results_nusc.json").read_text())["results"]
    tokens = {row["token"] for row in json.loads(next(root.glob("*/sample.json")).read_text())}
    assert results.keys() == tokens and len(tokens) == 3
    assert {row["sample_token"] for rows in results.values() for row in rows} <= tokens
    with pytest.raises(SystemExit, match=r"^error: devkit: .*nuscenes-devkit"):
        evaluate.main([*words, "--devkit=/nowhere/python"])


def test_street_config_is_the_one_that_pretraining_fits() -> None:
    from lima_core.paths import config_dir
    from lima_core.pretrain import PretrainConfig

    det = read_config(FinetuneConfig, ["--config", str(config_dir() / "finetune/det_street.yaml")], "test")
    pre = read_config(PretrainConfig, ["--config", str(config_dir() / "pretrain/lima_street_voxelnet.yaml")], "test")
    assert (det.model, det.bounds) == (pre.student, pre.bounds)
    full = read_config(PretrainConfig, ["--config", str(config_dir() / "pretrain/lima_vits_voxelnet.yaml")], "test")
    for path in (config_dir() / "finetune").glob("det_nuscenes_*.yaml"):
        config = read_config(FinetuneConfig, ["--config", str(path)], "test")
        assert (config.model, config.bounds) == (full.student, full.bounds)
    assert DetectorConfig() == config.detector or config.detector.head == "anchor"


def test_network_of_both_tasks_is_evaluated_on_points_with_the_past_in_view(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lima_core.evaluate.open_boxed", lambda *_: ToyBoxes(2))
    torch.manual_seed(0)
    network = Detector("voxelnet_tiny", BOUNDS, SMALL, NAMES, 16)
    path = networks.save_detector(tmp_path / "both", network, BOUNDS, SMALL)
    evaluate.main([f"--checkpoint={path}", f"--out={tmp_path}/out"])
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert record["points"] == 2 * ToyBoxes(2)[0].current
    with pytest.raises(SystemExit, match="predictions are of networks that take one sweep"):
        evaluate.main([f"--checkpoint={path}", "--data.name=nuscenes", "--data.root=x", f"--predictions={tmp_path}"])

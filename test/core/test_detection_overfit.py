"""Both detectors learn ten simulated sweeps by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lima_core import finetune
from lima_core.data.boxed import open_boxed
from lima_core.data.labelled import DataConfig, StreetConfig
from lima_core.metrics.detection import DetectionMetric
from lima_core.predictor import Predictor

REACH_M = 12.8
STREET = StreetConfig((0, 5), (100, 101), sweeps_per_street=2)
OPTIONS = [
    "--task=detection", "--model=voxelnet_tiny", "--detector.bev_width=32", "--detector.head_channels=32",
    "--detector.sweeps=1", f"--bounds.low=[-{REACH_M},-{REACH_M},-5]", f"--bounds.high=[{REACH_M},{REACH_M},3]",
    "--data.street.train_seeds=[0,5]", "--data.street.val_seeds=[100,101]", "--data.street.sweeps_per_street=2",
    "--boxes.balance=false", "--augment.flip=0", "--augment.rotation=0", "--augment.scale=[1,1]",
    "--augment.intensity_gain=1", "--optim.kind=adam_onecycle", "--optim.peak_lr=5e-3",
    "--optim.clip_norm=10", "--batch_size=2", "--workers=0", "--epochs=40",
    "--validate_every=40", "--detector.norm_momentum=0.1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("head", ["center", "anchor"])
def test_ten_simulated_sweeps_are_learned_by_heart(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    finetune.main([*OPTIONS, f"--detector.head={head}", f"--out={tmp_path / 'run'}"])
    predictor = Predictor(tmp_path / "run" / "checkpoint.safetensors", "cpu")
    sweeps = open_boxed(DataConfig(street=STREET), "train", 1, 1)
    metric = DetectionMetric(predictor.detection_names)
    for sweep in sweeps:
        inside = (np.abs(sweep.boxes.center[:, :2]) < REACH_M).all(1)
        metric.update(sweep.boxes.take(inside), predictor.detect(sweep.points), sweeps.ego_xy)
    result = metric.result()
    assert len(sweeps) == 10 and result.truths.sum() > 100
    assert result.map_at(2.0) > 0.9, dict(zip(result.class_names, result.label_aps[:, 2].round(3), strict=True))

"""The robustness verb on simulated sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lima_core.data.corruptions import KINDS
from lima_core.data.labelled import StreetConfig, simulate
from lima_core.predictor import Predictor
from lima_core.tools import robustness


def test_corruption_costs_accuracy_and_the_report_says_how_much(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    options = ["--data.street.val_seeds=[7,8]", "--data.street.sweeps_per_street=1", "--workers=1"]
    try:
        robustness.main([*options, f"--out={tmp_path}"])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "robustness.json").read_text())
    assert list(record["corrupted"]) == list(KINDS)
    assert all(len(values) == 3 for values in record["corrupted"].values())
    assert record["clean"] > 30
    assert np.mean([min(values) for values in record["corrupted"].values()]) < record["clean"]
    assert record["mrr"] == pytest.approx(np.mean(list(record["rr"].values())))
    assert "mce" not in record  # no baseline is published for streets


def test_measurement_repeats(tmp_path: Path) -> None:
    from lima_core.paths import STREET_CHECKPOINT

    predictor = Predictor(STREET_CHECKPOINT, "cpu")
    (sweep,) = simulate(range(7, 8), StreetConfig(sweeps_per_street=1), 1, "street")
    first, again = (robustness.measure(predictor, [sweep]) for _ in range(2))
    assert first == again


def test_wrong_classes_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"error: .*has 16 classes, semantickitti has 19"):
        robustness.main(["--data.name=semantickitti", "--data.root=."])

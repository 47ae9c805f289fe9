"""Our IoU against the official evaluator of nuScenes-lidarseg, in an environment of its own: it pins numpy < 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import drives
from lima_core.data.classes import load_taxonomy
from lima_core.data.nuscenes import NuScenes
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.evaluate import write_submission
from lima_core.metrics.segmentation import ConfusionMatrix

DEVKIT = "nuscenes-devkit==1.2.0"
MINI_VAL = ("scene-0103", "scene-0916")  # the evaluator wants every scene of the split, and by these names
TRAILER, BICYCLE = 22, 14  # raw ids
OFFICIAL = """
import json, sys
from nuscenes import NuScenes
from nuscenes.eval.lidarseg.evaluate import LidarSegEval

root, results = sys.argv[1:]
nusc = NuScenes(version="v1.0-mini", dataroot=root, verbose=False)
print(json.dumps(LidarSegEval(nusc, results, "mini_val").evaluate()))
"""


class MiniVal(drives.ToyDrive):
    """The toy drive under the names of mini_val's scenes, labelled with noise that `draw_labels` writes over."""

    def __init__(self) -> None:
        super().__init__(sequences=2, frames=3)
        self.rig = replace(self.rig, cameras=())

    def __getitem__(self, index: int) -> drives.Frame:
        frame = super().__getitem__(index)
        labels = np.full(len(frame.points), 255, np.uint8)
        return replace(frame, sequence=MINI_VAL[index // 3], cameras=(), labels=labels)


def draw_labels(root: Path) -> None:
    """Every raw id but trailer's, which nothing predicts either, and bicycle's, which is predicted all the same."""
    raw = np.array([i for i in range(32) if i not in (TRAILER, BICYCLE)], np.uint8)
    for index, file in enumerate(sorted((root / "lidarseg/v1.0-mini").glob("*.bin"))):
        rng = np.random.default_rng(index)
        rng.choice(raw, file.stat().st_size).tofile(file)


def predictions(truth: np.ndarray, seed: int) -> np.ndarray:
    """Right for most points, else any class but trailer."""
    rng = np.random.default_rng(seed)
    classes = np.delete(np.arange(16, dtype=np.uint8), load_taxonomy("nuscenes").index("trailer"))
    guess = rng.choice(classes, len(truth))
    return np.where((rng.random(len(truth)) < 0.7) & (truth != 255), truth, guess)


def lidar_tokens(root: Path) -> dict[int, str]:
    """Stamp in ns -> token of the LiDAR's sample_data."""
    rows = json.loads((root / "v1.0-mini/sample_data.json").read_text())
    return {row["timestamp"] * 1000: row["token"] for row in rows}


def install(folder: Path) -> Path:
    """An environment with the devkit; its interpreter. Skips the test where the package index cannot be reached."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", DEVKIT], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{DEVKIT} cannot be installed, is the package index reachable? pip says: {last}")
    return python


@pytest.mark.slow
def test_iou_equals_the_official_evaluator(tmp_path: Path) -> None:
    root, results = write_nuscenes(MiniVal(), tmp_path / "data"), tmp_path / "results"
    draw_labels(root)
    tokens, confusion = lidar_tokens(root), ConfusionMatrix(16)
    source = NuScenes(root)
    for index in range(len(source)):
        frame = source[index]
        predicted = predictions(frame.labels, index)
        confusion.update(frame.labels, predicted)
        write_submission(results, "mini_val", tokens[frame.stamp_ns], predicted)
    try:
        python = install(tmp_path / "devkit")
        done = subprocess.run([python, "-c", OFFICIAL, root, results], capture_output=True, text=True, cwd=tmp_path)
    finally:
        shutil.rmtree(tmp_path / "devkit", ignore_errors=True)  # half a gigabyte
    assert done.returncode == 0, done.stderr
    official = json.loads(done.stdout.splitlines()[-1])
    names = load_taxonomy("nuscenes").names
    ours = dict(zip(names, confusion.iou(), strict=True))
    assert set(official["iou_per_class"]) == {"ignore", *names}
    for name in names:
        np.testing.assert_allclose(ours[name], official["iou_per_class"][name], rtol=0, atol=1e-9, err_msg=name)
    assert np.isnan(ours["trailer"]) and ours["bicycle"] == 0 and ours["car"] > 0.4
    assert confusion.miou() == pytest.approx(official["miou"], abs=1e-9)
    assert confusion.classes_counted() == 15

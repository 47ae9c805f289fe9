"""Detections as a result file of nuScenes' detection task, and its official evaluator run on one.

The evaluator, nuscenes-devkit, pins old libraries, so that it lives in an environment of its own:
python -m venv devkit && devkit/bin/pip install nuscenes-devkit==1.2.0
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lima_core.data.attributes import ATTRIBUTES, NO_ATTRIBUTE, attributes_by_speed
from lima_core.data.frame import Detections
from lima_core.files import write_whole
from lima_core.geometry import se3
from lima_core.metrics.detection import strongest

META = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
DEVKIT = "nuscenes-devkit==1.2.0"
SCRIPT = Path(__file__).with_name("nuscenes_devkit.py")

Row = dict[str, Any]


def result_rows(
    token: str, detections: Detections, world_from_lidar: np.ndarray, class_names: Sequence[str]
) -> list[Row]:
    """The best 500 boxes of a sample, in the world frame, as nuScenes names their parts (spec/datasets.md 2.5).

    Boxes without attributes get those of `attributes_by_speed`. Raises ValueError naming the sample where a value or
    the pose is not finite: the evaluator would refuse the file, or count nothing.
    """
    found = strongest(detections)
    boxes = found.boxes
    numbers = np.column_stack([boxes.center, boxes.size, boxes.yaw, boxes.velocity, found.score])
    if not np.isfinite(numbers).all() or not np.isfinite(world_from_lidar).all():
        raise ValueError(f"sample {token}: a box, a velocity, a score or the pose is not finite; results need all")
    if boxes.attribute is None:
        boxes = replace(boxes, attribute=attributes_by_speed(boxes, class_names))
    center = se3.apply(world_from_lidar, boxes.center)
    rotation = world_from_lidar[:3, :3] @ se3.poses(0.0, 0.0, yaw=boxes.yaw)[:, :3, :3]
    velocity = boxes.velocity @ world_from_lidar[:2, :2].T
    return [
        {
            "sample_token": token,
            "translation": center[i].tolist(),
            "size": boxes.size[i][[1, 0, 2]].tolist(),
            "rotation": se3.quaternion_from_rotation(rotation[i]).tolist(),
            "velocity": velocity[i].tolist(),
            "detection_name": class_names[boxes.class_id[i]],
            "detection_score": float(found.score[i]),
            "attribute_name": "" if boxes.attribute[i] == NO_ATTRIBUTE else ATTRIBUTES[boxes.attribute[i]],
        }
        for i in range(len(found))
    ]


def write_results(path: str | Path, rows_of_token: Mapping[str, Sequence[Row]]) -> Path:
    """Writes the result file, whole; every sample of the split must be a key, with an empty list where nothing is."""
    content = {"meta": META, "results": {token: list(rows) for token, rows in rows_of_token.items()}}
    return write_whole(path, json.dumps(content, allow_nan=False))


def run_devkit(
    python: str | Path, root: str | Path, version: str, results: str | Path, split: str, out: str | Path
) -> Row:
    """The official evaluator's metrics: mean_ap, nd_score, label_aps, label_tp_errors, tp_errors, ...

    `python` is the interpreter of its environment; `split` is val, mini_val, ...; its own files go to `out`. Raises
    RuntimeError with the evaluator's last line, or how to make the environment.
    """
    install = f"python -m venv devkit && devkit/bin/pip install {DEVKIT}, and give devkit/bin/python"
    words = [SCRIPT, Path(root).resolve(), version, Path(results).resolve(), split, Path(out).resolve()]
    try:
        done = subprocess.run([str(python), "-I", *map(str, words)], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"{python} cannot be run ({error.strerror}); {install}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        missing = "No module named 'nuscenes'" in last
        raise RuntimeError(
            f"{python} has no nuscenes-devkit; {install}" if missing else f"the evaluator failed: {last}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])

"""Our mAP and NDS against the official evaluator of nuScenes' detection task, in an environment of its own."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_devkit import MINI_VAL, install

import drives
from lima_core.data.attributes import ATTRIBUTES
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, Detections, Frame
from lima_core.data.nuscenes import NuScenes
from lima_core.data.nuscenes_writer import write_nuscenes
from lima_core.geometry import se3
from lima_core.geometry.boxes import moved
from lima_core.metrics.detection import DetectionMetric, DetectionResult
from lima_core.metrics.detection_matching import DISTANCES_M, ERRORS
from lima_core.tools.nuscenes_results import result_rows, run_devkit, write_results

NAMES = load_taxonomy("nuscenes").detection_names
FRAMES, OBJECTS = 4, 120
NO_TRUTH, NO_DETECTION, FAR_OFF = (NAMES.index(name) for name in ("trailer", "bicycle", "construction_vehicle"))
OFFICIAL_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")  # of ERRORS


class BoxDrive(drives.ToyDrive):
    """Objects of all classes but trailer around a turning vehicle; some are seen once: nobody knows their speed.

    Their numbers of returns and their attributes are drawn, and some have none.
    """

    def __init__(self) -> None:
        super().__init__(sequences=len(MINI_VAL), frames=FRAMES)
        self.rig = replace(self.rig, cameras=())

    def __getitem__(self, index: int) -> Frame:
        scene, time_s = index // FRAMES, 0.5 * (index % FRAMES)
        world_from_base = se3.poses(600 + 2 * time_s, 1600 - scene, 0, 0.7 + 0.3 * time_s)
        world_from_lidar = world_from_base @ self.rig.base_from_lidar
        rng = np.random.default_rng(scene)
        table = rng.uniform([555, 1555, -1, 0.5, 0.5, 0.5, -4], [645, 1645, 3, 6, 3, 3, 4], (OBJECTS, 7))
        class_id = rng.choice(np.delete(np.arange(10, dtype=np.uint8), NO_TRUTH), OBJECTS)
        velocity = rng.uniform(-4, 4, (OBJECTS, 2)) * (rng.random((OBJECTS, 1)) < 0.5)
        once = np.where(rng.random(OBJECTS) < 0.2, rng.integers(0, FRAMES, OBJECTS), -1)
        table[:, :2] += velocity * time_s
        points = rng.integers(0, 4, (FRAMES, OBJECTS))[index % FRAMES].astype(np.int32)
        attribute = np.where(rng.random(OBJECTS) < 0.2, 255, rng.integers(0, len(ATTRIBUTES), OBJECTS)).astype(np.uint8)
        boxes = Boxes(table[:, :3], table[:, 3:6], table[:, 6], velocity, class_id, points, attribute)
        frame, seen = super().__getitem__(index), boxes.take((once < 0) | (once == index % FRAMES))
        return replace(
            frame,
            sequence=MINI_VAL[scene],
            cameras=(),
            world_from_lidar=world_from_lidar,
            boxes=moved(seen, se3.inverse(world_from_lidar)),
            labels=np.full(len(frame.points), 255, np.uint8),  # tables of lidarseg without its files are refused
        )


def detections(truth: Boxes, seed: int) -> Detections:
    """Most of the truth, moved, resized and turned a little or about, and boxes of nothing; scores with many ties."""
    rng = np.random.default_rng(seed)
    kept = truth.take((rng.random(len(truth)) < 0.8) & (truth.class_id != NO_DETECTION))
    count = len(kept)
    turned = rng.choice([0, math.pi], count, p=[0.8, 0.2])
    near = replace(
        kept,
        center=kept.center + rng.normal(0, 0.8, (count, 3)) + 50 * (kept.class_id == FAR_OFF)[:, None],
        size=kept.size * rng.uniform(0.7, 1.4, (count, 3)),
        yaw=kept.yaw + rng.normal(0, 0.3, count) + turned,
        velocity=np.nan_to_num(kept.velocity) + rng.normal(0, 0.3, (count, 2)) * (rng.random((count, 1)) < 0.5),
        points=None,
        attribute=None,
    )
    table = rng.uniform([-40, -40, -1, 1, 1, 1, -3, -1, -1], [40, 40, 1, 5, 2, 2, 3, 1, 1], (60, 9))
    class_id = rng.choice(np.delete(np.arange(10, dtype=np.uint8), NO_DETECTION), 60)
    nothing = Boxes(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:], class_id)
    score = np.concatenate([rng.uniform(0.3, 1, count), rng.uniform(0, 0.7, 60)]).round(2).astype(np.float32)
    return Detections(Boxes.joined([near, nothing]), score)


def ours_and_results(root: Path, path: Path) -> DetectionResult:
    """Our numbers in the world frame; the result file of the same detections is written to `path`."""
    source, metric, rows = NuScenes(root), DetectionMetric(NAMES), {}
    for index in range(len(source)):
        frame, token = source[index], source.tokens(index)[0]
        found = detections(frame.boxes, index)
        rows[token] = result_rows(token, found, frame.world_from_lidar, NAMES)
        ego = frame.world_from_lidar @ se3.inverse(source.rig.base_from_lidar)
        in_world = Detections(moved(found.boxes, frame.world_from_lidar), found.score)
        metric.update(moved(frame.boxes, frame.world_from_lidar), in_world, ego[:2, 3])
    write_results(path, rows)
    return metric.result()


@pytest.mark.slow
def test_map_and_nds_equal_the_official_evaluator(tmp_path: Path) -> None:
    root = write_nuscenes(BoxDrive(), tmp_path / "data")
    ours = ours_and_results(root, tmp_path / "results.json")
    try:
        python = install(tmp_path / "devkit")
        official = run_devkit(python, root, "v1.0-mini", tmp_path / "results.json", "mini_val", tmp_path / "out")
        (tmp_path / "short.json").write_text(json.dumps({"meta": {}, "results": {}}))
        with pytest.raises(RuntimeError, match=r"the evaluator failed: .*Samples in split"):
            run_devkit(python, root, "v1.0-mini", tmp_path / "short.json", "mini_val", tmp_path / "out")
    finally:
        shutil.rmtree(tmp_path / "devkit", ignore_errors=True)  # half a gigabyte
    assert ours.mean_ap == pytest.approx(official["mean_ap"], abs=1e-6)
    assert ours.nds == pytest.approx(official["nd_score"], abs=1e-6)
    np.testing.assert_allclose(ours.tp, [official["tp_errors"][name] for name in OFFICIAL_ERRORS], rtol=0, atol=1e-6)
    for row, name in enumerate(NAMES):
        aps = [official["label_aps"][name][str(distance)] for distance in DISTANCES_M]
        np.testing.assert_allclose(ours.label_aps[row], aps, rtol=0, atol=1e-6, err_msg=name)
        errors = [official["label_tp_errors"][name][error] for error in OFFICIAL_ERRORS]
        np.testing.assert_allclose(ours.label_tp[row], errors, rtol=0, atol=1e-6, err_msg=name)
    assert ours.label_aps[NAMES.index("car"), 2] > 0.2 and ours.nds > 0.1, "not equal for being nothing"
    assert (ours.label_aps[[NO_TRUTH, NO_DETECTION]] == 0).all() and (ours.truths > 0).sum() == len(NAMES) - 1
    assert 0 < np.nanmax(ours.label_tp[:, ERRORS.index("attribute")]) <= 1


def one_detection(**columns) -> Detections:
    """A bus that looks along y and drives there."""
    box = {
        "center": np.array([[1.0, 2, 3]]), "size": np.array([[11.0, 3, 4]]), "yaw": np.array([np.pi / 2]),
        "velocity": np.array([[0, 5.0]]), "class_id": np.array([NAMES.index("bus")], np.uint8),
    }  # fmt: skip
    return Detections(Boxes(**{**box, **columns}), np.array([0.75], np.float32))


def test_a_row_is_in_the_world_and_in_the_order_of_nuscenes() -> None:
    (row,) = result_rows("abc", one_detection(), se3.poses(100, 200, 1, np.pi / 2), NAMES)
    assert row["sample_token"] == "abc" and row["detection_name"] == "bus" and row["detection_score"] == 0.75
    np.testing.assert_allclose(row["translation"], [98, 201, 4])
    assert row["size"] == [3, 11, 4] and row["attribute_name"] == "vehicle.moving"
    np.testing.assert_allclose(row["velocity"], [-5, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(row["rotation"]), [0, 0, 0, 1], atol=1e-9)


def test_attributes_that_are_known_are_kept_and_cones_have_none() -> None:
    sitting = one_detection(attribute=np.array([ATTRIBUTES.index("vehicle.stopped")], np.uint8))
    assert result_rows("a", sitting, np.eye(4), NAMES)[0]["attribute_name"] == "vehicle.stopped"
    cone = one_detection(class_id=np.array([NAMES.index("traffic_cone")], np.uint8))
    assert result_rows("a", cone, np.eye(4), NAMES)[0]["attribute_name"] == ""


def test_the_file_has_every_sample_and_the_best_500_boxes(tmp_path: Path) -> None:
    parts = Boxes.joined([one_detection().boxes] * 600)
    rows = result_rows("a", Detections(parts, np.linspace(0, 1, 600)), np.eye(4), NAMES)
    assert len(rows) == 500 and rows[0]["detection_score"] == 1
    content = json.loads(write_results(tmp_path / "r.json", {"a": rows[:2], "b": []}).read_text())
    assert content["meta"]["use_lidar"] is True and content["meta"]["use_camera"] is False
    assert len(content["results"]["a"]) == 2 and content["results"]["b"] == []


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="sample abc: a box, a velocity"):
        result_rows("abc", one_detection(velocity=np.full((1, 2), np.nan)), np.eye(4), NAMES)
    with pytest.raises(ValueError, match="the pose is not finite"):
        result_rows("abc", one_detection(), np.full((4, 4), np.nan), NAMES)


def test_an_interpreter_without_the_evaluator_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no-python cannot be run .*pip install nuscenes-devkit==1.2.0"):
        run_devkit(tmp_path / "no-python", tmp_path, "v1.0-mini", tmp_path / "r.json", "mini_val", tmp_path)
    with pytest.raises(RuntimeError, match="has no nuscenes-devkit; python -m venv devkit"):
        run_devkit(sys.executable, tmp_path, "v1.0-mini", tmp_path / "r.json", "mini_val", tmp_path)

"""mIoU and mAP while the node runs: closed-form cases, equality with the offline metrics, and real topics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from visualization_msgs.msg import MarkerArray

from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, Detections
from lima_core.data.ros_cloud import pack_cloud
from lima_core.metrics import live
from lima_core.metrics.detection import DetectionMetric
from lima_core.metrics.segmentation import ConfusionMatrix, range_names
from lima_core.runtime.detections import marker_array
from lima_ros import convert, evaluation
from lima_ros.evaluation_table import lines, values

TAXONOMY = load_taxonomy("nuscenes")
NAMES = TAXONOMY.detection_names
CAR, PEDESTRIAN = NAMES.index("car"), NAMES.index("pedestrian")


def boxes(*rows: tuple[float, float, int]) -> Boxes:
    """Boxes of one size at (x, y) of a class, standing."""
    table = np.array(rows, np.float64).reshape(-1, 3)
    count = len(table)
    center = np.column_stack([table[:, :2], np.zeros(count)])
    size = np.tile([4.0, 2.0, 1.5], (count, 1))
    return Boxes(center, size, np.zeros(count), np.zeros((count, 2)), table[:, 2].astype(np.uint8))


def found(of: Boxes, scores: float | np.ndarray = 0.9) -> Detections:
    return Detections(of, np.broadcast_to(np.float32(scores), len(of)).copy())


def markers(what: Detections, stamp_ns: int) -> MarkerArray:
    header = convert.ROS.header(stamp_ns, "lidar")
    return marker_array(what, NAMES, TAXONOMY.box_colors(), header, 0.0, "objects", convert.ROS)


@pytest.fixture
def judge(tmp_path: Path) -> evaluation.Evaluation:
    return evaluation.Evaluation(TAXONOMY.names, tmp_path, box_names=NAMES)


def see(judge: evaluation.Evaluation, stamp_ns: int, truth: Boxes, what: Detections) -> None:
    judge.add_true_boxes(stamp_ns, truth)
    judge.add_boxes(stamp_ns, markers(what, stamp_ns))


def scores(judge: evaluation.Evaluation) -> dict[str, float]:
    return values(judge.columns()[-1])


def test_right_boxes_give_one_by_class_and_distance(judge: evaluation.Evaluation) -> None:
    truth = boxes((5, 0, CAR), (25, 0, CAR), (5, 5, PEDESTRIAN))
    see(judge, 1, truth, found(truth))
    known = scores(judge)
    assert known["mean"] == known["car"] == known["pedestrian"] == pytest.approx(1.0)
    assert known["car.0-10 m"] == known["car.20-30 m"] == known["pedestrian.0-10 m"] == pytest.approx(1.0)
    assert "pedestrian.20-30 m" not in known and "bus" not in known and "car.10-20 m" not in known


def test_a_shift_of_three_metres_matches_within_four_alone(judge: evaluation.Evaluation) -> None:
    truth = boxes((5, 0, CAR))
    see(judge, 1, truth, found(boxes((8, 0, CAR))))
    assert scores(judge)["car"] == pytest.approx(0.25)  # one of the four distances 0.5, 1, 2 and 4 m


def test_frames_are_paired_by_stamp_and_empty_ones_count(judge: evaluation.Evaluation) -> None:
    truth = boxes((5, 0, CAR))
    judge.add_boxes(2, markers(found(truth), 2))
    judge.add_true_boxes(1, truth)
    assert judge.boxes_matched == 0 and judge.columns() == []
    see(judge, 3, truth, found(boxes()))  # seen, and nothing found: a miss
    judge.add_true_boxes(2, truth)
    assert judge.boxes_matched == 2
    # one of two found, with full precision: recall 0.5, so that 40 of the 90 counted recalls have precision 1
    assert scores(judge)["car"] == pytest.approx(40 / 90, abs=0.02)


def test_live_scores_are_those_of_the_offline_metric(judge: evaluation.Evaluation) -> None:
    rng, offline = np.random.default_rng(0), DetectionMetric(NAMES)
    for stamp in range(20):
        truth = boxes(*((*rng.uniform(-40, 40, 2), rng.integers(len(NAMES))) for _ in range(12)))
        moved = replace(truth, center=truth.center + rng.normal(0, 1, truth.center.shape))
        what = found(moved, rng.random(len(moved)).astype(np.float32))
        see(judge, stamp, truth, what)
        offline.update(truth, what, np.zeros(2))
    result = offline.result()
    known = scores(judge)
    assert known["mean"] == pytest.approx(live.mean_ap(result)) and 0.1 < known["mean"] < 0.9
    for name, ap in zip(NAMES, result.label_aps.mean(1), strict=True):
        assert known[name] == pytest.approx(ap)


def test_only_the_last_frames_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT", 3)
    scored, truth = live.LiveBoxes(NAMES), boxes((5, 0, CAR))
    for _ in range(5):
        scored.update(truth, found(boxes()), np.zeros(2))
    for _ in range(3):
        scored.update(truth, found(truth), np.zeros(2))
    assert live.mean_ap(scored.overall.result()) == pytest.approx(1.0)
    assert scored.overall.result().truths[CAR] == 3


def test_the_vehicle_and_not_the_lidar_is_where_distance_begins(tmp_path: Path) -> None:
    judge = evaluation.Evaluation(TAXONOMY.names, tmp_path, box_names=NAMES, ego_xy=np.array([-20.0, 0.0]))
    truth = boxes((5, 0, CAR))
    see(judge, 1, truth, found(truth))
    assert "car.20-30 m" in scores(judge)


def cloud(x: np.ndarray, label: np.ndarray, stamp_ns: int = 1) -> object:
    zero = np.zeros(len(x), np.float32)
    columns = {"x": x.astype(np.float32), "y": zero, "z": zero, "label": label.astype(np.uint8), "probability": zero}
    return convert.ROS.cloud(pack_cloud(columns), stamp_ns, "lidar")


def test_iou_by_distance_is_that_of_the_points_there(judge: evaluation.Evaluation) -> None:
    rng = np.random.default_rng(1)
    x, truth, label = rng.uniform(0, 60, 500), rng.integers(0, 16, 500), rng.integers(0, 16, 500)
    judge.add_truth(1, cloud(x, truth))
    judge.add_segmentation(1, cloud(x, label), 0)
    known = values(judge.columns()[0])
    for name, low, high in zip(range_names(), (0, 10, 20, 30, 50), (10, 20, 30, 50, 99), strict=True):
        there = (x >= low) & (x < high)
        matrix = ConfusionMatrix(16)
        matrix.update(truth[there], label[there])
        assert known[f"mean.{name}"] == pytest.approx(matrix.miou())
    table = "\n".join(lines(judge.columns()))
    assert "mIoU" in table and "30-50 m" in table and f"{100 * known['mean']:.1f}" in table


@pytest.mark.parametrize("text", ["", "{}", '{"class": "tank", "score": 1, "velocity": null}', '{"class": "car"}'])
def test_markers_of_somebody_else_are_named(judge: evaluation.Evaluation, text: str) -> None:
    message = markers(found(boxes((5, 0, CAR))), 1)
    message.markers[1].text = text
    with pytest.raises(ValueError, match="box"):
        judge.add_boxes(1, message)
    assert judge.boxes_matched == 0


def test_node_publishes_scores_and_survives_nonsense(start_node: Callable, tester: object, tmp_path: Path) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import PointCloud2
    from std_msgs.msg import Float64

    create = tester.node.create_publisher
    numbers = {name: tester.collect(Float64, f"/evaluator/{name}") for name in ("miou", "map", "iou/car", "ap/car")}
    tables = tester.collect(DiagnosticArray, "/evaluator/table")
    parameters = {"out": str(tmp_path), "perception": "/p", "print_period_s": 0.5, "idle_timeout_s": 60.0}
    with start_node("evaluator_node", parameters) as process:
        out = create(PointCloud2, "/p/output/segmentation", 5), create(MarkerArray, "/p/output/markers", 5)
        ground = create(PointCloud2, "/gt/segmentation", 5), create(MarkerArray, "/gt/markers", 5)
        for publisher in (*out, *ground):
            tester.spin_until(lambda p=publisher: p.get_subscription_count() > 0, what=publisher.topic_name)
        truth, car = boxes((5, 0, CAR)), np.full(4, TAXONOMY.names.index("car"))
        nonsense = markers(found(truth), 9)
        nonsense.markers[1].text = "nonsense"
        ground[1].publish(nonsense)
        ground[0].publish(cloud(np.arange(4), car))
        ground[1].publish(markers(found(truth), 1))
        out[0].publish(cloud(np.arange(4), car))
        out[1].publish(markers(found(truth), 1))
        tester.spin_until(lambda: all(numbers.values()) and len(tables) > 1, 20, "scores")
    assert process.returncode == 0, process.output()
    last = {name: topic[-1].data for name, topic in numbers.items()}
    assert last == pytest.approx(dict.fromkeys(numbers, 1.0))
    assert {status.name for table in tables for status in table.status} == {"evaluator: IoU", "evaluator: AP"}
    assert "car" in process.output() and "100.0" in process.output() and "nonsense" in process.output()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["scores"]["AP"]["mean"] == pytest.approx(1.0) and result["frames_of_boxes_compared"] == 1
    assert sum(result["problems"].values()) == 1

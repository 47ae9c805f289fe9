"""The evaluator: its bookkeeping against counts by hand, and the node in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2 messages: install lima's extra `ros`")

from lima_core.data.ros_cloud import CloudError, pack_cloud
from lima_ros import convert, evaluation

CLASSES = ("road", "car", "tree")


def output(labels: list[int], stamp_ns: int = 0) -> object:
    count = len(labels)
    columns = {axis: np.arange(count, dtype=np.float32) for axis in "xyz"}
    columns |= {"label": np.array(labels, np.uint8), "probability": np.full(count, 0.5, np.float32)}
    return convert.ROS.cloud(pack_cloud(columns), stamp_ns, "lidar")


def truth(labels: list[int], stamp_ns: int = 0) -> object:
    return convert.ROS.cloud(pack_cloud({"label": np.array(labels, np.uint8)}), stamp_ns, "lidar")


@pytest.fixture
def judge(tmp_path: Path) -> evaluation.Evaluation:
    return evaluation.Evaluation(CLASSES, tmp_path)


def test_pairs_are_matched_by_stamp_in_any_order(judge: evaluation.Evaluation, tmp_path: Path) -> None:
    judge.add_truth(1, truth([0, 0, 1, 255]))
    judge.add_segmentation(2, output([1, 1]), 70)
    assert judge.matched == 0
    judge.add_segmentation(1, output([0, 1, 1, 2]), 80)
    judge.add_truth(2, truth([1, 2]))
    judge.write()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    # road: 1 hit, 1 missed; car: 2 hits, 2 false; tree: 1 missed
    assert result["iou"] == {"road": 0.5, "car": 0.5, "tree": 0.0}
    assert result["miou"] == pytest.approx(1 / 3)
    assert (result["frames_received"], result["frames_compared"]) == (2, 2)
    assert result["received_monotonic_ns"] == {"1": 80, "2": 70}
    with np.load(tmp_path / "frames" / "1.npz") as kept:
        assert kept["label"].tolist() == [0, 1, 1, 2]
        assert kept["truth"].tolist() == [0, 0, 1, 255]
        assert kept["points"].shape == (4, 3)


def test_what_never_finds_a_partner_is_kept_without_truth(judge: evaluation.Evaluation, tmp_path: Path) -> None:
    judge.add_segmentation(1, output([0]), 0)
    judge.add_segmentation(2, output([0]), 0)
    judge.add_truth(2, truth([0, 0]))
    judge.write()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["frames_compared"], result["frames_of_other_size"], result["miou"]) == (0, 1, None)
    for stamp in (1, 2):
        with np.load(tmp_path / "frames" / f"{stamp}.npz") as kept:
            assert "truth" not in kept


def test_memory_is_bounded_without_truth(judge: evaluation.Evaluation) -> None:
    for stamp in range(3 * evaluation.MAX_WAITING):
        judge.add_segmentation(stamp, output([0]), 0)
        judge.add_truth(-1 - stamp, truth([0]))
    assert len(judge._segmented) <= evaluation.MAX_WAITING
    assert len(judge._truth) <= evaluation.MAX_WAITING


def test_every_nth_frame_and_overlay_is_kept(tmp_path: Path) -> None:
    judge = evaluation.Evaluation(CLASSES, tmp_path, keep_every=2)
    for stamp in range(5):
        judge.add_segmentation(stamp, output([0]), 0)
        judge.add_overlay("front", stamp, b"jpeg", stamp)
    judge.write()
    assert sorted(p.stem for p in (tmp_path / "frames").iterdir()) == ["0", "2", "4"]
    assert sorted(p.stem for p in (tmp_path / "overlays" / "front").iterdir()) == ["0", "2", "4"]


def test_complete_means_every_sweep_is_accounted_for(judge: evaluation.Evaluation) -> None:
    assert not judge.complete(0)
    judge.add_ledger({"received": "3", "published": "2", "dropped": "1", "dropped.superseded": "1"})
    assert judge.ledger == {"received": 3, "published": 2, "dropped": {"superseded": 1}}
    judge.add_segmentation(1, output([0]), 0)
    assert not judge.complete(3)  # one published cloud is still on its way
    judge.add_segmentation(2, output([0]), 0)
    assert judge.complete(3)
    assert not judge.complete(4)


def test_malformed_clouds_are_named(judge: evaluation.Evaluation) -> None:
    with pytest.raises(CloudError, match="no field x, y, z, probability; its fields are"):
        judge.add_segmentation(1, truth([0]), 0)
    with pytest.raises(CloudError, match="no field label"):
        judge.add_truth(1, convert.ROS.cloud(pack_cloud({"x": np.zeros(1, np.float32)}), 0, "lidar"))
    assert judge.received == 0


def test_end_to_end_latency_is_joined_by_stamp() -> None:
    sent, received = {"10": 1_000_000, "9": 0, "11": 5}, {"9": 2_500_000, "10": 2_000_000}
    assert evaluation.end_to_end_ms(sent, received) == [2.5, 1.0]


# ---- the node, in a process of its own


def test_node_compares_and_ends_when_the_ledger_is_complete(
    start_node: Callable, tester: object, tmp_path: Path
) -> None:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import PointCloud2
    from std_msgs.msg import Float64

    create = tester.node.create_publisher
    parameters = {"out": str(tmp_path / "run"), "perception": "/p", "frames": 2}
    with start_node("evaluator_node", parameters) as process:
        milliseconds, diagnostics = (
            create(Float64, "/p/debug/total_ms", 10),
            create(DiagnosticArray, "/diagnostics", 10),
        )
        ground = create(PointCloud2, "/gt/segmentation", 10)
        tester.spin_until(lambda: milliseconds.get_subscription_count() > 0, what="the evaluator")
        assert ground.get_subscription_count() == 0  # not before it sees the perception node
        segmented = create(PointCloud2, "/p/output/segmentation", 1)
        for publisher in (ground, segmented, diagnostics):
            tester.spin_until(lambda p=publisher: p.get_subscription_count() > 0, what=publisher.topic_name)
        for stamp_ns in (5, 6):
            ground.publish(truth([0, 1], stamp_ns))
            segmented.publish(output([0, 1], stamp_ns))
            milliseconds.publish(Float64(data=12.5))
            tester.spin_for(0.2)
        values = {"received": "2", "published": "2", "dropped": "0"}
        items = [KeyValue(key=key, value=value) for key, value in values.items()]
        diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="p: segmentation", values=items)]))
        assert process.wait(20) == 0, process.output()
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["frames_received"], result["frames_compared"], result["miou"]) == (2, 2, 1.0)
    assert result["latency_ms"]["total"]["p50"] == 12.5
    assert "2 frames segmented, 2 compared, mIoU 100.0 %" in process.output()


def test_node_says_that_nothing_came(start_node: Callable, tmp_path: Path) -> None:
    with start_node("evaluator_node", {"out": str(tmp_path / "run"), "start_timeout_s": 0.5}) as process:
        assert process.wait(20) == 1
    assert "nothing came on /perception/output/segmentation" in process.output()
    assert "Traceback" not in process.output()


def test_node_writes_what_it_has_when_interrupted(start_node: Callable, await_output: Callable, tmp_path: Path) -> None:
    with start_node("evaluator_node", {"out": str(tmp_path / "run")}) as process:
        await_output(process, "waiting for")
    assert process.returncode == 0, process.output()
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["frames_received"] == 0

"""The evaluator: its bookkeeping against counts by hand, and the node in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2 messages: install lima's extra `ros`")

from lima_core.data.classes import load_taxonomy
from lima_core.data.ros_cloud import CloudError, pack_cloud
from lima_core.paths import config_dir
from lima_ros import convert, evaluation
from lima_ros.evaluation_table import topic_of

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


def test_labels_of_another_data_set_are_named_and_count_nowhere(judge: evaluation.Evaluation) -> None:
    judge.add_segmentation(1, output([0, 1, 2, 2]), 0)
    with pytest.raises(CloudError, match="label 77, but there are 3 classes, from 0; set parameter dataset"):
        judge.add_truth(1, truth([0, 1, 77, 255]))
    assert judge.matched == 0 and judge.columns() == []
    judge.add_truth(1, truth([0, 1, 2, 255]))
    assert judge.result()["confusion"] == np.eye(3, dtype=int).tolist()


def test_what_could_not_be_judged_is_in_the_line(judge: evaluation.Evaluation) -> None:
    judge.add_segmentation(1, output([0]), 0)
    judge.add_truth(1, truth([0, 0]))
    judge.problems["/gt/markers"] += 3
    assert "1 of another size than the truth, 3 bad messages on /gt/markers" in judge.line()


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (config_dir() / "datasets").glob("*.yaml")))
def test_classes_of_every_data_set_have_a_topic_each(dataset: str) -> None:
    from rclpy.validate_topic_name import validate_topic_name

    names = load_taxonomy(dataset).names
    topics = {topic_of("IoU", name) for name in (*names, "mean")}
    assert len(topics) == len(names) + 1 and "~/miou" in topics
    assert all(validate_topic_name(topic) for topic in topics)


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


def test_node_of_a_data_set_without_boxes_leaves_markers_alone(
    start_node: Callable, tester: object, tmp_path: Path
) -> None:
    from sensor_msgs.msg import PointCloud2
    from std_msgs.msg import Float64
    from visualization_msgs.msg import Marker, MarkerArray

    sign = load_taxonomy("semantickitti").names.index("traffic-sign")
    scores = tester.collect(Float64, "/evaluator/iou/traffic_sign")
    parameters = {"out": str(tmp_path / "run"), "perception": "/p", "dataset": "semantickitti", "print_period_s": 0.5}
    with start_node("evaluator_node", parameters) as process:
        create = tester.node.create_publisher
        segmented, found = create(PointCloud2, "/p/output/segmentation", 5), create(MarkerArray, "/p/output/markers", 5)
        ground, boxes = create(PointCloud2, "/gt/segmentation", 5), create(MarkerArray, "/gt/markers", 5)
        for publisher in (segmented, ground):
            tester.spin_until(lambda p=publisher: p.get_subscription_count() > 0, what=publisher.topic_name)
        nothing = MarkerArray(markers=[Marker(header=truth([]).header, action=Marker.DELETEALL)])
        for publisher, message in ((found, nothing), (boxes, nothing), (segmented, output([sign, 0]))):
            publisher.publish(message)
        ground.publish(truth([sign, sign]))
        tester.spin_until(lambda: bool(scores), what="a score")
    assert process.returncode == 0, process.output()
    assert scores[-1].data == pytest.approx(0.5)
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["frames_of_boxes_compared"], result["problems"]) == (0, {})


def test_node_counts_nonsense_by_topic_and_ends_with_the_table(
    start_node: Callable, tester: object, tmp_path: Path, await_output: Callable
) -> None:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import PointCloud2
    from visualization_msgs.msg import MarkerArray

    with start_node("evaluator_node", {"out": str(tmp_path / "run"), "perception": "/p", "frames": 1}) as process:
        create = tester.node.create_publisher
        segmented, found = create(PointCloud2, "/p/output/segmentation", 5), create(MarkerArray, "/p/output/markers", 5)
        ground, diagnostics = create(PointCloud2, "/gt/segmentation", 5), create(DiagnosticArray, "/diagnostics", 5)
        for publisher in (segmented, found, ground, diagnostics):
            tester.spin_until(lambda p=publisher: p.get_subscription_count() > 0, what=publisher.topic_name)
        found.publish(MarkerArray())
        await_output(process, "/p/output/markers: a MarkerArray without markers has no stamp")
        ground.publish(truth([0, 77]))
        segmented.publish(output([0, 0]))
        ground.publish(truth([0, 0]))
        for published in ("many", "1"):
            items = [KeyValue(key=key, value=value) for key, value in (("received", "1"), ("published", published))]
            diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(name="p: segmentation", values=items)]))
        assert process.wait(20) == 0, process.output()
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["problems"] == {"/p/output/markers": 1, "/gt/segmentation": 1, "/diagnostics": 1}
    assert (result["frames_compared"], result["miou"]) == (1, 1.0)
    table = process.output().rpartition("IoU %")[2]  # before the first period of 5 s is over
    assert "mIoU" in table and "0-10 m" in table and "100.0" in table


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

"""What the perception node publishes beside the segmented cloud, over real DDS, of a detector that wants two sweeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_lifecycle import Remote
from test_perception_node import MS, START_NS, Car, ended_cleanly, values

from lima_core.data.classes import load_taxonomy
from lima_core.data.ros_cloud import cloud_points, pack_cloud, read_cloud
from lima_core.geometry import se3
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.voxelize_range import RangeConfig
from networks import save_detector

BOUNDS = RangeConfig((-6.4, -6.4, -5.0), (6.4, 6.4, 3.0), (0.2, 0.2, 0.2))
CONFIG = DetectorConfig(bev_width=8, head_channels=8, sweeps=2)
TAXONOMY = load_taxonomy("nuscenes")
OUTPUTS = ("segmentation", "filtered", "features", "similarity")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights: several hundred boxes with scores near 0.1."""
    import torch

    torch.manual_seed(0)
    network = Detector("voxelnet_tiny", BOUNDS, CONFIG, TAXONOMY.detection_names, len(TAXONOMY.names))
    return save_detector(tmp_path_factory.mktemp("detector") / "both.safetensors", network, BOUNDS, CONFIG)


@pytest.fixture
def car(tester, checkpoint, tmp_path):
    one = Car(tester, checkpoint, tmp_path, overlays=False)
    one.spec.parameters |= {"overlay.enabled": "never", "detections.min_score": 0.05}
    return one


def stamp_of(index):
    return START_NS + 100 * MS * index


def cloud(index, n=400):
    """A cloud within the detector's bounds and beyond the vehicle's own echoes."""
    from lima_ros import convert

    rng = np.random.default_rng(index)
    columns = {"x": rng.uniform(1.5, 6, n), "y": rng.uniform(-6, 6, n), "z": rng.uniform(-2, 1, n)}
    packed = {axis: column.astype(np.float32) for axis, column in columns.items()}
    packed["intensity"] = rng.integers(0, 256, n, np.uint8)
    return convert.ROS.cloud(pack_cloud(packed), stamp_of(index), "lidar")


def wait_for_outputs(tester, process, topics):
    def there():
        assert process.returncode is None, process.output()
        return all(tester.node.count_publishers(f"/perception/output/{topic}") for topic in topics)

    tester.spin_until(there, 40, "the outputs")
    tester.spin_for(0.3)  # for the node to know our subscriptions


def offline(checkpoint):
    import torch

    from lima_core.predictor import Predictor

    torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
    return Predictor(checkpoint, "cpu")


def test_all_outputs_of_one_sweep(car, tester, start_node):
    from geometry_msgs.msg import PointStamped
    from sensor_msgs.msg import PointCloud2
    from visualization_msgs.msg import Marker, MarkerArray

    from lima_ros import convert

    remote = Remote(tester)
    topics = {name: tester.collect(PointCloud2, f"/perception/output/{name}") for name in OUTPUTS[1:]}
    topics |= {"segmentation": car.clouds, "markers": tester.collect(MarkerArray, "/perception/output/markers")}
    clicks = tester.node.create_publisher(PointStamped, "/clicked_point", 10)
    sent = []

    def drive(*waited):
        """One more cloud; the message of each topic in `waited` that it gives."""
        sent.append(cloud(len(sent)))
        car.out["/lidar"].publish(sent[-1])

        def latest(topic):
            return [m for m in topics[topic] if header_of(m) == sent[-1].header]

        tester.spin_until(lambda: all(latest(t) for t in waited), 20, f"{waited} of cloud {len(sent)}")
        return [latest(topic)[0] for topic in waited]

    def header_of(message):
        return message.markers[0].header if isinstance(message, MarkerArray) else message.header

    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process)
        wait_for_outputs(tester, process, topics)
        remote.wait(process)
        segmented, filtered, features, markers = drive("segmentation", "filtered", "features", "markers")
        labels = read_cloud(segmented)["label"]
        assert len(labels) == 400 and labels.max() < 16
        assert filtered == sent[0]  # no class is left out
        np.testing.assert_array_equal(read_cloud(features)["x"], read_cloud(sent[0])["x"])
        assert len(np.unique(read_cloud(features)["rgb"])) > 10
        first, *drawn = markers.markers
        assert first.action == Marker.DELETEALL
        boxes = [m for m in drawn if m.type == Marker.LINE_LIST]
        assert len(boxes) > 10 and all(m.header == sent[0].header for m in drawn)

        common = TAXONOMY.names[np.bincount(labels).argmax()]
        changed = remote.set(filter__classes=f"{common}, car", detections__min_score=1.0)
        assert all(result.successful for result in changed)
        segmented, filtered, markers = drive("segmentation", "filtered", "markers")
        kept = ~np.isin(read_cloud(segmented)["label"], [TAXONOMY.names.index(n) for n in (common, "car")])
        for name, column in read_cloud(filtered).items():
            np.testing.assert_array_equal(column, read_cloud(sent[-1])[name][kept])
        assert kept.sum() < 400 and filtered.header == sent[-1].header
        assert [m.action for m in markers.markers] == [Marker.DELETEALL]  # the view is cleared, with the header

        assert topics["similarity"] == []
        tester.spin_until(lambda: clicks.get_subscription_count() > 0, 10, "the node to hear clicks")
        for frame_id in ("map", "lidar"):
            click = PointStamped(header=convert.ROS.header(0, frame_id))
            click.point.x, click.point.y, click.point.z = cloud_points(cloud(1), 255.0).points[7, :3].tolist()
            clicks.publish(click)
            if frame_id == "map":
                ignored = "it is in frame 'map', the cloud in 'lidar'"
                tester.spin_until(lambda text=ignored: text in process.output(), 10, "a word about the frame")
        tester.spin_for(0.3)
        sent[:] = sent[:1]  # cloud 1 once more, where a point lies at what was clicked
        (similar,) = drive("similarity")
        similarity = read_cloud(similar)["similarity"]
        assert similarity[7] == pytest.approx(1) and np.nanmin(similarity) < 0.999
    ended_cleanly(process)
    if not convert.ROS.has_vision:
        assert "no ~/output/detections: vision_msgs is not installed" in process.output()


def test_detections_as_vision_msgs(car, tester, start_node):
    messages = pytest.importorskip("vision_msgs.msg", reason="needs the package vision_msgs")
    from rclpy.qos import DurabilityPolicy, QoSProfile

    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    infos = tester.collect(messages.LabelInfo, "/perception/output/label_info", latched)
    arrays = tester.collect(messages.Detection3DArray, "/perception/output/detections")
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process)
        wait_for_outputs(tester, process, ("detections", "label_info"))
        sent = cloud(0)
        car.out["/lidar"].publish(sent)
        tester.spin_until(lambda: arrays and infos, 20, "detections and their names")
        assert tuple(c.class_name for c in infos[0].class_map) == TAXONOMY.detection_names
        assert arrays[0].header == sent.header and len(arrays[0].detections) > 10
        assert {d.results[0].hypothesis.class_id for d in arrays[0].detections} <= set(TAXONOMY.detection_names)
        assert Remote(tester).set(detections__min_score=1.0)[0].successful
        car.out["/lidar"].publish(cloud(1))
        tester.spin_until(lambda: len(arrays) == 2, 20, "an empty array")
        assert len(arrays[1].detections) == 0 and arrays[1].header == cloud(1).header
    ended_cleanly(process)


def test_past_sweeps_by_odometry_and_none_without(car, tester, checkpoint, start_node):
    """The network gets two sweeps laid over each other by the vehicle's motion: what comes out is what it says of them.

    Without poses it gets one, and says so.
    """
    from diagnostic_msgs.msg import DiagnosticArray

    from lima_ros import convert

    diagnostics = tester.collect(DiagnosticArray, "/diagnostics")

    def drive(index):
        car.out["/lidar"].publish(cloud(index))
        car.expect(index + 1)

    def await_fact(key, value):
        tester.spin_until(lambda: values(diagnostics).get(key) == value, 15, f"{key} {value!r}")

    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process, ("/lidar", "/odom"))
        for index in range(3):
            drive(index)
        await_fact("sweeps", "no_current_pose 2")
        assert values(diagnostics)["odometry"].startswith("none")
        for index in range(-1, 7):  # ahead of the clouds: which message is handled first is the middleware's choice
            pose = se3.transform(np.eye(3), np.array([1.0 * index, 0, 0]))
            car.out["/odom"].publish(convert.ROS.odometry(pose, stamp_of(index)))
        await_fact("odometry", "received")
        tester.spin_for(0.5)
        for index in range(3, 6):
            drive(index)
        await_fact("published", "6")
        assert values(diagnostics)["sweeps"] == "no_current_pose 2"  # no new ones
    ended_cleanly(process)
    ledger = json.loads(car.ledger_file.read_text())
    assert (ledger["received"], ledger["published"], ledger["dropped"], ledger["open"]) == (6, 6, {}, 0)

    predictor = offline(checkpoint)
    points = [cloud_points(cloud(index), 255.0).points for index in range(6)]
    back = se3.transform(np.eye(3), np.array([-1.0, 0, 0]))  # the vehicle has moved a metre ahead

    def probability(index, past):
        return predictor.segment(points[index], past).probability

    heard = [read_cloud(message)["probability"] for message in car.clouds]
    np.testing.assert_allclose(heard[2], probability(2, []), atol=1e-5)
    both = probability(5, [(points[4], back, 0.1)])
    np.testing.assert_allclose(heard[5], both, atol=1e-5)
    for other in ([], [(points[4], np.eye(4), 0.1)]):  # one sweep; two without the motion
        assert np.abs(probability(5, other) - both).max() > 1e-4

"""The node on a lossless replay gives what `lima_core.predict` gives of the bag: cloud for cloud, box for box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

import live
from lima_core.data.bag import BagMessages
from lima_core.data.classes import load_taxonomy
from lima_core.data.ros_boxes import marker_boxes
from lima_core.data.ros_cloud import read_cloud
from lima_core.data.ros_header import stamp_ns
from lima_core.data.synthetic.street import Street
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.bag_messages import typestore
from networks import save_detector

FRAMES = 4
NAMES = load_taxonomy("nuscenes").detection_names
SETTINGS = {"detections.min_score": 0.05, "overlay.enabled": "never"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, two sweeps, boxes and labels: what it says is nonsense, and depends on every input."""
    import torch

    torch.manual_seed(0)
    bounds = RangeConfig((-12.8, -12.8, -5.0), (12.8, 12.8, 3.0), (0.2, 0.2, 0.2))
    config = DetectorConfig(bev_width=8, head_channels=8, sweeps=2)
    network = Detector("voxelnet_tiny", bounds, config, NAMES, len(load_taxonomy("nuscenes").names))
    with torch.no_grad():  # as initialised the best cells are the empty ones, whatever it is shown
        for weights in network.parameters():
            weights.mul_(2 if weights.ndim > 1 else 1)
    return save_detector(tmp_path_factory.mktemp("detector") / "both.safetensors", network, bounds, config)


def offline(bag: Path, out: Path, checkpoint: Path, **settings: object):
    import torch

    from lima_core.predictor import Predictor
    from lima_core.runtime.offline import predict_bag
    from lima_core.runtime.parameters import resolve

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the node: sums in another order would be other numbers
    account = predict_bag(bag, out, Predictor(checkpoint, "cpu"), resolve({**SETTINGS, **settings}))
    torch.set_num_threads(before)
    assert account.published == account.received == FRAMES
    messages = BagMessages(out)
    decoded = [(topic, typestore().deserialize_cdr(raw, messages.types[topic])) for _, topic, raw in messages]
    return tuple([m for topic, m in decoded if topic.endswith(name)] for name in ("segmentation", "markers"))


@pytest.mark.slow
def test_offline_equals_live(checkpoint, tester, start_node, ros_env, tmp_path):
    street = Street(3, frames=FRAMES, image_size=(64, 32))
    bag = write_frames(street, tmp_path / "street")
    reliable = QoSProfile(depth=50)
    clouds = tester.collect(PointCloud2, "/perception/output/segmentation", reliable)
    arrays = tester.collect(MarkerArray, "/perception/output/markers", reliable)
    process = live.node(street.rig, str(checkpoint), {**ros_env, "OMP_NUM_THREADS": "1"}, tmp_path, **SETTINGS)
    try:
        outputs = ("segmentation", "markers")

        def ready() -> bool:
            assert process.returncode is None, process.output()
            return all(tester.node.count_publishers(f"/perception/output/{name}") for name in outputs)

        tester.spin_until(ready, 60, "the node")
        tester.spin_for(0.5)  # for the node to know our subscriptions
        wanted = ",".join((street.rig.lidar_topic, street.rig.odometry_topic))
        with start_node(
            "player_node", {"source": str(bag), "messages": True, "rate": 0.1, "wait_for": wanted}
        ) as player:
            tester.spin_until(lambda: len(clouds) == len(arrays) == FRAMES, 60, "all sweeps")
            assert player.wait(30) == 0, player.output()
    finally:
        account = live.ledger(process, tmp_path)
    assert account["published"] == FRAMES and "sweeps" not in account, account

    wished_clouds, wished_arrays = offline(bag, tmp_path / "out", checkpoint)
    for found, wished in zip(clouds, wished_clouds, strict=True):
        assert stamp_ns(found.header.stamp) == stamp_ns(wished.header.stamp)
        assert found.header.frame_id == wished.header.frame_id
        theirs = read_cloud(wished)
        for name, column in read_cloud(found).items():
            np.testing.assert_array_equal(column, theirs[name], err_msg=name)
    for found, wished in zip(arrays, wished_arrays, strict=True):
        ours, theirs = marker_boxes(found, NAMES), marker_boxes(wished, NAMES)
        assert len(np.unique(ours.score)) > 10
        np.testing.assert_array_equal(ours.score, theirs.score)
        for name in ("center", "size", "yaw", "velocity", "class_id"):
            np.testing.assert_array_equal(getattr(ours.boxes, name), getattr(theirs.boxes, name), err_msg=name)
    alone = offline(bag, tmp_path / "alone", checkpoint, **{"sweeps.count": 1})[1]
    seen = [[marker_boxes(one, NAMES).score for one in made] for made in (wished_arrays, alone)]
    assert not any(np.array_equal(*pair) for pair in list(zip(*seen, strict=True))[1:])  # past sweeps did count

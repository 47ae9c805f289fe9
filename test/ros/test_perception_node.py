"""The perception node in a process of its own, over real DDS: what it publishes, and that bad input never stops it."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from lima_core.data.frame import CameraView, Image
from lima_core.data.rig import CameraMount, Rig
from lima_core.data.ros_cloud import cloud_points, pack_cloud, read_cloud
from lima_core.geometry import se3
from networks import save_random

MS = 1_000_000
START_NS = 1_532_402_927_000 * MS
SIZE = (64, 48)
K = np.array([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]])
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
RIG = Rig(
    name="pair",
    lidar_topic="/lidar",
    lidar_frame="lidar",
    base_from_lidar=se3.transform(np.eye(3), np.array([0, 0, 1.8])),
    cameras=(
        CameraMount("FRONT", "front", "/front/image", "/front/info", se3.transform(FORWARD, np.zeros(3)), -30.0),
        CameraMount("BACK", "back", "/back/image", "/back/info", se3.transform(FORWARD, np.zeros(3)), -10.0, "raw"),
    ),
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A network with random weights: what it says does not matter, that it says it about the right points does."""
    import torch

    torch.manual_seed(0)
    return save_random(tmp_path_factory.mktemp("network") / "random.safetensors")


def sweep(seed, n=600):
    """(n,) columns of a cloud before the cameras, with raw intensities."""
    rng = np.random.default_rng(seed)
    columns = {"x": rng.uniform(4, 30, n), "y": rng.uniform(-5, 5, n), "z": rng.uniform(-2, 2, n)}
    return {name: c.astype(np.float32) for name, c in columns.items()} | {
        "intensity": rng.integers(0, 256, n, np.uint8)
    }


class Car:
    """Publishes what the sensors of RIG send; topics by `bringup.perception_remappings`."""

    def __init__(self, tester, checkpoint, folder, overlays=True):
        from nav_msgs.msg import Odometry
        from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
        from sensor_msgs.msg import Image as RawImage

        from lima_ros.bringup import perception_remappings

        RIG.save(folder / "rig.yaml")
        self.ledger_file = folder / "ledger.json"
        self.tester = tester
        kinds = {"/lidar": PointCloud2, "/odom": Odometry, "/front/image": CompressedImage, "/back/image": RawImage}
        kinds |= {"/front/info": CameraInfo, "/back/info": CameraInfo}
        self.out = {topic: tester.node.create_publisher(kind, topic, 10) for topic, kind in kinds.items()}
        # best effort, the default, loses what is sent before both sides know each other: no base for exact counts
        reliable = {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in self.out}
        self.spec = SimpleNamespace(
            parameters={
                "checkpoint": str(checkpoint),
                "rig": str(folder / "rig.yaml"),
                "device": "cpu",
                "ledger_file": str(self.ledger_file),
                "sync.timeout_ms": 500,  # images may come late on a loaded machine
                **reliable,
            },
            remappings=dict(perception_remappings(RIG)),
        )
        self.clouds = tester.collect(PointCloud2, "/perception/output/segmentation")
        self.overlays = {
            m.name: tester.collect(CompressedImage, f"/perception/output/{m.name}/overlay/compressed")
            for m in RIG.cameras
            if overlays
        }

    def wait_for_node(self, process, topics=("/lidar",)):
        """Until the node listens to our topics and we hear its results."""

        def connected():
            assert process.returncode is None, process.output()
            heard = self.tester.node.count_publishers("/perception/output/segmentation")
            return heard and all(self.out[topic].get_subscription_count() for topic in topics)

        self.tester.spin_until(connected, 40, "the node to listen")
        self.tester.spin_for(0.3)  # for its publishers to know our subscriptions

    def drive(self, index, cameras=("FRONT", "BACK"), cloud=None, jpeg=None):
        """Sensors of sweep `index`, 100 ms after the one before, in order of time; returns the cloud that was sent."""
        from lima_ros import convert

        stamp = START_NS + 100 * MS * index
        for mount in RIG.cameras:
            if mount.name in cameras:
                self._camera(mount, stamp + round(mount.offset_ms * MS), jpeg)
        self._pose(stamp)
        if cloud is None:
            cloud = convert.ROS.cloud(pack_cloud(sweep(index)), stamp, "lidar")
        cloud.header = convert.ROS.header(stamp, "lidar")
        self.out["/lidar"].publish(cloud)
        return cloud

    def expect(self, clouds, timeout_s=20.0):
        """Until so many segmented clouds have come in all; returns the last."""
        self.tester.spin_until(lambda: len(self.clouds) >= clouds, timeout_s, f"cloud {clouds}")
        return self.clouds[clouds - 1]

    def _camera(self, mount, stamp, jpeg):
        from lima_ros import convert

        image = Image(pixels=np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
        view = CameraView(mount.name, stamp, image, SIZE, K, np.eye(4))
        prefix = f"/{mount.name.lower()}"
        self._pose(stamp)
        self.out[f"{prefix}/info"].publish(convert.ROS.camera_info(view, mount.frame_id))
        if mount.transport == "raw":
            message = convert.ROS.image(image.rgb, stamp, mount.frame_id)
        else:
            message = convert.ROS.compressed(jpeg or image.jpeg(), stamp, mount.frame_id)
        self.out[f"{prefix}/image"].publish(message)

    def _pose(self, stamp):
        from lima_ros import convert

        x = (stamp - START_NS) / MS * 0.01
        self.out["/odom"].publish(convert.ROS.odometry(se3.transform(np.eye(3), np.array([x, 0, 0])), stamp))


@pytest.fixture
def car(tester, checkpoint, tmp_path):
    return Car(tester, checkpoint, tmp_path)


def ended_cleanly(process):
    assert process.returncode == 0, process.output()
    assert "Traceback" not in process.output() and "terminate called" not in process.output()


def test_segments_draws_counts_and_survives_a_looped_bag(car, tester, checkpoint, start_node):
    import torch
    from diagnostic_msgs.msg import DiagnosticArray
    from std_msgs.msg import Float64

    from lima_core.predictor import Predictor

    sent, total_ms = [], tester.collect(Float64, "/perception/debug/total_ms")
    diagnostics = tester.collect(DiagnosticArray, "/diagnostics")
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process, car.out)
        for _ in range(3):
            for index in range(4):
                sent.append(car.drive(index))
                car.expect(len(sent))
                tester.spin_until(lambda: all(len(o) == len(sent) for o in car.overlays.values()), 10, "the overlays")
        tester.spin_until(lambda: values(diagnostics).get("published") == "12", 5, "diagnostics of all 12")
    ended_cleanly(process)

    torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
    predictor = Predictor(checkpoint, "cpu")
    for source, result in zip(sent, car.clouds, strict=True):
        assert result.header == source.header
        before, after = read_cloud(source), read_cloud(result)
        for name in ("x", "y", "z", "intensity"):
            np.testing.assert_array_equal(after[name], before[name])
        offline = predictor.segment(cloud_points(source, 255.0).points)
        np.testing.assert_array_equal(after["label"], offline.labels)
        np.testing.assert_allclose(after["probability"], offline.probability, atol=1e-4)
    assert len(total_ms) == 12 and min(m.data for m in total_ms) > 0

    for mount in RIG.cameras:
        first = car.overlays[mount.name][0]
        assert first.header.frame_id == mount.frame_id
        assert first.header.stamp.nanosec == (START_NS + round(mount.offset_ms * MS)) % 1_000_000_000
        drawn = Image(encoded=bytes(first.data)).rgb
        assert drawn.shape == (48, 64, 3) and np.abs(drawn.astype(int) - 67).max() > 50, "no point was drawn"

    ledger = json.loads(car.ledger_file.read_text())
    assert (ledger["received"], ledger["published"], ledger["dropped"], ledger["open"]) == (12, 12, {}, 0)
    assert ledger["cameras"] == {m.name: {"matched": 12, "overlay.drawn": 12} for m in RIG.cameras}
    assert ledger["time_jumps"] == 2 and ledger["latency_ms"]["p50"] > 0
    assert values(diagnostics)["camera.FRONT"] == "matched 12, overlay.drawn 12"
    assert values(diagnostics)["device"] == "cpu" and "latency_ms.p95" in values(diagnostics)


def values(diagnostics):
    ours = [s for array in diagnostics for s in array.status if s.name == "perception: segmentation"]
    return {v.key: v.value for v in ours[-1].values} if ours else {}


def bad_clouds():
    """What a broken driver sends: name -> message, and the number of points that must come out (None = dropped)."""
    from lima_ros import convert

    def message(columns):
        return convert.ROS.cloud(pack_cloud(columns), 0, "")

    columns = sweep(7)
    truncated = message(columns)
    truncated.data = truncated.data[:-1]
    empty_data = message(columns)
    empty_data.data = truncated.data[:0]
    nan = {name: column.copy() for name, column in columns.items()}
    nan["x"][::2], nan["z"][1::2] = np.nan, np.inf
    return {
        "without x": (message({n: c for n, c in columns.items() if n != "x"}), None),
        "truncated": (truncated, None),
        "no data": (empty_data, None),
        "nan": (message(nan), 600),
        "empty": (message({n: c[:0] for n, c in columns.items()}), 0),
        "one point": (message({n: c[:1] for n, c in columns.items()}), 1),
        "no intensity": (message({axis: columns[axis] for axis in "xyz"}), 600),
    }


def test_bad_input_is_named_and_the_next_cloud_comes_out(car, tester, start_node):
    from diagnostic_msgs.msg import DiagnosticArray

    diagnostics = tester.collect(DiagnosticArray, "/diagnostics")
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process, car.out)
        index = published = dropped = 0
        for name, (cloud, points) in bad_clouds().items():
            car.drive(index, cloud=cloud)
            if points is None:
                dropped += 1
                counted = {"dropped.bad_cloud": str(dropped)}
                tester.spin_until(
                    lambda c=counted: c.items() <= values(diagnostics).items(), 20, f"{name} in the ledger"
                )
            else:
                published += 1
                assert car.expect(published).width == points, name
            if name == "nan":
                assert (read_cloud(car.clouds[-1])["label"] == 255).all()
            car.drive(index + 1)
            index, published = index + 2, published + 1
            assert car.expect(published).width == 600, f"the cloud after {name}"
        for camera in ("corrupt JPEG", "silent"):
            for _ in range(3):
                if camera == "silent":  # FRONT never comes again: the cloud must
                    car.drive(index, cameras=("BACK",))
                else:
                    car.drive(index, jpeg=b"\xff\xd8 this is no picture")
                index, published = index + 1, published + 1
                assert car.expect(published).width == 600, camera
    ended_cleanly(process)
    ledger = json.loads(car.ledger_file.read_text())
    assert ledger["received"] == index == published + 3
    assert (ledger["published"], ledger["dropped"]) == (published, {"bad_cloud": 3})
    front, back = ledger["cameras"]["FRONT"], ledger["cameras"]["BACK"]
    assert front["missed.late"] == 3 and front["matched"] == index - 3 and front["overlay.corrupt"] == 3
    assert back["matched"] == index and back["overlay.drawn"] >= 6 and "overlay.corrupt" not in back
    assert "cloud has no scalar field x; its fields are ['y', 'z', 'intensity']" in process.output()


def test_a_wrong_topic_is_answered_with_the_right_ones(tester, checkpoint, start_node):
    """LiDAR only, no rig, and the cloud on another topic than the one the node listens to."""
    from sensor_msgs.msg import PointCloud2

    right = tester.node.create_publisher(PointCloud2, "/lidar/points", 1)
    spec = {"parameters": {"checkpoint": str(checkpoint)}, "remappings": {"~/input/pointcloud": "/lidar/pionts"}}
    with start_node("perception_node", **spec) as process:
        tester.spin_until(lambda: "inputs are silent" in process.output(), 40, "a word about the silent topic")
    ended_cleanly(process)
    assert right.get_subscription_count() == 0
    line = next(line for line in process.output().splitlines() if "no message on" in line)
    assert "/lidar/pionts (sensor_msgs/msg/PointCloud2)" in line
    assert "topics of this type: /lidar/points; did you mean /lidar/points?" in line


def test_a_node_that_can_never_work_says_so_and_stops(checkpoint, start_node, tmp_path):
    from lima_core.checkpoint import load_checkpoint, write_tensors

    weights, meta = load_checkpoint(checkpoint)
    other = write_tensors(tmp_path / "other.safetensors", weights, {**meta, "model": "minkunet18"})
    cases = {
        "no file": ({"checkpoint": "/nowhere/net.safetensors"}, "/nowhere/net.safetensors does not exist"),
        "other model": ({"checkpoint": str(other)}, "made for another model"),
        "no rig": ({"checkpoint": str(checkpoint), "rig": "/nowhere/rig.yaml"}, "/nowhere/rig.yaml does not exist"),
        "typing error": ({"checkpont": str(checkpoint)}, "did you mean 'checkpoint'"),
        "out of range": ({"sync.timeout_ms": -5.0}, "0 .. 2000"),
    }
    for name, (parameters, words) in cases.items():
        with start_node("perception_node", parameters=parameters) as process:
            assert process.wait(40) == 2, name
        assert words in process.output(), name
        assert "Traceback" not in process.output(), name


def test_signals_at_any_time_end_it_cleanly(car, tester, start_node):
    """SIGTERM while the network loads; then SIGINT twice while it works, as a launch and a terminal both send it."""
    with start_node("perception_node", **vars(car.spec)) as process:
        tester.spin_until(lambda: "parameters:" in process.output(), 40, "the start")
        process.send(signal.SIGTERM)
        assert process.wait(40) == 0
    ended_cleanly(process)
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process)
        for index in range(20):
            car.drive(index, cameras=())
        car.expect(1)
        process.send(signal.SIGINT)
        process.send(signal.SIGINT)
        assert process.wait(20) == 0
    ended_cleanly(process)
    ledger = json.loads(car.ledger_file.read_text())
    assert ledger["received"] == ledger["published"] + sum(ledger["dropped"].values()) and ledger["open"] == 0


def test_it_waits_for_enable_where_autostart_is_off(car, tester, start_node):
    from std_srvs.srv import SetBool

    car.spec.parameters["autostart"] = False
    client = tester.node.create_client(SetBool, "/perception/enable")

    def switch(on):
        future = client.call_async(SetBool.Request(data=on))
        tester.spin_until(future.done, 10, "the service")
        assert future.result().success and future.result().message == ("active" if on else "inactive")

    with start_node("perception_node", **vars(car.spec)) as process:
        tester.spin_until(client.service_is_ready, 40, "the service")
        assert car.out["/lidar"].get_subscription_count() == 0
        for count in (1, 2):
            switch(True)
            car.wait_for_node(process)
            car.drive(count, cameras=())
            car.expect(count)
            switch(False)
            tester.spin_until(lambda: car.out["/lidar"].get_subscription_count() == 0, 10, "it to stop listening")
    ended_cleanly(process)
    assert json.loads(car.ledger_file.read_text())["published"] == 2

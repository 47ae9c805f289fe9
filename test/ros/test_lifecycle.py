"""The perception node's life over real DDS: its states, its switch, and what it says where it cannot work."""

from __future__ import annotations

import json

import pytest
from test_perception_node import MS, START_NS, Car, ended_cleanly

from lima_core.checkpoint import load_checkpoint, write_tensors
from lima_core.data.ros_cloud import pack_cloud, read_cloud
from lima_core.data.synthetic.street import Street
from lima_core.paths import STREET_CHECKPOINT
from networks import save_random

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE, ACTIVE_SHUTDOWN = 1, 2, 3, 4, 7  # lifecycle_msgs/Transition
ONLY_LABEL = 7
SEGMENTATION = "/perception/output/segmentation"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights; it was trained, so it says, on what the street's network was."""
    import torch

    torch.manual_seed(0)
    path = save_random(tmp_path_factory.mktemp("network") / "random.safetensors")
    weights, meta = load_checkpoint(path)
    return write_tensors(path, weights, {**meta, "inputs": load_checkpoint(STREET_CHECKPOINT)[1]["inputs"]})


@pytest.fixture(scope="module")
def other_checkpoint(checkpoint):
    """The same network with a bias so large that every point is ONLY_LABEL."""
    weights, meta = load_checkpoint(checkpoint)
    weights["head.bias"][ONLY_LABEL] = 1e4
    return write_tensors(checkpoint.with_name("other.safetensors"), weights, meta)


class Remote:
    """Calls the services of the node /perception."""

    def __init__(self, tester):
        from lifecycle_msgs.srv import ChangeState, GetState
        from rcl_interfaces.srv import SetParameters, SetParametersAtomically
        from std_srvs.srv import SetBool, Trigger

        kinds = {
            "change_state": ChangeState,
            "get_state": GetState,
            "set_parameters": SetParameters,
            "set_parameters_atomically": SetParametersAtomically,
            "enable": SetBool,
            "reset": Trigger,
            "doctor": Trigger,
        }
        self._tester, self._kinds = tester, kinds
        self._clients = {name: tester.node.create_client(kind, f"/perception/{name}") for name, kind in kinds.items()}

    def wait(self, process):
        """Until the node answers."""

        def ready():
            assert process.returncode is None, process.output()
            return all(client.service_is_ready() for client in self._clients.values())

        self._tester.spin_until(ready, 40, "the services")

    def call(self, name, timeout_s=40.0, **request):
        """The response; long, as configure imports torch."""
        future = self._clients[name].call_async(self._kinds[name].Request(**request))
        self._tester.spin_until(future.done, timeout_s, f"the service {name}")
        return future.result()

    @property
    def state(self):
        return self.call("get_state").current_state.label

    def change(self, transition):
        """True where the transition succeeds."""
        from lifecycle_msgs.msg import Transition

        return self.call("change_state", transition=Transition(id=transition)).success

    def set(self, service="set_parameters", **values):
        """Sets parameters, `__` for a dot; the results, or the one result of set_parameters_atomically."""
        from rclpy.parameter import Parameter

        messages = [Parameter(n.replace("__", "."), value=v).to_parameter_msg() for n, v in values.items()]
        answer = self.call(service, parameters=messages)
        return answer.results if service == "set_parameters" else answer.result

    def doctor(self):
        answer = self.call("doctor")
        assert answer.success == (answer.message == "all is well"), answer
        return answer.message


@pytest.fixture
def remote(tester):
    return Remote(tester)


@pytest.fixture
def car(tester, checkpoint, tmp_path):
    """Without overlays: sweeps wait for no images."""
    one = Car(tester, checkpoint, tmp_path, overlays=False)
    one.spec.parameters |= {"overlay.enabled": "never", "autostart": False}
    return one


def listens(car):
    return car.out["/lidar"].get_subscription_count() > 0


def ended(car):
    """received, published, dropped and open of the ledger that was written."""
    ledger = json.loads(car.ledger_file.read_text())
    return tuple(ledger[key] for key in ("received", "published", "dropped", "open"))


def test_every_state_and_another_network(car, tester, remote, start_node, other_checkpoint):
    (car.ledger_file.parent / "blocked").write_text("a file, where the ledger wants a folder")
    with start_node("perception_node", **vars(car.spec)) as process:
        remote.wait(process)
        assert remote.state == "unconfigured" and not listens(car)
        assert remote.doctor() == "the node is not active: call ~/enable with data: true"
        assert not remote.change(ACTIVATE) and remote.state == "unconfigured"

        assert remote.change(CONFIGURE) and remote.state == "inactive" and not listens(car)
        for count in (1, 2):
            assert remote.change(ACTIVATE) and remote.state == "active"
            car.wait_for_node(process)
            car.drive(count, cameras=())
            labels = read_cloud(car.expect(count))["label"]
            assert remote.change(DEACTIVATE) and remote.state == "inactive"
            tester.spin_until(lambda: not listens(car), 10, "it to stop listening")
        assert (labels != ONLY_LABEL).any()

        (result,) = remote.set(checkpoint=str(other_checkpoint))
        assert not result.successful and "clean up first" in result.reason
        assert remote.change(CLEANUP) and remote.state == "unconfigured"
        assert ended(car) == (2, 2, {}, 0)
        tester.spin_until(lambda: not tester.node.count_publishers(SEGMENTATION), 10, "its outputs to go")

        blocked = str(car.ledger_file.parent / "blocked" / "ledger.json")
        assert all(r.successful for r in remote.set(checkpoint=str(other_checkpoint), ledger_file=blocked))
        assert remote.change(CONFIGURE) and remote.change(ACTIVATE)
        car.wait_for_node(process)
        car.drive(3, cameras=())
        assert (read_cloud(car.expect(3))["label"] == ONLY_LABEL).all()

        assert remote.change(ACTIVE_SHUTDOWN) and remote.state == "finalized"
        answer = remote.call("enable", data=True)
        assert not answer.success and "start it anew" in answer.message
        assert f"ledger_file {blocked} cannot be written" in process.output()
    ended_cleanly(process)


def test_what_cannot_be_configured_says_why_and_can_be_mended(car, remote, start_node, checkpoint):
    import torch

    car.spec.parameters["checkpoint"] = "/nowhere/net.safetensors"
    with start_node("perception_node", **vars(car.spec)) as process:
        remote.wait(process)
        reason = "checkpoint /nowhere/net.safetensors does not exist"
        assert not remote.change(CONFIGURE) and remote.state == "unconfigured"
        assert f"cannot be configured: {reason}" in process.output() and reason in remote.doctor()
        answer = remote.call("enable", data=True)
        assert not answer.success and reason in answer.message

        assert remote.set(checkpoint=str(checkpoint))[0].successful
        assert remote.set(filter__classes="cra")[0].successful  # nothing to compare it with yet
        assert not remote.change(CONFIGURE) and "'cra'; the network has barrier, " in remote.doctor()
        assert remote.set(filter__classes="car")[0].successful
        if not torch.cuda.is_available():
            assert remote.set(device="cuda")[0].successful
            assert not remote.change(CONFIGURE) and remote.state == "unconfigured"
            assert "device is cuda, but PyTorch finds no GPU" in remote.doctor()
            assert remote.set(device="cpu")[0].successful

        answer = remote.call("enable", data=True)
        assert (answer.success, answer.message) == (True, "active") and remote.state == "active"
        assert "does not exist" not in remote.doctor()
        assert remote.call("enable", data=True).message == "active"  # and again
        assert remote.call("enable", data=False).success and remote.state == "inactive"
    ended_cleanly(process)


def test_an_impossible_qos_is_named(start_node, checkpoint):
    """rclpy itself would say nothing of what is raised in a transition."""
    topics = {
        "/perception/input/pointcloud.subscription": "cannot be activated",
        "/perception/output/segmentation.publisher": "cannot be configured",
    }
    for topic, words in topics.items():
        parameters = {"checkpoint": str(checkpoint), "device": "cpu", f"qos_overrides.{topic}.reliability": "relaible"}
        with start_node("perception_node", parameters=parameters) as process:
            assert process.wait(60) == 2, topic
        assert words in process.output() and "`relaible`" in process.output()
        assert "Traceback" not in process.output()


def street_clouds():
    """Columns of sweeps of a street that the network was not trained on, intensity in 0..255."""
    street = Street(1001, frames=4, cameras=False)
    for index in range(len(street)):
        points, rings = street[index].points, street[index].extra["ring"]
        columns = dict(zip(("x", "y", "z"), points.T[:3].copy(), strict=True))
        yield columns | {"intensity": points[:, 3] * 255, "ring": rings.astype("uint16")}


@pytest.mark.slow
def test_doctor_and_reset(tester, remote, start_node, checkpoint):
    """LiDAR only. Before a cloud, in health, and with intensities of 16 bits."""
    from sensor_msgs.msg import PointCloud2

    from lima_ros import convert

    wrong = tester.node.create_publisher(PointCloud2, "/lidar/points", 10)
    lidar = tester.node.create_publisher(PointCloud2, "/lidar/pionts", 10)
    results = tester.collect(PointCloud2, SEGMENTATION)
    sweeps = list(street_clouds())
    sent = 0

    def until(words, factor=1.0):
        """Sends clouds, one after the other's result, until the doctor says so; returns all it says."""
        nonlocal sent
        for _ in range(40):
            columns = sweeps[sent % len(sweeps)]
            columns = {**columns, "intensity": (columns["intensity"] * factor).astype("float32")}
            lidar.publish(convert.ROS.cloud(pack_cloud(columns), START_NS + 100 * MS * sent, "lidar"))
            sent += 1
            tester.spin_until(lambda n=sent: len(results) >= n, 20, f"cloud {sent}")
            if sent >= 10 and words in (message := remote.doctor()):
                return message
        raise AssertionError(f"never said {words!r}: {message}")

    spec = {
        "parameters": {
            "checkpoint": str(checkpoint),
            "device": "cpu",
            "watch.silent_after_s": 2.0,
            "qos_overrides./lidar/pionts.subscription.reliability": "reliable",
        },
        "remappings": {"~/input/pointcloud": "/lidar/pionts"},
    }
    with start_node("perception_node", **spec) as process:
        remote.wait(process)
        tester.spin_until(lambda: "no message on" in remote.doctor(), 40, "the silent topic")
        message = remote.doctor()
        assert "/lidar/pionts (sensor_msgs/msg/PointCloud2)" in message and "did you mean /lidar/points?" in message
        assert wrong.get_subscription_count() == 0

        tester.spin_until(lambda: tester.node.count_publishers(SEGMENTATION), 10, "its output")
        tester.spin_for(0.3)
        assert until("all is well") == "all is well"
        answer = remote.call("reset")
        assert answer.success and "forgot" in answer.message
        message = until("intensity", factor=257.0)  # without the reset, the median would still be the old one's
        assert "set intensity_scale: 65535" in message
    ended_cleanly(process)

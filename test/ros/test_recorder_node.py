"""The recorder node over real DDS: it records what the bag itself gives, byte for byte, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: source its setup file, or install lima's extra `ros`")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from std_srvs.srv import Trigger

import robots
from lima_core.data.bag import TRUTH_TOPIC, BagMessages
from lima_core.data.recording import Recording
from lima_core.data.recording_writer import RecordingWriter
from lima_core.data.rig import Rig
from lima_core.runtime.bag_messages import LazyMessage, typestore
from lima_core.runtime.offline_recording import listeners, record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder import Recorder
from lima_core.runtime.recorder_parameters import RECORDING
from lima_ros.processes import Process
from robots import RIG, Sent, drive, files, places, without, write_bag

TOPICS = {
    "/lidar": PointCloud2,
    "/odom": Odometry,
    TRUTH_TOPIC: PointCloud2,
    **{mount.image_topic: CompressedImage for mount in RIG.cameras},
    **{mount.info_topic: CameraInfo for mount in RIG.cameras},
}
# nothing is left to chance: reliable, and long queues
EXACT = {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in TOPICS} | {
    f"qos_overrides.{topic}.subscription.depth": 500 for topic in TOPICS
}
ALL = {"triggers": "all", **robots.OPEN}


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    RIG.save(tmp_path / "rig.yaml")
    return tmp_path / "rig.yaml"


@pytest.fixture
def recorder(start_node: Callable, rig: Path, tmp_path: Path) -> Callable:
    """recorder(settings) -> context manager of the node's process, recording into tmp_path/live."""

    def start(settings: dict[str, Any] = ALL, **more: Any) -> Any:
        given = {"rig": str(rig), "out": str(tmp_path / "live"), **EXACT, **settings, **more}
        return start_node("recorder_node", given)

    return start


def ended_well(process: Process) -> str:
    """Its output, once it has been stopped."""
    assert process.returncode == 0 and "Traceback" not in process.output(), process.output()
    return process.output()


# ---- live = offline

SENT = drive(range(15), labelled=True)
RARE = {**ALL, "triggers": "time, distance", "trigger.every_s": 0.4, "trigger.every_m": 1.2}
DEAF = {**ALL, "patience_ms": 600.0}


def offline(bag: Path, folder: Path, settings: dict[str, Any], rig: Rig, loops: int) -> None:
    """A bag that is played several times, or lacks a camera, without DDS."""
    told: list[str] = []
    one = Recorder(rig, resolve(settings, RECORDING), RecordingWriter(folder, rig), told.append)
    hear, messages = listeners(one, rig, tf=False), BagMessages(bag)
    for _ in range(loops):
        for _, topic, raw in messages:
            hear[topic](LazyMessage(raw, messages.types[topic]))
    one.close()
    assert told == []


@pytest.mark.parametrize(
    ("sent", "settings", "loops"),
    [(SENT, ALL, 1), (SENT, RARE, 1), (SENT, ALL, 2), (without(SENT, "/back/image", "/back/info"), DEAF, 1)],
    ids=["all", "time and distance", "looped", "silent camera"],
)
def test_live_is_offline(
    sent: list[Sent], settings: dict, loops: int, recorder: Callable, start_node: Callable, rig: Path, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / "bag", sent)
    topics = {message.topic for message in sent}
    player = {
        "source": str(bag),
        "messages": True,
        "rate": 0.5,
        "loops": loops,
        "linger_s": 0.3,
        "wait_for": ",".join(topics),
    }
    with recorder(settings) as process, start_node("player_node", player) as played:
        assert played.wait(60) == 0, played.output()
    ended_well(process)
    if loops == 1 and len(topics) == len(TOPICS):
        record_bag(bag, tmp_path / "offline", resolve(settings, RECORDING), Rig.load(rig))
    else:
        offline(bag, tmp_path / "offline", settings, Rig.load(rig), loops)
    ours, theirs = files(tmp_path / "live"), files(tmp_path / "offline")
    assert ours.keys() == theirs.keys() and len(ours) > 12
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert list(Recording(tmp_path / "live").problems()) == []


# ---- services, states, diagnostics


class Robot:
    """Sends what the sensors of RIG send, and asks the recorder."""

    def __init__(self, tester: Any) -> None:
        self._tester = tester
        self._out = {topic: tester.node.create_publisher(kind, topic, 500) for topic, kind in TOPICS.items()}
        self._diagnostics = tester.collect(DiagnosticArray, "/diagnostics", 50)
        self._clients: dict[str, Any] = {}

    def wait_for(self, process: Process) -> None:
        """Until every topic is heard."""

        def heard() -> bool:
            assert process.returncode is None, process.output()
            return all(publisher.get_subscription_count() for publisher in self._out.values())

        self._tester.spin_until(heard, 40, "the recorder to listen")

    def send(self, sent: Iterable[Sent]) -> None:
        for one in sent:
            raw = bytes(typestore().serialize_cdr(one.message, one.message.__msgtype__))
            self._out[one.topic].publish(raw)

    def told(self, timeout_s: float = 20.0, **wanted: object) -> DiagnosticStatus:
        """The first status from now on that has these values, `__` for a dot."""
        del self._diagnostics[:]
        wanted = {name.replace("__", "."): str(value) for name, value in wanted.items()}
        found: list[DiagnosticStatus] = []

        def there() -> bool:
            found[:] = [s for array in self._diagnostics for s in array.status if wanted.items() <= values(s).items()]
            return bool(found)

        try:
            self._tester.spin_until(there, timeout_s, f"diagnostics with {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the last: {self._last()}") from error
        return found[0]

    def ask(self, name: str, kind: type = Trigger, **request: Any) -> Any:
        """The response of a service."""
        if name not in self._clients:
            self._clients[name] = self._tester.node.create_client(kind, f"/recorder/{name}")
        self._tester.spin_until(self._clients[name].service_is_ready, 40, f"the service {name}")
        future = self._clients[name].call_async(kind.Request(**request))
        self._tester.spin_until(future.done, 40, f"an answer of {name}")
        return future.result()

    def says(self, name: str) -> str:
        answer = self.ask(name)
        assert answer.success, answer.message
        return answer.message

    def change(self, transition: int) -> bool:
        return self.ask("change_state", ChangeState, transition=Transition(id=transition)).success

    def set(self, **parameters: object) -> tuple[bool, str]:
        given = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in parameters.items()
        ]
        (result,) = self.ask("set_parameters", SetParameters, parameters=given).results
        return result.successful, result.reason

    def _last(self) -> object:
        return values(self._diagnostics[-1].status[0]) if self._diagnostics else "none"


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values} | {"level": str(status.level)}


@pytest.fixture
def robot(tester: Any) -> Robot:
    return Robot(tester)


def test_services(recorder: Callable, robot: Robot, tmp_path: Path) -> None:
    settings = {**ALL, "triggers": "time", "trigger.every_s": 1.0, "snapshot_s": 0.5, "watch.silent_after_s": 0.5}
    with recorder(settings) as process:
        robot.wait_for(process)
        robot.send(drive(range(3)))
        robot.told(sweeps__recorded=1, sweeps__not_chosen=1)
        assert robot.says("record_frame") == "the next sweep is recorded"
        robot.send(drive(range(3, 5)))
        assert robot.says("is_paused") == "recording"
        robot.told(sweeps__recorded=2, sweeps__not_chosen=2)  # sweep 2 was asked for

        assert robot.says("pause") == "paused" and robot.says("is_paused") == "paused"
        refused = robot.ask("record_frame")
        assert not refused.success and "call ~/resume first" in refused.message
        robot.send(drive(range(5, 8)))
        assert robot.told(sweeps__paused=3).level <= DiagnosticStatus.WARN
        assert robot.says("toggle_paused") == "recording"

        robot.send(drive(range(8, 12)))
        robot.told(sweeps__recorded=3)
        assert robot.says("split_bagfile") == "the next frame begins a new sequence"
        robot.send(drive(range(12, 14)))
        robot.told(sweeps__recorded=4)
        assert robot.says("snapshot") == "6 sweeps written"
        assert robot.says("reset").startswith("forgot")
        robot.send(drive(range(20, 22)))
        robot.told(sweeps__recorded=5)
        status = robot.told(frames=11, sequences=5, silent__0="/lidar has fallen silent")
        assert status.level == DiagnosticStatus.WARN and "inputs are silent" in status.message
        assert int(values(status)["bytes"]) > 11 * 1000 and float(values(status)["free_gb"]) > 0
        assert TRUTH_TOPIC not in str(values(status))

        refused, why = robot.set(trigger__every_s=2.0)
        assert not refused and why == "parameter trigger.every_s is fixed while the node is configured: clean up first"
    assert "live has 11 frames of 5 sequences" in ended_well(process)
    found = list(places(Recording(tmp_path / "live")))
    assert [p for p in found if p[0] != "0003"] == [
        ("0000", 0), ("0000", 2), ("0001", 7), ("0002", 11), ("0004", 20),
    ]  # fmt: skip
    assert [index for sequence, index in found if sequence == "0003"] == list(range(7, 13))


def test_states(recorder: Callable, robot: Robot, rig: Path, tmp_path: Path) -> None:
    with recorder(ALL, autostart=False, rig="") as process:
        refused = robot.ask("pause")
        assert not refused.success and "not active" in refused.message
        assert not robot.change(Transition.TRANSITION_CONFIGURE)
        assert "parameter rig is empty: name a rig file" in process.output()
        assert not robot.set(queue_mb=0.5)[0]  # below its range
        assert robot.set(rig=str(rig))[0] and robot.change(Transition.TRANSITION_CONFIGURE)
        for begin in (0, 20):
            assert robot.change(Transition.TRANSITION_ACTIVATE)
            robot.wait_for(process)
            robot.send(drive(range(begin, begin + 4)))
            robot.told(sweeps__recorded=3 + begin // 5)
            assert robot.change(Transition.TRANSITION_DEACTIVATE)
        # what waited is written when it is deactivated
        assert list(places(Recording(tmp_path / "live"))) == [("0000", i) for i in range(4)] + [
            ("0001", i) for i in range(20, 24)
        ]
        assert robot.change(Transition.TRANSITION_CLEANUP)
        assert "live has 8 frames of 2 sequences" in process.output()
        RecordingWriter(tmp_path / "live", Rig.load(rig)).close()  # it is free for others

        assert robot.set(poses="tf")[0]
        if not tf_is_installed():
            assert not robot.change(Transition.TRANSITION_CONFIGURE)
            assert "poses: tf needs tf2_msgs" in process.output() and "set poses: odometry" in process.output()
    ended_well(process)


def tf_is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("tf2_msgs") is not None


def test_a_full_disk_and_messages_nobody_can_read(recorder: Callable, robot: Robot, tmp_path: Path) -> None:
    """Neither ends the node."""
    with recorder({**ALL, "disk.quota_gb": 2e-5}) as process:
        robot.wait_for(process)
        bad = robots.cloud(robots.sweep_ns(0), 0, x=np.zeros(3, np.float32))
        robot.send(
            replace(m, message=bad) if (m.topic, m.stamp_ns) == ("/lidar", robots.sweep_ns(0)) else m
            for m in drive(range(4))
        )
        status = robot.told(sweeps__bad_cloud=1)
        assert status.level == DiagnosticStatus.WARN and "bad_cloud 1" in status.message
        robot.send(drive(range(4, 14)))
        status = robot.told(level=DiagnosticStatus.ERROR)
        assert "quota of 2e-05 GB is used up; raise disk.quota_gb" in status.message
    output = ended_well(process)
    assert "recording stopped" in output and "cloud left out: cloud has no scalar field y, z" in output
    assert list(Recording(tmp_path / "live").problems()) == [] and len(Recording(tmp_path / "live")) > 1


def test_what_cannot_be_started(recorder: Callable, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "thesis.tex").touch()
    for given, told in (
        ({}, "is not empty and no recording; choose another folder"),
        ({"rig": "no.yaml"}, "rig file no.yaml does not exist"),
        ({"out": ""}, "parameter out is empty"),
        ({"triggers": "speed"}, "parameter triggers names 'speed'"),
        ({"trigger.every": 2.0}, "there is no parameter 'trigger.every'; did you mean"),
    ):
        with recorder({**ALL, **given}) as process:
            assert process.wait(40) == 2, process.output()
        assert told in process.output() and "Traceback" not in process.output(), process.output()

"""sync.policy approximate and exact: complete sets only, each sweep in one bin; real message_filters and a stub."""

from __future__ import annotations

import importlib
import json
import sys
import time
from types import ModuleType

import pytest

from lima_core.data.ros_header import stamp_ns
from lima_core.runtime.parameters import PARAMETERS, ParameterError, resolve

pytest.importorskip("sensor_msgs", reason="needs the ROS 2 message packages")
pytest.importorskip("rclpy", reason="needs ROS 2")
import numpy as np
from test_perception_node import Car, ended_cleanly
from test_pipeline import MS, RIG, Outputs, Predictor

from lima_core.data.rig import CameraMount
from lima_core.data.ros_cloud import pack_cloud
from lima_core.runtime.pipeline import NO_SET, Pipeline, Sweep
from lima_ros import convert
from lima_ros import filters_node as real
from networks import save_random

MOUNTS = [CameraMount(name, name, "", "", np.eye(4), offset) for name, offset in (("A", -30.0), ("B", -10.0))]


class SimpleFilter:
    """As message_filters', as far as it is used."""

    def __init__(self):
        self.callbacks = []

    def registerCallback(self, callback, *args):
        self.callbacks.append((callback, args))

    def signalMessage(self, *messages):
        for callback, args in self.callbacks:
            callback(*messages, *args)


class ApproximateTimeSynchronizer(SimpleFilter):
    """Newest message of each input, when their stamps are close enough."""

    def __init__(self, inputs, queue_size, slop):
        super().__init__()
        self.newest, self.slop, self.count = {}, slop, len(inputs)
        for index, one in enumerate(inputs):
            one.registerCallback(self.add, index)

    def add(self, message, index):
        self.newest[index] = message
        stamps = [stamp_ns(m.header.stamp) for m in self.newest.values()]
        if len(stamps) == self.count and max(stamps) - min(stamps) <= self.slop * 1e9:
            messages = [self.newest[i] for i in range(self.count)]
            self.newest.clear()
            self.signalMessage(*messages)


class TimeSynchronizer(ApproximateTimeSynchronizer):
    """The same with equal stamps."""

    def __init__(self, inputs, queue_size):
        super().__init__(inputs, queue_size, 0.0)


@pytest.fixture(params=["real", "stub"])
def filters(request, monkeypatch):
    """lima_ros.filters_node over the real message_filters, where there is one, and over a stub."""
    if request.param == "real":
        if real.MISSING:
            pytest.skip(real.MISSING)
        yield real
        return
    stub = ModuleType("message_filters")
    stub.SimpleFilter, stub.TimeSynchronizer = SimpleFilter, TimeSynchronizer
    stub.ApproximateTimeSynchronizer = ApproximateTimeSynchronizer
    yield from reloaded(stub, monkeypatch)


@pytest.fixture
def without(monkeypatch):
    """lima_ros.filters_node where message_filters cannot be imported."""
    yield from reloaded(None, monkeypatch)


def reloaded(message_filters, monkeypatch):
    monkeypatch.setitem(sys.modules, "message_filters", message_filters)
    monkeypatch.delitem(sys.modules, "lima_ros.filters_node")
    yield importlib.import_module("lima_ros.filters_node")
    sys.modules["lima_ros"].filters_node = real


def cloud(t_ms, n=5):
    ramp = np.arange(n, dtype=np.float32)
    packed = pack_cloud({"x": ramp + 2, "y": ramp, "z": ramp, "intensity": ramp})
    return convert.ROS.cloud(packed, t_ms * MS, "lidar")


def image(t_ms):
    return convert.ROS.compressed(b"no picture", t_ms * MS, "cam")


def sweep(sync, t_ms, now_s=0.0):
    return sync.add_sweep(t_ms * MS, Sweep(t_ms, cloud(t_ms)), now_s)


def picture(sync, camera, t_ms, now_s=0.0):
    return sync.add_image(camera, t_ms * MS, image(t_ms), now_s)


def test_a_set_is_complete_and_knows_how_far_off_its_images_are(filters):
    sync = filters.FilterSynchronizer(MOUNTS, slop_ms=40, timeout_ms=50)
    assert picture(sync, "A", 972) == [] and sweep(sync, 1000) == [] and sync.pending == 1
    (synced,) = picture(sync, "B", 989)
    assert (synced.stamp_ns, synced.sweep.number, synced.complete, sync.pending) == (1000 * MS, 1000, True, 0)
    assert {n: round(i.dt_ms, 6) for n, i in synced.images.items()} == {"A": 2.0, "B": -1.0}
    assert synced.images["A"].stamp_ns == 972 * MS and synced.spread_ms == pytest.approx(2.0)


def test_exact_takes_equal_stamps_only(filters):
    sync = filters.FilterSynchronizer(MOUNTS, slop_ms=None, timeout_ms=50)
    assert sweep(sync, 1000) + picture(sync, "A", 1000) + picture(sync, "B", 1001) == []
    (synced,) = picture(sync, "B", 1000)
    assert synced.stamp_ns == 1000 * MS and synced.complete


def test_a_sweep_in_no_set_leaves_after_the_timeout_and_not_again(filters):
    sync = filters.FilterSynchronizer(MOUNTS, slop_ms=40, timeout_ms=50)
    assert picture(sync, "A", 972) + sweep(sync, 1000) + sync.poll(0.049) == []
    (synced,) = sync.poll(0.05)
    assert synced.missing == {"A": NO_SET, "B": NO_SET} and synced.images == {} and sync.pending == 0
    assert picture(sync, "B", 989, 0.06) == []  # the set comes too late


def test_without_cameras_every_sweep_is_a_set(filters):
    sync = filters.FilterSynchronizer([], slop_ms=40, timeout_ms=50)
    assert [sweep(sync, t)[0].stamp_ns for t in (1000, 1050)] == [1000 * MS, 1050 * MS]


@pytest.mark.parametrize("slop_ms", [40, None])
def test_a_stamp_before_1970_ends_as_no_set_and_nothing_hangs(filters, slop_ms):
    sync = filters.FilterSynchronizer(MOUNTS, slop_ms, timeout_ms=50)
    assert sweep(sync, -1000) + picture(sync, "A", -1000) == []
    (synced,) = sweep(sync, 1000, now_s=0.1)
    assert synced.stamp_ns == -1000 * MS and NO_SET in synced.missing.values()
    assert picture(sync, "A", 1000, 0.1) == []
    assert len(picture(sync, "B", 1000, 0.1)) == 1


def test_a_looped_bag_gives_the_same_sets_each_time(filters):
    """Where the queues are kept, message_filters gives none in the second loop (spec, fact 2)."""
    sync = filters.FilterSynchronizer(MOUNTS, slop_ms=40, timeout_ms=50)
    loops = []
    for _ in range(3):
        out = []
        for t in range(100_000, 104_000, 100):
            out += sweep(sync, t) + picture(sync, "A", t - 30 + 50) + picture(sync, "A", t + 1) + picture(sync, "B", t)
        loops.append(sum(s.complete for s in out))
    assert loops == [40, 40, 40] and sync.time_jumps == 2


def test_no_tolerance_finds_nothing_and_is_refused(filters):
    with pytest.raises(ValueError, match=r"sync\.tolerance_ms: 0"):
        filters.FilterSynchronizer(MOUNTS, slop_ms=0.0, timeout_ms=50)


def test_every_sweep_ends_in_one_bin_of_the_ledger(filters):
    out = Outputs()
    settings = resolve({"sync.policy": "approximate", "sync.timeout_ms": 20})
    one = Pipeline(Predictor(), RIG, settings, out, convert.ROS, make_sync=filters.factory("approximate"))
    one.on_image("CAM", image(1000))
    one.on_cloud(cloud(1000))
    out.wait(lambda: out.clouds)
    one.on_cloud(cloud(2000))
    time.sleep(0.02)
    one.poll()
    one.on_cloud(cloud(3000))
    one.reset()
    one.on_cloud(cloud(4000))
    one.close()
    account = one.ledger.account()
    assert (account.received, account.published, account.open) == (4, 1, 0)
    assert account.dropped == {NO_SET: 2, "shutdown": 1}
    assert account.cameras["CAM"]["matched"] == 1 and not any("missed" in key for key in account.cameras["CAM"])


def test_where_message_filters_is_missing(without):
    assert without.factory("sweep") is None
    with pytest.raises(ValueError, match=r"sync\.policy: exact cannot work: .*apt install ros-.*-message-filters"):
        without.factory("exact")


@pytest.fixture
def car(tester, tmp_path):
    import torch

    torch.manual_seed(0)
    car = Car(tester, save_random(tmp_path / "random.safetensors"), tmp_path, overlays=False)
    car.spec.parameters["sync.policy"] = "approximate"
    return car


@pytest.mark.skipif(not real.MISSING, reason="message_filters is installed")
def test_a_node_that_needs_message_filters_says_what_to_install(car, tester, start_node):
    with start_node("perception_node", **vars(car.spec)) as process:
        tester.spin_until(lambda: process.returncode is not None, 40, "the end")
    assert process.returncode == 2 and "apt install ros-$ROS_DISTRO-message-filters" in process.output()
    assert "Traceback" not in process.output()


@pytest.mark.skipif(bool(real.MISSING), reason=real.MISSING)
def test_a_node_with_message_filters_publishes_sets_and_counts_the_others(car, tester, start_node):
    with start_node("perception_node", **vars(car.spec)) as process:
        car.wait_for_node(process, car.out)
        car.drive(0)
        car.expect(1)
        car.drive(1, cameras=("FRONT",))
        tester.spin_for(1.0)  # longer than sync.timeout_ms
        car.drive(2)
        car.expect(2)
    ended_cleanly(process)
    ledger = json.loads(car.ledger_file.read_text())
    assert (ledger["received"], ledger["published"], ledger["dropped"]) == (3, 2, {NO_SET: 1})
    assert ledger["cameras"] == {"FRONT": {"matched": 2}, "BACK": {"matched": 2}}


def test_sweep_is_the_default_and_others_are_named():
    assert resolve({})["sync.policy"] == "sweep"
    with pytest.raises(ParameterError, match="sweep, approximate, exact"):
        next(p for p in PARAMETERS if p.name == "sync.policy").check("nearest")

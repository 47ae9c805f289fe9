"""Malformed clouds, pictures and calibrations through the whole pipeline: each sweep ends in one ledger bin."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima_core.runtime.parameters import resolve

pytest.importorskip("sensor_msgs", reason="needs the ROS 2 message packages")
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from test_pipeline import MS, RIG, Predictor

from lima_core.data.ros_cloud import pack_cloud
from lima_core.runtime import pipeline
from lima_ros import convert

SIZE = st.one_of(st.integers(0, 6), st.sampled_from([2**31, 2**32 - 1]))
SETTINGS = {"sync.timeout_ms": 1, "filter.classes": "class 3", "overlay.enabled": "always"}


class Outputs(SimpleNamespace):
    """Keeps what is published; somebody listens to the filtered cloud too."""

    def __init__(self):
        super().__init__(published=[], warnings=[])

    def publish(self, topic, msg):
        self.published.append((topic, msg))

    def wanted(self, topic):
        return topic == "filtered"

    def publish_ms(self, stage, value):
        assert value >= 0

    def warn(self, text):
        self.warnings.append(text)

    @property
    def clouds(self):
        return [msg for topic, msg in self.published if topic == "segmentation"]


def good_cloud(n):
    ramp = np.arange(n, dtype=np.float32)
    return convert.ROS.cloud(pack_cloud({"x": ramp + 2, "y": ramp, "z": ramp, "intensity": ramp}), 0, "lidar")


@st.composite
def clouds(draw):
    """A good cloud of which up to three things are wrong."""
    msg = good_cloud(draw(st.integers(0, 4)))
    for what in draw(st.lists(st.sampled_from(["width", "height", "point_step", "row_step", "data", "field"]))):
        if what == "data":
            msg.data = msg.data[: draw(st.integers(0, len(msg.data)))]
        elif what == "field":
            name = draw(st.sampled_from(["x", "intensity", "t", "timestamp", "ring", "é"]))
            kind, count = draw(st.integers(0, 255)), draw(SIZE)
            msg.fields = [*msg.fields, PointField(name=name, offset=draw(SIZE), datatype=kind, count=count)]
        else:
            setattr(msg, what, draw(SIZE))
    return msg


@st.composite
def images(draw):
    if draw(st.booleans()):
        return convert.ROS.compressed(draw(st.binary(max_size=30)), 0, "cam")
    encoding = draw(st.sampled_from(["rgb8", "bayer_rggb16", "yuv422", "magic"]))
    msg = Image(width=draw(SIZE), height=draw(SIZE), step=draw(SIZE), encoding=encoding)
    msg.data.frombytes(draw(st.binary(max_size=200)))
    return msg


@st.composite
def infos(draw):
    numbers = draw(st.lists(st.floats(), min_size=9, max_size=9))
    model = draw(st.sampled_from(["", "plumb_bob", "equidistant", "magic"]))
    return CameraInfo(width=draw(SIZE), height=draw(SIZE), k=numbers, d=numbers[:5], distortion_model=model)


MESSAGES = st.one_of(
    st.tuples(st.just("cloud"), clouds()), st.tuples(st.just("image"), images()), st.tuples(st.just("info"), infos())
)


def feed(one, messages):
    """Messages 100 ms apart; returns the number of clouds."""
    for index, (kind, msg) in enumerate(messages):
        if kind == "info":
            one.on_info("CAM", msg)
            continue
        msg.header.stamp = convert.ROS.stamp((1000 + 100 * index) * MS)
        one.on_cloud(msg) if kind == "cloud" else one.on_image("CAM", msg)
    return sum(kind == "cloud" for kind, _ in messages)


def settled(one):
    """Waits until no sweep is open."""
    until = time.monotonic() + 10
    while one.ledger.account().open and time.monotonic() < until:
        one.poll()
        time.sleep(0.001)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(MESSAGES, min_size=1, max_size=6))
def test_every_sweep_ends_in_one_bin_and_the_next_good_one_is_published(messages):
    out = Outputs()
    one = pipeline.Pipeline(Predictor(), RIG, resolve(SETTINGS), out, convert.ROS)
    try:
        sent = feed(one, messages)
        settled(one)
        before = len(out.clouds)
        good = good_cloud(5)
        good.header.stamp = convert.ROS.stamp(5000 * MS)
        one.on_cloud(good)
        settled(one)
        assert len(out.clouds) == before + 1 and out.clouds[-1].width == 5
    finally:
        one.close()
    account = one.ledger.account()
    assert account.received == sent + 1 and account.open == 0
    assert account.published + sum(account.dropped.values()) == account.received
    assert account.published == len(out.clouds)
    assert "error" not in account.dropped, out.warnings
    assert account.dropped.get("bad_cloud", 0) <= len(out.warnings)


def test_no_thread_is_left():
    before = threading.active_count()
    one = pipeline.Pipeline(Predictor(), RIG, resolve({}), Outputs(), convert.ROS)
    feed(one, [("cloud", PointCloud2()), ("cloud", good_cloud(3))])
    one.close()
    assert threading.active_count() == before and one.ledger.account().open == 0

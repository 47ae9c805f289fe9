"""The pipeline of the perception node on a bag: no DDS, no clock but the bag's, no sweep left out, always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lima_core.data.bag import ODOMETRY, Bag, BagError, BagMessages
from lima_core.data.rig import Rig
from lima_core.runtime.bag_messages import bag_messages, typestore
from lima_core.runtime.bag_writer import BagWriter, Storage
from lima_core.runtime.health import Account
from lima_core.runtime.messages import stamp_ns
from lima_core.runtime.parameters import Resolved
from lima_core.runtime.pipeline import Pipeline
from lima_core.runtime.results import FILTERED, LABEL_INFO
from lima_core.runtime.tf_poses import TfChain
from lima_core.runtime.transforms import PoseBuffer
from lima_core.runtime.worker import InlineWorker

OUTPUTS = "/perception/output"
PER_REQUEST = (FILTERED, "features", "similarity")  # topics that the node computes for subscribers alone


@dataclass
class _Outputs:
    """Where the pipeline's results go: into a bag, at the stamp of what they were made from."""

    bag: BagWriter
    wished: frozenset[str]
    say: Callable[[str], None]
    counts: dict[str, int] = field(default_factory=dict)

    def publish(self, topic: str, msg: Any) -> None:
        """Writes a message on <OUTPUTS>/<topic>."""
        header = msg.markers[0].header if hasattr(msg, "markers") else msg.header
        self.bag.write(f"{OUTPUTS}/{topic}", msg, stamp_ns(header.stamp), latched=topic == LABEL_INFO)
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def wanted(self, topic: str) -> bool:
        """What was not wished for is not computed."""
        return topic in self.wished

    def warn(self, text: str) -> None:
        """Says what is wrong with the input."""
        self.say(text)

    def publish_ms(self, stage: str, value: float) -> None:
        """Durations are no part of a result that is the same twice."""


class _Time:
    """The bag's time in seconds: what the pipeline waits by."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def predict_bag(
    bag: str | Path,
    out: str | Path,
    predictor: Any,
    settings: Resolved,
    rig: Rig | None = None,
    storage: Storage = "mcap",
    overlays: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[], None] = lambda: None,
) -> Account:
    """Writes the rosbag2 `out` with what the node publishes on `bag`; returns its ledger.

    `rig` None = the bag's own; `progress` is called after each message. Segmentation, markers, detections and names of
    the classes are written where the network has them, the filtered cloud where filter.classes names some. Raises
    BagError where the bag cannot be read or has no cloud on the rig's topic, FileExistsError where `out` is there.
    """
    messages = BagMessages(bag)
    rig = rig or Bag(bag).rig
    if not messages.counts.get(rig.lidar_topic):
        there = "".join(f"\n  {topic}: {kind}" for topic, kind in sorted(messages.types.items()))
        raise BagError(f"{bag} has no cloud on {rig.lidar_topic}; correct the rig file. Its topics:{there}")
    time = _Time()
    with BagWriter(out, storage) as writer:
        outputs = _Outputs(writer, frozenset(), say)
        tf = _TfPoses(settings) if messages.types.get(rig.odometry_topic) != ODOMETRY else None
        pipeline = Pipeline(predictor, rig, settings, outputs, bag_messages(), tf, clock=time, make_worker=InlineWorker)
        outputs.wished = _wished(pipeline, settings, overlays)
        if LABEL_INFO in pipeline.results.topics:
            first_ns = next(iter(messages))[0]
            header = bag_messages().header(first_ns, rig.lidar_frame)
            outputs.publish(LABEL_INFO, pipeline.results.label_info(header))
        _feed(messages, _listeners(pipeline, rig, tf), time, pipeline, say, progress)
        pipeline.reset()  # sweeps that wait for images go on with what they have
        pipeline.close()
    return pipeline.ledger.account()


def _feed(
    messages: BagMessages,
    hear: dict[str, Callable[[Any], None]],
    time: _Time,
    pipeline: Pipeline,
    say: Callable[[str], None],
    progress: Callable[[], None],
) -> None:
    """Every message in the order of the bag; one that cannot be decoded is said and left out."""
    for bag_ns, topic, raw in messages:
        time.now_s = max(time.now_s, bag_ns / 1e9)
        if pipeline.waiting:
            pipeline.poll()
        if topic in hear:
            try:
                message = typestore().deserialize_cdr(raw, messages.types[topic])
            except Exception as error:  # rosbags raises what struct and numpy raise on bytes that are no message
                say(f"message left out: {topic} at {bag_ns} ns: {type(error).__name__}: {error}")
            else:
                hear[topic](message)
        progress()


def _listeners(pipeline: Pipeline, rig: Rig, tf: _TfPoses | None) -> dict[str, Callable[[Any], None]]:
    """What hears each topic, as lima_ros/bringup.py maps them for the node."""
    hear: dict[str, Callable[[Any], None]] = {rig.lidar_topic: pipeline.on_cloud}
    if tf is None:
        hear[rig.odometry_topic] = pipeline.on_odometry
    else:
        chain = TfChain(rig.base_frame)
        hear["/tf"] = lambda msg: tf.take(chain, msg, fixed=False)
        hear["/tf_static"] = lambda msg: tf.take(chain, msg, fixed=True)
    for name, mount in pipeline.mounts.items():
        hear[mount.image_topic] = partial(pipeline.on_image, name)
        hear[mount.info_topic] = partial(pipeline.on_info, name)
    return hear


def _wished(pipeline: Pipeline, settings: Resolved, overlays: bool) -> frozenset[str]:
    topics = {topic for topic in pipeline.results.topics if topic not in PER_REQUEST}
    topics |= {FILTERED} if settings["filter.classes"] else set()
    return frozenset(topics | ({f"{name}/overlay/compressed" for name in pipeline.mounts} if overlays else set()))


class _TfPoses(PoseBuffer):
    """Poses from /tf of a bag without odometry."""

    def __init__(self, settings: Resolved) -> None:
        super().__init__(settings["odometry.max_gap_ms"], settings["odometry.max_extrapolation_ms"])

    def take(self, chain: TfChain, msg: Any, fixed: bool) -> None:
        """A TFMessage."""
        for at_ns, pose, self.frame_id in chain.add(msg, fixed):
            self.add(at_ns, pose)

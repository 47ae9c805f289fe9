"""The pipeline of the perception node on a bag: no DDS, no clock but the bag's, no sweep left out, always the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lima_core.data.bag import CLOUD, COMPRESSED, INFO, ODOMETRY, RAW, TRANSFORMS, Bag, BagError, BagMessages
from lima_core.data.rig import Rig
from lima_core.data.ros_header import stamp_ns
from lima_core.runtime.bag_messages import bag_messages, typestore
from lima_core.runtime.bag_writer import BagWriter, Storage
from lima_core.runtime.health import Account, findings_in
from lima_core.runtime.parameters import ParameterError, Resolved
from lima_core.runtime.pipeline import Pipeline
from lima_core.runtime.results import FILTERED, LABEL_INFO
from lima_core.runtime.tf_poses import TfChain
from lima_core.runtime.transforms import PoseBuffer
from lima_core.runtime.worker import InlineWorker

OUTPUTS = "/perception/output"
Listener = tuple[str, str, Callable[[Any], None]]  # topic, type, what hears it
PER_REQUEST = (FILTERED, "features", "similarity")  # topics that the node computes for subscribers alone


class Complaints:
    """Says each kind of complaint once, in full; `total` says how often it came. The kind ends at the first colon."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.counts: Counter[str] = Counter()

    def __call__(self, text: str) -> None:
        """Something is wrong."""
        kind = text.partition(":")[0]
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            self._say(text)

    def total(self) -> None:
        """Says the kinds that came more than once."""
        for kind, count in self.counts.items():
            if count > 1:
                self._say(f"{kind}: {count} times in all")


@dataclass
class _Outputs:
    """Where the pipeline's results go: into a bag, at the stamp of what they were made from."""

    bag: BagWriter
    complain: Complaints
    wished: frozenset[str] = frozenset()

    def publish(self, topic: str, msg: Any) -> None:
        """Writes a message on <OUTPUTS>/<topic>."""
        header = msg.markers[0].header if hasattr(msg, "markers") else msg.header
        self.bag.write(f"{OUTPUTS}/{topic}", msg, stamp_ns(header.stamp), latched=topic == LABEL_INFO)

    def wanted(self, topic: str) -> bool:
        """What was not wished for is not computed."""
        return topic in self.wished

    def warn(self, text: str) -> None:
        """Says what is wrong with the input."""
        self.complain(text)

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
    progress: Callable[[], object] = lambda: None,
) -> Account:
    """Writes the rosbag2 `out` with what the node publishes on `bag`; returns its ledger.

    `rig` None = the bag's own; `progress` is called after each sweep. Segmentation, markers, detections and names of
    the classes are written where the network has them, the filtered cloud where filter.classes names some. Raises
    BagError where the bag cannot be read or does not have what the rig names, FileExistsError where `out` is there,
    ParameterError on settings that only the node can follow.
    """
    _check_settings(settings, overlays)
    messages, rig = BagMessages(bag), rig or Bag(bag).rig
    time, complain = _Time(), Complaints(say)
    with BagWriter(out, storage) as writer:
        outputs = _Outputs(writer, complain)
        tf = _TfPoses(settings) if _use_tf(messages, rig, settings) else None
        pipeline = Pipeline(predictor, rig, settings, outputs, bag_messages(), tf, clock=time, make_worker=InlineWorker)
        listeners = _listeners(pipeline, rig, tf)
        _check_topics(bag, messages, rig, listeners)
        outputs.wished = _wished(pipeline, settings, overlays)
        if LABEL_INFO in pipeline.results.topics:
            first_ns = next(iter(messages))[0]
            header = bag_messages().header(first_ns, rig.lidar_frame)
            outputs.publish(LABEL_INFO, pipeline.results.label_info(header))
        for topic in _feed(messages, listeners, time, pipeline, complain):
            if topic == rig.lidar_topic:
                progress()
        time.now_s = math.inf  # no image comes any more: sweeps that wait go on with what they have
        pipeline.poll()
        pipeline.close()
    complain.total()
    for line in _remarks(pipeline.facts()):
        say(line)
    return pipeline.ledger.account()


def _feed(
    messages: BagMessages,
    listeners: list[Listener],
    time: _Time,
    pipeline: Pipeline,
    complain: Complaints,
) -> Iterator[str]:
    """Every message in the order of the bag, its topic afterwards; one that cannot be decoded is left out."""
    for bag_ns, topic, raw in messages:
        time.now_s = max(time.now_s, bag_ns / 1e9)
        if pipeline.waiting:
            pipeline.poll()
        hear = [hear for heard, _, hear in listeners if heard == topic]
        if hear:
            try:
                message = typestore().deserialize_cdr(raw, messages.types[topic])
            except Exception as error:  # rosbags raises what struct and numpy raise on bytes that are no message
                complain(f"message of {topic} left out: at {bag_ns} ns: {type(error).__name__}: {error}")
            else:
                for one in hear:  # cameras may share a camera_info
                    one(message)
        yield topic


def _listeners(pipeline: Pipeline, rig: Rig, tf: _TfPoses | None) -> list[Listener]:
    """What hears each topic, as lima_ros/bringup.py maps them for the node."""
    listeners: list[Listener] = [(rig.lidar_topic, CLOUD, pipeline.on_cloud)]
    if tf is None:
        listeners.append((rig.odometry_topic, ODOMETRY, pipeline.on_odometry))
    else:
        chain = TfChain(rig.base_frame)
        listeners.append(("/tf", TRANSFORMS, lambda msg: tf.take(chain, msg, fixed=False)))
        listeners.append(("/tf_static", TRANSFORMS, lambda msg: tf.take(chain, msg, fixed=True)))
    for name, mount in pipeline.mounts.items():
        picture = COMPRESSED if mount.transport == "compressed" else RAW
        listeners.append((mount.image_topic, picture, partial(pipeline.on_image, name)))
        listeners.append((mount.info_topic, INFO, partial(pipeline.on_info, name)))
    return listeners


def _use_tf(messages: BagMessages, rig: Rig, settings: Resolved) -> bool:
    """Whether poses come from /tf: where it is asked for, or where there is no odometry."""
    if settings["transforms"] == "auto":
        return not messages.counts.get(rig.odometry_topic)
    return settings["transforms"] == "tf"


def _check_settings(settings: Resolved, overlays: bool) -> None:
    """Raises ParameterError on what would silently be something else than in the node."""
    if settings["sync.policy"] != "sweep":
        raise ParameterError(
            f"sync.policy: {settings['sync.policy']} is done by ROS's message_filters, in the node alone; "
            "without ROS there is sync.policy: sweep"
        )
    if overlays and settings["overlay.enabled"] == "never":
        raise ParameterError("overlays are wished for, and overlay.enabled is never; give up one of the two")


def _check_topics(bag: str | Path, messages: BagMessages, rig: Rig, listeners: list[Listener]) -> None:
    """Raises BagError, with the topics that are there, where the LiDAR is missing or a topic has another type."""
    wrong = [f"{topic} has no {kind}" for topic, kind, _ in listeners if messages.types.get(topic, kind) != kind]
    if not messages.counts.get(rig.lidar_topic):
        wrong.insert(0, f"there is no cloud on {rig.lidar_topic}")
    if wrong:
        problem = "; ".join(wrong)
        raise BagError(f"{bag} does not fit the rig: {problem}. Correct the rig file; topics:{messages.listing}")


def _remarks(facts: dict[str, object]) -> list[str]:
    """What the pipeline found out about its input, a line each."""
    named = {"sweeps": "past sweeps", "deskew": "deskew"}
    return [*findings_in(facts), *(f"{name}: {facts[key]}" for key, name in named.items() if key in facts)]


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

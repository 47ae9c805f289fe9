"""Plays a source of frames, or a bag, on ROS topics: `python -m lima_ros.player_node --ros-args -p source:=street:3`.

Everything is prepared ahead of time in a thread; the main thread only waits and publishes. Ends with exit status 0
after the last message, and says how many frames were sent. Parameters: PARAMETERS in lima_ros/player.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from lima_core.data.bag import BOXES_TOPIC, CLOUD, MARKERS, ODOMETRY, TRUTH_TOPIC, BagMessages
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.runtime.frame_messages import Batch, merged
from lima_core.runtime.parameters import resolve
from lima_ros import player
from lima_ros.convert import ROS, message_class
from lima_ros.signals import interrupt_once

CLOCK_TICK_S = 0.01
QUEUE = QoSProfile(depth=10)
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class PlayerNode(Node):
    """Publishes what a source holds, in stamp order and real time."""

    def __init__(self) -> None:
        super().__init__("player", automatically_declare_parameters_from_overrides=True)
        given = {name: p.value for name, p in self.get_parameters_by_prefix("").items()}
        self._settings = resolve(given, player.PARAMETERS)
        for line in self._settings.lines():
            self.get_logger().info(line)
        self._publishers_by_topic: dict[str, Publisher] = {}
        self._sent: Counter[str] = Counter()
        self._sent_at_ns: dict[int, int] = {}
        self._frame_topics: set[str] = set()
        self._clock_publisher = self.create_publisher(Clock, "/clock", QUEUE) if self._settings["clock"] else None
        self._frames_in_all = 0
        batches = self._recorded() if self._settings["messages"] else self._frames()
        depth = self._settings["prefetch"] * (20 if self._settings["messages"] else 1)
        self._prefetch = player.Prefetch(batches, depth)

    def play(self) -> None:
        """Prepares, waits for the subscribers, sends everything, and writes the summary even when interrupted."""
        settings = self._settings
        pacer = player.Pacer(settings["rate"])
        try:
            with tqdm(desc="preparing", mininterval=1.0) as bar:
                self._prefetch.fill(lambda ready: bar.update(ready - bar.n))
            self._wait_for_subscribers()
            with tqdm(total=self._frames_in_all or None, desc="playing", unit="frame", mininterval=1.0) as bar:
                for batch in self._prefetch:
                    self._send(batch, pacer)
                    bar.update(self._frames_sent() - bar.n)
            time.sleep(settings["linger_s"])
        finally:
            self._prefetch.close()
            self._summarize(pacer)

    def _frames(self) -> Iterator[Batch]:
        settings = self._settings
        source = open_source(settings["source"], settings["frames"] or None)
        self._create_publishers(source.rig, settings["transport"])
        self._frames_in_all = len(source) * settings["loops"]
        return merged(
            player.frame_batches(
                source, settings["transport"], settings["loops"], settings["start_offset_s"], settings["prefetch"]
            )
        )

    def _create_publishers(self, rig: Rig, transport: str) -> None:
        image = "sensor_msgs/msg/Image" if transport == "raw" else "sensor_msgs/msg/CompressedImage"
        types = {rig.lidar_topic: CLOUD, rig.odometry_topic: ODOMETRY, TRUTH_TOPIC: CLOUD, BOXES_TOPIC: MARKERS}
        for mount in rig.cameras:
            types |= {mount.image_topic: image, mount.info_topic: "sensor_msgs/msg/CameraInfo"}
        for topic, name in types.items():
            self._publishers_by_topic[topic] = self.create_publisher(message_class(name), topic, QUEUE)
        self._frame_topics = {rig.lidar_topic}

    def _recorded(self) -> Iterator[Batch]:
        settings = self._settings
        bag = BagMessages(settings["source"])
        for topic, name in bag.types.items():
            try:
                kind = message_class(name)
            except (ImportError, AttributeError):
                self.get_logger().warning(f"{topic} is not played: the message {name} is not installed")
                continue
            qos = LATCHED if topic in bag.latched else QUEUE
            self._publishers_by_topic[topic] = self.create_publisher(kind, topic, qos)
        self._frame_topics = {t for t, name in bag.types.items() if name == CLOUD and not t.startswith("/gt/")}
        self._frames_in_all = sum(bag.counts[topic] for topic in self._frame_topics) * settings["loops"]
        topics = set(self._publishers_by_topic)
        return player.recorded_batches(bag, topics, settings["loops"], settings["start_offset_s"])

    def _wait_for_subscribers(self) -> None:
        """Raises TimeoutError naming the topics nobody has subscribed to."""
        wanted = {topic.strip() for topic in self._settings["wait_for"].split(",")} - {""}
        unknown = wanted - self._publishers_by_topic.keys()
        if unknown:
            there = ", ".join(sorted(self._publishers_by_topic))
            raise ValueError(f"wait_for names {', '.join(sorted(unknown))}, but the player's topics are {there}")
        deadline = time.monotonic() + self._settings["wait_timeout_s"]
        while missing := {t for t in wanted if self._publishers_by_topic[t].get_subscription_count() == 0}:
            if time.monotonic() > deadline:
                seconds = self._settings["wait_timeout_s"]
                raise TimeoutError(f"after {seconds:g} s nobody has subscribed to {', '.join(sorted(missing))}")
            time.sleep(0.05)

    def _send(self, batch: Batch, pacer: player.Pacer) -> None:
        for outgoing in batch.messages:
            while (delay_s := pacer.delay_s(batch.sequence, outgoing.stamp_ns)) > 0:
                self._tick(outgoing.stamp_ns - round(delay_s * self._settings["rate"] * 1e9))
                time.sleep(min(delay_s, CLOCK_TICK_S))
            self._tick(outgoing.stamp_ns)
            self._publishers_by_topic[outgoing.topic].publish(outgoing.message)
            self._sent[outgoing.topic] += 1
            if outgoing.topic in self._frame_topics:
                self._sent_at_ns[outgoing.stamp_ns] = time.monotonic_ns()

    def _tick(self, now_ns: int) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=ROS.stamp(now_ns)))

    def _frames_sent(self) -> int:
        return sum(self._sent[topic] for topic in self._frame_topics)

    def _summarize(self, pacer: player.Pacer) -> None:
        frames = self._frames_sent()
        self.get_logger().info(f"sent {frames} frames, {sum(self._sent.values())} messages; late {pacer.late} times")
        if self._settings["summary_file"]:
            summary = {
                "source": self._settings["source"],
                "frames_sent": frames,
                "messages_sent": dict(self._sent),
                "late": pacer.late,
                "sent_monotonic_ns": self._sent_at_ns,
            }
            write_whole(Path(self._settings["summary_file"]), json.dumps(summary, indent=1))


def main() -> int:
    """Runs the player; exit status 0 also when interrupted, 1 with a message when it cannot play."""
    node = None
    try:
        interrupt_once()
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        node = PlayerNode()
        node.play()
    except KeyboardInterrupt:
        return 0
    except (ValueError, OSError) as error:
        print(f"player: {error}", file=sys.stderr)
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Subscriptions and publishers of the perception node: their QoS, its overrides, and the fix where two do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ModuleNotFoundError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

RESULT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)  # heard by RViz' default and by sensor QoS
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


def sensor_qos(depth: int = 5) -> QoSProfile:
    """Hears best effort and reliable publishers."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def subscribe(node: Node, kind: type, topic: str, hear: Callable[[Any], None], qos: QoSProfile) -> Subscription:
    """Listens with `qos`, or what `qos_overrides` say; a publisher that does not fit is logged with the fix."""
    events = SubscriptionEventCallbacks(incompatible_qos=partial(_on_incompatible, node, topic, "publisher"))
    options = QoSOverridingOptions(OVERRIDABLE)
    own = copy.copy(qos)  # rclpy writes the overrides of this topic into it
    return node.create_subscription(kind, topic, hear, own, qos_overriding_options=options, event_callbacks=events)


def advertise(node: Node, kind: type, topic: str, qos: QoSProfile) -> Publisher:
    """Sends with `qos`, or what `qos_overrides` say; a subscriber that does not fit is logged with the fix."""
    events = PublisherEventCallbacks(incompatible_qos=partial(_on_incompatible, node, topic, "subscriber"))
    options = QoSOverridingOptions(OVERRIDABLE)
    return node.create_publisher(kind, topic, copy.copy(qos), qos_overriding_options=options, event_callbacks=events)


def _on_incompatible(node: Node, topic: str, other: str, event: Any) -> None:
    """A publisher and a subscriber that will never hear each other."""
    name, policy = node.resolve_topic_name(topic), QoSPolicyKind(int(event.last_policy_kind)).name.lower()
    side = "subscription" if other == "publisher" else "publisher"
    node.get_logger().warning(
        f"a {other} of {name} does not fit: {policy} differs; set the parameter "
        f"qos_overrides.{name}.{side}.{policy}, or change the {other}"
    )

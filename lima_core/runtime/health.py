"""What the node says about itself: a ledger where every sweep ends in one bin, and the topics that stay silent."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches

import numpy as np

OK, WARN, ERROR = 0, 1, 2  # diagnostic_msgs/DiagnosticStatus
BAD_CLOUD, FAILED = "bad_cloud", "error"  # reasons of Ledger.drop that mean something is wrong
FAILURES = (BAD_CLOUD, FAILED)
ADVICE = {
    BAD_CLOUD: "they contradict themselves; the log names the field or size at fault",
    FAILED: "the network failed on them; the log says how",
    "no_set": "message_filters found no complete set; raise sync.timeout_ms or use sync.policy: sweep",
    "superseded": "a newer one came first; the network is slower than the LiDAR: use a GPU or a smaller network",
}
BEHIND = 0.1  # share of superseded clouds from which the network is too slow, and not just once busy
CAMERA_ADVICE = {
    "never": "nothing has come; is the topic of the rig file right?",
    "late": "they come after sync.timeout_ms; raise it, or find what delays them",
    "gap": "their stamps lie beside the window; correct offset_ms in the rig file or raise sync.tolerance_ms",
}


@dataclass(frozen=True)
class Account:
    """State of a ledger: received = published + sum(dropped) + open; `cameras` = events of each camera."""

    received: int
    published: int
    dropped: dict[str, int]
    open: int
    latency_ms: dict[str, float]  # p50, p95, max of the last 1000 published; empty before the first
    cameras: dict[str, dict[str, int]]

    def total(self, kind: str) -> int:
        """One of TOTALS; failed = dropped because something is wrong."""
        return sum(self.dropped.get(r, 0) for r in FAILURES) if kind == "failed" else getattr(self, kind)


TOTALS = ("failed", "received", "published")


class Ledger:
    """Counts sweeps from reception to exactly one end: published, or dropped with a reason. Thread-safe.

    Beside them it counts events per camera, named `matched`, `missed.<reason>`, `overlay.<how it ended>`.
    """

    def __init__(self, cameras: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._received = self._published = 0
        self._open: dict[int, float] = {}
        self._dropped: Counter[str] = Counter()
        self._latency_ms: deque[float] = deque(maxlen=1000)
        self._cameras: dict[str, Counter[str]] = {name: Counter(matched=0) for name in cameras}

    def receive(self, now_s: float) -> int:
        """A sweep has come; returns its number, with which it must be closed once."""
        with self._lock:
            self._received += 1
            self._open[self._received] = now_s
            return self._received

    def publish(self, number: int, now_s: float) -> float:
        """Its result is out; returns the ms since reception. Raises ValueError when it was closed before."""
        with self._lock:
            latency_ms = (now_s - self._close(number)) * 1e3
            self._published += 1
            self._latency_ms.append(latency_ms)
            return latency_ms

    def drop(self, number: int, reason: str) -> None:
        """It ends without a result. Raises ValueError when it was closed before."""
        with self._lock:
            self._close(number)
            self._dropped[reason] += 1

    def is_open(self, number: int) -> bool:
        """True from reception to its end."""
        with self._lock:
            return number in self._open

    def note(self, camera: str, event: str) -> None:
        """Counts an event of a camera."""
        with self._lock:
            self._cameras[camera][event] += 1

    def account(self) -> Account:
        """The counts of this moment."""
        with self._lock:
            return Account(
                received=self._received,
                published=self._published,
                dropped=dict(self._dropped),
                open=len(self._open),
                latency_ms=statistics(self._latency_ms),
                cameras={name: dict(events) for name, events in self._cameras.items()},
            )

    def _close(self, number: int) -> float:
        if number not in self._open:
            raise ValueError(f"sweep {number} was closed before or never received")
        return self._open.pop(number)


def statistics(values: Iterable[float]) -> dict[str, float]:
    """p50, p95 and max, rounded to 0.01; empty without values."""
    values = np.fromiter(values, np.float64)
    if len(values) == 0:
        return {}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "max": round(float(values.max()), 2)}


@dataclass(frozen=True)
class Status:
    """Level, message and key/values of a diagnostic_msgs/DiagnosticStatus."""

    level: int
    message: str
    values: tuple[tuple[str, str], ...]


def status(account: Account, silent: Sequence[str] = (), since: Account | None = None, **more: object) -> Status:
    """What /diagnostics says; `silent` = lines of `TopicWatch.report`.

    The level is that of what has happened `since` an earlier account; None = since the start.
    """
    failed, received, published = (account.total(kind) - (since.total(kind) if since else 0) for kind in TOTALS)
    values = {
        "received": account.received,
        "published": account.published,
        "open": account.open,
        "dropped": sum(account.dropped.values()),
        **{f"dropped.{reason}": n for reason, n in sorted(account.dropped.items())},
        **{f"latency_ms.{name}": value for name, value in account.latency_ms.items()},
        **{f"camera.{name}": events_text(events) for name, events in account.cameras.items()},
        **{f"silent.{index}": line for index, line in enumerate(silent)},
        **more,
    }
    if account.received == 0:
        level, message = WARN, "no cloud has been received"
    elif published == 0 and (failed or (since is not None and received)):
        level, message = ERROR, f"none of {received} clouds was published" + (" lately" if since else "")
    elif failed or silent:
        level, message = WARN, f"{failed} clouds failed, {len(silent)} inputs are silent"
    elif findings := findings_in(more):
        level, message = WARN, findings[0]
    else:
        level, message = OK, "perceiving"
    return Status(level, message, tuple((key, str(value)) for key, value in values.items()))


def findings_in(facts: Mapping[str, object]) -> list[str]:
    """What the input check says among the facts, gravest first."""
    return [str(value) for key, value in facts.items() if key.startswith("input.")]


def complaints(account: Account, silent: Sequence[str], facts: Mapping[str, object]) -> list[str]:
    """What is wrong and what mends it, a line each: silent inputs, findings, drops; empty where all is well."""
    lines = list(silent)
    lines += findings_in(facts)
    if account.received == 0 and not silent:
        lines.append("no cloud has been received yet")
    for reason, count in sorted(account.dropped.items()):
        if reason in ADVICE and (reason != "superseded" or count > account.received * BEHIND):
            lines.append(f"{count} of {account.received} clouds dropped: {ADVICE[reason]}")
    for camera, events in account.cameras.items():
        missed = {event: n for event, n in events.items() if event.startswith("missed.")}
        if missed and sum(missed.values()) > events["matched"]:
            reason = max(missed, key=missed.__getitem__).removeprefix("missed.")
            lines.append(f"camera {camera}: most sweeps have no image ({reason}): {CAMERA_ADVICE[reason]}")
    return lines


def summary(account: Account) -> dict[str, object]:
    """What the ledger file holds, as JSON values."""
    return asdict(account)


def events_text(events: Mapping[str, int]) -> str:
    """`matched 9, missed.late 1`."""
    return ", ".join(f"{event} {n}" for event, n in events.items())


class TopicWatch:
    """Which of the expected inputs are silent, and what to do about those that never spoke.

    `expected` topic -> type; a topic in `once` (CameraInfo) may fall silent after its first message.
    """

    def __init__(
        self, expected: Mapping[str, str], silent_after_s: float, now_s: float, once: Iterable[str] = ()
    ) -> None:
        self._expected, self._after_s, self._once = dict(expected), silent_after_s, frozenset(once)
        self._last_s = dict.fromkeys(expected, now_s)
        self._heard: set[str] = set()

    def hear(self, topic: str, now_s: float) -> None:
        """A message came on `topic`."""
        self._last_s[topic] = now_s
        self._heard.add(topic)

    def report(self, now_s: float, existing: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
        """One line per silent topic; `existing` (topic, types) as from get_topic_names_and_types()."""
        silent = [topic for topic, last_s in self._last_s.items() if now_s - last_s >= self._after_s]
        never = {topic: kind for topic, kind in self._expected.items() if topic in silent and topic not in self._heard}
        fell = [f"{topic} has fallen silent" for topic in silent if topic in self._heard - self._once]
        return silent_topics(never, existing, self._expected) + fell


def silent_topics(
    silent: Mapping[str, str], existing: Iterable[tuple[str, Iterable[str]]], ours: Iterable[str] = ()
) -> list[str]:
    """One line per topic (-> type) of `silent` that names the topics of its type that exist, `ours` left out."""
    existing = [(name, list(types)) for name, types in existing]
    lines = []
    for topic, kind in silent.items():
        others = sorted(name for name, types in existing if kind in types and name not in {topic, *ours})
        wrong = sorted({t for name, types in existing if name == topic for t in types} - {kind})
        line = f"no message on {topic} ({kind}) yet; "
        line += f"topics of this type: {', '.join(others)}" if others else "no other topic has this type"
        near = get_close_matches(topic, others, 1)
        line += f"; did you mean {near[0]}?" if near else ""
        lines.append(line + (f"; somebody uses {topic} as {', '.join(wrong)}" if wrong else ""))
    return lines

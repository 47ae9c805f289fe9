"""Judges what the perception node publishes: mIoU, mAP, latency, and what the report needs; no rclpy."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lima_core.data.frame import IGNORE, Boxes, Detections
from lima_core.data.ros_boxes import marker_boxes
from lima_core.data.ros_cloud import CloudError, read_cloud
from lima_core.files import write_whole
from lima_core.metrics.live import LiveBoxes
from lima_core.metrics.plain import number
from lima_core.metrics.segmentation import DistanceBins
from lima_core.runtime.health import statistics
from lima_core.runtime.parameters import Parameter
from lima_ros.evaluation_table import Column, ap_column, iou_column, values

PARAMETERS = (
    Parameter("out", "", "Folder for evaluation.json, frames/*.npz and overlays/<camera>/*.jpg"),
    Parameter("perception", "perception", "Name of the perception node, in the evaluator's namespace or absolute"),
    Parameter("rig", "", "Rig file, which names the cameras; empty = no overlays are kept"),
    Parameter("dataset", "nuscenes", "Data set whose classes the labels are (config/datasets)"),
    Parameter("frames", 0, "How many sweeps will be sent; 0 = unknown, ends by idle_timeout_s", 0, 1e9),
    Parameter("idle_timeout_s", 10.0, "Silence after which the evaluation is complete", 0.1, 1e6),
    Parameter("start_timeout_s", 300.0, "How long to wait for the first message", 0.1, 1e9),
    Parameter("print_period_s", 5.0, "Seconds between two tables in the terminal and on the topics", 0.5, 1e6),
    Parameter("keep_every", 1, "Keep every n-th frame's points and overlays for the report; 0 = none", 0, 1e9),
)
MAX_WAITING = 100
ORIGIN = np.zeros(2)


@dataclass(frozen=True)
class Segmented:
    """One output cloud: `points` (N, 3) float32 m, `label` (N,) uint8, `probability` (N,) float32."""

    points: np.ndarray
    label: np.ndarray
    probability: np.ndarray


class Evaluation:
    """Collects output and ground truth by stamp. Stamps may come again (loops): each pair counts."""

    def __init__(
        self,
        class_names: Sequence[str],
        out: Path,
        keep_every: int = 1,
        box_names: Sequence[str] = (),
        ego_xy: np.ndarray = ORIGIN,
    ) -> None:
        """`box_names` the classes of boxes; the vehicle stands at `ego_xy` (2,) m in the LiDAR frame."""
        self.class_names, self.out, self.keep_every = tuple(class_names), out, keep_every
        self.box_names, self._ego_xy = tuple(box_names), ego_xy
        self.boxes_matched = 0
        self.problems: Counter[str] = Counter()  # what came and could not be judged, by topic
        self.received = self.matched = self.mismatched = 0
        self.ledger: dict[str, Any] = {}
        self._distances = DistanceBins(len(self.class_names))
        self._boxes = LiveBoxes(self.box_names)
        self._found: dict[int, Detections] = {}
        self._true: dict[int, Boxes] = {}
        self._segmented: dict[int, Segmented] = {}
        self._truth: dict[int, np.ndarray] = {}
        self._kept: list[int] = []
        self._received_at_ns: dict[int, int] = {}
        self._milliseconds: dict[str, list[float]] = defaultdict(list)

    def add_segmentation(self, stamp_ns: int, cloud: Any, received_at_ns: int) -> None:
        """An output cloud; `received_at_ns` is time.monotonic_ns() on receipt. Raises CloudError on missing fields."""
        columns = _columns(cloud, ("x", "y", "z", "label", "probability"))
        points = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)
        if self._is_kept(self.received):
            self._kept.append(stamp_ns)
        self.received += 1
        self._received_at_ns[stamp_ns] = received_at_ns
        self._segmented[stamp_ns] = Segmented(points, columns["label"].copy(), columns["probability"].copy())
        self._match(stamp_ns)

    def add_truth(self, stamp_ns: int, cloud: Any) -> None:
        """A ground truth cloud. Raises CloudError when it has no label, or one that is no class."""
        label = _columns(cloud, ("label",))["label"].copy()
        unknown = label[(label != IGNORE) & ~((label >= 0) & (label < len(self.class_names)))]
        if len(unknown):
            raise CloudError(
                f"cloud has label {unknown[0]}, but there are {len(self.class_names)} classes, from 0; "
                "set parameter dataset to the one whose labels these are"
            )
        self._truth[stamp_ns] = label
        self._match(stamp_ns)

    def add_boxes(self, stamp_ns: int, markers: Any) -> None:
        """The node's ~/output/markers. Raises ValueError where they are not as the node sends them."""
        self._found[stamp_ns] = marker_boxes(markers, self.box_names)
        self._match_boxes(stamp_ns)

    def add_true_boxes(self, stamp_ns: int, boxes: Boxes) -> None:
        """Ground truth: what ros_boxes reads of /gt/markers or /gt/detections."""
        self._true[stamp_ns] = boxes
        self._match_boxes(stamp_ns)

    def add_overlay(self, camera: str, stamp_ns: int, jpeg: bytes, index: int) -> None:
        """The `index`-th overlay of a camera, JPEG bytes."""
        if self._is_kept(index):
            write_whole(self.out / "overlays" / camera / f"{stamp_ns}.jpg", jpeg)

    def add_milliseconds(self, name: str, value: float) -> None:
        """A latency that the perception node measured on its steady clock."""
        self._milliseconds[name].append(value)

    def add_ledger(self, values: Mapping[str, str]) -> None:
        """Key/values of the perception node's diagnostics. Raises ValueError where a count is no number."""
        dropped = {k.removeprefix("dropped."): int(v) for k, v in values.items() if k.startswith("dropped.")}
        self.ledger = {
            "received": int(values["received"]),
            "published": int(values["published"]),
            "dropped": dropped,
        }

    def complete(self, frames: int) -> bool:
        """Whether each of `frames` sweeps has ended in the ledger, and everything published has arrived."""
        ended = self.ledger.get("published", 0) + sum(self.ledger.get("dropped", {}).values())
        return 0 < frames <= ended and self.received >= self.ledger["published"]

    def line(self) -> str:
        """One line for the terminal."""
        latency = statistics(self._milliseconds.get("total", []))
        took = f", {latency['p50']:.0f} ms (p95 {latency['p95']:.0f})" if latency else ""
        miou = f", mIoU {100 * self._distances.total().miou():.1f} %" if self.matched else ""
        boxes = f", {self.boxes_matched} frames of boxes compared" if self.boxes_matched else ""
        other = f", {self.mismatched} of another size than the truth" if self.mismatched else ""
        bad = "".join(f", {count} bad messages on {topic}" for topic, count in self.problems.items())
        return f"{self.received} frames segmented, {self.matched} compared{miou}{boxes}{took}{other}{bad}"

    def columns(self) -> list[Column]:
        """IoU and AP by class and distance, of what could be compared so far."""
        found = [iou_column(self.class_names, self._distances)] if self.matched else []
        if self.boxes_matched:
            found.append(ap_column(self._boxes.overall.result(), self._boxes.by_distance()))
        return found

    def result(self) -> dict[str, Any]:
        """Everything that goes into evaluation.json."""
        confusion = self._distances.total()
        iou = dict(zip(self.class_names, map(number, confusion.iou()), strict=True))
        return {
            "frames_received": self.received,
            "frames_compared": self.matched,
            "frames_of_other_size": self.mismatched,
            "miou": number(confusion.miou()) if self.matched else None,
            "iou": iou,
            "frames_of_boxes_compared": self.boxes_matched,
            "scores": {column.measure: values(column) for column in self.columns()},
            "problems": dict(self.problems),
            "latency_ms": {name: {**statistics(v), "series": v} for name, v in self._milliseconds.items()},
            "ledger": self.ledger,
            "frames_kept": self._kept,
            "received_monotonic_ns": self._received_at_ns,
            "confusion": confusion.matrix.tolist(),
        }

    def write(self) -> None:
        """Writes evaluation.json and the kept frames that have no ground truth."""
        for stamp_ns in list(self._segmented):
            self._keep(stamp_ns, self._segmented.pop(stamp_ns), None)
        write_whole(self.out / "evaluation.json", json.dumps(self.result(), indent=1))

    def _is_kept(self, index: int) -> bool:
        return self.keep_every > 0 and index % self.keep_every == 0

    def _match(self, stamp_ns: int) -> None:
        """Compares output and truth of a stamp once both are there; forgets the oldest that never find a partner."""
        if stamp_ns in self._segmented and stamp_ns in self._truth:
            segmented, truth = self._segmented.pop(stamp_ns), self._truth.pop(stamp_ns)
            if len(truth) == len(segmented.label):
                self._distances.update(segmented.points, truth, segmented.label)
                self.matched += 1
            else:
                self.mismatched += 1
            self._keep(stamp_ns, segmented, truth)
        if len(self._segmented) > MAX_WAITING:
            oldest = next(iter(self._segmented))
            self._keep(oldest, self._segmented.pop(oldest), None)
        if len(self._truth) > MAX_WAITING:
            del self._truth[next(iter(self._truth))]

    def _match_boxes(self, stamp_ns: int) -> None:
        """Compares boxes and truth of a stamp once both are there; the oldest without a partner are forgotten."""
        if stamp_ns in self._found and stamp_ns in self._true:
            self._boxes.update(self._true.pop(stamp_ns), self._found.pop(stamp_ns), self._ego_xy)
            self.boxes_matched += 1
        for waiting in (self._found, self._true):
            if len(waiting) > MAX_WAITING:
                del waiting[next(iter(waiting))]

    def _keep(self, stamp_ns: int, segmented: Segmented, truth: np.ndarray | None) -> None:
        if stamp_ns not in self._kept:
            return
        columns = {"points": segmented.points, "label": segmented.label, "probability": segmented.probability}
        if truth is not None and len(truth) == len(segmented.label):
            columns["truth"] = truth
        buffer = io.BytesIO()
        np.savez(buffer, **columns)
        write_whole(self.out / "frames" / f"{stamp_ns}.npz", buffer.getvalue())


def end_to_end_ms(sent_monotonic_ns: Mapping[str, int], received_monotonic_ns: Mapping[str, int]) -> list[float]:
    """Milliseconds from the player's publish to the evaluator's callback, by stamp, of summary and evaluation file.

    Both clocks are CLOCK_MONOTONIC, one clock on one host; over two hosts the numbers mean nothing.
    """
    both = sorted(sent_monotonic_ns.keys() & received_monotonic_ns.keys(), key=int)
    return [(received_monotonic_ns[stamp] - sent_monotonic_ns[stamp]) / 1e6 for stamp in both]


def _columns(cloud: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Fields of a cloud. Raises CloudError naming the missing ones."""
    columns = read_cloud(cloud)
    missing = [name for name in names if name not in columns]
    if missing:
        raise CloudError(f"cloud has no field {', '.join(missing)}; its fields are {list(columns)}")
    return columns

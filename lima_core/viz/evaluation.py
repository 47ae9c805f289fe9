"""The page of an evaluation: one HTML file with its pictures inside, so that it can be sent as it is."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np

from lima_core.files import write_whole
from lima_core.metrics.calibration import BINS, Calibration
from lima_core.metrics.segmentation import ConfusionMatrix, DistanceBins, range_names
from lima_core.viz.report import ACCENT, PAGE

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#9aa0a8"


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split.

    `raw` and `scaled` are the confidences before and at the checkpoint's `temperature`; `latency_ms` (sweeps,) from
    points in to logits out; `colors` (C, 3) uint8 RGB.
    """

    title: str
    class_names: tuple[str, ...]
    colors: np.ndarray
    distances: DistanceBins
    raw: Calibration
    scaled: Calibration
    temperature: float
    latency_ms: np.ndarray

    @property
    def confusion(self) -> ConfusionMatrix:
        """Over all distances."""
        return self.distances.total()


def write_page(evaluation: Evaluation, path: Path) -> Path:
    """Writes the page, whole, and returns its path."""
    classes = len(evaluation.class_names)
    side = 2.5 + 0.36 * classes
    parts = [
        _facts(evaluation),
        _section("IoU per class", _plot(_draw_iou, evaluation, (12, 4))),
        _section("Confusion", _plot(_draw_confusion, evaluation, (side + 2, side))),
        _section("mIoU by distance", _plot(_draw_distances, evaluation, (12, 3.4))),
        _section("Reliability", _plot(_draw_reliability, evaluation, (12, 4.6), columns=2)),
        _section("Latency", _plot(_draw_latency, evaluation, (12, 3))),
    ]
    return write_whole(path, PAGE.format(title=html.escape(evaluation.title), body="\n".join(parts)))


def _section(heading: str, picture: str) -> str:
    return f"<h2>{heading}</h2>\n{picture}"


def _plot(
    draw: Callable[[Figure, list[Axes], Evaluation], None],
    evaluation: Evaluation,
    size: tuple[float, float],
    columns: int = 1,
) -> str:
    """One picture as an <img> that holds its own PNG."""
    figure, axes = plt.subplots(1, columns, figsize=size, dpi=120, layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    draw(figure, list(axes[0]), evaluation)
    png = BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{draw.__name__.removeprefix("_draw_")}" src="data:image/png;base64,{data}">'


def _draw_iou(figure: Figure, axes: list[Axes], evaluation: Evaluation) -> None:
    confusion = evaluation.confusion
    iou, (axis,) = confusion.iou(), axes
    height = np.nan_to_num(iou)
    x = np.arange(len(iou))
    axis.bar(x, height, color=evaluation.colors / 255.0, edgecolor="#555555", linewidth=0.5)
    for place, value in zip(x, iou, strict=True):
        text = "absent" if np.isnan(value) else f"{100 * value:.1f}"
        axis.text(place, np.nan_to_num(value) + 0.01, text, ha="center", fontsize=8)
    axis.set_xticks(x, evaluation.class_names, rotation=30, ha="right", fontsize=8)
    counted = f"{confusion.classes_counted()} of {len(iou)} classes"
    axis.set(ylabel="IoU", ylim=(0, 1.08), title=f"mIoU {100 * confusion.miou():.2f} % over {counted}")


def _draw_confusion(figure: Figure, axes: list[Axes], evaluation: Evaluation) -> None:
    """Rows are shares of the points of a true class; a row without points stays white."""
    confusion, (axis,) = evaluation.confusion, axes
    points = confusion.points_of_class()
    share = np.divide(
        confusion.matrix, points[:, None], out=np.full(confusion.matrix.shape, np.nan), where=points[:, None] > 0
    )
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(np.nan_to_num(share) >= 0.005), strict=True):
        color = "white" if share[row, column] > 0.6 else "#333333"
        axis.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color)
    names, places = evaluation.class_names, np.arange(len(points))
    axis.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xlabel="predicted", ylabel="truth", title="percent of the points of each true class")
    figure.colorbar(image, ax=axis, shrink=0.6)


def _draw_distances(figure: Figure, axes: list[Axes], evaluation: Evaluation) -> None:
    matrices, (axis,) = evaluation.distances.matrices, axes
    points = np.array([matrix.points_of_class().sum() for matrix in matrices])
    for place, matrix in enumerate(matrices):
        if points[place]:
            axis.bar(place, matrix.miou(), width=0.6, color=ACCENT)
            facts = f"{100 * points[place] / points.sum():.0f} % of points, {matrix.classes_counted()} classes"
            axis.text(place, matrix.miou() + 0.02, f"{100 * matrix.miou():.1f}\n{facts}", ha="center", fontsize=8)
    axis.set_xticks(np.arange(len(matrices)), range_names())
    axis.set(
        xlabel="horizontal distance to the sensor", ylabel="mIoU", ylim=(0, 1.18), xlim=(-0.6, len(matrices) - 0.4)
    )
    axis.set_yticks(np.linspace(0, 1, 6))


def _draw_reliability(figure: Figure, axes: list[Axes], evaluation: Evaluation) -> None:
    """Accuracy over confidence beside how many points have that confidence."""
    left, right = axes
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    middles = (np.arange(BINS) + 0.5) / BINS
    cases = [(evaluation.raw, "logits as they are", "#d95f02", "s", -0.2), (evaluation.scaled, "", ACCENT, "o", 0.2)]
    for calibration, name, color, marker, shift in cases:
        name = name or f"at temperature {evaluation.temperature:.2f}"
        label = f"{name}: ECE {100 * calibration.ece():.2f} %"
        left.plot(
            calibration.mean_confidence(), calibration.accuracy(), color=color, marker=marker, markersize=5, label=label
        )
        share = calibration.count / max(1, calibration.count.sum())
        right.bar(middles + shift / BINS, share, width=0.4 / BINS, color=color, label=name)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    right.set(xlabel="confidence", ylabel="share of points", xlim=(0, 1))
    if evaluation.raw.count.any():
        right.set_yscale("log")
    left.legend(frameon=False, loc="upper left", fontsize=8)


def _draw_latency(figure: Figure, axes: list[Axes], evaluation: Evaluation) -> None:
    (axis,) = axes
    axis.hist(evaluation.latency_ms, bins=min(60, 5 + len(evaluation.latency_ms)), color=ACCENT)
    for percent, style in ((50, "--"), (95, ":")):
        value = np.percentile(evaluation.latency_ms, percent)
        axis.axvline(value, color="#333333", linestyle=style, linewidth=1, label=f"p{percent} {value:.1f} ms")
    axis.set(xlabel="points in to logits out, ms", ylabel="sweeps")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)


def _facts(evaluation: Evaluation) -> str:
    confusion = evaluation.confusion
    facts = {
        "mIoU": f"{100 * confusion.miou():.2f} %",
        "classes counted": f"{confusion.classes_counted()} of {len(evaluation.class_names)}",
        "accuracy": f"{100 * confusion.accuracy():.2f} %",
        "mean class accuracy": f"{100 * confusion.mean_accuracy():.2f} %",
        "ECE": f"{100 * evaluation.scaled.ece():.2f} %",
        "sweeps": f"{len(evaluation.latency_ms)}",
        "latency p50": f"{np.percentile(evaluation.latency_ms, 50):.1f} ms",
    }
    cells = "".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in facts.items())
    return f'<div class="facts">{cells}</div>'

"""The report of a detector: a table in Markdown, and one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np

from lima_core.files import write_whole
from lima_core.metrics.detection import DetectionResult
from lima_core.metrics.detection_matching import DISTANCES_M, FIRST, MIN_PRECISION, RECALLS
from lima_core.viz.report import ACCENT, PAGE

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = (
    "class", "AP %", *(f"AP@{d:g} m" for d in DISTANCES_M),
    "ATE m", "ASE 1-IoU", "AOE rad", "AVE m/s", "AAE 1-acc", "true", "found",
)  # fmt: skip
SHADES = ("#9ecae1", "#4292c6", ACCENT, "#08306b")  # of DISTANCES_M


def markdown(result: DetectionResult, title: str, latency_ms: np.ndarray) -> str:
    """The scores of each class and of all as a table, then mAP, NDS and latency; `latency_ms` (frames,)."""
    rows = table(result)
    lines = [f"# {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    facts = [f"{name} {value}" for name, value in _facts(result, latency_ms).items()]
    return "\n".join([*lines, "", ", ".join(facts), *(f"\n{note}" for note in notes(result))]) + "\n"


def write_page(result: DetectionResult, title: str, latency_ms: np.ndarray, path: Path) -> Path:
    """Writes the page, whole, and returns its path."""
    facts = _facts(result, latency_ms).items()
    cells = "".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in facts)
    parts = [
        f'<div class="facts">{cells}</div>',
        _html_table(result),
        *(f"<p>{html.escape(note)}</p>" for note in notes(result)),
        "<h2>Precision over recall</h2>",
        _image(_draw_curves(result), "precision over recall"),
        "<h2>Latency</h2>",
        _image(_draw_latency(latency_ms), "latency"),
    ]
    return write_whole(path, PAGE.format(title=html.escape(title), body="\n".join(parts)))


def table(result: DetectionResult) -> list[list[str]]:
    """Words of COLUMNS: a row for each class, and the means as nuScenes takes them."""
    counts = np.stack([result.truths, result.detections], axis=1)
    rows = [_row(name, result.label_aps[i], result.label_tp[i], counts[i]) for i, name in enumerate(result.class_names)]
    return [*rows, _row("all", result.label_aps.mean(axis=0), result.tp, counts.sum(axis=0))]


def notes(result: DetectionResult) -> list[str]:
    """What a reader must know to read the numbers right."""
    lines = [
        "AP is the mean over the distances 0.5, 1, 2 and 4 m between centres; errors are those of matches within 2 m, "
        "and 1 where less than 10 % of the true boxes were found. Rules: nuScenes' detection_cvpr_2019, without its "
        "rule for bike racks."
    ]
    absent = [name for name, count in zip(result.class_names, result.truths, strict=True) if not count]
    if absent:
        lines.append(f"Without a true box, counted as AP 0 and errors 1 as nuScenes does: {', '.join(absent)}.")
    if 0 < len(absent) < len(result.class_names):
        others = len(result.class_names) - len(absent)
        lines.append(f"Mean AP at 2 m over the other {others} classes: {100 * result.map_at(2.0):.2f} %.")
    if not result.attributes:
        lines.append("The data tells no attributes, so that every attribute error (AAE) is 1 and adds nothing to NDS.")
    return lines


def _row(name: str, aps: np.ndarray, errors: np.ndarray, counts: np.ndarray) -> list[str]:
    percent = [f"{100 * value:.2f}" for value in (aps.mean(), *aps)]
    return [name, *percent, *("-" if np.isnan(e) else f"{e:.3f}" for e in errors), *(f"{count:,}" for count in counts)]


def _facts(result: DetectionResult, latency_ms: np.ndarray) -> dict[str, str]:
    facts = {"mAP": f"{100 * result.mean_ap:.2f} %", "NDS": f"{100 * result.nds:.2f} %", "frames": str(len(latency_ms))}
    percentiles = {f"latency p{p}": f"{np.percentile(latency_ms, p):.1f} ms" for p in (50, 95) if len(latency_ms)}
    return facts | percentiles


def _html_table(result: DetectionResult) -> str:
    head = "".join(f"<th style='text-align:left;padding-right:1.5em'>{html.escape(name)}</th>" for name in COLUMNS)
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in table(result))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{html.escape(word)}</td>" for word in row)


def _image(figure: Figure, name: str) -> str:
    """A figure as an <img> that holds its own PNG."""
    png = BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def _draw_curves(result: DetectionResult) -> Figure:
    """A panel for each class, a curve for each distance; what does not count for AP is shaded."""
    classes = len(result.class_names)
    columns = min(5, classes)
    rows = -(-classes // columns)
    size = (2.7 * columns + 0.4, 2.5 * rows + 0.6)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, dpi=120, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    axes = list(grid.flat)
    for class_id, axis in enumerate(axes[:classes]):
        _draw_class(axis, result, class_id)
    for axis in axes[classes:]:
        axis.set_visible(False)
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    return figure


def _draw_class(axis: Axes, result: DetectionResult, class_id: int) -> None:
    axis.axvspan(0, RECALLS[FIRST - 1], color="#ececea", label="not counted")
    axis.axhspan(0, MIN_PRECISION, color="#ececea")
    for distance, shade, precision in zip(DISTANCES_M, SHADES, result.precision[class_id], strict=True):
        reached = precision > 0
        axis.plot(RECALLS[reached], precision[reached], color=shade, linewidth=1.6, label=f"within {distance:g} m")
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    ap = f"AP {100 * result.label_aps[class_id].mean():.1f} %" if result.truths[class_id] else "no true box"
    axis.set_title(f"{result.class_names[class_id].replace('_', ' ')}: {ap}", fontsize=9)


def _draw_latency(latency_ms: np.ndarray) -> Figure:
    figure, axis = plt.subplots(figsize=(12, 3), dpi=120, layout="constrained")
    axis.hist(latency_ms, bins=min(60, 5 + len(latency_ms)), color=ACCENT)
    for percent, style in ((50, "--"), (95, ":")):
        if len(latency_ms):
            value = np.percentile(latency_ms, percent)
            axis.axvline(value, color="#333333", linestyle=style, linewidth=1, label=f"p{percent} {value:.1f} ms")
    axis.set(xlabel="points in to boxes out, ms", ylabel="frames")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    if len(latency_ms):
        axis.legend(frameon=False)
    return figure

"""The report of a perception run: one HTML page with PNGs beside it, from what an evaluator recorded."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np

from lima_core.data.frame import IGNORE
from lima_core.files import write_whole
from lima_core.viz.bev import IGNORED, caption, error_colors, legend, render_bev

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ACCENT = "#1f6f8b"


@dataclass(frozen=True)
class Shot:
    """One evaluated sweep to show: points in base_link (N, 3), train ids (N,), overlays by camera as RGB."""

    title: str
    points_base: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None = None
    overlays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a run left behind. `summary` is what summary.json holds; `iou` (C,) with nan for absent classes."""

    title: str
    summary: dict[str, Any]
    class_names: tuple[str, ...]
    colors: np.ndarray
    latency_ms: np.ndarray
    iou: np.ndarray | None
    shots: tuple[Shot, ...]


def write_report(run: Run, out: Path) -> Path:
    """Writes report.html and its PNGs into `out` and returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    table = np.full((256, 3), IGNORED, np.uint8)
    table[: len(run.colors)] = run.colors
    parts = [_facts(run.summary)]
    for i, shot in enumerate(run.shots):
        parts += [f"<h2>{html.escape(shot.title)}</h2>", _picture(out, f"bev_{i}.png", bev_row(shot, table))]
        if i == 0:
            parts.append(_picture(out, "legend.png", legend(run.class_names, run.colors, 1440)))
        if shot.overlays:
            parts.append(_picture(out, f"overlays_{i}.png", mosaic(shot.overlays)))
    parts += ["<h2>Latency</h2>", _plot(out, "latency.png", _draw_latency, run.latency_ms)]
    if run.iou is not None:
        parts += ["<h2>IoU per class</h2>", _plot(out, "iou.png", _draw_iou, run)]
    parts += ["<h2>Ledger</h2>", _ledger(run.summary)]
    return write_whole(out / "report.html", PAGE.format(title=html.escape(run.title), body="\n".join(parts)))


def bev_row(shot: Shot, table: np.ndarray) -> np.ndarray:
    """Prediction, ground truth and errors of one sweep side by side; the prediction alone without labels."""
    panels = [("prediction", table[shot.prediction])]
    if shot.truth is not None and (shot.truth != IGNORE).any():
        panels.append(("ground truth", table[shot.truth]))
        panels.append(("errors: right grey, wrong red", error_colors(shot.truth, shot.prediction)))
    images = []
    for name, colors in panels:
        images.append(render_bev(shot.points_base, colors))
        caption(images[-1], name, (12, 26), 0.7)
    return np.hstack(images)


def mosaic(overlays: dict[str, np.ndarray], width_px: int = 480) -> np.ndarray:
    """Six cameras as one sees them from the car: front row left to right, back row mirrored below it."""
    order = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
    names = [n for n in order if n in overlays] + sorted(set(overlays) - set(order))
    tiles = []
    height = max(round(o.shape[0] * width_px / o.shape[1]) for o in overlays.values())
    for name in names:
        picture = cv2.resize(overlays[name], (width_px, height), interpolation=cv2.INTER_AREA)
        caption(picture, name, (8, 20), 0.5)
        tiles.append(picture)
    tiles += [np.full_like(tiles[0], 247)] * (-len(tiles) % 3)
    return np.vstack([np.hstack(tiles[i : i + 3]) for i in range(0, len(tiles), 3)])


def _picture(out: Path, name: str, rgb: np.ndarray) -> str:
    _, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    write_whole(out / name, data.tobytes())
    return f'<img src="{name}" alt="{name}">'


def _plot(out: Path, name: str, draw: Any, data: Any) -> str:
    figure, axes = plt.subplots(figsize=(12, 3.4), dpi=120, layout="constrained")
    draw(axes, data)
    axes.spines[["top", "right"]].set_visible(False)
    part = out / f".{name}.part.png"
    figure.savefig(part)
    plt.close(figure)
    part.replace(out / name)
    return f'<img src="{name}" alt="{name}">'


def _draw_latency(axes: Any, latency_ms: np.ndarray) -> None:
    axes.plot(np.arange(len(latency_ms)), latency_ms, color=ACCENT, marker="o", markersize=3, linewidth=1)
    for percent, style in ((50, "--"), (95, ":")):
        if len(latency_ms):
            value = np.percentile(latency_ms, percent)
            axes.axhline(value, color="#555555", linestyle=style, linewidth=1, label=f"p{percent} {value:.0f} ms")
    axes.set(xlabel="published sweep", ylabel="received to published, ms", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(latency_ms):
        axes.legend(frameon=False)


def _draw_iou(axes: Any, run: Run) -> None:
    seen = np.flatnonzero(~np.isnan(run.iou))
    axes.bar(np.arange(len(seen)), run.iou[seen], color=run.colors[seen] / 255.0, edgecolor="#555555", linewidth=0.5)
    for x, value in enumerate(run.iou[seen]):
        axes.text(x, value + 0.01, f"{value:.2f}", ha="center", fontsize=8)
    axes.set_xticks(np.arange(len(seen)), [run.class_names[i] for i in seen], rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="IoU", ylim=(0, 1.05), title=f"mIoU {np.nanmean(run.iou):.3f} over {len(seen)} classes that occur")


def _facts(summary: dict[str, Any]) -> str:
    latency = summary["latency_ms"]
    miou = summary["miou"]
    facts = {
        "sweeps sent": summary["frames_sent"],
        "published": summary["frames_published"],
        "dropped": sum(summary["dropped"].values()),
        "mIoU": "no labels" if miou is None else f"{miou:.3f}",
        "latency p50": _milliseconds(latency["p50"]),
        "latency p95": _milliseconds(latency["p95"]),
        "device": summary["device"],
    }
    cells = "".join(f"<div><b>{html.escape(str(v))}</b><span>{html.escape(k)}</span></div>" for k, v in facts.items())
    return f'<div class="facts">{cells}</div>'


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _ledger(summary: dict[str, Any]) -> str:
    rows = {"sent": summary["frames_sent"], "published": summary["frames_published"]}
    rows |= {f"dropped: {reason}": n for reason, n in summary["dropped"].items()}
    rows |= {f"version: {name}": v for name, v in summary["versions"].items()}
    cells = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #282c34; background: #f7f7f5; max-width: 1440px; margin: 2em auto;
  padding: 0 1em; }}
img {{ max-width: 100%; display: block; margin: .6em 0; }}
h1, h2 {{ font-weight: 600; margin: 1.2em 0 .3em; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 2.2em; }}
.facts b {{ display: block; font-size: 1.6em; }}
.facts span, td:first-child {{ color: #667; }}
table {{ border-collapse: collapse; }} td {{ padding: .15em 1.5em .15em 0; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""

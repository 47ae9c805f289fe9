"""The report of a detector: right numbers at the right place, and notes where numbers need them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lima_core.data.classes import load_taxonomy
from lima_core.metrics.detection import DetectionMetric, DetectionResult
from lima_core.viz.detection import COLUMNS, markdown, notes, table, write_page

NAMES = load_taxonomy("nuscenes").detection_names
LATENCY_MS = np.linspace(10, 30, 21)


def result(**changes) -> DetectionResult:
    """Made-up scores: AP rises with the class and with the distance, cones have translation and scale alone."""
    aps = np.linspace(0, 0.5, 10)[:, None] + np.array([0, 0.1, 0.2, 0.3])
    tp = np.tile([0.1, 0.2, 0.3, 0.4, 0.5], (10, 1))
    tp[NAMES.index("traffic_cone"), 2:] = np.nan
    precision = np.clip(np.linspace(1.2, 0, 101) * aps[..., None] * 2, 0, 1)
    columns = {
        "class_names": NAMES, "label_aps": aps, "label_tp": tp, "precision": precision,
        "truths": np.arange(1000, 1010), "detections": np.arange(10), "attributes": True,
    }  # fmt: skip
    return DetectionResult(**{**columns, **changes})


def test_a_row_for_each_class_and_one_for_all():
    rows = table(result())
    assert [row[0] for row in rows] == [*NAMES, "all"] and {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[0][1:] == [
        "15.00", "0.00", "10.00", "20.00", "30.00", "0.100", "0.200", "0.300", "0.400", "0.500", "1,000", "0"
    ]  # fmt: skip
    assert rows[NAMES.index("traffic_cone")][6:11] == ["0.100", "0.200", "-", "-", "-"]
    assert rows[-1][1] == "40.00" and rows[-1][-2:] == ["10,045", "45"]


def test_markdown_ends_with_the_numbers_of_the_whole():
    text = markdown(result(), "detector on street", LATENCY_MS)
    lines = text.splitlines()
    assert lines[0] == "# detector on street" and all(line.count("|") == len(COLUMNS) + 1 for line in lines[2:15])
    nds = 100 * (5 * 0.4 + 0.9 + 0.8 + 0.7 + 0.6 + 0.5) / 10
    assert f"mAP 40.00 %, NDS {nds:.2f} %, frames 21, latency p50 20.0 ms, latency p95 29.0 ms" in text


def test_notes_name_what_is_not_there():
    assert len(notes(result())) == 1
    truths = np.arange(1000, 1010)
    truths[[3, 4]] = 0
    absent, others, attributes = notes(result(truths=truths, attributes=False))[1:]
    assert "bus, trailer" in absent and "over the other 8 classes" in others and "attribute" in attributes
    aps = result().label_aps[:, 2]
    assert f"{100 * np.delete(aps, [3, 4]).mean():.2f} %" in others


@pytest.mark.parametrize("latency_ms", [LATENCY_MS, np.zeros(0)])
def test_the_page_is_whole(tmp_path, latency_ms):
    page = write_page(result(), "a < b", latency_ms, tmp_path / "new" / "detection.html").read_text()
    assert "<h1>a &lt; b</h1>" in page and len(re.findall(r'<img alt="[a-z ]+" src="data:image/png;base64,', page)) == 2
    assert page.count("<tr>") == 12 and "construction_vehicle" in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["detection.html"]


def test_a_report_of_nothing_and_of_one_class(tmp_path):
    empty = DetectionMetric(("car",)).result()
    assert "Without a true box" in notes(empty)[1] and "nan" not in " ".join(notes(empty))
    assert write_page(empty, "nothing", np.zeros(0), tmp_path / "page.html").is_file()

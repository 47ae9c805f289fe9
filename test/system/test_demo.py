"""The demo end to end: separate processes over real DDS, real keyframes, and a ledger that has to add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="pip install '.[ros]'")

from lima_ros.demo import DemoError, check, summarize

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "lima_ros.demo", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_sweep_of_the_street_is_published(tmp_path: Path) -> None:
    done = demo("--frames", "4", "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["frames_sent"] == summary["frames_published"] == summary["frames_compared"] == 4
    assert summary["dropped"] == {}
    assert summary["miou"] > 0.3  # the shipped network on a street it was not trained on; chance is below 0.03
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p95"]
    assert all(camera["overlay.drawn"] == 4 for camera in summary["cameras"].values()) and len(summary["cameras"]) == 6
    assert {p.name for p in (tmp_path / "demo").glob("*.png")} >= {"bev_0.png", "overlays_0.png", "latency.png"}
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.mark.slow
def test_the_real_keyframe_runs_through(shared: Path, tmp_path: Path) -> None:
    done = demo("--source", str(shared / "data" / "nus_tiny"), "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["frames_sent"] == summary["frames_published"] == 1
    assert all(camera == {"matched": 1, "overlay.drawn": 1} for camera in summary["cameras"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "neither street:<seed> nor a folder"),
        (["--checkpoint", "none.safetensors"], "none.safetensors does not exist"),
    ],
)
def test_a_demo_that_cannot_work_says_why(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = demo(*arguments, "--frames" if "--checkpoint" in arguments else "--rate", "1", "--out", str(tmp_path / "d"))
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def parts(**ledger: object) -> tuple[dict, dict, dict]:
    account = {"received": 5, "published": 4, "dropped": {"superseded": 1}, "open": 0, "latency_ms": {}}
    evaluation = {"miou": None, "iou": {}, "frames_compared": 0, "received_monotonic_ns": {"7": 3_000_000}}
    player = {"frames_sent": 6, "sent_monotonic_ns": {"7": 1_000_000, "8": 0}}
    return account | {"device": "cpu", "cameras": {}} | ledger, evaluation, player


def test_a_sweep_that_never_arrived_is_a_drop_of_its_own() -> None:
    ledger, evaluation, player = parts()
    summary = summarize("s", ledger, evaluation, player)
    assert summary["dropped"] == {"superseded": 1, "lost_in_transport": 1}
    assert summary["end_to_end_ms"] == {"p50": 2.0, "p95": 2.0}
    check(summary, ledger)


@pytest.mark.parametrize("wrong", [{"published": 3}, {"open": 1}, {"published": 0, "dropped": {"failed": 5}}])
def test_a_ledger_that_does_not_add_up_fails_the_demo(wrong: dict) -> None:
    ledger, evaluation, player = parts(**wrong)
    with pytest.raises(DemoError):
        check(summarize("s", ledger, evaluation, player), ledger)

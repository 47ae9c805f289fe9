"""The demo: a street (or a data set) driven through the whole graph over real DDS, and a report of what happened.

    python -m lima_ros.demo --out runs/demo                      the simulated street
    python -m lima_ros.demo --source DATA --out runs/demo        a nuScenes folder or a rosbag2

Player, perception node and evaluator run as separate processes in a ROS domain of their own. Writes report.html,
PNGs and summary.json; exit status 0 only if every sweep that was sent was published or dropped with a reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import FrameSource
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.paths import config_dir
from lima_core.runtime.health import statistics
from lima_core.viz.bev import to_base
from lima_core.viz.report import Run, Shot, write_report
from lima_ros import bringup
from lima_ros.evaluation import end_to_end_ms
from lima_ros.processes import Process, running

STREET, STREET_FRAMES, RATE = "street:200000", 20, 0.2
SHOTS = 3
NODE_TIMEOUT_S = 600.0
VERSIONS = ("lima_ros", "torch", "numpy", "ros-rclpy", "ros-fastdds", "opencv-python-headless")
PRODUCTS = ("frames", "overlays", "log")


class DemoError(RuntimeError):
    """The graph did not do its work; the message names the node and shows the end of its log."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; 0 on success, 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m lima_ros.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--source", default=STREET, help=f"street:<seed> or a folder (default {STREET})")
    parser.add_argument("--frames", type=int, help=f"length of a simulated street (default {STREET_FRAMES})")
    parser.add_argument("--rate", type=float, default=RATE, help=f"times real time (default {RATE})")
    parser.add_argument("--checkpoint", default="", help="network file (default: the shipped one)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args(argv)
    try:
        summary = run(args.source, args.frames, args.rate, args.checkpoint, args.device, args.out.resolve())
    except (ValueError, OSError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps({k: v for k, v in summary.items() if k != "iou"}, indent=2))
    print(f"report: {args.out / 'report.html'}")
    return 0


def run(source: str, frames: int | None, rate: float, checkpoint: str, device: str, out: Path) -> dict[str, Any]:
    """Plays the source through the graph and returns summary.json's content. Raises DemoError."""
    simulated = source.startswith("street:")
    frames = (frames or STREET_FRAMES) if simulated else frames
    data = open_source(source, frames)
    _clear(out)
    data.rig.save(out / "rig.yaml")
    os.environ.update(bringup.isolated_environment(out / "log"))
    specs = bringup.demo_graph(
        source,
        str(out / "rig.yaml"),
        out,
        frames=len(data),
        frames_made=frames or 0,
        checkpoint=checkpoint,
        device=device,
        rate=rate,
        fastdds_profile=str(config_dir() / "fastdds_localhost.xml"),
    )
    with running(specs, out / "log") as (perception, evaluator, player):
        for process in (player, evaluator):
            _follow(process, perception)
        if perception.stop() != 0:
            raise DemoError(_failure(perception))
    return _report(source, data, out)


def _clear(out: Path) -> None:
    """Removes what an earlier demo left in `out`, and nothing else."""
    for name in PRODUCTS:
        shutil.rmtree(out / name, ignore_errors=True)
    for pattern in ("*.png", "*.json", "report.html"):
        for path in out.glob(pattern):
            path.unlink()
    (out / "log").mkdir(parents=True, exist_ok=True)


def _follow(process: Process, perception: Process) -> None:
    """Waits for a node to finish, showing the last line it printed. Raises DemoError when it or perception fails."""
    deadline = time.monotonic() + NODE_TIMEOUT_S
    shown = ""
    while process.returncode is None:
        if perception.returncode is not None:
            raise DemoError(_failure(perception))
        if time.monotonic() > deadline:
            raise DemoError(f"{process.spec.name} did not finish within {NODE_TIMEOUT_S:.0f} s\n{_failure(process)}")
        line = process.output().replace("\r", "\n").strip().rpartition("\n")[2][:150]
        if line != shown:
            print(f"{process.spec.name}: {line}", file=sys.stderr, flush=True)
            shown = line
        time.sleep(1.0)
    if process.returncode != 0:
        raise DemoError(_failure(process))


def _failure(process: Process) -> str:
    tail = process.output()[-2000:]
    return f"{process.spec.name} ended with status {process.returncode}; the end of {process.log}:\n{tail}"


def _report(source: str, data: FrameSource, out: Path) -> dict[str, Any]:
    """Joins what the three nodes wrote, checks that every sweep is accounted for, and draws the report."""
    ledger, evaluation, player = (
        json.loads((out / name).read_text()) for name in ("ledger.json", "evaluation.json", "player.json")
    )
    summary = summarize(source, ledger, evaluation, player)
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    taxonomy = load_taxonomy("nuscenes")
    labelled = summary["miou"] is not None
    iou = np.array([np.nan if v is None else v for v in evaluation["iou"].values()]) if labelled else None
    page = Run(
        title=f"lima on {source}",
        summary=summary,
        class_names=taxonomy.names,
        colors=taxonomy.colors,
        latency_ms=np.array(evaluation["latency_ms"].get("total", {}).get("series", [])),
        iou=iou,
        shots=tuple(_shot(out, stamp, data) for stamp in _spread(evaluation["frames_kept"])),
    )
    write_report(page, out)
    check(summary, ledger)
    return summary


def summarize(source: str, ledger: dict, evaluation: dict, player: dict) -> dict[str, Any]:
    """summary.json of what the three nodes wrote; sweeps that never arrived count as `lost_in_transport`."""
    dropped = dict(ledger["dropped"])
    lost = player["frames_sent"] - ledger["received"]
    if lost > 0:
        dropped["lost_in_transport"] = lost
    sent_to_seen = end_to_end_ms(player["sent_monotonic_ns"], evaluation["received_monotonic_ns"])
    return {
        "source": source,
        "frames_sent": player["frames_sent"],
        "frames_published": ledger["published"],
        "dropped": dropped,
        "frames_compared": evaluation["frames_compared"],
        "miou": evaluation["miou"],
        "iou": evaluation["iou"],
        "latency_ms": {name: ledger["latency_ms"].get(name) for name in ("p50", "p95")},
        "end_to_end_ms": {name: statistics(sent_to_seen).get(name) for name in ("p50", "p95")},
        "cameras": ledger["cameras"],
        "device": ledger["device"],
        "versions": _versions(),
    }


def check(summary: dict[str, Any], ledger: dict) -> None:
    """Raises DemoError unless every sent sweep was published or dropped, and at least one was published."""
    if summary["frames_sent"] != summary["frames_published"] + sum(summary["dropped"].values()) or ledger["open"]:
        raise DemoError(f"sweeps are unaccounted for: {summary} {ledger}")
    if summary["frames_published"] == 0:
        raise DemoError(f"no sweep was published; dropped: {summary['dropped']}")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a distribution's rclpy is no pip package
            found[name] = "not installed by pip"
    return found


def _spread(stamps: list[int]) -> list[int]:
    """First, middle and last of the kept sweeps."""
    return [stamps[i] for i in sorted({round(x) for x in np.linspace(0, len(stamps) - 1, SHOTS)})] if stamps else []


def _shot(out: Path, stamp_ns: int, data: FrameSource) -> Shot:
    with np.load(out / "frames" / f"{stamp_ns}.npz", allow_pickle=False) as columns:
        return Shot(
            title=f"Sweep at {stamp_ns / 1e9:.2f} s",
            points_base=to_base(columns["points"], data.rig.base_from_lidar),
            prediction=columns["label"],
            truth=columns.get("truth"),
            overlays=_overlays(out / "overlays", stamp_ns, data),
        )


def _overlays(folder: Path, stamp_ns: int, data: FrameSource) -> dict[str, np.ndarray]:
    """The overlays that belong to a sweep: those nearest to where each camera's offset puts its picture."""
    found = {}
    for mount in data.rig.cameras:
        due_ns = stamp_ns + round(mount.offset_ms * 1e6)
        paths = sorted((folder / mount.name).glob("*.jpg"), key=lambda p: abs(int(p.stem) - due_ns))
        if paths and abs(int(paths[0].stem) - due_ns) < 50e6:
            found[mount.name] = cv2.cvtColor(cv2.imread(str(paths[0])), cv2.COLOR_BGR2RGB)
    return found


if __name__ == "__main__":
    sys.exit(main())

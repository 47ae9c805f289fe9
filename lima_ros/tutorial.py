"""From a robot's drive to a network that perceives on it, every step a command of lima: `make tutorial`.

    python -m lima_ros.tutorial [--out runs/tutorial] [--teacher FILE]

A simulated robot drives along streets and records bags; recordings are made of them; LiMA pretrains on those without a
label; 1 % of the labels finetunes it, and random weights for comparison; the perception node then runs on a drive that
none of it has seen. Prints and writes the table, page and pictures. Interrupted, it goes on at the step it was at.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lima_core.checkpoint import load_checkpoint
from lima_core.data.recordings import MANIFEST
from lima_core.files import write_whole
from lima_core.paths import config_dir
from lima_core.training.loop import STATE
from lima_core.viz.report import PAGE

STREETS, FRAMES, STRIDE, SIZE = 16, 10, 5, (448, 224)
UNSEEN, UNSEEN_FRAMES = 200_000, 20  # seed and sweeps, at 10 Hz
HUB = "hub"
COLUMNS = ("mIoU, %", "linear probe, held-out drives", "all weights, held-out drives", "the node, an unseen drive")
NETWORKS = {"random": "1 % of the labels alone", "lima": "LiMA, then 1 % of the labels"}
# the last layer alone: what the features are worth as they are
PROBE = ("--linear_probe=true", "--optim.peak_lr=1e-2", "--epochs=150", "--validate_every=150")
SHOWN = 5  # index of the sweep in the figure


@dataclass(frozen=True)
class Step:
    """One command, what it is for, and the file that it leaves once it is done."""

    title: str
    module: str
    arguments: tuple[str, ...]
    result: Path

    @property
    def line(self) -> str:
        """As one would type it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


@dataclass(frozen=True)
class Row:
    """mIoU of one network, percent: linear probe and all weights on held-out drives, and of the live node."""

    network: str
    probe: float
    finetuned: float
    live: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As text."""
        return self.network, *(f"{value:.1f}" for value in (self.probe, self.finetuned, self.live))


def steps(out: Path, teacher: str) -> list[Step]:
    """The tutorial. `teacher`: a file with DINOv2's weights, hub = download them, random = untrained."""
    bags, recordings, lima = out / "bags", out / "recordings", out / "lima"
    weights = "null" if teacher == HUB else teacher
    root = f"--data.root={recordings}"
    pretrain, finetune = (config_dir() / kind / "tutorial.yaml" for kind in ("pretrain", "finetune"))
    width, height = map(str, SIZE)
    drive = ("--frames", str(FRAMES), "--stride", str(STRIDE), "--image-size", width, height)
    learned = f"--init={lima / 'checkpoint.safetensors'}"
    found = [
        Step(
            "A robot drives along streets and records bags",
            "lima_core.tools.street_to_bag",
            (str(bags), "--seeds", "0", str(STREETS), *drive),
            bags / f"street-{STREETS - 1}" / "metadata.yaml",
        ),
        Step(
            "The bags become recordings",
            "lima_core.tools.record",
            (str(bags), "--out", str(recordings), "--set", "triggers=all"),
            recordings / MANIFEST,
        ),
        Step(
            "LiMA pretrains on the recordings, without a label",
            "lima_core.pretrain",
            (
                f"--config={pretrain}",
                root,
                f"--teacher.weights={weights}",
                f"--teacher.cache={out / 'features'}",
                f"--out={lima}",
            ),
            lima / "checkpoint.safetensors",
        ),
    ]
    for kind, title, more in (("probe", "a linear probe", PROBE), ("labels", "all weights", ())):
        for name, start in (("random", ()), ("lima", (learned,))):
            folder = out / f"{kind}_{name}"
            arguments = (f"--config={finetune}", root, *start, *more, f"--out={folder}")
            result = folder / "checkpoint.safetensors"
            found.append(Step(f"Finetuning {title}: {NETWORKS[name]}", "lima_core.finetune", arguments, result))
    found.append(_figure(out))
    unseen = out / "unseen" / f"street-{UNSEEN}"
    seeds = ("--seeds", str(UNSEEN), str(UNSEEN + 1), "--frames", str(UNSEEN_FRAMES), "--image-size", width, height)
    found.append(
        Step(
            "The robot drives where it has never been",
            "lima_core.tools.street_to_bag",
            (str(unseen.parent), *seeds),
            unseen / "metadata.yaml",
        )
    )
    for name in NETWORKS:
        checkpoint, live = out / f"labels_{name}" / "checkpoint.safetensors", out / f"live_{name}"
        arguments = ("--source", str(unseen), "--checkpoint", str(checkpoint), "--out", str(live))
        title = f"The perception node on that drive, over DDS: {NETWORKS[name]}"
        found.append(Step(title, "lima_ros.demo", arguments, live / "summary.json"))
    return found


def _figure(out: Path) -> Step:
    checkpoints = [str(out / f"labels_{name}" / "checkpoint.safetensors") for name in NETWORKS]
    data = ("--data.name=recording", f"--data.root={out / 'recordings'}", f"--index={SHOWN}")
    picture = out / "errors.png"
    arguments = ("errors", "--checkpoints", *checkpoints, *data, f"--out={picture}")
    return Step("Where the two networks err", "lima_core.viz", arguments, picture)


def run(step: Step, log: Path) -> float:
    """Runs a step unless its result is there; returns its seconds, those of the run that made it."""
    took = log / f"{step.result.parent.name}_{step.result.name}.json"
    print(f"\n== {step.title}\n$ {step.line}", flush=True)
    if took.is_file() and step.result.exists():
        print("done before")
        return float(json.loads(took.read_text())["seconds"])
    started_s = time.monotonic()
    subprocess.run([sys.executable, "-m", step.module, *step.arguments, *_resumed(step)], check=True)
    seconds = time.monotonic() - started_s
    write_whole(took, json.dumps({"command": step.line, "seconds": round(seconds, 1)}))
    return seconds


def _resumed(step: Step) -> tuple[str, ...]:
    """Training goes on where it was stopped."""
    trained = step.module in ("lima_core.pretrain", "lima_core.finetune")
    return ("--resume",) if trained and (step.result.parent / STATE).is_file() else ()


def measured(out: Path) -> list[Row]:
    """Both networks, in percent."""
    return [
        Row(
            title,
            *(100 * _validated(out / f"{kind}_{name}") for kind in ("probe", "labels")),
            100 * json.loads((out / f"live_{name}" / "summary.json").read_text())["miou"],
        )
        for name, title in NETWORKS.items()
    ]


def _validated(folder: Path) -> float:
    return load_checkpoint(folder / "checkpoint.safetensors")[1]["metrics"]["val_miou"]


def table(rows: Sequence[Row]) -> str:
    """As in README.md."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.cells)} |" for row in rows)])


def write_page(out: Path, done: Sequence[tuple[Step, float]], rows: Sequence[Row]) -> Path:
    """<out>/tutorial.html: what was measured, the pictures, and every command with its time."""
    cells = ["".join(f"<td>{escape(text)}</td>" for text in texts) for texts in (COLUMNS, *(row.cells for row in rows))]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    parts = [f"<table>{body}</table>", _picture("errors.png", "A held-out sweep: truth, and the errors of both")]
    for name, title in NETWORKS.items():
        parts.append(_picture(f"live_{name}/bev_0.png", f"The node on the unseen drive: {title}"))
    parts.append(_picture("live_lima/overlays_0.png", "What it says, in the cameras"))
    for step, seconds in done:
        parts.append(f"<h3>{escape(step.title)} ({seconds:.0f} s)</h3>")
        parts.append(f'<pre style="white-space: pre-wrap">{escape(step.line)}</pre>')
    title = "From a drive to a network that perceives"
    return write_whole(out / "tutorial.html", PAGE.format(title=title, body="\n".join(parts)))


def _picture(name: str, title: str) -> str:
    return f'<h2>{escape(title)}</h2><img src="{name}" alt="{escape(title)}">'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tutorial; 0, or the exit status of the step that failed."""
    parser = argparse.ArgumentParser(prog="python -m lima_ros.tutorial", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial"))
    parser.add_argument("--teacher", default=HUB, help="weights of DINOv2 ViT-S: a file, hub (download), or random")
    options = parser.parse_args(argv)
    log = options.out / "log"
    log.mkdir(parents=True, exist_ok=True)
    done: list[tuple[Step, float]] = []
    try:
        for step in steps(options.out, options.teacher):
            done.append((step, run(step, log)))
    except subprocess.CalledProcessError as error:
        print(f"tutorial: a step ended with status {error.returncode}; its reason is above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    rows = measured(options.out)
    write_whole(options.out / "table.md", table(rows) + "\n")
    print(f"\n{table(rows)}\n{sum(seconds for _, seconds in done) / 60:.1f} minutes")
    write_page(options.out, done, rows)
    print(f"page: {options.out / 'tutorial.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

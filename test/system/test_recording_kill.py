"""kill -9 at fifty moments of a recording: what was committed is whole, and in the end nothing of it can be seen."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lima_core.data.recording import Recording
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder_parameters import RECORDING
from robots import OPEN, RIG, drive, files, write_bag

KILLS = 50
SWEEPS = 250
SETTINGS = {"triggers": "all", **OPEN}
# each write in two halves with a pause between them, so that many kills land inside of a file or a line
RECORD = """
import json, os, sys, time
from lima_core.data.rig import Rig
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder_parameters import RECORDING
assert "torch" not in sys.modules
real = os.write

def slow(descriptor, content):
    half = len(content) // 2
    real(descriptor, content[:half])
    time.sleep(0.004)
    real(descriptor, content[half:])
    return len(content)

os.write = slow
bag, folder, rig, settings = sys.argv[1:]
print("go", flush=True)
record_bag(bag, folder, resolve(json.loads(settings), RECORDING), Rig.load(rig))
"""


def start(*words: str) -> subprocess.Popen:
    """A recording in a process of its own, which has just begun."""
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen([sys.executable, "-c", RECORD, *words], stdout=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"go\n"
    return process


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    RIG.save(tmp_path / "rig.yaml")
    rig = RIG.load(tmp_path / "rig.yaml")
    bag = write_bag(tmp_path / "bag", drive(range(SWEEPS), labelled=True))
    record_bag(bag, tmp_path / "whole", resolve(SETTINGS, RECORDING), rig)
    whole = (tmp_path / "whole" / "frames.jsonl").read_bytes()
    folder, rng = tmp_path / "drive", random.Random(0)
    frames, torn_lines, stray_files = 0, 0, 0

    for kill in range(KILLS):
        before = size(folder / "frames.jsonl")
        process = start(str(bag), str(folder), str(tmp_path / "rig.yaml"), json.dumps(SETTINGS))
        deadline = time.monotonic() + 20
        while kill % 5 and size(folder / "frames.jsonl") <= before and time.monotonic() < deadline:
            time.sleep(0.001)  # every fifth is killed while it starts
        time.sleep(rng.uniform(0, 0.06))
        assert process.poll() is None, "it was done, or ended by itself, before it was killed"
        process.kill()
        process.wait()
        process.stdout.close()
        if not (folder / "recording.json").is_file():
            continue
        recording = Recording(folder)
        assert list(recording.problems()) == [] and frames <= len(recording) < SWEEPS
        frames = len(recording)
        lines = (folder / "frames.jsonl").read_bytes() if frames else b""
        committed = b"".join(lines.splitlines(True)[:frames])
        assert whole.startswith(committed)
        torn_lines += lines != committed
        stray_files += len(list(folder.rglob("*.bin"))) > 2 * frames

    assert frames > KILLS // 2 and torn_lines and stray_files > 5, (frames, torn_lines, stray_files)
    record_bag(bag, folder, resolve(SETTINGS, RECORDING), rig)
    assert files(folder) == files(tmp_path / "whole")

"""One perception node outlives loops, a seek, a pause and another rate: equal counts, no restart."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: source its setup file, or install lima's extra `ros`")

from bags import BagWriter
from lima_core.data.frame import Image
from lima_core.data.rig import Rig
from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_ros import bringup
from lima_ros.processes import Process, running
from live import BEGIN_NS, MS, PERIOD_NS, SIZE, K, Sensors, isolated, ledger, node
from networks import save_random

SWEEPS = 12
MIDDLE = 5
PAUSE_S = 2.0
CAMERAS = ("CAM_FRONT", "CAM_BACK")
JUMPS = 4  # backward: between three loops, the seek, and to the begin after it


@pytest.fixture
def rig() -> Rig:
    """The simulated vehicle with two of its cameras."""
    full = street_rig()
    return replace(full, cameras=tuple(full.camera(name) for name in CAMERAS))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """What it says is nonsense; whether is not."""
    return str(save_random(tmp_path / "random.safetensors"))


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A domain of this test's own."""
    return isolated(monkeypatch, tmp_path)


def play(sensors: Sensors, sweeps: Sequence[int], rate: float = 1.0) -> tuple[int, ...]:
    """Sends sweeps at most at `rate`; how many clouds were published and, by camera, images matched until now."""
    due_s = time.monotonic()
    for index in sweeps:
        sensors.spin_for(due_s - time.monotonic())
        sensors.drive(index)
        due_s += PERIOD_NS / 1e9 / rate
    told = sensors.diagnosed()
    matched = [told[f"camera.{name}"] for name in CAMERAS]
    assert all(events.startswith("matched ") and "," not in events for events in matched), told
    return int(told["published"]), *(int(events.removeprefix("matched ")) for events in matched)


@pytest.mark.slow
def test_each_part_gives_as_many_clouds_and_images(
    rig: Rig, checkpoint: str, env: dict[str, str], tmp_path: Path
) -> None:
    process = node(rig, checkpoint, env, tmp_path)
    sensors = Sensors(rig)
    try:
        sensors.wait_for(process)
        counts = [play(sensors, range(SWEEPS)) for _ in range(3)]  # three loops
        counts.append(play(sensors, range(MIDDLE, SWEEPS)))  # a seek back
        counts.append(play(sensors, range(MIDDLE)))
        sensors.spin_for(PAUSE_S)
        counts.append(play(sensors, range(MIDDLE, SWEEPS)))  # on after a pause
        counts.append(play(sensors, range(SWEEPS), rate=2.0))
        account = ledger(process, tmp_path)
    finally:
        sensors.close()
        process.stop()

    parts = np.diff(counts, axis=0, prepend=0)
    rest = SWEEPS - MIDDLE
    assert parts.tolist() == [[n] * 3 for n in (SWEEPS, SWEEPS, SWEEPS, rest, MIDDLE, rest, SWEEPS)]
    assert sensors.stamps() == sensors.sent
    assert (account["received"], account["published"]) == (len(sensors.sent),) * 2
    assert account["time_jumps"] == JUMPS + 1  # and to the begin at twice the rate
    assert process.output().count("listening to") == 1


@pytest.fixture
def bag(rig: Rig, tmp_path: Path) -> Path:
    """The same drive, recorded."""
    path, random = tmp_path / "bag", np.random.default_rng(0)
    jpeg = Image(pixels=np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)).jpeg()
    columns = dict(zip("xyz", random.uniform(-30, 30, (3, 600)).astype(np.float32), strict=True))
    with BagWriter(path) as writer:
        for stamp_ns in range(BEGIN_NS, BEGIN_NS + SWEEPS * PERIOD_NS, PERIOD_NS):
            for mount in rig.cameras:
                image_ns = stamp_ns + round(mount.offset_ms * MS)
                writer.info(mount.info_topic, image_ns, mount.frame_id, K, SIZE)
                writer.jpeg(mount.image_topic, image_ns, mount.frame_id, jpeg)
            writer.odometry(rig.odometry_topic, stamp_ns, np.eye(4))
            writer.cloud(rig.lidar_topic, stamp_ns, rig.lidar_frame, **columns, intensity=columns["x"])
    return path


def play_bag(bag: Path, rig: Rig, env: dict[str, str], out: Path, **parameters: float) -> int:
    """Runs the player to its end; how many frames it sent."""
    topics = ",".join(topic for _, topic in bringup.perception_remappings(rig))
    summary = out / "player.json"
    spec = bringup.player(
        str(bag), messages=True, wait_for=topics, wait_timeout_s=120.0, summary_file=str(summary), linger_s=3.0,
        **parameters,
    )  # fmt: skip
    with running([replace(spec, env=env)], out) as (player,):
        assert player.wait(300) == 0, player.output()
    return json.loads(summary.read_text())["frames_sent"]


@pytest.mark.slow
def test_a_played_bag_gives_every_cloud_its_images(
    rig: Rig, checkpoint: str, env: dict[str, str], bag: Path, tmp_path: Path
) -> None:
    """In real time: what a busy machine cannot work on in time is superseded, and counted; images are not lost."""
    process: Process = node(rig, checkpoint, env, tmp_path)
    try:
        sent = [
            play_bag(bag, rig, env, tmp_path, loops=3),
            play_bag(bag, rig, env, tmp_path, start_offset_s=MIDDLE * PERIOD_NS / 1e9),
            play_bag(bag, rig, env, tmp_path, rate=2.0),
        ]
        account = ledger(process, tmp_path)
    finally:
        process.stop()

    assert sent == [3 * SWEEPS, SWEEPS - MIDDLE, SWEEPS]
    assert account["received"] == sum(sent) and account["published"] > 0
    assert set(account["dropped"]) <= {"superseded"}
    assert account["cameras"] == {name: {"matched": sum(sent)} for name in CAMERAS}
    assert account["time_jumps"] == JUMPS
    assert process.output().count("listening to") == 1

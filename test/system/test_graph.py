"""The whole graph as separate processes over real Fast DDS: player, perception node, evaluator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bags import BagWriter
from lima_core.data.rig import Rig
from lima_core.data.sources import open_source
from lima_core.paths import config_dir
from lima_ros import bringup
from lima_ros.evaluation import end_to_end_ms
from lima_ros.processes import Process, running
from networks import save_random

pytest.importorskip("rclpy", reason="needs ROS 2: source its setup file, or install lima's extra `ros`")

FRAMES = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it says is nonsense; whether and when is not."""
    return str(save_random(tmp_path_factory.mktemp("checkpoint") / "random.safetensors"))


def play(specs: list[bringup.NodeSpec], out: Path) -> list[Process]:
    """Runs perception, evaluator and player in a domain of their own until evaluator and player have ended."""
    env = bringup.isolated_environment(out / "ros_log")
    with running([replace(spec, env={**env, "OMP_NUM_THREADS": "1"}) for spec in specs], out) as processes:
        perception, evaluator, player = processes
        assert player.wait(120) == 0, player.output()
        assert evaluator.wait(60) == 0, evaluator.output()
        assert perception.returncode is None, perception.output()
    assert perception.returncode == 0, perception.output()
    return processes


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_sweep_is_published_or_dropped_with_a_reason(checkpoint: str, tmp_path: Path) -> None:
    source = f"street:{FRAMES}"
    rig = tmp_path / "rig.yaml"
    open_source(source, FRAMES).rig.save(rig)
    specs = bringup.demo_graph(source, str(rig), tmp_path, FRAMES, checkpoint, "cpu", 0.2, frames_made=FRAMES)

    play(specs, tmp_path)

    sent, ledger, evaluation = (read(tmp_path / f"{name}.json") for name in ("player", "ledger", "evaluation"))
    assert sent["frames_sent"] == FRAMES
    assert sent["messages_sent"]["/CAM_FRONT/image_rect_compressed"] == FRAMES
    assert sent["frames_sent"] == ledger["published"] + sum(ledger["dropped"].values())
    assert ledger["published"] == FRAMES, ledger
    assert evaluation["frames_received"] == evaluation["frames_compared"] == FRAMES
    assert 0 <= evaluation["miou"] <= 1
    assert evaluation["ledger"]["published"] == FRAMES
    assert len(evaluation["latency_ms"]["total"]["series"]) == FRAMES
    assert len(end_to_end_ms(sent["sent_monotonic_ns"], evaluation["received_monotonic_ns"])) == FRAMES
    for stamp in evaluation["frames_kept"]:
        frame = np.load(tmp_path / "frames" / f"{stamp}.npz")
        assert len(frame["points"]) == len(frame["label"]) == len(frame["truth"]) > 1000
    overlays = {p.name: len(list(p.iterdir())) for p in (tmp_path / "overlays").iterdir()}
    assert overlays == {mount.name: FRAMES for mount in open_source(source, FRAMES).rig.cameras}


SIZE = (1600, 900)
RAW_SWEEPS = 6
BEGIN_NS = 1_000_000_000


@pytest.fixture
def raw_bag(tmp_path: Path) -> Path:
    """Six cameras of 1600x900 pixels, as raw images, and 35,000 points, at 10 Hz: 26 MB a sweep."""
    path, random = tmp_path / "bag", np.random.default_rng(0)
    rgb = random.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    few = random.uniform(-30, 30, (3, 500)).astype(np.float32)  # as many bytes, but little work for the network
    points = dict(zip("xyz", np.tile(few, 70), strict=True))
    K = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])
    with BagWriter(path) as bag:
        for index in range(RAW_SWEEPS):
            stamp_ns = BEGIN_NS + index * 100_000_000
            bag.odometry("/odom", stamp_ns, np.eye(4))
            for mount in raw_rig().cameras:
                bag.info(mount.info_topic, stamp_ns, mount.frame_id, K, SIZE)
                bag.image(mount.image_topic, stamp_ns, mount.frame_id, rgb)
            bag.cloud("/LIDAR_TOP", stamp_ns, "LIDAR_TOP", **points, intensity=points["x"])
    return path


def raw_rig() -> Rig:
    """The nuScenes vehicle with raw pictures that fire with the LiDAR."""
    rig = Rig.load(config_dir() / "rigs" / "nuscenes.yaml")
    mounts = [replace(m, transport="raw", offset_ms=0.0, image_topic=f"/{m.name}/image_rect") for m in rig.cameras]
    return replace(rig, cameras=tuple(mounts))


@pytest.mark.slow
def test_raw_images_of_six_cameras_arrive_complete(checkpoint: str, raw_bag: Path, tmp_path: Path) -> None:
    """At half speed, 130 MB/s; sweeps wait long for their images, so that only the transport can lose them."""
    rig = tmp_path / "rig.yaml"
    raw_rig().save(rig)
    topics = [topic for _, topic in bringup.perception_remappings(raw_rig())]
    outputs = {"ledger_file": str(tmp_path / "ledger.json"), "sync.timeout_ms": 2000.0}
    specs = [
        *bringup.perception_graph(str(rig), checkpoint, "cpu", **outputs),
        bringup.evaluator(str(tmp_path), frames=RAW_SWEEPS),
        bringup.player(
            str(raw_bag),
            messages=True,
            rate=0.5,
            wait_for=",".join(topics),
            summary_file=str(tmp_path / "player.json"),
        ),
    ]

    play(specs, tmp_path)

    sent, ledger = read(tmp_path / "player.json"), read(tmp_path / "ledger.json")
    assert sent["frames_sent"] == RAW_SWEEPS == ledger["published"] + sum(ledger["dropped"].values())
    for mount in raw_rig().cameras:
        assert sent["messages_sent"][mount.image_topic] == RAW_SWEEPS
        assert ledger["cameras"][mount.name] == {"matched": RAW_SWEEPS}

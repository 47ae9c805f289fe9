"""One of six cameras is silent: every sweep is published, its reason is counted, and nobody waits for it for long."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: source its setup file, or install lima's extra `ros`")

from std_msgs.msg import Float64

from lima_core.data.synthetic.vehicle_rig import street_rig
from lima_core.runtime.synchronizer import LATE, NEVER, SILENT_AFTER
from live import Sensors, isolated, ledger, node
from networks import save_random

SWEEPS = 30
SILENT = "CAM_BACK"
TIMEOUT_MS = 1000.0


@pytest.mark.slow
@pytest.mark.parametrize(("spoke", "reason"), [(0, NEVER), (8, LATE)], ids=["never spoke", "fell silent"])
def test_every_sweep_is_published(spoke: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = str(save_random(tmp_path / "random.safetensors"))
    env = isolated(monkeypatch, tmp_path)
    rig = street_rig()
    process = node(rig, checkpoint, env, tmp_path, **{"sync.timeout_ms": TIMEOUT_MS, "watch.silent_after_s": 1.0})
    sensors = Sensors(rig)
    try:
        total_ms = sensors.collect(Float64, "/perception/debug/total_ms")
        sensors.wait_for(process)
        for index in range(SWEEPS):
            sensors.drive(index, silent=() if index < spoke else (SILENT,))
        sensors.spin_until(lambda: len(total_ms) == SWEEPS, 60, "all durations")
        topic = rig.camera(SILENT).image_topic
        told = f"no message on {topic}" if reason == NEVER else f"{topic} has fallen silent"
        sensors.spin_until(lambda: told in process.output(), 60, f"the word: {told}")
        account = ledger(process, tmp_path)
    finally:
        sensors.close()
        process.stop()

    assert sensors.stamps() == sensors.sent
    assert (account["received"], account["published"]) == (SWEEPS, SWEEPS)
    events = account["cameras"]
    assert events.pop(SILENT) == {"matched": spoke, f"missed.{reason}": SWEEPS - spoke}
    assert events == {mount.name: {"matched": SWEEPS} for mount in rig.cameras if mount.name != SILENT}
    waited, after = spoke + SILENT_AFTER, [message.data for message in total_ms]
    assert min(after[spoke:waited]) >= TIMEOUT_MS
    assert median(after[waited:]) < TIMEOUT_MS

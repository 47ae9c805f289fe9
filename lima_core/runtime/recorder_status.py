"""What the recorder node says about itself in /diagnostics, and in one line at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lima_core.runtime import recorder
from lima_core.runtime.health import ERROR, OK, WARN, Status

FAILURES = (recorder.NO_POSE, recorder.BAD_CLOUD, recorder.LATE, recorder.FULL)


@dataclass(frozen=True)
class Progress:
    """State of a recording: `counts` of Recorder, messages `lost` by topic, `full` and `broken` in words or ""."""

    frames: int
    sequences: int
    bytes: int
    free_bytes: int
    counts: Mapping[str, int]
    lost: Mapping[str, int]
    full: str = ""
    broken: str = ""
    paused: bool = False


def recorder_status(now: Progress, then: Progress, period_s: float, silent: Sequence[str], **more: object) -> Status:
    """The level is that of what has happened since `then`, `period_s` ago; `silent` = lines of TopicWatch.report."""
    counts = sorted(now.counts.items())
    values = {
        "frames": now.frames,
        "sequences": now.sequences,
        "bytes": now.bytes,
        "free_gb": f"{now.free_bytes / 1e9:.1f}",
        "frames_per_s": f"{(now.frames - then.frames) / period_s:.2f}",
        "mb_per_s": f"{(now.bytes - then.bytes) / 1e6 / period_s:.2f}",
        **{f"sweeps.{reason}": count for reason, count in counts if "." not in reason},
        **{f"camera.{reason}": count for reason, count in counts if "." in reason},
        **{f"lost.{topic}": count for topic, count in sorted(now.lost.items())},
        **{f"silent.{index}": line for index, line in enumerate(silent)},
        **more,
    }
    level, message = _judged(now, then, silent)
    return Status(level, message, tuple((key, str(value)) for key, value in values.items()))


def summary_line(progress: Progress, folder: str) -> str:
    """What is in the folder, what became of the sweeps, and how many messages were lost."""
    sweeps = ", ".join(f"{reason} {count}" for reason, count in sorted(progress.counts.items())) or "none"
    lost = sum(progress.lost.values())
    size = f"{progress.frames} frames of {progress.sequences} sequences, {progress.bytes / 1e6:.1f} MB"
    return f"{folder} has {size}; sweeps: {sweeps}" + (f"; {lost} messages lost" if lost else "")


def _judged(now: Progress, then: Progress, silent: Sequence[str]) -> tuple[int, str]:
    """Level and message, gravest first."""
    failed = {r: n for r in FAILURES if (n := now.counts.get(r, 0) - then.counts.get(r, 0)) > 0}
    lost = sum(now.lost.values()) - sum(then.lost.values())
    if now.full or now.broken:
        return ERROR, now.full or now.broken
    if lost:
        return WARN, f"{lost} messages lost: the disk or the processor is too slow"
    if silent:
        return WARN, f"{len(silent)} inputs are silent"
    if failed:
        return WARN, "sweeps were left out: " + ", ".join(f"{reason} {count}" for reason, count in failed.items())
    return OK, "paused" if now.paused else "recording"

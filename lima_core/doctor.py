"""What is missing, wrong or late in a recording, and the parameter that fixes it; needs no ROS.

python -m lima_core.doctor drive_07                                   # a rosbag2 or nuScenes folder, or street:7
python -m lima_core.doctor drive_07 --rig config/rigs/mine.yaml       # as the perception node would read it
python -m lima_core.doctor drive_07 --checkpoint runs/a/best.safetensors --json report.json

One line for each thing examined, worst first: `bad` keeps lima from working, `look` may. Exit code 1 where one is bad.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lima_core.data.bag import BagError
from lima_core.data.bag_check import Check, camera_checks, cameras_of, lidar_topic, stamp_checks, topic_checks
from lima_core.data.bag_log import Recording
from lima_core.data.bag_motion import motion_check, mount_checks
from lima_core.data.frame import Frame, FrameSource
from lima_core.data.rig import Rig, RigError
from lima_core.data.ros_cloud import INTENSITY_FIELDS, CloudError, CloudPoints, cloud_points
from lima_core.data.sources import open_source
from lima_core.files import write_whole
from lima_core.training.input_check import WINDOW, InputCheck
from lima_core.training.input_findings import SCALES

LEVELS = ("bad", "look", "ok")
GRAVE = ("points", "units", "axes", "intensity", "height")  # findings that blind a network; others cost accuracy
DARK = 16.0  # a scale so many times the largest value is of another unit: 8 bits against 12
NODE_SCALE = 255.0  # of the perception node without a rig
MAX_AGE_MS, OLDEST_MS = 1000.0, 8000.0  # sweeps.max_age_ms of config/perception.yaml, and the most that it takes


class Sweep(NamedTuple):
    """`points` (N, 4) float32 x, y, z m, intensity / scale; `raw` (N,) intensity as recorded; `rings` (N,) or None."""

    points: np.ndarray
    raw: np.ndarray
    rings: np.ndarray | None


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the checklist; returns 0 where nothing is bad, else 1."""
    parser = argparse.ArgumentParser(prog="python -m lima_core.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="rosbag2 or nuScenes folder, or street:<seed>")
    parser.add_argument("--rig", type=Path, help="rig file of the vehicle (bags only)")
    parser.add_argument("--checkpoint", type=Path, help="compare the points with what this network was trained on")
    parser.add_argument("--frames", type=int, default=20, help="sweeps whose points are looked at, 1 to 50")
    parser.add_argument("--json", type=Path, help="write the checklist to this file too")
    options = parser.parse_args(argv)
    try:
        checks = diagnose(options.source, options.rig, options.checkpoint, options.frames)
    except ValueError as error:
        parser.error(str(error))
    for check in checks:
        print(f"{check.level:<5}{check.what}: {check.text}" + (f"\n     -> {check.fix}" if check.fix else ""))
    if options.json:
        write_whole(options.json, json.dumps([asdict(check) for check in checks], indent=1) + "\n")
    return int(any(check.level == "bad" for check in checks))


def diagnose(
    source_spec: str, rig: str | Path | None = None, checkpoint: str | Path | None = None, frames: int = 20
) -> list[Check]:
    """The checklist of a source (see `open_source`), worst first; within a level, causes before what follows of them.

    A rig is for bags. Of the points up to `frames` (1 to 50) sweeps are read. A source, rig or checkpoint that cannot
    be opened is a bad line, no error. Raises ValueError on another number of frames.
    """
    if not 1 <= frames <= WINDOW:
        raise ValueError(f"frames is 1 to {WINDOW}, got {frames}")
    checks, vehicle, meta = [], None, None
    try:
        vehicle = Rig.load(rig) if rig else None
    except RigError as error:
        checks.append(Check("rig", "bad", str(error), "give a rig file as in config/rigs"))
    if checkpoint:
        from lima_core.checkpoint import CheckpointError, load_checkpoint  # torch takes seconds: only where asked for

        try:
            meta = load_checkpoint(checkpoint)[1]
        except CheckpointError as error:
            checks.append(Check("checkpoint", "bad", str(error), "give a .safetensors file of lima_core.finetune"))
    folder = Path(source_spec)
    is_bag = (folder / "metadata.yaml").is_file() or _storage(folder)
    checks += _bag(folder, vehicle, meta, frames) if is_bag else _source(source_spec, meta, frames)
    return sorted(checks, key=lambda check: LEVELS.index(check.level))


def _storage(path: Path) -> list[Path]:
    """The files of a rosbag2 in a folder, or the path itself where it is one."""
    return [file for file in (path, *path.glob("*")) if file.suffix in (".mcap", ".db3") and file.is_file()]


def _bag(folder: Path, rig: Rig | None, meta: dict[str, Any] | None, frames: int) -> Iterator[Check]:
    try:
        bag = Recording(folder, frames)
    except BagError as error:
        yield Check("bag", "bad", str(error), _bag_fix(folder))
        return
    lidar, found = lidar_topic(bag, rig)
    yield found
    if lidar:
        yield from _lidar(bag, rig, lidar, meta)
    yield from topic_checks(bag)


def _bag_fix(folder: Path) -> str:
    if folder.is_dir() and not (folder / "metadata.yaml").is_file():
        return f"the recording did not end in order: run `ros2 bag reindex {folder}`"
    return (
        "the file was cut off or not copied whole: copy it again, or rescue it (mcap: `mcap recover`, "
        "db3: `sqlite3 FILE .recover`), then run `ros2 bag reindex`"
    )


def _lidar(bag: Recording, rig: Rig | None, lidar: str, meta: dict[str, Any] | None) -> Iterator[Check]:
    """Points of the LiDAR, its stamps, the cameras beside it, its motion, and what the network says to that."""
    clouds, errors, scale = [], [], rig.intensity_scale if rig else NODE_SCALE
    for message in bag.logs[lidar].samples:
        try:
            clouds.append(cloud_points(message, scale))
        except CloudError as error:
            errors.append(str(error))
    if errors:
        text = f"{len(errors)} of {len(bag.logs[lidar].samples)} sweeps cannot be read: {errors[0]}"
        yield Check("points", "bad", text, "let the driver publish a PointCloud2 with x, y, z whose sizes agree")
    yield from stamp_checks(bag, lidar)
    sweeps = [Sweep(c.points, c.raw_intensity, c.extra.get("ring")) for c in clouds]
    if clouds:
        yield from _fields(clouds, bag.logs[lidar].period_ns / 1e9)
        yield from _values(sweeps, scale, meta)
    cameras = cameras_of(bag, rig)
    for camera in cameras:
        yield from camera_checks(bag, camera, lidar)
    motion = motion_check(bag, rig, lidar)
    yield from [motion] if rig else [*mount_checks(bag, cameras, lidar), motion]
    if meta:
        yield from _past(meta, bag.logs[lidar].period_ns / 1e6, motion.level == "ok")


def _fields(clouds: Sequence[CloudPoints], period_s: float) -> Iterator[Check]:
    """Fields of the first sweep, and the times of its points."""
    cloud = clouds[0]
    names = ["x", "y", "z", *([cloud.intensity_field] if cloud.intensity_field else []), *cloud.extra]
    yield Check("fields", "ok", f"{len(cloud)} points with {', '.join(names)}")
    if cloud.intensity_field is None:
        fix = f"let the driver send one of {', '.join(INTENSITY_FIELDS)}; without, intensity counts as 0"
        yield Check("intensity", "bad", "the cloud has no field for it", fix)
    if cloud.time_problem:
        fix = "set the driver's point times to the clock of its stamp; until then leave sweeps.deskew: false"
        yield Check("point times", "look", cloud.time_problem, fix)
    elif "time_s" in cloud.extra and len(cloud):
        yield _times(cloud.extra["time_s"], period_s)


def _times(time_s: np.ndarray, period_s: float) -> Check:
    """(N,) seconds after the stamp must span about one revolution."""
    low, high = float(np.nanmin(time_s)), float(np.nanmax(time_s))
    text = f"{low:+.4f} to {high:+.4f} s after the stamp"
    if not 0.2 * period_s <= high - low <= 1.5 * period_s and np.isfinite(period_s):
        fix = "are they of another unit? Integers count as ns, floats as s; until then leave sweeps.deskew: false"
        return Check("point times", "look", f"{text}, but a sweep comes every {period_s:.4f} s", fix)
    return Check("point times", "ok", text)


def _values(sweeps: Sequence[Sweep], scale: float, meta: dict[str, Any] | None) -> Iterator[Check]:
    """Against what the checkpoint was trained on; without one, intensity against its scale."""
    valid = np.mean([np.isfinite(s.points[:, :3]).all(1).mean() if len(s.points) else 0.0 for s in sweeps])
    if valid < 0.5:
        fix = "see whether the driver receives whole packets; unorganised clouds leave missing returns out"
        yield Check("points", "look" if valid else "bad", f"only {valid:.0%} of the points are finite", fix)
    if meta:
        yield from _findings(sweeps, meta)
    elif valid:
        yield _intensity(sweeps, scale)


def _findings(sweeps: Sequence[Sweep], meta: dict[str, Any]) -> Iterator[Check]:
    check = InputCheck(meta["inputs"], least_sweeps=1, sample=1_000_000)
    for sweep in sweeps:
        check.see(sweep.points, sweep.raw, sweep.rings)
    findings = check.findings()
    for finding in findings:
        text = f"seen {finding.seen}; the network was trained on {finding.expected}"
        yield Check(f"input {finding.what}", "bad" if finding.what in GRAVE else "look", text, finding.fix)
    if not findings:
        yield Check("input", "ok", f"{len(sweeps)} sweeps look as in training")


def _intensity(sweeps: Sequence[Sweep], scale: float) -> Check:
    """The largest value must be near the scale, below it."""
    highest = max(float(s.raw[np.isfinite(s.raw)].max(initial=0.0)) for s in sweeps)
    text = f"raw values up to {highest:.6g}, intensity_scale {scale:g}"
    if scale / DARK <= highest <= 1.01 * scale:
        return Check("intensity", "ok", text)
    if not highest:
        return Check("intensity", "bad", "0 at every point", "let the driver fill it: the network needs reflectivity")
    better = next((s for s in SCALES if highest <= 1.01 * s), SCALES[-1])
    return Check("intensity", "bad", text, f"set intensity_scale: {better:g} (of the rig, or of the node)")


def _past(meta: dict[str, Any], period_ms: float, has_poses: bool) -> Iterator[Check]:
    """Are there as many past sweeps as the detector was trained on, and poses to lay them over each other?"""
    count = meta["config"]["detector"]["sweeps"] if "detection" in meta else 1  # a segmenter has no such part
    if count < 2:
        return
    text = f"the detector was trained on {count} sweeps"
    if not has_poses:
        yield Check("sweeps", "bad", f"{text}, but poses are missing (see motion)", "mend that, or sweeps.count: 1")
    elif not (count - 1) * period_ms <= MAX_AGE_MS:
        needed = float(np.ceil((count - 1) * period_ms))
        fix = f"set sweeps.max_age_ms: {needed:.0f}" if needed <= OLDEST_MS else "record every sweep of the LiDAR"
        yield Check("sweeps", "look", f"{text}, of which {MAX_AGE_MS / period_ms + 1:.0f} fit sweeps.max_age_ms", fix)
    else:
        yield Check("sweeps", "ok", f"{text}, one comes every {period_ms:.0f} ms")


def _source(spec: str, meta: dict[str, Any] | None, frames: int) -> Iterator[Check]:
    """A data set or a simulated street: read frames, their pictures and poses, and the points."""
    try:
        source = open_source(spec)
        picked = [source[int(i)] for i in np.unique(np.linspace(0, len(source) - 1, frames).astype(int))]
    except (ValueError, OSError) as error:
        yield Check("source", "bad", str(error), "give a rosbag2 or nuScenes folder that is whole, or street:<seed>")
        return
    yield Check("source", "ok", f"{len(source)} frames, {len(picked)} of them read")
    scale = source.rig.intensity_scale
    yield from _values([Sweep(f.points, f.points[:, 3] * scale, f.extra.get("ring")) for f in picked], scale, meta)
    yield from _views(source, picked)
    posed = float(np.mean([np.isfinite(frame.world_from_lidar).all() for frame in picked]))
    lacking = "use one sweep and no memory, or add the poses of the data set"
    yield Check(
        "motion", "ok" if posed == 1 else "look", f"{posed:.0%} of the frames have a pose", lacking * (posed < 1)
    )


def _views(source: FrameSource, frames: Sequence[Frame]) -> Iterator[Check]:
    """Each camera: how many frames have its picture, the first one decoded, and its time offset."""
    for mount in source.rig.cameras:
        what, views = f"camera {mount.name}", [(v, f) for f in frames for v in f.cameras if v.name == mount.name]
        if len(views) < len(frames):
            text = f"a picture in {len(views)} of {len(frames)} frames"
            yield Check(what, "look", text, "unpack all files of the data set, or go without this camera")
            continue
        try:
            size = views[0][0].image.rgb.shape[1::-1]
        except (ValueError, OSError) as error:
            yield Check(what, "bad", str(error), "copy this file again")
            continue
        offset_ms = float(np.median([view.stamp_ns - frame.stamp_ns for view, frame in views])) / 1e6
        yield Check(what, "ok", f"{size[0]} x {size[1]} pictures, {offset_ms:+.1f} ms from the sweep (median)")


if __name__ == "__main__":
    sys.exit(main())

"""Every file of the LiDAR and the cameras of one nuScenes scene, keyframe or not, in order of time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lima_core.data import nuscenes_tables as tables
from lima_core.data.nuscenes_index import LIDAR, read_mounts, read_poses
from lima_core.data.nuscenes_tables import Columns, NuScenesError, read_columns, read_table, strings
from lima_core.geometry import se3

STILL = 1e-9  # m, parts of a quaternion, pixels: what differs by more has changed


@dataclass(frozen=True)
class SensorFile:
    """One file. `world_from_base` (4, 4) at its own stamp; `size` width and height, (0, 0) of the LiDAR."""

    channel: str
    stamp_ns: int
    filename: str
    is_key: bool
    world_from_base: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Drive:
    """A scene: `files` by stamp; `base_from_sensor` (4, 4) and `K` (3, 3) of each channel, which hold throughout."""

    name: str
    files: tuple[SensorFile, ...]
    base_from_sensor: dict[str, np.ndarray]
    K: dict[str, np.ndarray]


def read_drive(folder: Path, scene: str, keyframes_only: bool = False) -> Drive:
    """The drive of a scene, by the tables in `folder`. Raises NuScenesError: no such scene, or a sensor moved in it."""
    samples = _samples(folder, scene)
    mounts = read_mounts(folder)
    names = np.array(mounts["channel"])
    token_of = list(mounts["row"])
    wanted = frozenset(t for t, n in zip(token_of, names, strict=True) if n == LIDAR or n.startswith("CAM"))
    given = (frozenset(samples), wanted, mounts["row"], keyframes_only)
    rows = read_columns(folder / "sample_data.json", tables.SampleData, _reduce, given)
    poses = read_poses(folder, rows["ego_pose"].tolist())
    files = tuple(
        SensorFile(
            channel=str(names[rows["mount"][i]]),
            stamp_ns=int(rows["stamp_us"][i]) * 1000,
            filename=rows["filename"][i].decode(),
            is_key=bool(rows["is_key"][i]),
            world_from_base=se3.transform(poses[i, :4], poses[i, 4:]),
            size=(int(rows["size"][i, 0]), int(rows["size"][i, 1])),
        )
        for i in np.lexsort((names[rows["mount"]], rows["stamp_us"]))
    )
    if not files:
        raise NuScenesError(f"{folder}: scene {scene} has no file of {LIDAR} or a camera; unpack the metadata again")
    used = np.unique(rows["mount"])
    mount = _constant(folder, scene, names, mounts["pose"], used, "mounted at")
    K = _constant(folder, scene, names, mounts["intrinsic"], used, "calibrated as")
    K.pop(LIDAR, None)  # a scene may have cameras alone
    base_from_sensor = {name: se3.transform(pose[:4], pose[4:]) for name, pose in mount.items()}
    return Drive(scene, files, base_from_sensor, K)


def _samples(folder: Path, scene: str) -> set[str]:
    """Tokens of the keyframes of a scene."""
    rows = {row.name: row for row in read_table(folder / "scene.json", tables.Scene)}
    if scene not in rows:
        raise NuScenesError(f"{folder}/scene.json has no {scene!r}; there are {', '.join(list(rows)[:20])}")
    samples = {row.token: row for row in read_table(folder / "sample.json", tables.Sample)}
    found: set[str] = set()
    token = rows[scene].first_sample_token
    while token:
        if token not in samples or token in found:
            raise NuScenesError(f"{folder}/sample.json: the chain of {scene} is broken at {token}; unpack it again")
        found.add(token)
        token = samples[token].next
    return found


def _reduce(rows: list[tables.SampleData], given: tuple) -> Columns:
    samples, wanted, mount, keyframes_only = given
    rows = [
        row
        for row in rows
        if row.sample_token in samples
        and row.calibrated_sensor_token in wanted
        and (row.is_key_frame or not keyframes_only)
    ]
    return {
        "ego_pose": strings([row.ego_pose_token for row in rows]),
        "filename": strings([row.filename for row in rows]),
        "is_key": np.array([row.is_key_frame for row in rows], bool),
        "stamp_us": np.array([row.timestamp for row in rows], np.int64),
        "size": np.array([(row.width, row.height) for row in rows], np.int32).reshape(-1, 2),
        "mount": np.array([mount[row.calibrated_sensor_token] for row in rows], np.int32),
    }


def _constant(
    folder: Path, scene: str, names: np.ndarray, values: np.ndarray, used: np.ndarray, verb: str
) -> dict[str, np.ndarray]:
    """The one value of each channel. Raises NuScenesError where a channel has two: a bag could hold one alone."""
    found: dict[str, np.ndarray] = {}
    for row in used.tolist():
        first = found.setdefault(str(names[row]), values[row])
        if np.abs(first - values[row]).max() > STILL:
            raise NuScenesError(
                f"{folder}: {names[row]} of {scene} is {verb} {first.tolist()} and {values[row].tolist()}; a bag has "
                "one calibration for each sensor: convert the scene in parts"
            )
    return found

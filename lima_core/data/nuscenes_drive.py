"""Every file of the LiDAR and the cameras of nuScenes scenes, keyframe or not, in order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lima_core.data import nuscenes_tables as tables
from lima_core.data.nuscenes import LIDAR, NuScenes
from lima_core.data.nuscenes_index import read_mounts, read_poses
from lima_core.data.nuscenes_tables import Columns, NuScenesError, read_columns, strings
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


def read_drives(source: NuScenes, scenes: Sequence[str], keyframes_only: bool = False) -> Iterator[Drive]:
    """The drives of scenes, in their order; the tables, 2.6 GB of the whole set, are read once for all of them.

    Raises NuScenesError where a scene has no file of a sensor, or a sensor has moved in it.
    """
    if not scenes:
        return
    folder, number = source.root / source.version, {scene: at for at, scene in enumerate(scenes)}
    samples = {source.tokens(i)[0]: number[name] for i, name in enumerate(source.sequences) if name in number}
    mounts = read_mounts(folder)
    names = np.array(mounts["channel"])
    sensors = zip(mounts["row"], names, strict=True)
    wanted = frozenset(token for token, name in sensors if name == LIDAR or name.startswith("CAM"))
    given = (samples, wanted, mounts["row"], keyframes_only)
    rows = read_columns(folder / "sample_data.json", tables.SampleData, _reduce, given)
    poses = read_poses(folder, rows["ego_pose"].tolist())
    for scene, at in number.items():
        place = np.flatnonzero(rows["scene"] == at)
        if not len(place):
            raise NuScenesError(f"{folder}: {scene} has no file of {LIDAR} or a camera; unpack the metadata again")
        place = place[np.lexsort((names[rows["mount"][place]], rows["stamp_us"][place]))]
        yield _drive(folder, scene, {name: column[place] for name, column in rows.items()}, poses[place], mounts)


def _drive(folder: Path, scene: str, rows: Columns, poses: np.ndarray, mounts: dict) -> Drive:
    """A scene of its rows, in order of time."""
    names, used = np.array(mounts["channel"]), np.unique(rows["mount"])
    files = tuple(
        SensorFile(
            channel=str(names[rows["mount"][i]]),
            stamp_ns=int(rows["stamp_us"][i]) * 1000,
            filename=rows["filename"][i].decode(),
            is_key=bool(rows["is_key"][i]),
            world_from_base=se3.transform(poses[i, :4], poses[i, 4:]),
            size=(int(rows["size"][i, 0]), int(rows["size"][i, 1])),
        )
        for i in range(len(poses))
    )
    mount = _constant(folder, scene, names, mounts["pose"], used, "mounted at")
    K = _constant(folder, scene, names, mounts["intrinsic"], used, "calibrated as")
    K.pop(LIDAR, None)  # a scene may have cameras alone
    base_from_sensor = {name: se3.transform(pose[:4], pose[4:]) for name, pose in mount.items()}
    return Drive(scene, files, base_from_sensor, K)


def _reduce(rows: list[tables.SampleData], given: tuple) -> Columns:
    scene_of_sample, wanted, mount, keyframes_only = given
    rows = [
        row
        for row in rows
        if row.sample_token in scene_of_sample
        and row.calibrated_sensor_token in wanted
        and (row.is_key_frame or not keyframes_only)
    ]
    return {
        "scene": np.array([scene_of_sample[row.sample_token] for row in rows], np.int32),
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

"""What the reader of nuScenes needs of its tables, as numpy columns, kept in a cache between runs.

References are resolved once: rows point to rows by number, and files outside LIDAR_TOP and the cameras' keyframes are
left out. The cache of large tables is `$XDG_CACHE_HOME/lima/nuscenes-<hash of their folder>.npz` (or under ~/.cache);
it is used while path, size and modification time of every table are those it was made from.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec
import numpy as np

from lima_core.data import nuscenes_tables as tables
from lima_core.data.nuscenes_annotations import read_annotations
from lima_core.data.nuscenes_tables import (
    LOST,
    NONE,
    Columns,
    NuScenesError,
    follow,
    links,
    read_columns,
    read_optional,
    read_table,
    strings,
)
from lima_core.files import write_whole

LIDAR = "LIDAR_TOP"
FORMAT = 2  # of the cache
CACHE_FROM_BYTES = 64 << 20  # smaller tables are parsed as fast as a cache is read
REQUIRED = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
OPTIONAL = ("sample_annotation", "instance", "category", "attribute", "lidarseg")


@dataclass(frozen=True)
class Index:
    """K keyframes in order of scene and time, D sensor files, M mounts, A annotations sorted by keyframe.

    `scene`, `position` (K,) number of the scene and place in it; `sample_token`, `lidar_token`, `lidarseg` (K,) bytes,
    empty where there is none; `data` (K, C) rows of the files by channel, NONE where there is none.
    `stamp_us`, `filename`, `size` (width, height), `mount`, `pose` (7: w-x-y-z, m) world_from_ego, `prev` (D,).
    `mount_pose` (M, 7) ego_from_sensor, `intrinsic` (M, 3, 3).
    `box_start` (K + 1,) first annotation of each keyframe; `box` (A, 13): translation m, size w-l-h m, rotation,
    velocity m/s, in the world, velocity nan where unknown; `box_category` (A,); `box_points` (A,) int32 LiDAR and radar
    returns; `box_attribute` (A,) uint8 index into ATTRIBUTES, 255 for none of them, (0,) without the table.
    """

    scene_names: np.ndarray
    channels: np.ndarray
    categories: np.ndarray
    scene: np.ndarray
    position: np.ndarray
    sample_token: np.ndarray
    lidar_token: np.ndarray
    lidarseg: np.ndarray
    data: np.ndarray
    stamp_us: np.ndarray
    filename: np.ndarray
    size: np.ndarray
    mount: np.ndarray
    pose: np.ndarray
    prev: np.ndarray
    mount_pose: np.ndarray
    intrinsic: np.ndarray
    box_start: np.ndarray
    box: np.ndarray
    box_category: np.ndarray
    box_points: np.ndarray
    box_attribute: np.ndarray


def open_index(folder: Path) -> Index:
    """The index of a folder of tables, from the cache where it is large and unchanged. Raises NuScenesError."""
    key, size = _identity(folder)
    if size < CACHE_FROM_BYTES:
        return build_index(folder)
    path = cache_path(folder)
    cached = _read_cache(path, key)
    if cached is not None:
        return cached
    index = build_index(folder)
    if _identity(folder)[0] == key:  # else the tables changed while they were read
        _write_cache(path, key, index)
    return index


def cache_path(folder: Path) -> Path:
    """Where the index of `folder` is kept: in the user's cache, never beside the data."""
    return cache_home() / f"nuscenes-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.npz"


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/lima`, or ~/.cache/lima: for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lima"


def build_index(folder: Path) -> Index:
    """Reads and resolves all tables. Raises NuScenesError naming the table that is missing, broken or incomplete."""
    samples = {row.token: row for row in _table(folder, "sample", tables.Sample)}
    walked = _walk(folder, samples)
    keyframe = {token: number for number, token in enumerate(walked["sample_token"])}
    mounts = read_mounts(folder)
    channels = sorted({name for name in mounts["channel"] if name == LIDAR or name.startswith("CAM")})
    files = _files(folder, mounts, channels, keyframe, walked["scene"])
    return Index(
        channels=strings(channels),
        scene_names=strings(walked["names"]),
        scene=np.array(walked["scene"], np.int32),
        position=np.array(walked["position"], np.int32),
        sample_token=strings(walked["sample_token"]),
        mount_pose=mounts["pose"],
        intrinsic=mounts["intrinsic"],
        **files,
        **read_annotations(folder, samples, keyframe),
    )


def _table(folder: Path, name: str, row: type) -> list:
    return (read_optional if name in OPTIONAL else read_table)(folder / f"{name}.json", row)


def _walk(folder: Path, samples: dict[str, tables.Sample]) -> dict[str, list]:
    """Keyframes scene by scene, following the chain of `next`."""
    found = {"names": [], "scene": [], "position": [], "sample_token": []}
    seen = set()
    for number, scene in enumerate(_table(folder, "scene", tables.Scene)):
        token, position = scene.first_sample_token, 0
        found["names"].append(scene.name)
        while token:
            if token not in samples or token in seen:
                what = "names twice" if token in seen else "lacks"
                raise NuScenesError(f"{folder}/sample.json {what} sample {token} of {scene.name}; unpack it again")
            seen.add(token)
            found["scene"].append(number)
            found["position"].append(position)
            found["sample_token"].append(token)
            token, position = samples[token].next, position + 1
    if not seen:
        raise NuScenesError(f"{folder}/scene.json has no scene with keyframes; unpack the metadata again")
    return found


def read_mounts(folder: Path) -> dict:
    """Rows of calibrated_sensor by token, with their channels, poses and intrinsics."""
    channels = {row.token: row.channel for row in _table(folder, "sensor", tables.Sensor)}
    rows = _table(folder, "calibrated_sensor", tables.CalibratedSensor)
    path = folder / "calibrated_sensor.json"
    intrinsic = np.zeros((len(rows), 3, 3))
    for row, matrix in zip(rows, intrinsic, strict=True):
        if row.sensor_token not in channels:
            raise NuScenesError(f"{path} names sensor {row.sensor_token}, which sensor.json lacks; unpack both again")
        if len(row.camera_intrinsic) not in (0, 3):
            raise NuScenesError(f"{path}: camera_intrinsic of {row.token} is not 3 x 3; unpack it again")
        if row.camera_intrinsic:
            matrix[:] = row.camera_intrinsic
    pose = np.array([row.rotation + row.translation for row in rows], np.float64).reshape(-1, 7)
    return {
        "row": {row.token: number for number, row in enumerate(rows)},
        "channel": [channels[row.sensor_token] for row in rows],
        "pose": _checked(pose, path),
        "intrinsic": intrinsic,
    }


def _checked(pose: np.ndarray, path: Path) -> np.ndarray:
    """Poses whose numbers are finite and whose quaternions are not zero."""
    bad = ~np.isfinite(pose).all(1) | (np.linalg.norm(pose[:, :4], axis=1) < 1e-9)
    if bad.any():
        raise NuScenesError(f"{path}: {bad.sum()} poses are none, e.g. {pose[bad][0].tolist()}; unpack it again")
    return pose


def _files(folder: Path, mounts: dict, channels: list[str], keyframe: dict[str, int], scene: list[int]) -> Columns:
    """Columns of the sensor files, and those of the keyframes that point to them."""
    # 2 is kept, 1 is kept in keyframes
    kind = {
        token: (name in channels) + (name == LIDAR)
        for token, name in zip(mounts["row"], mounts["channel"], strict=True)
    }
    given = (kind, mounts["row"], keyframe, str(folder))
    rows = read_columns(folder / "sample_data.json", tables.SampleData, _reduce_files, given)
    channel = np.array([channels.index(name) if name in channels else NONE for name in mounts["channel"]])[
        rows["mount"]
    ]
    data = np.full((len(keyframe), len(channels)), NONE, np.int32)
    data[rows["keyframe"][rows["is_key"]], channel[rows["is_key"]]] = np.flatnonzero(rows["is_key"])
    tokens = [b""] * len(keyframe)
    if LIDAR in channels:
        lidar = data[:, channels.index(LIDAR)]
        tokens = [rows["token"][row] if row != NONE else b"" for row in lidar]
    names = {row.sample_data_token: row.filename for row in _table(folder, "lidarseg", tables.Lidarseg)}
    return {
        "data": data,
        "lidar_token": np.array(tokens, "S"),
        "lidarseg": strings([names.get(token.decode(), "") for token in tokens]),
        **{name: rows[name] for name in ("stamp_us", "filename", "size", "mount")},
        "prev": _previous(rows, channel, np.array(scene)[rows["keyframe"]]),
        "pose": read_poses(folder, rows["ego_pose"].tolist()),
    }


def _reduce_files(rows: list[tables.SampleData], given: tuple) -> Columns:
    """Columns of LIDAR_TOP files and of cameras' keyframes; cameras' other files are not used."""
    kind, mount, keyframe, folder = given
    try:
        rows = [row for row in rows if kind[row.calibrated_sensor_token] + row.is_key_frame >= 2]
    except KeyError as error:
        raise NuScenesError(
            f"{folder}/sample_data.json names calibrated sensor {error}, which calibrated_sensor.json lacks; "
            "unpack both again"
        ) from error
    rows = [row for row in rows if row.sample_token in keyframe]
    tokens = [row.token for row in rows]
    prev, prev_far = links(tokens, [row.prev for row in rows])
    return {
        "token": strings(tokens),
        "prev": prev,
        "prev_far": prev_far,
        "ego_pose": strings([row.ego_pose_token for row in rows]),
        "filename": strings([row.filename for row in rows]),
        "keyframe": np.array([keyframe[row.sample_token] for row in rows], np.int32),
        "is_key": np.array([row.is_key_frame for row in rows], bool),
        "stamp_us": np.array([row.timestamp for row in rows], np.int64),
        "size": np.array([(row.width, row.height) for row in rows], np.int32).reshape(-1, 2),
        "mount": np.array([mount[row.calibrated_sensor_token] for row in rows], np.int32),
    }


def _previous(rows: Columns, channel: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """(D,) int32 row before each in its channel; NONE at the start of its scene, LOST where the table lacks it."""
    prev = follow(rows["token"], rows["prev"], rows["prev_far"], LOST)
    own = np.arange(len(prev))
    starts = (prev == own) | ((prev >= 0) & ((scene[prev] != scene) | (channel[prev] != channel)))
    return np.where(starts, NONE, prev).astype(np.int32)


def read_poses(folder: Path, wanted: list[bytes]) -> np.ndarray:
    """(D, 7) world_from_ego of the wanted tokens."""
    path = folder / "ego_pose.json"
    names = frozenset(token.decode() for token in wanted)
    rows = read_columns(path, tables.EgoPose, _reduce_poses, names)
    place = {token: number for number, token in enumerate(rows["token"].tolist())}
    order = [place.get(token, NONE) for token in wanted]
    if NONE in order:
        lost = wanted[order.index(NONE)].decode()
        raise NuScenesError(f"{path} lacks pose {lost}, which sample_data.json names; unpack both again")
    return _checked(rows["pose"][np.array(order, np.int64)], path)


def _reduce_poses(rows: list[tables.EgoPose], wanted: frozenset[str]) -> Columns:
    kept = [row for row in rows if row.token in wanted]
    pairs = b",".join(b"[%b,%b]" % (bytes(row.rotation), bytes(row.translation)) for row in kept)
    pose = msgspec.json.decode(
        b"[%b]" % pairs, type=list[tuple[tuple[float, float, float, float], tuple[float, float, float]]]
    )
    numbers = np.array([rotation + translation for rotation, translation in pose], np.float64)
    return {"token": strings([row.token for row in kept]), "pose": numbers.reshape(-1, 7)}


def _identity(folder: Path) -> tuple[str, int]:
    """What a cache must have been made from, and the bytes of all tables. Raises NuScenesError: one is missing."""
    seen = []
    for name in (*REQUIRED, *OPTIONAL):
        path = folder / f"{name}.json"
        if path.is_file():
            seen.append((name, path.stat().st_size, path.stat().st_mtime_ns))
        elif name in REQUIRED:
            raise NuScenesError(f"{path} is missing; unpack the metadata of {folder.name} into {folder.parent}")
    return json.dumps([FORMAT, str(folder), seen]), sum(size for _, size, _ in seen)


def _read_cache(path: Path, key: str) -> Index | None:
    """The cached index, or None where there is none for these tables; a broken one gives a warning."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if stored["key"].item() != key:
                return None
            return Index(**{field.name: stored[field.name] for field in fields(Index)})
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is broken ({error}) and is made anew from the tables", stacklevel=3)
        return None


def _write_cache(path: Path, key: str, index: Index) -> None:
    """Kept whole or not at all; without a writable cache folder every run reads the tables."""
    content = io.BytesIO()
    np.savez(content, key=np.array(key), **asdict(index))
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can", stacklevel=3)

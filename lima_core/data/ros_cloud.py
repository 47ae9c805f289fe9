"""PointCloud2 bytes <-> numpy columns, by field name: any dtype, offset, step, row padding and byte order.

Works on anything with the attributes of sensor_msgs/PointCloud2 (rclpy, rosbags, a test double); imports no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}  # sensor_msgs/PointField
DATATYPES = {name: number for number, name in DTYPES.items()}
INTENSITY_FIELDS = ("intensity", "i", "intensities", "reflectivity", "reflectance")
RING_FIELDS = ("ring", "line", "channel")
TIME_FIELDS = ("time_s", "time", "t", "offset_time", "time_offset", "time_stamp")
PADDING_FIELDS = ("", "_")


class CloudError(ValueError):
    """A PointCloud2 (or columns for one) that cannot be read; the message names the field or size at fault."""


@dataclass(frozen=True)
class CloudPoints:
    """A decoded sweep in the sensor frame.

    `points` (N, 4) float32 = x, y, z in metres and intensity / intensity_scale; `raw_intensity` (N,) float32 as sent;
    `intensity_field` the field it came from, None = the cloud has none and the column is 0: callers must say so;
    `extra` (N,) columns by name, `ring` and `time_s` (seconds after the stamp) under these names.
    """

    points: np.ndarray
    raw_intensity: np.ndarray
    intensity_field: str | None
    extra: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class PackedCloud:
    """What a PointCloud2 needs: `fields` (name, offset, datatype, count) each, bytes per point, data, points."""

    fields: tuple[tuple[str, int, int, int], ...]
    point_step: int
    data: bytes
    width: int


def read_cloud(msg: Any) -> dict[str, np.ndarray]:
    """PointCloud2 -> every field by name, (N,) or (N, count) in the message's own dtype and byte order.

    Columns are views of `msg.data` unless rows are padded. Raises CloudError when sizes or fields contradict.
    """
    _check_size(msg)
    names = [f.name for f in msg.fields if f.name not in PADDING_FIELDS]
    if len(set(names)) != len(names):
        raise CloudError(f"cloud has a field twice: {names}")
    return {f.name: _column(msg, f) for f in msg.fields if f.name not in PADDING_FIELDS}


def cloud_points(msg: Any, intensity_scale: float) -> CloudPoints:
    """PointCloud2 -> float32 points; `intensity_scale` is the raw intensity that means 1.0.

    Intensity is taken from the first of INTENSITY_FIELDS. Raises CloudError when x, y or z is missing.
    """
    if not intensity_scale > 0:
        raise CloudError(f"intensity_scale must be positive, got {intensity_scale}")
    columns = read_cloud(msg)
    missing = [axis for axis in "xyz" if axis not in columns or columns[axis].ndim != 1]
    if missing:
        raise CloudError(f"cloud has no scalar field {', '.join(missing)}; its fields are {list(columns) or 'none'}")
    intensity = _first(columns, INTENSITY_FIELDS)
    points = np.zeros((len(columns["x"]), 4), np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf: not finite, so labelled unknown
        for index, axis in enumerate("xyz"):
            points[:, index] = columns[axis]
        raw = columns[intensity].astype(np.float32) if intensity else np.zeros(len(points), np.float32)
    np.divide(raw, np.float32(intensity_scale), out=points[:, 3])
    return CloudPoints(points, raw, intensity, _extra(columns, intensity))


def pack_cloud(columns: dict[str, np.ndarray]) -> PackedCloud:
    """Columns (N,) or (N, count), in order -> little-endian bytes, each field aligned to its own size as in PCL."""
    _check_columns(columns)
    dtype = np.dtype([(n, c.dtype.newbyteorder("<"), c.shape[1:]) for n, c in columns.items()], align=True)
    width = len(next(iter(columns.values())))
    table = np.zeros(width, dtype)
    for name, column in columns.items():
        table[name] = column
    fields = tuple(
        (name, dtype.fields[name][1], DATATYPES[c.dtype.str[1:]], c.shape[1] if c.ndim == 2 else 1)
        for name, c in columns.items()
    )
    return PackedCloud(fields, dtype.itemsize, table.tobytes(), width)


def pack_rgb(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 -> (N,) float32 whose bits are 0x00RRGGBB, the `rgb` field of PCL and RViz."""
    r, g, b = rgb.astype(np.uint32).T
    return (r << 16 | g << 8 | b).view(np.float32)


def _check_size(msg: Any) -> None:
    """Raises CloudError unless every point lies inside `data`."""
    if msg.width * msg.height == 0:
        return
    if msg.point_step == 0:
        raise CloudError(f"cloud of {msg.width} x {msg.height} points has point_step 0")
    if msg.row_step < msg.width * msg.point_step:
        raise CloudError(f"row_step {msg.row_step} is less than width {msg.width} * point_step {msg.point_step}")
    if len(msg.data) < msg.row_step * msg.height:
        raise CloudError(
            f"truncated cloud: {len(msg.data)} bytes, but row_step {msg.row_step} * height {msg.height} "
            f"needs {msg.row_step * msg.height}"
        )


def _column(msg: Any, field: Any) -> np.ndarray:
    """One field of all points, row by row: (N,), or (N, count) where count > 1."""
    if field.datatype not in DTYPES:
        raise CloudError(f"field {field.name!r} has unknown datatype {field.datatype}; known: 1..8")
    dtype = np.dtype((">" if msg.is_bigendian else "<") + DTYPES[field.datatype])
    count = max(field.count, 1)  # old drivers send 0 for a scalar (PCL bug 821)
    size = msg.width * msg.height
    if size and field.offset + count * dtype.itemsize > msg.point_step:
        raise CloudError(f"field {field.name!r} at offset {field.offset} reaches beyond point_step {msg.point_step}")
    if size == 0:
        return np.empty((0, count) if count > 1 else 0, dtype)
    shape, strides = (msg.height, msg.width, count), (msg.row_step, msg.point_step, dtype.itemsize)
    table = np.ndarray(shape, dtype, msg.data, field.offset, strides)
    return table.reshape(size, count) if count > 1 else table.reshape(size)


def _first(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a scalar column."""
    return next((name for name in names if name in columns and columns[name].ndim == 1), None)


def _extra(columns: dict[str, np.ndarray], intensity: str | None) -> dict[str, np.ndarray]:
    """Scalar columns that are not part of the points, in native byte order."""
    ring, time = _first(columns, RING_FIELDS), _first(columns, TIME_FIELDS)
    extra = {}
    for name, column in columns.items():
        if name in ("x", "y", "z", intensity) or column.ndim != 1:
            continue
        native = column.astype(column.dtype.newbyteorder("="))
        if name == time:
            # drivers send seconds as floating point and nanoseconds as integers
            extra["time_s"] = native.astype(np.float32) if native.dtype.kind == "f" else native * np.float32(1e-9)
        else:
            extra["ring" if name == ring else name] = native
    return extra


def _check_columns(columns: dict[str, np.ndarray]) -> None:
    """Raises CloudError when columns are no PointCloud2."""
    if not columns:
        raise CloudError("a cloud needs at least one column")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise CloudError(f"columns differ in length: {lengths}")
    for name, column in columns.items():
        if column.dtype.str[1:] not in DATATYPES:
            raise CloudError(f"column {name!r} is {column.dtype}; PointCloud2 takes {', '.join(DATATYPES)}")
        if column.ndim not in (1, 2) or 0 in column.shape[1:]:
            raise CloudError(f"column {name!r} has shape {column.shape}; use (N,) or (N, count)")

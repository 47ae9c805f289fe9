"""PointCloud2 bytes <-> numpy columns, by field name: any dtype, offset, step, row padding and byte order.

Works on anything with the attributes of sensor_msgs/PointCloud2 (rclpy, rosbags, a test double); imports no ROS.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima_core.data.ros_header import stamp_ns

DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}  # sensor_msgs/PointField
DATATYPES = {name: number for number, name in DTYPES.items()}
INTENSITY_FIELDS = ("intensity", "i", "intensities", "reflectivity", "reflectance")
RING_FIELDS = ("ring", "line", "channel")
TIME_FIELDS = ("time_s", "time", "t", "offset_time", "time_offset", "time_stamp", "timestamp")
PADDING_FIELDS = ("", "_")
MAX_AWAY_S = 1.0  # a sweep lasts 0.05 to 0.2 s: a point further from the stamp is in another unit or of another clock


class CloudError(ValueError):
    """A PointCloud2 (or columns for one) that cannot be read; the message names the field or size at fault."""


@dataclass(frozen=True)
class CloudPoints:
    """A decoded sweep in the sensor frame.

    `points` (N, 4) float32 = x, y, z in metres and intensity / intensity_scale; `raw_intensity` (N,) float32 as sent;
    `intensity_field` the field it came from, None = the cloud has none and the column is 0: callers must say so;
    `extra` has `ring` (N,) as sent and `time_s` (N,) float32 seconds after the stamp, signed, where the cloud has them;
    `time_problem` why a time field was left out and there is no `time_s`, None = nothing is wrong.
    """

    points: np.ndarray
    raw_intensity: np.ndarray
    intensity_field: str | None
    extra: dict[str, np.ndarray]
    time_problem: str | None = None

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

    Intensity is taken from the first of INTENSITY_FIELDS, time from the first of TIME_FIELDS. Nothing is a view of
    the message. Raises CloudError when x, y or z is missing or the message contradicts itself.
    """
    with np.errstate(over="ignore"):
        scale = np.float32(intensity_scale)
    if not 0 < scale < np.inf:
        raise CloudError(f"intensity_scale must be a positive float32, got {intensity_scale}")
    columns = read_cloud(msg)
    missing = [axis for axis in "xyz" if axis not in columns or columns[axis].ndim != 1]
    if missing:
        raise CloudError(f"cloud has no scalar field {', '.join(missing)}; its fields are {list(columns) or 'none'}")
    intensity = _first(columns, INTENSITY_FIELDS)
    points, raw = _points(msg, columns, intensity)
    with np.errstate(over="ignore"):
        np.divide(raw, scale, out=points[:, 3])
    extra, problem = _extra(msg, columns)
    return CloudPoints(points, raw, intensity, extra, problem)


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


def _points(msg: Any, columns: dict[str, np.ndarray], intensity: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float32 with x, y, z, and (N,) float32 raw intensity, 0 without one; the last column is undefined."""
    points = np.empty((len(columns["x"]), 4), np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf: not finite, so labelled unknown
        if not _copy_side_by_side(msg, points):
            for index, axis in enumerate("xyz"):
                points[:, index] = columns[axis]
        raw = columns[intensity].astype(np.float32) if intensity else np.zeros(len(points), np.float32)
    return points, raw


def _copy_side_by_side(msg: Any, points: np.ndarray) -> bool:
    """Fills `points` at once, with x, y, z and the four bytes after them; False where the layout forbids it.

    A point is copied as one opaque item of 16 bytes: four times as fast as number by number.
    """
    at = {f.name: f.offset for f in msg.fields if f.name in ("x", "y", "z") and DTYPES[f.datatype] == "f4"}
    native = bool(msg.is_bigendian) == (sys.byteorder == "big")
    start = at.get("x", 0)
    if not native or at != {"x": start, "y": start + 4, "z": start + 8} or start + 16 > msg.point_step:
        return False
    if len(points):
        shape, item = (msg.height, msg.width), np.dtype("V16")
        source = np.ndarray(shape, item, msg.data, start, (msg.row_step, msg.point_step))
        np.ndarray(shape, item, points)[:] = source
    return True


def _first(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a scalar column."""
    return next((name for name in names if name in columns and columns[name].ndim == 1), None)


def _extra(msg: Any, columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str | None]:
    """`ring` and `time_s` in native byte order, and why the time is not understood."""
    ring, time = _first(columns, RING_FIELDS), _first(columns, TIME_FIELDS)
    extra, problem = {}, None
    if ring:
        extra["ring"] = columns[ring].astype(columns[ring].dtype.newbyteorder("="))
    if time:
        seconds, problem = _seconds(msg, time, columns[time].astype(columns[time].dtype.newbyteorder("=")))
        if seconds is not None:
            extra["time_s"] = seconds
    return extra, problem


def _seconds(msg: Any, name: str, values: np.ndarray) -> tuple[np.ndarray | None, str | None]:
    """A time column -> (N,) float32 seconds after the header stamp, or None and why not."""
    low, high = _range(values)
    readings = _readings(msg, values.dtype)
    near = [(unit, zero) for unit, zero in readings if max(abs(low - zero), abs(high - zero)) * unit <= MAX_AWAY_S]
    if len({(round((low - zero) * unit, 6), round((high - zero) * unit, 6)) for unit, zero in near}) != 1:
        found = "more than one reading fits" if near else f"no reading is within {MAX_AWAY_S} s of the stamp"
        return None, (
            f"field {name!r} ({values.dtype}) is {low:.10g} to {high:.10g} at stamp {stamp_ns(msg.header.stamp)} ns: "
            f"{found}; point times are left out. Let the driver take the stamp and the point times from one clock"
        )
    unit, zero = near[0]
    if not zero:
        return values.astype(np.float32) * np.float32(unit), None
    return ((values - zero) * unit).astype(np.float32), None


def _readings(msg: Any, dtype: np.dtype) -> list[tuple[float, float]]:
    """What a time of this type can mean: (unit in s, value at the header stamp), by the drivers of 2026.

    Integers are nanoseconds after the stamp (Ouster, Autoware), float32 seconds after it (Velodyne); float64 is that
    too, or seconds of the clock (Hesai, RoboSense), or nanoseconds of the clock (Livox).
    """
    if dtype.kind != "f":
        return [(1e-9, 0.0)]
    if dtype.itemsize == 4:
        return [(1.0, 0.0)]
    start_ns = stamp_ns(msg.header.stamp)
    return [(1.0, 0.0), (1.0, start_ns * 1e-9), (1e-9, float(start_ns))]


def _range(values: np.ndarray) -> tuple[float, float]:
    """Least and greatest finite value; 0, 0 without one."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        return _range(values[np.isfinite(values)])
    return float(low), float(high)


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

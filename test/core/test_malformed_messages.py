"""Messages that no driver should send: each is refused with the error of its kind, or read consistently.

Random field tables, sizes, steps, offsets, types, truncated and wild data, pictures and calibrations; the fields are
within the ranges of the message definitions, as the transport guarantees.
"""

from __future__ import annotations

import math
import tracemalloc
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima_core.data.frame import ImageError
from lima_core.data.ros_cloud import INTENSITY_FIELDS, RING_FIELDS, TIME_FIELDS, CloudError, cloud_points, read_cloud
from lima_core.data.ros_image import ENCODINGS, camera_from_info, image_from_message

MANY = settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
U32 = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1), st.sampled_from([2**31, 2**32 - 1, 2**16]))
NAMES = st.sampled_from(["x", "y", "z", "_", "", "é", *INTENSITY_FIELDS, *RING_FIELDS, *TIME_FIELDS])
STAMPS = st.builds(
    lambda sec, nanosec: SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id="lidar"),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**32 - 1),
)
SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8}
SCALES = st.sampled_from([255.0, 1.0, 1e-30, 1e30])


@st.composite
def wild_clouds(draw):
    """Every number at random: nearly none of these is a cloud."""
    field = st.builds(
        SimpleNamespace, name=NAMES, offset=U32, datatype=st.integers(0, 255), count=st.one_of(st.integers(0, 3), U32)
    )
    return SimpleNamespace(
        header=draw(STAMPS),
        fields=draw(st.lists(field, max_size=8)),
        width=draw(U32),
        height=draw(U32),
        point_step=draw(U32),
        row_step=draw(U32),
        is_bigendian=draw(st.booleans()),
        is_dense=draw(st.booleans()),
        data=draw(st.binary(max_size=200)),
    )


@st.composite
def near_clouds(draw):
    """A cloud with wild data (nan, inf, any order, fields that overlap), of which one number may be wrong."""
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    fields = []
    for name in draw(st.permutations([*{"x", "y", "z", *names}])):
        datatype, count = draw(st.integers(1, 8)), draw(st.sampled_from([1, 1, 1, 0, 2]))
        offset = draw(st.integers(0, 24))
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=datatype, count=count))
    least = max(f.offset + SIZES[f.datatype] * max(f.count, 1) for f in fields)
    width, height = draw(st.integers(0, 4)), draw(st.integers(0, 3))
    step = least + draw(st.integers(0, 5))
    row = width * step + draw(st.sampled_from([0, 0, 3]))
    size = row * height
    data = draw(st.one_of(st.binary(min_size=size, max_size=size), st.just(b"\xff" * size), st.just(b"\0" * size)))
    msg = SimpleNamespace(
        header=draw(STAMPS), fields=fields, width=width, height=height, point_step=step, row_step=row,
        is_bigendian=draw(st.booleans()), is_dense=True, data=data,
    )  # fmt: skip
    wrong = draw(st.sampled_from([None, None, None, "width", "height", "point_step", "row_step", "data", "datatype"]))
    if wrong == "data":
        msg.data = data[: draw(st.integers(0, size))]
    elif wrong == "datatype":
        fields[0].datatype = draw(st.integers(0, 255))
    elif wrong:
        setattr(msg, wrong, draw(U32))
    return msg


def read_or_refused(msg, scale):
    """The cloud after all checks of consistency, None when it was refused with a reason."""
    try:
        cloud = cloud_points(msg, scale)
    except CloudError as error:
        assert len(str(error)) > 10
        return None
    count = msg.width * msg.height
    assert cloud.points.shape == (count, 4) and cloud.points.dtype == np.float32
    assert cloud.raw_intensity.shape == (count,) and cloud.raw_intensity.dtype == np.float32
    assert all(column.shape == (count,) and column.dtype.isnative for column in cloud.extra.values())
    columns = read_cloud(msg)
    with np.errstate(over="ignore"):
        for index, axis in enumerate("xyz"):
            np.testing.assert_array_equal(cloud.points[:, index], columns[axis].astype(np.float32))
    if cloud.intensity_field is None:
        assert not cloud.points[:, 3].any()
    if "time_s" in cloud.extra:
        seconds = cloud.extra["time_s"]
        assert cloud.time_problem is None and (np.abs(seconds[np.isfinite(seconds)]) <= 1.001).all()
    return cloud


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@MANY
@given(wild_clouds(), SCALES)
def test_a_wild_cloud(msg, scale):
    read_or_refused(msg, scale)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@MANY
@given(near_clouds(), SCALES)
def test_a_cloud_that_is_nearly_right(msg, scale):
    read_or_refused(msg, scale)


@pytest.mark.parametrize("step", [1, 16, 2**32 - 1])
@pytest.mark.parametrize(("width", "height"), [(2**31, 1), (1, 2**31), (2**32 - 1, 2**32 - 1), (2**16, 2**16)])
def test_a_claim_of_billions_of_points_costs_nothing(width, height, step):
    fields = [SimpleNamespace(name=axis, offset=0, datatype=7, count=1) for axis in "xyz"]
    msg = SimpleNamespace(
        fields=fields, width=width, height=height, point_step=step, row_step=2**32 - 1, is_bigendian=False,
        data=b"\0" * 10,
    )  # fmt: skip
    tracemalloc.start()
    with pytest.raises(CloudError, match=r"truncated|row_step"):
        cloud_points(msg, 255.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@st.composite
def pictures(draw):
    """Raw images: any encoding, size and step, some right."""
    encoding = draw(st.one_of(st.sampled_from(sorted(ENCODINGS)), st.text(max_size=6)))
    width, height, pad = draw(st.integers(0, 9)), draw(st.integers(0, 5)), draw(st.sampled_from([0, 0, 3]))
    channels, size, _ = ENCODINGS.get(encoding, (1, 1, None))
    step = width * channels * size + pad
    msg = SimpleNamespace(
        encoding=encoding, width=width, height=height, step=step, is_bigendian=draw(st.integers(0, 255)),
        data=draw(st.binary(min_size=step * height, max_size=step * height)),
    )  # fmt: skip
    wrong = draw(st.sampled_from([None, None, "width", "height", "step", "data"]))
    if wrong == "data":
        msg.data = msg.data[:-1]
    elif wrong:
        setattr(msg, wrong, draw(U32))
    return msg


JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))[1].tobytes()
PNG = cv2.imencode(".png", np.zeros((24, 32, 3), np.uint8))[1].tobytes()


@st.composite
def compressed(draw):
    """Garbage, or a picture that was cut, or of which some bytes are other ones."""
    data = bytearray(draw(st.sampled_from([JPEG, JPEG, PNG])))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    data = draw(st.one_of(st.just(bytes(data)), st.just(bytes(data[: draw(st.integers(0, len(data)))])), st.binary()))
    return SimpleNamespace(format=draw(st.sampled_from(["jpeg", "png", "", "bgr8; jpeg compressed bgr8"])), data=data)


@pytest.mark.slow
@MANY
@given(st.one_of(pictures(), compressed()))
def test_a_picture(msg):
    try:
        rgb = image_from_message(msg, "/cam").rgb
    except ImageError as error:
        assert "/cam" in str(error)
        return
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8
    if hasattr(msg, "encoding"):
        assert rgb.shape[:2] == (msg.height, msg.width)


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 500.0]))
GOOD = [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]
MODELS = ["", "none", "plumb_bob", "rational_polynomial", "equidistant", "fisheye", "magic"]


@st.composite
def infos(draw):
    """CameraInfo with one or more numbers at random."""

    def numbers(good):
        out = list(good)
        for _ in range(draw(st.integers(0, 2))):
            out[draw(st.integers(0, len(out) - 1))] = draw(NUMBERS)
        return out

    roi = [draw(st.one_of(st.just(0), U32)) for _ in range(4)]
    return SimpleNamespace(
        width=draw(st.one_of(st.just(640), U32)),
        height=draw(st.one_of(st.just(480), U32)),
        distortion_model=draw(st.sampled_from(MODELS)),
        d=draw(st.lists(NUMBERS, max_size=14)),
        k=numbers(GOOD),
        r=numbers(np.eye(3).ravel()),
        p=numbers(np.hstack([np.reshape(GOOD, (3, 3)), np.zeros((3, 1))]).ravel()),
        binning_x=draw(st.integers(0, 2)),
        binning_y=draw(st.integers(0, 2)),
        roi=SimpleNamespace(x_offset=roi[0], y_offset=roi[1], width=roi[2], height=roi[3]),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@MANY
@given(infos(), st.booleans())
def test_a_calibration(msg, rectified):
    try:
        K, distortion, size = camera_from_info(msg, rectified)
    except ValueError as error:
        assert any(word in str(error) for word in ("CameraInfo", "distortion model"))
        return
    assert K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
    assert size == (msg.width, msg.height) and all(map(math.isfinite, distortion.coefficients))
    assert 0 <= K[0, 2] <= size[0] and 0 <= K[1, 2] <= size[1]

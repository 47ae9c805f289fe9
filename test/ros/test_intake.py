"""From a message to what a network takes: scale, straightening and the comparison with the training."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs the ROS 2 message packages")
from lima_core.checkpoint import load_checkpoint
from lima_core.data.rig import Rig
from lima_core.data.ros_cloud import CloudError, CloudPoints, pack_cloud
from lima_core.data.synthetic.street import Street
from lima_core.geometry import se3
from lima_core.paths import STREET_CHECKPOINT
from lima_core.runtime.intake import Intake
from lima_core.runtime.parameters import ParameterError, resolve
from lima_core.runtime.transforms import PoseBuffer
from lima_ros import convert

MS = 1_000_000
RIG = Rig("r", "/lidar", "lidar", np.eye(4), intensity_scale=4.0)


def intake(rig=None, expected=None, **parameters):
    """An Intake and the list of its warnings."""
    warnings: list[str] = []
    settings = resolve({name.replace("__", "."): value for name, value in parameters.items()})
    return Intake(expected or {}, rig, settings, warnings.append), warnings


def message(**columns):
    ramp = np.arange(4, dtype=np.float32)
    return convert.ROS.cloud(pack_cloud({"x": ramp, "y": ramp, "z": ramp, **columns}), 0, "lidar")


@pytest.mark.parametrize(
    ("rig", "scale", "expected"), [(None, 0.0, 255.0), (RIG, 0.0, 4.0), (RIG, 100.0, 100.0), (None, 1.0, 1.0)]
)
def test_the_parameter_goes_before_the_rig_and_the_rig_before_8_bits(rig, scale, expected):
    one, warnings = intake(rig, intensity_scale=scale)
    raw = np.array([0, 1, 2, 4], np.float32)
    cloud = one.decode(message(intensity=raw))
    np.testing.assert_allclose(cloud.points[:, 3], raw / expected, rtol=1e-6)
    assert one.facts()["intensity_scale"] == expected and one.facts()["intensity_field"] == "intensity"
    assert warnings == []


def test_a_missing_intensity_is_said_each_time_it_goes_missing():
    one, warnings = intake()
    for with_intensity in (False, False, True, False):
        one.decode(message(**({"intensity": np.zeros(4, np.float32)} if with_intensity else {})))
    assert len(warnings) == 2 and "no intensity field" in warnings[0]
    assert one.facts()["intensity_field"] == "none: the network gets 0"


def test_a_cloud_that_contradicts_itself_is_refused():
    broken = message()
    broken.data = broken.data[:-1]
    with pytest.raises(CloudError):
        intake()[0].decode(broken)


def cloud_with_times(times):
    points = np.tile(np.array([10, 0, 0, 0.5], np.float32), (len(times), 1))
    return CloudPoints(points, points[:, 3], "intensity", {"time_s": np.asarray(times)})


def moving():
    """10 m/s along x, a pose each 100 ms from 0 to 1 s."""
    poses = PoseBuffer()
    for index in range(11):
        poses.add(100 * MS * index, se3.transform(np.eye(3), np.array([index, 0, 0])))
    return poses


def test_the_motion_inside_a_sweep_is_undone():
    one, warnings = intake(RIG, sweeps__deskew=True)
    points = one.straightened(cloud_with_times([-0.05, 0, 0.05]), 500 * MS, moving())
    np.testing.assert_allclose(points[:, 0], [9.5, 10, 10.5], atol=1e-5)
    assert warnings == [] and one.facts()["deskew"] == "deskewed 1"


def test_nothing_is_undone_unasked():
    one, _ = intake(RIG)
    cloud = cloud_with_times([-0.05, 0, 0.05])
    assert one.straightened(cloud, 500 * MS, moving()) is cloud.points and "deskew" not in one.facts()


def without_times():
    return CloudPoints(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), "intensity", {})


@pytest.mark.parametrize(
    ("rig", "cloud", "stamp_ns", "reason", "warned"),
    [
        (None, cloud_with_times([0, 0.05]), 500 * MS, "no_rig 1", False),
        (RIG, without_times(), 500 * MS, "no_times 1", False),
        (RIG, cloud_with_times([0, 0.05]), 5000 * MS, "no_pose 1", True),
        (RIG, cloud_with_times([0, 50.0]), 500 * MS, "bad_times 1", True),
    ],
)
def test_what_cannot_be_undone_is_counted_and_goes_on(rig, cloud, stamp_ns, reason, warned):
    one, warnings = intake(rig, sweeps__deskew=True)
    assert one.straightened(cloud, stamp_ns, moving()) is cloud.points
    assert one.facts()["deskew"] == reason
    assert [w.startswith("a sweep keeps the motion inside it: ") for w in warnings] == [True] * warned


@pytest.fixture(scope="module")
def street():
    """A sweep of a street, intensity as 16 bits, and what the street's network saw in training."""
    frame = Street(1001, frames=1, cameras=False)[0]
    raw = (frame.points[:, 3] * 65535).astype(np.float32)
    columns = dict(zip("xyz", np.ascontiguousarray(frame.points.T[:3]), strict=True))
    packed = pack_cloud({**columns, "intensity": raw, "ring": frame.extra["ring"].astype(np.uint16)})
    return convert.ROS.cloud(packed, 0, "lidar"), load_checkpoint(STREET_CHECKPOINT)[1]["inputs"]


def seen(one, msg, times):
    for _ in range(times):
        one.look(one.decode(msg))
    return [str(value) for key, value in one.facts().items() if key.startswith("input.")]


def test_sixteen_bits_are_a_finding_until_reset(street):
    msg, expected = street
    one, warnings = intake(expected=expected)
    assert seen(one, msg, 9) == []  # too few to judge
    (finding,) = seen(one, msg, 1)
    assert "set intensity_scale: 65535" in finding and warnings == []
    one.reset()
    assert seen(one, msg, 1) == []


def test_the_scale_is_chosen_once_where_it_may_be(street):
    msg, expected = street
    one, warnings = intake(expected=expected, input_check__auto_intensity=True)
    assert seen(one, msg, 20) == []
    assert one.facts()["intensity_scale"] == 65535 and len(warnings) == 1
    assert "intensity_scale is now 65535 in place of 255" in warnings[0]
    one.reset()
    assert one.decode(msg).points[:, 3].max() <= 1  # it holds


def test_no_comparison_where_it_is_switched_off(street):
    msg, expected = street
    one, _ = intake(expected=expected, input_check__enabled=False)
    assert seen(one, msg, 20) == [] and one.facts()["intensity_scale"] == 255


@pytest.mark.parametrize("other", [{"input_check__enabled": False}, {"intensity_scale": 100.0}])
def test_a_scale_that_is_given_is_not_chosen_as_well(other):
    with pytest.raises(ParameterError, match=r"auto_intensity needs intensity_scale: 0 and input_check\.enabled: true"):
        intake(input_check__auto_intensity=True, **other)

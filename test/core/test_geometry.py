"""Transforms and projection against golden vectors, closed forms and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lima_core.geometry import se3
from lima_core.geometry.camera import Distortion, project

UNIT = st.floats(-1, 1, allow_nan=False)
QUATERNION = arrays(np.float64, 4, elements=UNIT).filter(lambda q: np.linalg.norm(q) > 0.1)
TRANSLATION = arrays(np.float64, 3, elements=st.floats(-2000, 2000))


def test_quaternions_match_pyquaternion(vectors: dict) -> None:
    vector = vectors["quaternion_to_matrix"]
    for name, quaternion in vector["inputs"].items():
        expected = np.array(vector["expected"][name]["matrix"])
        np.testing.assert_allclose(se3.rotation_from_quaternion(np.array(quaternion)), expected, atol=vector["tol"])


@given(QUATERNION)
def test_quaternion_survives_the_way_through_a_matrix(quaternion: np.ndarray) -> None:
    unit = quaternion / np.linalg.norm(quaternion)
    back = se3.quaternion_from_rotation(se3.rotation_from_quaternion(quaternion))
    assert abs(unit @ back) == pytest.approx(1.0, abs=1e-12)


@given(QUATERNION, TRANSLATION)
def test_inverse_undoes(quaternion: np.ndarray, translation: np.ndarray) -> None:
    pose = se3.transform(quaternion, translation)
    np.testing.assert_allclose(se3.inverse(pose) @ pose, np.eye(4), atol=1e-9)


def test_transform_matches_the_devkit(vectors: dict) -> None:
    vector = vectors["transform_matrix"]
    pose = vector["inputs"]["pose"]
    matrix = se3.transform(np.array(pose["rotation"]), np.array(pose["translation"]))
    np.testing.assert_allclose(matrix, vector["expected"]["forward"], atol=vector["tol"])


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0]])
def test_a_quaternion_that_is_none_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite, non-zero quaternion"):
        se3.rotation_from_quaternion(np.array(bad))


@given(QUATERNION, TRANSLATION, TRANSLATION, st.floats(0, 1))
def test_interpolation_about_one_axis_is_linear_in_the_angle(
    axis: np.ndarray, start: np.ndarray, end: np.ndarray, fraction: float
) -> None:
    unit = axis[1:] / max(np.linalg.norm(axis[1:]), 1e-3) if np.linalg.norm(axis[1:]) > 1e-3 else np.array([0, 0, 1.0])

    def turned(angle: float) -> np.ndarray:
        return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * unit])

    a, b = se3.transform(turned(0.3), start), se3.transform(turned(2.3), end)
    expected = se3.transform(turned(0.3 + 2.0 * fraction), start + fraction * (end - start))
    np.testing.assert_allclose(se3.interpolate(a, b, fraction), expected, atol=1e-9)


@given(st.floats(-3, 3), st.floats(-1.5, 1.5), st.floats(-3, 3))
def test_poses_turn_by_roll_then_pitch_then_yaw(yaw: float, pitch: float, roll: float) -> None:
    def about(axis: int, angle: float) -> np.ndarray:
        quaternion = np.zeros(4)
        quaternion[[0, axis]] = np.cos(angle / 2), np.sin(angle / 2)
        return se3.rotation_from_quaternion(quaternion)

    matrix = se3.poses(1.0, [2.0, 4.0], 3.0, yaw, pitch, roll)
    np.testing.assert_allclose(matrix[1, :3, :3], about(3, yaw) @ about(2, pitch) @ about(1, roll), atol=1e-12)
    assert matrix[:, :3, 3].tolist() == [[1, 2, 3], [1, 4, 3]]


def test_lidar_to_image_chain(vectors: dict) -> None:
    vector = vectors["lidar_to_image_chain"]
    given_, expected = vector["inputs"], vector["expected"]

    def pose(name: str) -> np.ndarray:
        return se3.transform(np.array(given_[name]["rotation"]), np.array(given_[name]["translation"]))

    world_from_lidar = pose("ego_at_lidar") @ pose("calibrated_lidar")
    camera_from_lidar = se3.inverse(pose("ego_at_cam") @ pose("calibrated_cam")) @ world_from_lidar
    points = np.array(given_["points_lidar"])
    K = np.array(given_["calibrated_cam"]["camera_intrinsic"])
    got = project(points, camera_from_lidar, K, tuple(given_["image_wh"]))
    front = np.array(expected["depth"]) > 1.0
    np.testing.assert_allclose(got.depth, expected["depth"], atol=1e-6)
    np.testing.assert_allclose(got.uv[front], np.array(expected["uv"])[front], atol=1e-6)
    assert got.visible.tolist() == expected["mask_slidr"]
    assert np.isnan(got.uv[~front]).all()


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("plumb_bob", (-0.3, 0.12, 0.001, -0.002, -0.02)),
        ("rational_polynomial", (0.4, 0.1, 0.001, -0.001, 0.01, 0.7, 0.2, 0.02)),
        ("equidistant", (-0.02, 0.004, -0.001, 0.0002)),
    ],
)
def test_distorted_points_come_back_by_opencv(model: str, coefficients: tuple[float, ...]) -> None:
    """Undistorting by OpenCV's inverse finds the ray again: the forward model is the right one."""
    K = np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]])
    rays = np.array([[0.2, -0.1, 1.0], [-0.3, 0.25, 1.0], [0.0, 0.0, 1.0], [0.4, 0.3, 1.0]])
    points = rays * np.array([[5.0], [8.0], [3.0], [20.0]])
    got = project(points, np.eye(4), K, (640, 480), Distortion(model, coefficients))
    undistort = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    back = undistort(got.uv.reshape(-1, 1, 2), K, np.array(coefficients)).reshape(-1, 2)
    np.testing.assert_allclose(back, rays[:, :2], atol=1e-4)
    assert got.visible.all()


def test_strong_distortion_does_not_fold_far_points_into_the_image() -> None:
    K = np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
    sideways = np.array([[40.0, 0.0, 2.0]])
    barrel = Distortion("plumb_bob", (-0.3, 0.1, 0.0, 0.0, -0.0135))
    assert not project(sideways, np.eye(4), K, (640, 480), barrel).visible.any()


def test_points_that_are_no_numbers_are_invisible() -> None:
    points = np.array([[np.nan, 0, 5], [np.inf, 0, 5], [0, 0, 5.0]])
    got = project(points, np.eye(4), np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), (100, 100))
    assert got.visible.tolist() == [False, False, True]


@pytest.mark.parametrize(("model", "coefficients"), [("fishy", ()), ("plumb_bob", (0.1,))])
def test_unknown_distortion_is_refused(model: str, coefficients: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"known: none|takes \(4, 5\)"):
        Distortion(model, coefficients)

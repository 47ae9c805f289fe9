"""Rigid transforms in float64. `a_from_b` maps coordinates in frame b to coordinates in frame a.

Quaternions are w-x-y-z (Hamilton). nuScenes global coordinates are about 1e3 m, where float32 loses
1e-4 m (spec/datasets.md, trap 17): everything here computes in float64.
"""

from __future__ import annotations

import numpy as np


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(4,) w-x-y-z, any non-zero length -> (3, 3) rotation. Raises ValueError on a zero or non-finite one."""
    q = np.asarray(quaternion, np.float64)
    norm = np.linalg.norm(q)
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"a rotation needs a finite, non-zero quaternion [w, x, y, z]; got {quaternion!r}")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(3, 3) rotation -> (4,) w-x-y-z with w >= 0.

    The eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix (J. Guidance 23(6), 2000):
    free of the branches on the trace, and the nearest rotation where the input is slightly off.
    """
    r = np.asarray(rotation, np.float64)
    k = np.empty((4, 4))
    k[0, 0] = np.trace(r)
    k[0, 1:] = k[1:, 0] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    k[1:, 1:] = r + r.T - np.trace(r) * np.eye(3)
    q = np.linalg.eigh(k)[1][:, -1]
    return q if q[0] >= 0 else -q


def transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(3, 3) rotation or (4,) quaternion w-x-y-z, and (3,) translation in metres -> (4, 4) float64."""
    rotation = np.asarray(rotation, np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(rotation) if rotation.shape == (4,) else rotation
    matrix[:3, 3] = translation
    return matrix


def poses(
    x: np.ndarray | float,
    y: np.ndarray | float,
    z: np.ndarray | float = 0.0,
    yaw: np.ndarray | float = 0.0,
    pitch: np.ndarray | float = 0.0,
    roll: np.ndarray | float = 0.0,
) -> np.ndarray:
    """(..., 4, 4) float64 transforms at (x, y, z) metres, turned by Rz(yaw) Ry(pitch) Rx(roll), radians."""
    x, y, z, yaw, pitch, roll = np.broadcast_arrays(x, y, z, yaw, pitch, roll)
    cy, sy, cp, sp, cr, sr = (f(angle) for angle in (yaw, pitch, roll) for f in (np.cos, np.sin))
    matrix = np.zeros((*x.shape, 4, 4))
    matrix[..., 0, :] = np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr, x], axis=-1)
    matrix[..., 1, :] = np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr, y], axis=-1)
    matrix[..., 2, :] = np.stack([-sp, cp * sr, cp * cr, z], axis=-1)
    matrix[..., 3, 3] = 1.0
    return matrix


def inverse(a_from_b: np.ndarray) -> np.ndarray:
    """(4, 4) a_from_b -> (4, 4) b_from_a, by transposing the rotation (exact, no general inverse)."""
    b_from_a = np.eye(4)
    b_from_a[:3, :3] = a_from_b[:3, :3].T
    b_from_a[:3, 3] = -a_from_b[:3, :3].T @ a_from_b[:3, 3]
    return b_from_a


def apply(a_from_b: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """(4, 4) a_from_b, (N, >=3) points in b -> (N, 3) float64 points in a."""
    return np.asarray(points_b[:, :3], np.float64) @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def yaw(a_from_b: np.ndarray) -> float:
    """Heading of b's x axis in a, radians in (-pi, pi], about a's z axis."""
    return float(np.arctan2(a_from_b[1, 0], a_from_b[0, 0]))


def interpolate(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """Pose between two (4, 4) poses: linear in translation, slerp in rotation; fraction in [0, 1]."""
    a, b = quaternion_from_rotation(start[:3, :3]), quaternion_from_rotation(end[:3, :3])
    cosine = float(a @ b)
    if cosine < 0:  # the same rotation on the other half of the sphere: take the short way
        b, cosine = -b, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-8:
        blend = a + fraction * (b - a)
    else:
        blend = (np.sin((1 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle)
    return transform(blend, (1 - fraction) * start[:3, 3] + fraction * end[:3, 3])

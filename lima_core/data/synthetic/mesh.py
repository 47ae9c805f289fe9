"""Triangle meshes and the few primitives from which every object of the simulated street is made.

Metres; objects stand on z = 0 with x forward, y left, z up. Winding carries no meaning: normals are turned
towards whoever looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.geometry import se3

Color = Sequence[float]


@dataclass(frozen=True)
class Mesh:
    """V vertices, F triangles: `vertices` (V, 3) float32 m, `faces` (F, 3) int32, `material` (F,) uint8.

    `color` (F, 3) float32 is linear albedo in [0, 1].
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: np.ndarray
    color: np.ndarray

    def moved(self, pose: np.ndarray) -> Mesh:
        """The same mesh after a (4, 4) rigid transform."""
        return Mesh(se3.apply(pose, self.vertices).astype(np.float32), self.faces, self.material, self.color)

    def at(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> Mesh:
        """The same mesh turned by `yaw` radians about z, then shifted by (x, y, z) metres."""
        return self.moved(se3.poses(x, y, z, yaw))

    def standing(self) -> Mesh:
        """The same mesh shifted so that its bounds are centred on the origin in x and y, and start at z = 0."""
        low, high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        shift = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        return Mesh((self.vertices - shift).astype(np.float32), self.faces, self.material, self.color)

    @property
    def size(self) -> np.ndarray:
        """(3,) extent along x, y, z in metres."""
        return (self.vertices.max(axis=0) - self.vertices.min(axis=0)).astype(np.float64)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; raises ValueError when there are none."""
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes[:-1])])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.concatenate([m.material for m in meshes]),
        np.concatenate([m.color for m in meshes]),
    )


def quads(corners: np.ndarray, material: Material | np.ndarray, color: np.ndarray | Color) -> Mesh:
    """(Q, 4, 3) corners in order around each quad; material and colour for all or one per quad -> 2 Q triangles."""
    corners = np.asarray(corners, np.float32).reshape(-1, 4, 3)
    count = len(corners)
    faces = np.arange(0, 4 * count, 4)[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(
        corners.reshape(-1, 3),
        faces.reshape(-1, 3).astype(np.int32),
        np.repeat(np.broadcast_to(np.asarray(material, np.uint8), count), 2),
        np.repeat(np.broadcast_to(np.asarray(color, np.float32), (count, 3)), 2, axis=0),
    )


def triangles(corners: np.ndarray, material: np.ndarray, color: np.ndarray) -> Mesh:
    """(F, 3, 3) corners, (F,) material, (F, 3) colour -> loose triangles."""
    count = len(corners)
    return Mesh(
        np.asarray(corners, np.float32).reshape(-1, 3),
        np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        np.asarray(material, np.uint8),
        np.asarray(color, np.float32),
    )


def box(
    size: Sequence[float],
    center: Sequence[float],
    material: Material,
    color: Color,
    pitch: float = 0.0,
    yaw: float = 0.0,
    taper: float = 1.0,
) -> Mesh:
    """A cuboid of `size` about `center`; its top is scaled by `taper`; turned by pitch about y, then yaw about z."""
    half = np.asarray(size, np.float64) / 2
    ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    low = np.c_[ring * half[:2], np.full(4, -half[2])]
    high = np.c_[ring * half[:2] * taper, np.full(4, half[2])]
    sides = [[low[i], low[(i + 1) % 4], high[(i + 1) % 4], high[i]] for i in range(4)]
    corners = np.array([low, high, *sides]).reshape(-1, 3)
    return quads(se3.apply(se3.poses(*center, yaw, pitch), corners).reshape(-1, 4, 3), material, color)


def loft(rings: np.ndarray, material: Material | np.ndarray, color: np.ndarray | Color, caps: bool = True) -> Mesh:
    """Skin over (S, K, 3) closed rings; material and colour for all or one per (S-1, K) quad; ends closed by fans."""
    rings = np.asarray(rings, np.float64)
    following = np.roll(rings, -1, axis=1)
    shape = (rings.shape[0] - 1, rings.shape[1])
    material = np.broadcast_to(np.asarray(material, np.uint8), shape)
    color = np.broadcast_to(np.asarray(color, np.float32), (*shape, 3))
    corners = np.stack([rings[:-1], following[:-1], following[1:], rings[1:]], axis=2)
    parts = [quads(corners.reshape(-1, 4, 3), material.ravel(), color.reshape(-1, 3))]
    for ring, row in ((rings[0], 0), (rings[-1], -1)) if caps else ():
        middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
        fan = np.stack([ring, np.roll(ring, -1, axis=0), middle], axis=1)
        parts.append(triangles(fan, material[row], color[row]))
    return merge(parts)


def tube(
    start: Sequence[float],
    end: Sequence[float],
    radius: float,
    material: Material,
    color: Color,
    end_radius: float | None = None,
    sides: int = 6,
) -> Mesh:
    """A closed cylinder or cone frustum from `start` to `end`."""
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    x, y, z = (end - start) / np.linalg.norm(end - start)
    flat = np.hypot(x, y)
    across = np.array([y, -x, 0.0]) / flat if flat > 1e-6 else np.array([1.0, 0.0, 0.0])
    upward = np.array([-z * across[1], z * across[0], x * across[1] - y * across[0]])
    circle, faces = _tube_template(sides)
    ring = circle[:, :1] * across + circle[:, 1:] * upward
    far = radius if end_radius is None else end_radius
    vertices = np.concatenate([start + radius * ring, end + far * ring, start[None], end[None]]).astype(np.float32)
    paint = np.empty((len(faces), 3), np.float32)
    paint[:] = color
    return Mesh(vertices, faces, np.full(len(faces), material, np.uint8), paint)


@lru_cache
def _tube_template(sides: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) unit circle and (4 K, 3) faces over [near ring, far ring, near centre, far centre]."""
    i = np.arange(sides)
    j, angle = (i + 1) % sides, i * 2 * np.pi / sides
    corners = [(i, j, j + sides), (i, j + sides, i + sides), (i, j, 0 * i + 2 * sides)]
    corners.append((i + sides, j + sides, 0 * i + 2 * sides + 1))
    faces = np.concatenate([np.stack(c, axis=1) for c in corners]).astype(np.int32)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), faces


def blob(
    center: Sequence[float],
    radii: Sequence[float],
    material: Material,
    color: Color,
    rng: np.random.Generator | None = None,
    roughness: float = 0.0,
    sides: int = 8,
) -> Mesh:
    """An ellipsoid of latitude rings; `roughness` displaces its vertices by that fraction of the radius."""
    levels = np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 2)
    angle = np.arange(sides) * 2 * np.pi / sides
    unit = np.stack(
        [
            np.cos(levels)[:, None] * np.cos(angle),
            np.cos(levels)[:, None] * np.sin(angle),
            np.broadcast_to(np.sin(levels)[:, None], (len(levels), sides)),
        ],
        axis=-1,
    )
    if rng is not None:
        unit = unit * (1 + roughness * rng.uniform(-1, 1, unit.shape[:2]))[..., None]
    return loft(np.asarray(center) + unit * np.asarray(radii), material, color, caps=False)


def leaves(
    center: Sequence[float],
    radii: Sequence[float],
    count: int,
    leaf: float,
    color: Color,
    rng: np.random.Generator,
) -> Mesh:
    """Foliage: `count` randomly turned triangles of about `leaf` metres, mostly near the skin of an ellipsoid."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    where = np.asarray(center) + direction * rng.uniform(0.55, 1.0, (count, 1)) * np.asarray(radii)
    corners = where[:, None] + rng.normal(size=(count, 3, 3)) * leaf * 0.6
    shade = rng.uniform(0.65, 1.25, (count, 1)) * (0.85 + 0.2 * direction[:, 2:])
    return triangles(corners, np.full(count, Material.LEAF), (np.asarray(color) * shade).clip(0, 1))

"""Street furniture and plants. Metres, on z = 0; whatever faces the traffic faces x."""

from __future__ import annotations

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.data.synthetic.mesh import Mesh, blob, box, leaves, loft, merge, tube
from lima_core.data.synthetic.vehicles import BLACK, GREY, WHITE

ORANGE = (0.85, 0.20, 0.02)
STEEL = (0.22, 0.24, 0.25)


def cone(rng: np.random.Generator) -> Mesh:
    """A traffic cone, 0.5-0.9 m, with two reflecting bands."""
    height = rng.uniform(0.5, 0.9)
    levels, radius = np.array([0.04, 0.35, 0.5, 0.65, 0.8, 1.0]) * height, 0.17 * height / 0.7

    def at(z: float) -> float:
        return radius * (1.12 - z / height)

    parts = [box([2.7 * radius, 2.7 * radius, 0.05], [0, 0, 0.025], Material.RUBBER, BLACK)]
    for low, high, band in zip(levels[:-1], levels[1:], (0, 1, 0, 1, 0), strict=True):
        surface = (Material.RETRO, WHITE) if band else (Material.PLASTIC, ORANGE)
        parts.append(tube([0, 0, low], [0, 0, high], at(low), *surface, end_radius=at(high), sides=10))
    return merge(parts).standing()


def barrier(rng: np.random.Generator) -> Mesh:
    """One segment along x: a concrete Jersey barrier, or a red and white plank on feet."""
    if rng.random() < 0.5:
        profile = np.array(
            [
                [0.30, 0],
                [0.30, 0.08],
                [0.16, 0.33],
                [0.09, 0.85],
                [-0.09, 0.85],
                [-0.16, 0.33],
                [-0.30, 0.08],
                [-0.30, 0],
            ]
        )
        rings = np.array([[[x, y, z] for y, z in profile] for x in (-1.25, 1.25)])
        return loft(rings, Material.CONCRETE, np.full(3, rng.uniform(0.38, 0.5))).standing()
    parts = [box([0.06, 0.5, 0.08], [x, 0, 0.04], Material.RUBBER, BLACK) for x in (-0.8, 0.8)]
    parts += [tube([x, 0, 0], [x, 0, 1.05], 0.025, Material.METAL, GREY) for x in (-0.8, 0.8)]
    for z in (0.45, 0.92):
        for i in range(8):
            surface = (Material.RETRO, WHITE) if i % 2 else (Material.PLASTIC, (0.6, 0.04, 0.03))
            parts.append(box([0.25, 0.04, 0.22], [-0.875 + 0.25 * i, 0, z], *surface))
    return merge(parts).standing()


def lamp_post(rng: np.random.Generator) -> Mesh:
    """A street lamp whose arm reaches along x."""
    height, arm = rng.uniform(6.5, 8.5), rng.uniform(1.4, 2.2)
    return merge(
        [
            tube([0, 0, 0], [0, 0, 1.0], 0.13, Material.METAL, STEEL, sides=8),
            tube([0, 0, 1.0], [0, 0, height], 0.09, Material.METAL, STEEL, end_radius=0.06, sides=8),
            tube([0, 0, height], [arm, 0, height + 0.35], 0.05, Material.METAL, STEEL),
            box([0.7, 0.28, 0.12], [arm + 0.3, 0, height + 0.35], Material.METAL, GREY),
        ]
    )


def traffic_light(rng: np.random.Generator) -> Mesh:
    """A pole with a signal head towards x, and a second one on an arm along y."""
    lit = rng.integers(3)
    parts = [tube([0, 0, 0], [0, 0, 5.6], 0.09, Material.METAL, STEEL, sides=8)]
    parts.append(tube([0, 0, 5.5], [0, 4.2, 5.7], 0.06, Material.METAL, STEEL))
    for y, z in ((0.0, 2.9), (4.0, 5.6)):
        parts.append(box([0.22, 0.36, 1.05], [0.16, y, z], Material.PLASTIC, BLACK))
        for i, color in enumerate([(0.9, 0.05, 0.03), (0.9, 0.5, 0.02), (0.05, 0.8, 0.25)]):
            shade = np.array(color) * (1.0 if i == lit else 0.12)
            parts.append(blob([0.28, y, z + 0.33 - 0.33 * i], [0.05, 0.12, 0.12], Material.LAMP, shade))
    return merge(parts)


def sign(rng: np.random.Generator) -> Mesh:
    """A round, triangular or rectangular traffic sign towards x."""
    face = [(0.02, 0.12, 0.5), (0.7, 0.7, 0.68), (0.75, 0.55, 0.02)][rng.integers(3)]
    corners = [3, 4, 20][rng.integers(3)]
    pole = tube([0, 0, 0], [0, 0, 2.9], 0.035, Material.METAL, GREY)
    parts = [pole]
    turn = np.pi / 2 if corners == 3 else np.pi / corners
    for radius, x, color in ((0.38, 0.05, (0.55, 0.03, 0.03)), (0.31, 0.065, face)):
        angle = np.arange(corners) * 2 * np.pi / corners + turn
        ring = np.stack([np.full(corners, x), radius * np.cos(angle), 2.55 + radius * np.sin(angle)], axis=1)
        parts.append(loft(np.stack([ring, ring + np.array([0.012, 0, 0])]), Material.RETRO, color))
    return merge(parts)


def tree(rng: np.random.Generator) -> Mesh:
    """A trunk with limbs under a crown of several leafy balls, or a conifer."""
    green = np.array([0.10, 0.155, 0.045]) * rng.uniform(0.75, 1.35, 3)
    bark = np.array([0.16, 0.11, 0.075]) * rng.uniform(0.7, 1.3)
    if rng.random() < 0.2:
        return _conifer(rng, green * 0.7, bark)
    height, crown = rng.uniform(5.0, 9.5), rng.uniform(1.5, 2.7)
    top = height - crown
    lean = rng.uniform(-0.25, 0.25, 2)
    parts = [tube([0, 0, 0], [*lean, top], rng.uniform(0.13, 0.24), Material.BARK, bark, end_radius=0.08, sides=8)]
    for angle in np.arange(4) * np.pi / 2 + rng.uniform(0, 1.5):
        reach = np.array([np.cos(angle), np.sin(angle), 0.5]) * crown * rng.uniform(0.45, 0.65)
        center = np.array([*lean, top + rng.uniform(-0.3, 0.5)]) + reach
        parts.append(tube([*lean * 0.7, 0.7 * top], center, 0.06, Material.BARK, bark, end_radius=0.03, sides=5))
        parts += _foliage(center, np.array([0.62, 0.62, 0.55]) * crown, 110, 0.34, green, rng)
    parts += _foliage(np.array([*lean, top + 0.75 * crown]), np.array([0.7, 0.7, 0.6]) * crown, 140, 0.34, green, rng)
    return merge(parts)


def _foliage(
    center: np.ndarray, radii: np.ndarray, count: int, leaf: float, color: np.ndarray, rng: np.random.Generator
) -> list[Mesh]:
    core = blob(center, 0.72 * radii, Material.LEAF, color * 0.6, rng, roughness=0.25)
    return [core, leaves(center, radii, count, leaf, color, rng)]


def _conifer(rng: np.random.Generator, green: np.ndarray, bark: np.ndarray) -> Mesh:
    height, width = rng.uniform(5.0, 9.0), rng.uniform(1.2, 1.8)
    parts = [tube([0, 0, 0], [0, 0, 0.9 * height], 0.16, Material.BARK, bark, end_radius=0.04)]
    for z in np.linspace(1.2, height, 7):
        radius = width * (1.08 - z / height)
        parts += _foliage(np.array([0, 0, z]), np.array([radius, radius, 0.55]), 45, 0.32, green, rng)
    return merge(parts)


def bush(rng: np.random.Generator) -> Mesh:
    """A shrub, 0.6-1.6 m."""
    size = rng.uniform(0.35, 0.85)
    green = np.array([0.10, 0.15, 0.045]) * rng.uniform(0.7, 1.4, 3)
    return merge(_foliage(np.array([0, 0, 0.7 * size]), np.array([1.15, 1.15, 0.95]) * size, 220, 0.11, green, rng))


def hedge(rng: np.random.Generator, length: float) -> Mesh:
    """A clipped hedge of `length` metres along x."""
    green = np.array([0.085, 0.14, 0.04]) * rng.uniform(0.8, 1.3)
    height, parts = rng.uniform(0.8, 1.5), []
    for x in np.arange(-length / 2 + 0.5, length / 2, 1.0):
        parts += _foliage(np.array([x, 0, height / 2]), np.array([0.75, 0.45, 0.55 * height]), 90, 0.12, green, rng)
    return merge(parts)


def fence(rng: np.random.Generator, length: float) -> Mesh:
    """A picket fence of `length` metres along x."""
    wood = np.array([0.42, 0.33, 0.22]) if rng.random() < 0.5 else np.array([0.3, 0.32, 0.33])
    parts = [box([length, 0.05, 0.08], [0, 0, z], Material.BARK, wood) for z in (0.35, 0.95)]
    parts += [
        box([0.10, 0.04, 1.1], [x, 0.04, 0.58], Material.BARK, wood * rng.uniform(0.8, 1.1))
        for x in np.arange(-length / 2 + 0.1, length / 2, 0.28)
    ]
    return merge(parts)


def bin_(rng: np.random.Generator) -> Mesh:
    """A litter bin, or a wheeled refuse bin."""
    if rng.random() < 0.5:
        return merge(
            [
                tube([0, 0, 0], [0, 0, 0.85], 0.24, Material.METAL, STEEL, end_radius=0.28, sides=10),
                tube([0, 0, 0.85], [0, 0, 0.98], 0.3, Material.METAL, BLACK, end_radius=0.15, sides=10),
            ]
        )
    color = [(0.05, 0.2, 0.08), (0.05, 0.1, 0.3), (0.5, 0.4, 0.03)][rng.integers(3)]
    lid = box([0.6, 0.64, 0.1], [0, 0, 1.06], Material.PLASTIC, np.array(color) * 0.7, pitch=0.12)
    return merge([box([0.5, 0.5, 1.0], [0, 0, 0.52], Material.PLASTIC, color, taper=1.15), lid])


def shelter(rng: np.random.Generator) -> Mesh:
    """A bus shelter, 4 m along x, open towards y."""
    tint = np.array([0.05, 0.07, 0.07]) * rng.uniform(0.8, 1.2)
    parts = [tube([x, y, 0], [x, y, 2.4], 0.05, Material.METAL, STEEL) for x in (-2, 2) for y in (-0.7, 0.7)]
    parts.append(box([4.4, 1.8, 0.12], [0, 0, 2.46], Material.METAL, GREY))
    parts.append(box([3.9, 0.04, 1.7], [0, -0.7, 1.25], Material.GLASS, tint))
    parts.append(box([2.6, 0.4, 0.08], [0.4, -0.4, 0.5], Material.BARK, (0.35, 0.25, 0.15)))
    parts.append(box([0.12, 1.2, 1.7], [-2, 0, 1.2], Material.PLASTIC, rng.uniform(0.2, 0.6, 3)))
    return merge(parts)

"""Pedestrians, bicycles and motorcycles, the latter two with or without a rider. Metres, x forward, on z = 0."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.data.synthetic.mesh import Color, Mesh, blob, box, merge, tube
from lima_core.data.synthetic.vehicles import BLACK, CAR_COLORS, GREY, RED, WHITE

SKIN = ((0.55, 0.36, 0.27), (0.42, 0.26, 0.17), (0.20, 0.11, 0.07))
HAIR = ((0.02, 0.015, 0.01), (0.07, 0.04, 0.02), (0.25, 0.16, 0.06), (0.22, 0.21, 0.20))
CLOTHES = (
    (0.05, 0.06, 0.12),
    (0.30, 0.05, 0.06),
    (0.55, 0.52, 0.45),
    (0.10, 0.22, 0.14),
    (0.05, 0.14, 0.30),
    (0.45, 0.30, 0.05),
    (0.20, 0.20, 0.22),
    (0.60, 0.60, 0.62),
)


def pedestrian(rng: np.random.Generator) -> Mesh:
    """A person in mid-stride: shoes, legs, torso, arms, head and hair, 1.2-1.9 m tall."""
    scale = rng.uniform(1.5, 1.88) / 1.75 if rng.random() < 0.85 else rng.uniform(1.1, 1.4) / 1.75
    stride, girth = rng.uniform(0.12, 0.32), rng.uniform(0.9, 1.2)
    coat, trousers = (CLOTHES[i] for i in rng.integers(len(CLOTHES), size=2))
    skin = SKIN[rng.integers(len(SKIN))]
    cloth, parts = Material.CLOTH, []
    for side in (-1, 1):
        foot, hip = np.array([side * stride, side * 0.10, 0.08]), np.array([0, side * 0.09, 0.88])
        knee = (foot + hip) / 2 + [0.05, 0, 0]
        parts.append(tube(knee, hip, 0.075 * girth, cloth, trousers, end_radius=0.10 * girth))
        parts.append(tube(foot, knee, 0.055 * girth, cloth, trousers, end_radius=0.075 * girth))
        parts.append(box([0.27, 0.10, 0.08], foot + np.array([0.06, 0, -0.04]), Material.RUBBER, BLACK))
        shoulder, hand = np.array([0, side * 0.22, 1.42]), np.array([-side * stride * 0.8, side * 0.27, 0.85])
        elbow = (shoulder + hand) / 2 - [0.05, 0, 0]
        parts.append(tube(shoulder, elbow, 0.06, cloth, coat, end_radius=0.05))
        parts.append(tube(elbow, hand, 0.05, cloth, coat, end_radius=0.04))
        parts.append(blob(hand, [0.05, 0.04, 0.07], cloth, skin, sides=6))
    parts.append(_torso(girth, coat))
    parts += _head(np.array([0.02, 0.0, 1.63]), skin, HAIR[rng.integers(len(HAIR))])
    if rng.random() < 0.3:
        parts.append(box([0.2, 0.32, 0.45], [-0.2, 0, 1.2], cloth, CLOTHES[rng.integers(len(CLOTHES))], taper=0.8))
    mesh = merge(parts).standing()
    return Mesh((mesh.vertices * scale).astype(np.float32), mesh.faces, mesh.material, mesh.color)


def _torso(girth: float, color: Color) -> Mesh:
    hips = blob([0, 0, 0.95], [0.13 * girth, 0.18 * girth, 0.16], Material.CLOTH, color)
    chest = blob([0, 0, 1.22], [0.14 * girth, 0.21 * girth, 0.33], Material.CLOTH, color)
    return merge([hips, chest])


def _head(center: np.ndarray, skin: Color, hair: Color) -> list[Mesh]:
    return [
        blob(center, [0.10, 0.08, 0.13], Material.CLOTH, skin),
        blob(center + np.array([-0.02, 0, 0.04]), [0.105, 0.09, 0.11], Material.CLOTH, hair),
        tube(center - [0.02, 0, 0.2], center, 0.05, Material.CLOTH, skin),
    ]


def _rider(seat: np.ndarray, hands: np.ndarray, feet_z: float, rng: np.random.Generator) -> list[Mesh]:
    """Someone who sits at `seat`, leans to `hands` and wears a helmet."""
    coat, trousers = (CLOTHES[i] for i in rng.integers(len(CLOTHES), size=2))
    shoulders = seat + np.array([0.22, 0, 0.5])
    parts = [tube(seat, shoulders, 0.15, Material.CLOTH, coat, end_radius=0.19, sides=8)]
    for side in (-1, 1):
        knee, foot = seat + np.array([0.4, side * 0.13, -0.12]), np.array([seat[0] + 0.22, side * 0.14, feet_z])
        parts.append(tube(seat + np.array([0, side * 0.09, 0]), knee, 0.085, Material.CLOTH, trousers, end_radius=0.07))
        parts.append(tube(knee, foot, 0.065, Material.CLOTH, trousers, end_radius=0.05))
        parts.append(box([0.25, 0.09, 0.08], foot + np.array([0.04, 0, -0.03]), Material.RUBBER, BLACK))
        hand = hands * [1, side, 1]
        parts.append(
            tube(shoulders + np.array([0, side * 0.19, -0.03]), hand, 0.055, Material.CLOTH, coat, end_radius=0.04)
        )
    helmet = CAR_COLORS[rng.integers(len(CAR_COLORS))]
    head = shoulders + np.array([0.08, 0, 0.2])
    return [
        *parts,
        *_head(head, SKIN[rng.integers(3)], HAIR[0]),
        blob(head + np.array([0, 0, 0.06]), [0.13, 0.11, 0.11], Material.PLASTIC, helmet),
    ]


def _spoked_wheel(x: float, radius: float) -> Mesh:
    """A thin tyre as a ring of short tubes with a few spokes."""
    angle = np.linspace(0, 2 * np.pi, 15)
    rim = np.stack([x + radius * 0.95 * np.cos(angle), np.zeros(15), radius + radius * 0.95 * np.sin(angle)], axis=1)
    parts = [tube(a, b, 0.022, Material.RUBBER, BLACK, sides=4) for a, b in pairwise(rim)]
    hub = np.array([x, 0, radius])
    return merge([*parts, *(tube(hub, rim[i], 0.006, Material.METAL, GREY, sides=3) for i in range(0, 14, 2))])


def bicycle(rng: np.random.Generator, rider: bool = False) -> Mesh:
    """Two spoked wheels, a diamond frame, saddle and handlebar."""
    radius, color = 0.34, CAR_COLORS[rng.integers(len(CAR_COLORS))]
    rear, front = np.array([-0.52, 0, radius]), np.array([0.52, 0, radius])
    crank, seat, head = np.array([-0.08, 0, 0.30]), np.array([-0.25, 0, 0.92]), np.array([0.38, 0, 0.85])
    bar = np.array([0.42, 0.26, 1.03])
    frame = [(rear, crank), (rear, seat * [1, 1, 0.85]), (crank, seat), (crank, head), (seat * [1, 1, 0.88], head)]
    parts = [_spoked_wheel(-0.52, radius), _spoked_wheel(0.52, radius)]
    parts += [tube(a, b, 0.025, Material.LACQUER, color, sides=5) for a, b in frame]
    parts += [tube(a, b, 0.02, Material.METAL, GREY, sides=5) for a, b in [(front, head), (head, bar * [1, 0, 1])]]
    parts.append(tube(bar * [1, -1, 1], bar, 0.02, Material.METAL, BLACK, sides=5))
    parts.append(box([0.26, 0.14, 0.06], seat, Material.PLASTIC, BLACK, taper=0.7))
    parts.append(box([0.03, 0.06, 0.06], [-0.45, 0, 0.72], Material.RETRO, RED))
    if rider:
        parts += _rider(seat + np.array([0, 0, 0.06]), bar, 0.28, rng)
    return merge(parts).standing()


def motorcycle(rng: np.random.Generator, rider: bool = False) -> Mesh:
    """Two fat wheels, engine, tank, seat, fork, exhaust and lights."""
    color = CAR_COLORS[rng.integers(2, len(CAR_COLORS))]
    parts = [wheel_ for x in (-0.68, 0.70) for wheel_ in _fat_wheel(x)]
    parts.append(box([0.55, 0.34, 0.42], [0.0, 0, 0.48], Material.METAL, GREY, taper=0.8))
    parts.append(blob([0.18, 0, 0.86], [0.32, 0.17, 0.16], Material.LACQUER, color))
    parts.append(box([0.75, 0.26, 0.12], [-0.38, 0, 0.80], Material.PLASTIC, BLACK, pitch=-0.08))
    parts.append(box([0.35, 0.22, 0.14], [-0.78, 0, 0.84], Material.LACQUER, color, pitch=0.25, taper=0.8))
    for side in (-1, 1):
        parts.append(tube([0.70, side * 0.10, 0.31], [0.45, side * 0.10, 1.0], 0.03, Material.METAL, GREY, sides=5))
        parts.append(tube([-0.68, side * 0.1, 0.31], [-0.1, side * 0.1, 0.45], 0.04, Material.METAL, BLACK, sides=5))
    parts.append(tube([0.1, -0.18, 0.32], [-0.75, -0.2, 0.45], 0.055, Material.METAL, GREY))
    parts.append(tube([0.42, -0.36, 1.06], [0.42, 0.36, 1.06], 0.025, Material.METAL, BLACK, sides=5))
    parts.append(blob([0.56, 0, 0.95], [0.10, 0.10, 0.11], Material.LAMP, WHITE))
    parts.append(box([0.03, 0.2, 0.12], [-0.97, 0, 0.68], Material.RETRO, WHITE))
    if rider:
        parts += _rider(np.array([-0.25, 0, 0.9]), np.array([0.42, 0.33, 1.06]), 0.33, rng)
    return merge(parts).standing()


def _fat_wheel(x: float) -> list[Mesh]:
    return [
        tube([x, -0.07, 0.31], [x, 0.07, 0.31], 0.31, Material.RUBBER, BLACK, sides=14),
        tube([x, -0.085, 0.31], [x, 0.085, 0.31], 0.17, Material.METAL, GREY, sides=10),
    ]

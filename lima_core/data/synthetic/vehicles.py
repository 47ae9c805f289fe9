"""Parametric vehicles: lofted bodies with cabins, windows, wheels and lights. Metres, x forward, on z = 0."""

from __future__ import annotations

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.data.synthetic.mesh import Color, Mesh, box, loft, merge, tube

GLASS = (0.03, 0.04, 0.05)
BLACK = (0.02, 0.02, 0.022)
GREY = (0.25, 0.26, 0.27)
WHITE = (0.75, 0.75, 0.72)
RED = (0.5, 0.02, 0.02)
YELLOW = (0.75, 0.42, 0.02)
CAR_COLORS = (
    (0.62, 0.63, 0.64),
    (0.33, 0.35, 0.37),
    (0.03, 0.03, 0.035),
    (0.70, 0.70, 0.68),
    (0.42, 0.03, 0.03),
    (0.03, 0.09, 0.30),
    (0.05, 0.20, 0.12),
    (0.45, 0.33, 0.18),
    (0.10, 0.24, 0.38),
)
# Per kind: length and height ranges; then fractions of the length from the rear where the glass meets the body
# and the roof (rear base, rear roof, front roof, front base), and heights of boot, belt and bonnet over the total.
CAR_KINDS = {
    "sedan": ((4.4, 4.9), (1.40, 1.50), (0.10, 0.27, 0.54, 0.73), (0.66, 0.66, 0.58)),
    "hatch": ((3.9, 4.3), (1.42, 1.55), (0.02, 0.10, 0.55, 0.75), (0.64, 0.64, 0.60)),
    "suv": ((4.4, 4.8), (1.62, 1.80), (0.02, 0.09, 0.56, 0.74), (0.60, 0.61, 0.58)),
    "van": ((4.7, 5.3), (1.90, 2.15), (0.01, 0.04, 0.74, 0.92), (0.52, 0.54, 0.50)),
}


def wheel(x: float, y: float, radius: float, width: float = 0.22) -> Mesh:
    """A tyre with a bright rim, its axle along y."""
    rim = (0.45, 0.46, 0.48)
    side = np.sign(y) * (width / 2 + 0.01)
    return merge(
        [
            tube([x, y - width / 2, radius], [x, y + width / 2, radius], radius, Material.RUBBER, BLACK, sides=14),
            tube([x, y, radius], [x, y + side, radius], 0.6 * radius, Material.METAL, rim, sides=10),
        ]
    )


def axles(xs: list[float], width: float, radius: float, tyre: float = 0.22) -> list[Mesh]:
    """Left and right wheels at each x, flush with a body of `width`."""
    return [wheel(x, side * (width / 2 - tyre / 2 - 0.02), radius, tyre) for x in xs for side in (-1, 1)]


def car(rng: np.random.Generator) -> Mesh:
    """A sedan, hatchback, SUV or van with random size and colour."""
    kind = CAR_KINDS[rng.choice(list(CAR_KINDS), p=[0.34, 0.26, 0.28, 0.12])]
    length, height = rng.uniform(*kind[0]), rng.uniform(*kind[1])
    width, radius = rng.uniform(1.74, 1.92), rng.uniform(0.31, 0.36)
    color = np.array(CAR_COLORS[rng.integers(len(CAR_COLORS))]) * rng.uniform(0.85, 1.15)
    glass_x = (np.array(kind[2]) - 0.5) * length
    boot, belt, bonnet = np.array(kind[3]) * height
    profile = ([-0.5 * length, glass_x[0], glass_x[3], 0.5 * length], [boot, belt, belt, bonnet * 0.88])
    axle_x = [-0.5 * length + 0.19 * length, 0.5 * length - 0.18 * length]
    return merge(
        [
            _lower_body(length, width, profile, axle_x, radius * 1.12, color),
            _cabin(glass_x, width, profile, height, color),
            *axles(axle_x, width, radius),
            *_trim(length, width, bonnet * 0.88, boot, glass_x[3], belt, color),
        ]
    ).standing()


def _lower_body(
    length: float, width: float, profile: tuple, axle_x: list[float], arch: float, color: np.ndarray
) -> Mesh:
    """The body below the windows, with wheel arches cut into its lower edge."""
    half = length / 2
    around = np.array([-1.02, -0.98, -0.7, 0.0, 0.7, 0.98, 1.02]) * arch
    x = np.concatenate([[-half, -half + 0.12], axle_x[0] + around, axle_x[1] + around, [half - 0.15, half]])
    bottom = np.full(len(x), 0.24)
    for axle in axle_x:
        inside = np.abs(x - axle) < arch
        bottom[inside] = np.maximum(bottom[inside], np.sqrt(arch**2 - (x[inside] - axle) ** 2) + arch * 0.9)
    bottom[[0, -1]] = 0.36
    top = np.interp(x, *profile)
    w = width / 2 * np.interp(np.abs(x), [0, half - 0.5, half - 0.12, half], [1, 0.99, 0.94, 0.84])
    waist = np.maximum(0.62 * top, bottom + 0.02)
    edge = [(0.94 * w, bottom), (w, waist), (0.96 * w, top - 0.07), (0.86 * w, top)]
    ring = [*edge, *((-y, z) for y, z in reversed(edge))]
    rings = np.stack([np.stack([x, y, z], axis=1) for y, z in ring], axis=1)
    return loft(rings, Material.LACQUER, color)


def _cabin(glass_x: np.ndarray, width: float, profile: tuple, height: float, color: np.ndarray) -> Mesh:
    """Windows, pillars and roof."""
    rear, roof_rear, roof_front, front = glass_x
    middle = (roof_rear + roof_front) / 2
    x = np.array([rear, roof_rear, roof_rear + 0.1, middle - 0.05, middle + 0.05, roof_front - 0.08, roof_front, front])
    belt = np.interp(x, *profile) - 0.01
    roof = np.array([belt[0] + 0.01, height - 0.04, height, height, height, height, height - 0.02, belt[-1] + 0.01])
    low, up = np.full(len(x), 0.90 * width / 2), np.full(len(x), 0.74 * width / 2)
    up[[0, -1]] = 0.86 * width / 2
    edge = [(low, belt), (up, roof - 0.05 * (roof - belt)), (0.9 * up, roof)]
    ring = [*edge, *((-y, z) for y, z in reversed(edge))]
    rings = np.stack([np.stack([x, y, z], axis=1) for y, z in ring], axis=1)
    glazed = np.zeros((len(x) - 1, 6), bool)
    glazed[[2, 4], 0] = glazed[[2, 4], 4] = True
    glazed[[0, -1], 1:4] = True
    return loft(
        rings,
        np.where(glazed, Material.GLASS, Material.LACQUER),
        np.where(glazed[..., None], GLASS, color),
    )


def _trim(
    length: float, width: float, nose: float, boot: float, mirror_x: float, belt: float, color: np.ndarray
) -> list[Mesh]:
    """Lights, plates, grille and mirrors."""
    half, parts = length / 2, []
    for side in (-1, 1):
        y = side * 0.62 * width / 2
        parts.append(box([0.06, 0.34, 0.13], [half - 0.02, y, nose - 0.15], Material.LAMP, (0.8, 0.82, 0.85)))
        parts.append(box([0.05, 0.28, 0.16], [-half + 0.01, y, boot - 0.2], Material.LAMP, RED))
        mirror = [mirror_x - 0.15, side * (0.5 * width + 0.04), belt + 0.08]
        parts.append(box([0.12, 0.16, 0.13], mirror, Material.LACQUER, color))
    parts.append(box([0.05, 0.7, 0.16], [half, 0, 0.5], Material.PLASTIC, BLACK))
    for x in (half + 0.01, -half):
        parts.append(box([0.04, 0.5, 0.11], [x, 0, 0.42 if x > 0 else 0.55], Material.RETRO, WHITE))
    return parts


def _cab(length: float, width: float, height: float, front: float, color: Color) -> list[Mesh]:
    """A lorry cab whose nose is at x = `front`, with windscreen, side windows, grille and lights."""
    x = np.array([front - length, front - length + 0.02, front - 0.25, front])
    w = np.full(4, width / 2)
    roof = np.array([height - 0.1, height, height, height - 0.9])
    belt = np.full(4, 0.55 * height)
    edge = [(w, np.full(4, 0.5)), (w, belt), (0.93 * w, roof)]
    ring = [*edge, *((-y, z) for y, z in reversed(edge))]
    rings = np.stack([np.stack([x, y, z], axis=1) for y, z in ring], axis=1)
    body = loft(rings, Material.LACQUER, color)
    slope = np.arctan2(0.25, 0.9)
    middle = [front - 0.1, 0, height - 0.48]
    parts = [body, box([0.06, 0.88 * width, 0.8], middle, Material.GLASS, GLASS, pitch=-slope)]
    parts.append(box([0.06, 0.6 * width, 0.55], [front, 0, 0.95], Material.PLASTIC, BLACK))
    parts.append(box([0.10, 0.98 * width, 0.3], [front, 0, 0.5], Material.PLASTIC, GREY))
    for side in (-1, 1):
        window = [front - 0.45 * length - 0.15, side * 0.478 * width, 0.73 * height]
        parts.append(box([0.5 * length, 0.06, 0.22 * height], window, Material.GLASS, GLASS))
        parts.append(box([0.06, 0.3, 0.18], [front + 0.01, side * 0.38 * width, 0.7], Material.LAMP, WHITE))
        parts.append(
            box([0.1, 0.2, 0.45], [front - 0.1, side * (0.5 * width + 0.15), 0.72 * height], Material.PLASTIC, BLACK)
        )
    return parts


def truck(rng: np.random.Generator) -> Mesh:
    """A rigid lorry: cab, chassis, and a cargo box or an open bed."""
    length, width, height = rng.uniform(6.3, 9.0), rng.uniform(2.2, 2.5), rng.uniform(2.8, 3.5)
    color = CAR_COLORS[rng.integers(len(CAR_COLORS))]
    cargo = rng.uniform(0.3, 0.75) * np.array([1, rng.uniform(0.9, 1), rng.uniform(0.8, 1)])
    cab, half = 1.9, length / 2
    bed, middle = length - cab - 0.1, -cab / 2 - 0.05
    parts = _cab(cab, width, min(height - 0.2, 2.7), half, color)
    parts.append(box([length - 0.4, 0.9, 0.25], [-0.1, 0, 0.72], Material.METAL, BLACK))
    if rng.random() < 0.7:
        parts.append(box([bed, width, height - 0.95], [middle, 0, (height + 0.95) / 2], Material.PLASTIC, cargo))
        parts.append(box([0.04, 0.04, height - 1.1], [-half - 0.01, 0, (height + 0.95) / 2], Material.METAL, BLACK))
    else:
        parts.append(box([bed, width, 0.12], [middle, 0, 1.0], Material.METAL, GREY))
        for side in (-1, 1):
            parts.append(box([bed, 0.06, 0.6], [middle, side * (width / 2 - 0.03), 1.35], Material.METAL, cargo))
        parts.append(box([0.06, width, 0.6], [middle - bed / 2, 0, 1.35], Material.METAL, cargo))
        parts.append(
            box([0.55 * bed, 0.7 * width, 0.8], [middle, 0, 1.45], Material.PLASTIC, (0.4, 0.3, 0.18), taper=0.7)
        )
    parts += axles([half - 1.1, -half + 1.4], width, 0.46, 0.3)
    return merge([*parts, *_rear_lights(-half, width, 0.85)]).standing()


def _rear_lights(x: float, width: float, z: float) -> list[Mesh]:
    lights = [box([0.06, 0.3, 0.15], [x, s * 0.38 * width, z], Material.LAMP, RED) for s in (-1, 1)]
    return [*lights, box([0.04, 0.5, 0.11], [x, 0, z], Material.RETRO, WHITE)]


def bus(rng: np.random.Generator) -> Mesh:
    """A city bus with a window band, doors on the right and a windscreen."""
    length, width, height = rng.uniform(10.5, 12.5), 2.55, rng.uniform(2.95, 3.25)
    color = ((0.55, 0.05, 0.05), (0.65, 0.62, 0.55), (0.06, 0.22, 0.42), (0.75, 0.5, 0.05))[rng.integers(4)]
    half = length / 2
    x = np.array([-half, -half + 0.12, half - 0.15, half])
    w = width / 2 * np.array([0.93, 1, 1, 0.92])
    roof = height - np.array([0.15, 0, 0, 0.12])
    edge = [(w, np.full(4, 0.33)), (w, roof - 0.2), (0.9 * w, roof)]
    ring = [*edge, *((-y, z) for y, z in reversed(edge))]
    parts = [loft(np.stack([np.stack([x, y, z], axis=1) for y, z in ring], axis=1), Material.LACQUER, color)]
    bays = int((length - 1.6) / 1.5)
    for bay in range(bays):
        center = -half + 1.0 + (bay + 0.5) * (length - 1.6) / bays
        for side in (-1, 1):
            door = side < 0 and bay in (bays - 1, bays // 2)
            bottom, top = (0.45 if door else 1.25), height - 0.45
            place = [center, side * (width / 2 + 0.005), (bottom + top) / 2]
            parts.append(box([1.3, 0.03, top - bottom], place, Material.GLASS, GLASS))
    parts.append(box([0.05, 0.86 * width, 1.5], [half - 0.01, 0, height - 1.2], Material.GLASS, GLASS))
    parts.append(box([0.05, 0.8 * width, 0.8], [-half, 0, height - 0.9], Material.GLASS, GLASS))
    parts.append(box([0.05, 1.4, 0.22], [half + 0.01, 0, height - 0.3], Material.LAMP, (0.8, 0.4, 0.05)))
    parts += [box([0.06, 0.4, 0.2], [half, s * 0.36 * width, 0.75], Material.LAMP, WHITE) for s in (-1, 1)]
    return merge(
        [*parts, *_rear_lights(-half, width, 0.8), *axles([half - 2.6, -half + 3.0], width, 0.48, 0.3)]
    ).standing()


def trailer(rng: np.random.Generator) -> Mesh:
    """A parked semi-trailer: high box, three rear axles, landing legs."""
    length, width, height = rng.uniform(8.0, 12.5), 2.5, rng.uniform(3.4, 3.9)
    color = ((0.66, 0.66, 0.64), (0.08, 0.18, 0.38), (0.45, 0.08, 0.06), (0.2, 0.32, 0.2))[rng.integers(4)]
    half = length / 2
    parts = [box([length, width, height - 1.2], [0, 0, (height + 1.2) / 2], Material.PLASTIC, color)]
    for x in np.arange(-half + 0.6, half, 1.2):
        for side in (-1, 1):
            parts.append(
                box([0.06, 0.04, height - 1.3], [x, side * width / 2, (height + 1.2) / 2], Material.METAL, GREY)
            )
    parts.append(box([length - 0.6, 0.9, 0.25], [0, 0, 1.08], Material.METAL, BLACK))
    for side in (-1, 1):
        parts.append(tube([half - 2.2, side * 0.8, 0], [half - 2.2, side * 0.8, 1.1], 0.07, Material.METAL, GREY))
        parts.append(box([length * 0.4, 0.04, 0.4], [0, side * 1.15, 0.75], Material.METAL, GREY))
    parts.append(box([0.08, width, 0.12], [-half, 0, 0.55], Material.RETRO, RED))
    return merge(
        [*parts, *_rear_lights(-half, width, 1.05), *axles([-half + d for d in (1.0, 2.2, 3.4)], width, 0.48, 0.35)]
    ).standing()


def construction_vehicle(rng: np.random.Generator) -> Mesh:
    """An excavator: tracks, slewing house with cab, boom, stick and bucket."""
    scale, lift = rng.uniform(0.85, 1.1), rng.uniform(0.45, 0.75)
    color = np.array(YELLOW) * rng.uniform(0.85, 1.1)
    parts = []
    for side in (-1, 1):
        parts.append(box([3.2, 0.5, 0.5], [0, side * 0.95, 0.4], Material.RUBBER, BLACK))
        parts += [
            tube([x, side * 0.95 - 0.26, 0.4], [x, side * 0.95 + 0.26, 0.4], 0.4, Material.RUBBER, BLACK, sides=10)
            for x in (-1.6, 1.6)
        ]
    parts.append(tube([0, 0, 0.5], [0, 0, 0.95], 0.7, Material.METAL, BLACK, sides=10))
    parts.append(box([3.3, 2.3, 0.35], [-0.3, 0, 1.1], Material.LACQUER, color))
    parts.append(box([1.5, 2.3, 0.9], [-1.2, 0, 1.7], Material.LACQUER, color, taper=0.9))
    parts.append(box([1.5, 0.95, 1.6], [0.5, 0.65, 2.05], Material.LACQUER, color, taper=0.88))
    parts.append(box([1.40, 1.0, 0.8], [0.52, 0.65, 2.35], Material.GLASS, GLASS, taper=0.9))
    elbow = np.array([1.1 + 3.0 * np.cos(lift), -0.3, 1.3 + 3.0 * np.sin(lift)])
    wrist = elbow + np.array([0.9, 0, -1.9])
    parts.append(box([3.2, 0.4, 0.5], (np.array([1.0, -0.3, 1.3]) + elbow) / 2, Material.LACQUER, color, pitch=-lift))
    parts.append(tube(elbow, wrist, 0.22, Material.LACQUER, color, end_radius=0.16))
    parts.append(tube([0.9, -0.3, 2.0], elbow * 0.5 + [0.5, -0.15, 1.2], 0.07, Material.METAL, GREY))
    parts.append(box([0.7, 1.0, 0.6], wrist + np.array([-0.1, 0, -0.3]), Material.METAL, BLACK, taper=0.7))
    mesh = merge(parts)
    return Mesh((mesh.vertices * scale).astype(np.float32), mesh.faces, mesh.material, mesh.color).standing()

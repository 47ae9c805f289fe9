"""Houses with recessed windows, doors, shops and roofs. Metres; fronts on the x axis look towards +y."""

from __future__ import annotations

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.data.synthetic.mesh import Mesh, box, merge, quads
from lima_core.data.synthetic.vehicles import GLASS


def building(rng: np.random.Generator, width: float, depth: float) -> Mesh:
    """A house: front on the x axis looking towards +y, body behind it, 2-6 floors, windows, door, roof."""
    brick = rng.random() < 0.45
    tone = np.array([0.36, 0.17, 0.11]) if brick else np.array([0.58, 0.52, 0.43])
    color = (tone * rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3)).clip(0.05, 0.8)
    material = Material.BRICK if brick else Material.PLASTER
    floors, storey = int(rng.integers(2, 7)), rng.uniform(2.9, 3.4)
    height, trim = floors * storey + 0.6, color * 0.5 + 0.28
    shop = rng.random() < 0.5
    front = [_facade(width, floors, storey, shop, material, color, trim, rng)]
    side = _facade(depth, floors, storey, False, material, color, trim, rng)
    quarter = np.pi / 2
    front.append(side.at(width / 2, -depth / 2, 0, -quarter))
    front.append(side.at(-width / 2, -depth / 2, 0, quarter))
    back = [[-width / 2, -depth, 0], [width / 2, -depth, 0], [width / 2, -depth, height], [-width / 2, -depth, height]]
    front.append(quads([back], material, color))
    return merge([*front, *_roof(width, depth, height, floors < 4 and rng.random() < 0.6, material, color, trim, rng)])


def _facade(
    width: float,
    floors: int,
    storey: float,
    shop: bool,
    material: Material,
    color: np.ndarray,
    trim: np.ndarray,
    rng: np.random.Generator,
) -> Mesh:
    """A wall in the plane y = 0 looking towards +y: a grid of bays, each with a recessed window or a door."""
    bays = max(1, round(width / rng.uniform(2.6, 3.6)))
    bay, door = width / bays, int(rng.integers(bays))
    hole = np.array([min(1.3, 0.6 * bay), 0.52 * storey])
    corners: list[np.ndarray] = []
    surfaces: list[tuple[Material, np.ndarray]] = []
    for floor in range(floors):
        for i in range(bays):
            x, z = -width / 2 + i * bay, floor * storey
            low, high = np.array([bay / 2 - hole[0] / 2, 0.9]), np.array([bay / 2 + hole[0] / 2, 0.9 + hole[1]])
            ground = floor == 0 and (shop or i == door)
            if ground:
                low, high = np.array([0.12 * bay, 0.05]), np.array([0.88 * bay, 0.82 * storey])
            if ground and not shop:
                low[0], high[0] = bay / 2 - 0.5, bay / 2 + 0.5
            panes, kinds = _bay(low, high, bay, storey, material, color, trim, opening=ground and not shop)
            corners.append(panes + np.array([x, 0, z]))
            surfaces += kinds
    top = np.array([[[-width / 2, 0, 0], [width / 2, 0, 0], [width / 2, 0, 0.6], [-width / 2, 0, 0.6]]])
    corners.append(top + np.array([0, 0, floors * storey]))
    surfaces.append((material, color * 0.85))
    kinds, colors = zip(*surfaces, strict=True)
    return quads(np.concatenate(corners), np.array(kinds), np.array(colors))


def _bay(
    low: np.ndarray,
    high: np.ndarray,
    bay: float,
    storey: float,
    material: Material,
    color: np.ndarray,
    trim: np.ndarray,
    opening: bool,
) -> tuple[np.ndarray, list[tuple[Material, np.ndarray]]]:
    """Quads (Q, 4, 3) of one bay: wall about the hole low..high, its reveals, and the pane 0.18 m behind."""
    (x0, z0), (x1, z1), deep = low, high, -0.18

    def upright(a: float, b: float, c: float, d: float, y: float = 0.0) -> list:
        return [[a, y, c], [b, y, c], [b, y, d], [a, y, d]]

    wall = [upright(0, bay, 0, z0), upright(0, bay, z1, storey), upright(0, x0, z0, z1), upright(x1, bay, z0, z1)]
    edge = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
    reveal = [
        [[a[0], 0, a[1]], [b[0], 0, b[1]], [b[0], deep, b[1]], [a[0], deep, a[1]]]
        for a, b in zip(edge, edge[1:] + edge[:1], strict=True)
    ]
    frame = 0.07
    panes = [upright(x0, x1, z0, z1, deep), upright(x0 + frame, x1 - frame, z0 + frame, z1 - frame, deep + 0.02)]
    pane = (Material.BARK, np.array([0.16, 0.10, 0.07])) if opening else (Material.GLASS, np.array(GLASS))
    kinds = [(material, color)] * 4 + [(Material.PLASTER, trim)] * 5 + [pane]
    return np.array([*wall, *reveal, *panes]), kinds


def _roof(
    width: float,
    depth: float,
    height: float,
    gabled: bool,
    material: Material,
    color: np.ndarray,
    trim: np.ndarray,
    rng: np.random.Generator,
) -> list[Mesh]:
    """A gabled roof with overhang, or a flat one with cornice and a plant room."""
    tile = np.array([0.28, 0.11, 0.07]) if rng.random() < 0.5 else np.array([0.12, 0.12, 0.13])
    if not gabled:
        cornice = box([width + 0.3, depth + 0.3, 0.25], [0, -depth / 2, height], Material.PLASTER, trim)
        plant = box(
            [3, 2.5, 2.2], [rng.uniform(-0.2, 0.2) * width, -0.6 * depth, height + 1.1], Material.ROOF, trim * 0.6
        )
        return [cornice, plant]
    ridge, over, half = height + 0.35 * depth, 0.35, width / 2
    slopes = [
        [
            [-half - over, y, height - 0.2],
            [half + over, y, height - 0.2],
            [half + over, -depth / 2, ridge],
            [-half - over, -depth / 2, ridge],
        ]
        for y in (over, -depth - over)
    ]
    gables = [
        [[x, 0, height], [x, -depth, height], [x, -depth / 2, ridge], [x, -depth / 2, ridge]] for x in (-half, half)
    ]
    chimney = box([0.7, 0.7, 1.8], [0.3 * width, -depth / 2, ridge + 0.2], Material.BRICK, (0.3, 0.14, 0.1))
    return [quads(slopes, Material.ROOF, tile), quads(gables, material, color), chimney]

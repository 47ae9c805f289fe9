"""The ground of the street: carriageway with markings, kerbs, sidewalks, islands, side streets, lawns and plazas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lima_core.data.synthetic.materials import Material
from lima_core.data.synthetic.mesh import Color, Mesh, merge, quads
from lima_core.data.synthetic.road import Road

KERB_M, LINE_Z_M, FAR_M = 0.14, 0.004, 75.0
LANE_M, BIKE_M, PARKING_M = 3.4, 1.5, 2.3
ASPHALT, LINE = (0.085, 0.085, 0.088), (0.62, 0.62, 0.58)
SLABS, CURB = (0.30, 0.285, 0.265), (0.36, 0.355, 0.34)
GRASS, COBBLE = (0.10, 0.17, 0.045), (0.27, 0.21, 0.17)


@dataclass(frozen=True)
class Section:
    """Cross-section of the main road in metres: `lanes` each way about a `median`; carriageway to +-`half`.

    `walk` is the width of a sidewalk, `side` half the width of the side streets.
    """

    lanes: int
    median: float
    half: float
    walk: float
    side: float

    def lane(self, index: int) -> float:
        """Distance of the middle of a lane from the centre line; 0 is the innermost."""
        return self.median / 2 + LANE_M * (index + 0.5)


class Ground:
    """Meshes of the ground from s = `low` to `high`, cut by side streets at `crossings`."""

    def __init__(self, road: Road, section: Section, crossings: list[float], low: float, high: float) -> None:
        self._road, self._section, self._low = road, section, low
        self._runs = [
            (max(a + section.side, low), b - section.side)
            for a, b in pairwise(crossings)
            if a + section.side < high and b - section.side > low
        ]
        self._high = self._runs[-1][1] + 2 * section.side
        self._crossings = [c for c in crossings if low < c < self._high]

    def meshes(self, rng: Callable[..., np.random.Generator]) -> Iterator[tuple[str, Mesh]]:
        """Pairs of class name and mesh; `rng(*purpose)` gives the generator of each purpose."""
        half, side = self._section.half, self._section.side
        road = [self._strip(self._low, self._high, -half, half, 0.0, Material.ASPHALT, ASPHALT)]
        for center in self._crossings:
            for sign in (-1, 1):
                road.append(
                    self._strip(center - side, center + side, sign * half, sign * FAR_M, 0.0, Material.ASPHALT, ASPHALT)
                )
        yield "driveable_surface", merge([*road, *self._markings()])
        yield "sidewalk", merge([part for run in self._runs for part in self._sidewalks(*run)])
        tints = rng(2).uniform(0.85, 1.15, 3) * GRASS
        plots = [(i, run, sign) for i, run in enumerate(self._runs) for sign in (-1, 1)]
        yield "terrain", merge([self._lawn(*run, sign, tints, rng(2, i, sign + 1)) for i, run, sign in plots])
        yield "terrain", self._plain(tints)
        plazas = [patch for i, run, sign in plots for patch in self._plazas(*run, sign, rng(2, i, sign + 4))]
        islands = [part for run in self._runs for part in self._island(*run)]
        if plazas or islands:
            yield "other_flat", merge([*plazas, *islands])

    def _strip(self, s0: float, s1: float, d0: float, d1: float, z: float, material: Material, color: Color) -> Mesh:
        """A flat patch of road coordinates, cut every 4 m to follow the curve."""
        s = np.linspace(s0, s1, max(2, int((s1 - s0) / 4.0) + 1))
        edge = [np.c_[self._road.xy(s, d), np.full(len(s), z)] for d in (d0, d1)]
        return quads(np.stack([edge[0][:-1], edge[0][1:], edge[1][1:], edge[1][:-1]], axis=1), material, color)

    def _wall(self, s: np.ndarray, d: np.ndarray, z0: float, z1: float, color: Color) -> Mesh:
        """An upright band along a line of road coordinates."""
        xy = self._road.xy(s, d)
        low, high = np.c_[xy, np.full(len(xy), z0)], np.c_[xy, np.full(len(xy), z1)]
        return quads(np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1), Material.CONCRETE, color)

    def _raised(self, s0: float, s1: float, d0: float, d1: float, material: Material, color: Color) -> list[Mesh]:
        """A patch at kerb height with a kerb all around: 15 cm of stone, then the surface."""
        low, high, stone = min(d0, d1), max(d0, d1), 0.15
        s = np.linspace(s0, s1, max(2, int((s1 - s0) / 4.0) + 1))
        inner = (s0 + stone, s1 - stone, low + stone, high - stone)
        parts = [self._strip(*inner, KERB_M, material, color)]
        borders = [
            (s0, s1, low, low + stone),
            (s0, s1, high - stone, high),
            (s0, s0 + stone, low + stone, high - stone),
            (s1 - stone, s1, low + stone, high - stone),
        ]
        parts += [self._strip(*border, KERB_M, Material.CONCRETE, CURB) for border in borders]
        parts += [self._wall(s, np.full(len(s), d), 0.0, KERB_M, CURB) for d in (low, high)]
        across = np.array([low, high])
        return [*parts, *(self._wall(np.full(2, end), across, 0.0, KERB_M, CURB) for end in (s0, s1))]

    def _sidewalks(self, s0: float, s1: float) -> Iterator[Mesh]:
        half, outer = self._section.half, self._section.half + self._section.walk
        for sign in (-1, 1):
            yield from self._raised(s0, s1, sign * half, sign * outer, Material.PAVING, SLABS)
            for a, b in ((s0, s0 + 3.0), (s1 - 3.0, s1)):
                yield from self._raised(a, b, sign * outer, sign * FAR_M, Material.PAVING, SLABS)

    def _lawn(self, s0: float, s1: float, sign: int, color: np.ndarray, rng: np.random.Generator) -> Mesh:
        """Grass behind the sidewalk, flat beside it and uneven farther away."""
        outer = self._section.half + self._section.walk
        s = np.linspace(s0 + 3.0, s1 - 3.0, max(2, int((s1 - s0) / 3.0)))
        d = outer + np.array([0, 1.5, 3, 5, 7, 9, 12, 15, 19, 24, 31, 42, FAR_M - outer])
        away = np.clip((d - outer) / 25.0, 0, 1)
        z = 0.10 + rng.uniform(-0.02, 0.02, (len(s), len(d))) + away**2 * rng.uniform(0, 1.2, (len(s), len(d)))
        grid = np.dstack([self._road.xy(s[:, None], sign * d[None]), z])
        corners = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
        return quads(corners.reshape(-1, 4, 3), Material.GRASS, color)

    def _plain(self, color: np.ndarray) -> Mesh:
        """What lies below and beyond everything else."""
        middle, reach = self._road.xy((self._low + self._high) / 2, 0.0), 500.0 + (self._high - self._low) / 2
        ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * reach + middle
        return quads([np.c_[ring, np.full(4, -0.3)]], Material.GRASS, color)

    def _island(self, s0: float, s1: float) -> list[Mesh]:
        """The median of a run, where the road has one."""
        half = self._section.median / 2 - 0.15
        if half <= 0 or s1 - s0 < 24:
            return []
        return self._raised(s0 + 7, s1 - 7, -half, half, Material.GRAVEL, COBBLE)

    def _plazas(self, s0: float, s1: float, sign: int, rng: np.random.Generator) -> Iterator[Mesh]:
        """Patches of cobble between sidewalk and houses."""
        outer = self._section.half + self._section.walk
        for s in np.arange(s0 + 4, s1 - 24, 22.0):
            width, deep = rng.uniform(10, 20), rng.uniform(3, 9)
            if rng.random() < 0.5:
                patch = (s, s + width, sign * outer, sign * (outer + deep))
                yield self._strip(*patch, KERB_M - 0.005, Material.GRAVEL, COBBLE)

    def _markings(self) -> Iterator[Mesh]:
        """Centre, lane, cycle and parking lines, stop lines and zebra crossings."""
        section = self._section
        for s0, s1 in self._runs:
            edge = section.half - PARKING_M
            if not section.median:
                for d in (-0.12, 0.12):
                    yield self._line(s0 + 7, s1 - 7, d, 0.12)
            for sign in (-1, 1):
                for lane in range(1, section.lanes):
                    for s in np.arange(s0 + 10, s1 - 12, 9.0):
                        yield self._line(s, s + 3.0, sign * (section.median / 2 + lane * LANE_M), 0.13)
                yield self._line(s0 + 6, s1 - 6, sign * (edge - BIKE_M), 0.15)
                yield self._line(s0 + 9, s1 - 9, sign * edge, 0.10)
                for s in np.arange(s0 + 10, s1 - 9, 6.5):
                    patch = (s - 0.05, s + 0.05, sign * edge, sign * section.half)
                    yield self._strip(*patch, LINE_Z_M, Material.LINE, LINE)
            for s in (s0 + 1.0, s1 - 4.0):
                for d in np.arange(-section.half + 0.7, section.half - 0.5, 1.1):
                    yield self._strip(s, s + 3.0, d, d + 0.55, LINE_Z_M, Material.LINE, LINE)
            for s, sign in ((s1 - 5.6, -1), (s0 + 5.2, 1)):
                patch = (s, s + 0.4, sign * (section.median / 2 + 0.2), sign * (edge - BIKE_M))
                yield self._strip(*patch, LINE_Z_M, Material.LINE, LINE)

    def _line(self, s0: float, s1: float, d: float, width: float) -> Mesh:
        return self._strip(s0, s1, d - width / 2, d + width / 2, LINE_Z_M, Material.LINE, LINE)

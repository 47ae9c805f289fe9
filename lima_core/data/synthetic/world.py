"""The layout of one simulated street by seed: ground, houses, plants, furniture, what is parked and what moves.

The road is cut by side streets into runs; every run, plot and slot draws from its own generator
`default_rng((seed, purpose, ...))`, so that the length of the drive does not change what stands where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lima_core.data.synthetic import people, props, vehicles
from lima_core.data.synthetic.buildings import building
from lima_core.data.synthetic.ground import BIKE_M, LANE_M, PARKING_M, Ground, Section
from lima_core.data.synthetic.mesh import Mesh, merge
from lima_core.data.synthetic.road import Drive, EgoMotion, Road, Travel

SLOT_M = 6.5
AROUND_M = 100.0
MANY = 1_000_000  # keeps the keys of generators non-negative
SIDES = (-1, 1)
MAKERS: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "barrier": props.barrier,
    "bicycle": people.bicycle,
    "bus": vehicles.bus,
    "car": vehicles.car,
    "construction_vehicle": vehicles.construction_vehicle,
    "motorcycle": people.motorcycle,
    "pedestrian": people.pedestrian,
    "traffic_cone": props.cone,
    "trailer": vehicles.trailer,
    "truck": vehicles.truck,
}


@dataclass(frozen=True)
class Thing:
    """An annotated object: class name and train id, mesh standing at its own origin, and where it is.

    `travel` moves it; a parked one has the fixed `parked` (4, 4) world_from_thing instead.
    """

    name: str
    label: int
    mesh: Mesh
    parked: np.ndarray | None = None
    travel: Travel | None = None

    def pose(self, t: float) -> np.ndarray:
        """(4, 4) world_from_thing at t seconds."""
        return self.parked if self.travel is None else self.travel.pose(t)

    def velocity(self, t: float) -> np.ndarray:
        """(2,) m/s over ground in the world."""
        return np.zeros(2) if self.travel is None else self.travel.velocity(t)


@dataclass(frozen=True)
class Static:
    """All that stands, as one mesh in the world; `label` (F,) uint8 train ids, `thing` (F,) int32 index or -1."""

    mesh: Mesh
    label: np.ndarray
    thing: np.ndarray


class World:
    """The street of `seed` for a drive of `seconds`. `road`, `ego`, `things`, `static`; `names` = train classes."""

    def __init__(self, seed: int, seconds: float, names: tuple[str, ...]) -> None:
        self.seed, self.names, self.seconds = seed, names, seconds
        rng = self.rng(0)
        lanes = int(rng.choice([1, 1, 2]))
        median = 1.8 if rng.random() < 0.5 else 0.0
        half = median / 2 + lanes * LANE_M + BIKE_M + PARKING_M
        section = Section(lanes, median, half, walk=float(rng.uniform(3.2, 4.2)), side=float(rng.uniform(3.8, 5.0)))
        drive = Drive(0.0, rng.uniform(7.2, 9.8), rng.uniform(0.5, 2.0), rng.uniform(0.4, 0.9), rng.uniform(0, 6.28))
        self.section, self.end = section, drive.s(seconds) + AROUND_M
        self.road = Road(rng, self.end + 260.0)
        self.ego = EgoMotion(Travel(self.road, drive, -section.lane(int(rng.integers(lanes)))))
        self.things: list[Thing] = []
        self._meshes: list[Mesh] = []
        self._labels: list[np.ndarray] = []
        self._owners: list[np.ndarray] = []
        self.crossings = self._crossings()
        self._build_ground()
        for run, (start, end) in enumerate(pairwise(self.crossings)):
            self._build_run(run, start + section.side, end - section.side)
        self._build_traffic()
        self.static = Static(merge(self._meshes), np.concatenate(self._labels), np.concatenate(self._owners))
        del self._meshes, self._labels, self._owners

    def rng(self, *purpose: int) -> np.random.Generator:
        """The generator of one purpose; independent of what was drawn before."""
        return np.random.default_rng((self.seed, *purpose))

    def _crossings(self) -> list[float]:
        """Centres of the side streets along s, from behind the ego to past the end of the drive."""
        centers: list[float] = []
        while not centers or centers[-1] < self.end:
            index = len(centers)
            centers.append(120.0 * (index - 2) + 50.0 + float(self.rng(1, index).uniform(-18, 18)))
        return centers

    def _stand(self, mesh: Mesh, label: str, thing: int = -1) -> None:
        """Adds a mesh in world coordinates to what stands."""
        count = len(mesh.faces)
        self._meshes.append(mesh)
        self._labels.append(np.full(count, self.names.index(label), np.uint8))
        self._owners.append(np.full(count, thing, np.int32))

    def _put(self, mesh: Mesh, label: str, s: float, d: float, z: float, yaw: float = 0.0) -> None:
        """Adds a local mesh that is not annotated at (s, d)."""
        if -AROUND_M < s < self.end:
            self._stand(mesh.moved(self.road.pose(s, d, z, yaw)), label)

    def _park(self, name: str, s: float, d: float, yaw: float, rng: np.random.Generator, z: float = 0.0) -> None:
        """Adds an annotated object that stands still at (s, d)."""
        if -AROUND_M < s < self.end:
            thing = Thing(name, self.names.index(name), MAKERS[name](rng), parked=self.road.pose(s, d, z, yaw))
            self._stand(thing.mesh.moved(thing.parked), name, len(self.things))
            self.things.append(thing)

    def _build_ground(self) -> None:
        ground = Ground(self.road, self.section, self.crossings, -AROUND_M - 60.0, self.end + 60.0)
        for label, mesh in ground.meshes(self.rng):
            self._stand(mesh, label)

    def _build_run(self, run: int, start: float, end: float) -> None:
        for side in SIDES:
            blocked = self._work_zone(run, side, start, end)
            self._parking(run, side, start, end, blocked)
            self._sidewalk(run, side, start, end)
            self._plots(run, side, start + 3.0, end - 3.0)
        if self.section.median:
            rng = self.rng(8, run)
            for s in np.arange(start + 12, end - 8, 7.0):
                plant = [props.bush, props.sign, props.tree][rng.choice(3, p=[0.6, 0.2, 0.2])]
                label = "manmade" if plant is props.sign else "vegetation"
                self._put(plant(rng), label, s, 0.0, 0.15, np.pi)

    def _work_zone(self, run: int, side: int, start: float, end: float) -> tuple[float, float]:
        """Excavator, barriers and cones in the parking lane of one side; returns the interval of s that it takes."""
        rng = self.rng(3, run)
        if side != rng.choice(SIDES):
            return (0.0, 0.0)
        length = rng.uniform(16, 24)
        low = rng.uniform(start + 12, end - 12 - length)
        middle, edge = self.section.half - PARKING_M / 2, self.section.half - PARKING_M - 0.25
        self._park("construction_vehicle", low + length / 2, side * (middle + 0.4), rng.uniform(-0.15, 0.15), rng)
        for s in np.arange(low + 2, low + length - 1, 2.7):
            self._park("barrier", s, side * edge, rng.uniform(-0.05, 0.05), rng)
        for fraction in (0.0, 0.33, 0.66, 1.0):
            across = side * (edge + fraction * (PARKING_M - 0.2))
            self._park("traffic_cone", low - 3 * fraction + rng.uniform(-0.2, 0.2), across, 0.0, rng)
            self._park("traffic_cone", low + length + 3 * fraction, across, 0.0, rng)
        return (low - 4.0, low + length + 4.0)

    def _parking(self, run: int, side: int, start: float, end: float, blocked: tuple[float, float]) -> None:
        """Fills the slots of a parking lane; long vehicles take two."""
        slots = np.arange(start + 10, end - 10 - SLOT_M, SLOT_M)
        middle, taken = side * (self.section.half - PARKING_M / 2), -1
        for slot, s in enumerate(slots):
            rng = self.rng(4, run, side + 1, slot)
            kinds = ["car", "", "truck", "bus", "trailer", "motorcycle"]
            kind = str(rng.choice(kinds, p=[0.46, 0.26, 0.08, 0.04, 0.08, 0.08]))
            long = kind in ("truck", "bus", "trailer")
            reach = SLOT_M * (2 if long else 1)
            if slot <= taken or not kind or s + reach > end - 8 or (s < blocked[1] and s + reach > blocked[0]):
                continue
            heading = (0.0 if side < 0 else np.pi) + rng.normal(0, 0.02)
            if kind == "motorcycle":
                for i in range(3):
                    self._park(kind, s + 1.2 + 1.6 * i, middle, heading + side * 1.2 + rng.normal(0, 0.1), rng)
            else:
                self._park(kind, s + reach / 2 + rng.uniform(-0.3, 0.3), middle + rng.normal(0, 0.06), heading, rng)
            taken = slot + 1 if long else slot

    def _sidewalk(self, run: int, side: int, start: float, end: float) -> None:
        """Lamps, trees, signs, bins, parked bicycles along the kerb; traffic lights at the corners."""
        near, inward = side * (self.section.half + 0.65), -side * np.pi / 2
        for slot, s in enumerate(np.arange(start + 4, end - 3, 3.6)):
            rng = self.rng(5, run, side + 1, slot)
            pick = rng.random()
            if slot % 7 == 3:
                self._put(props.lamp_post(rng), "manmade", s, near, 0.14, inward)
            elif pick < 0.24:
                self._put(props.tree(rng), "vegetation", s, near, 0.14, rng.uniform(0, 6.28))
            elif pick < 0.31:
                self._put(props.sign(rng), "manmade", s, near, 0.14, np.pi if side < 0 else 0.0)
            elif pick < 0.38:
                self._put(props.bin_(rng), "manmade", s, near, 0.14, inward)
            elif pick < 0.52:
                for i in range(int(rng.integers(1, 4))):
                    self._park("bicycle", s - 0.9 + 0.8 * i, near, inward + rng.normal(0.5, 0.1), rng, 0.14)
            elif pick < 0.56:
                self._park("motorcycle", s, near + side * 0.1, rng.normal(0, 0.1), rng, 0.14)
            elif pick < 0.60:
                self._park("pedestrian", s, near + side * 0.2, rng.uniform(0, 6.28), rng, 0.14)
            elif pick < 0.62:
                self._put(props.shelter(rng), "manmade", s, near + side * 1.9, 0.14, 0.0 if side < 0 else np.pi)
        s, turn = (end - 0.6, np.pi) if side < 0 else (start + 0.6, 0.0)
        self._put(props.traffic_light(self.rng(6, run, side + 1)), "manmade", s, near, 0.14, turn)

    def _plots(self, run: int, side: int, start: float, end: float) -> None:
        """Houses, parks and yards behind the sidewalk."""
        front, s, plot = self.section.half + self.section.walk, start, 0
        while s < end - 9:
            rng = self.rng(7, run, side + 1, plot)
            width = min(rng.uniform(10, 20), end - s)
            if -AROUND_M < s + width / 2 < self.end:
                self._plot(side, s, width, front, rng)
                self._backdrop(side, s + width / 2, front + rng.uniform(26, 40), rng)
            s, plot = s + width, plot + 1

    def _plot(self, side: int, s: float, width: float, front: float, rng: np.random.Generator) -> None:
        middle, inward = s + width / 2, np.pi if side > 0 else 0.0
        if rng.random() < 0.68:
            setback = float(rng.choice([0.0, 0.0, rng.uniform(2.5, 5.5)]))
            house = building(rng, width - rng.choice([0.0, 0.4, 3.0]), rng.uniform(9, 13))
            self._put(house, "manmade", middle, side * (front + setback), 0.1, inward)
            if setback and rng.random() < 0.6:
                self._put(props.hedge(rng, 0.7 * width), "vegetation", middle, side * (front + 0.7), 0.12)
            return
        for _ in range(int(rng.integers(2, 6))):
            plant = props.tree if rng.random() < 0.55 else props.bush
            where = s + rng.uniform(1, width - 1), side * (front + rng.uniform(1.5, 14))
            self._put(plant(rng), "vegetation", *where, 0.1, rng.uniform(0, 6.28))
        if rng.random() < 0.5:
            self._put(props.fence(rng, width - 1), "manmade", middle, side * (front + 0.4), 0.12)
        if rng.random() < 0.4:
            self._park("pedestrian", middle, side * (front + rng.uniform(2, 6)), rng.uniform(0, 6.28), rng, 0.12)

    def _backdrop(self, side: int, s: float, d: float, rng: np.random.Generator) -> None:
        """A second row of houses or trees, so that gaps in the first do not open on nothing."""
        if rng.random() < 0.45:
            house = building(rng, rng.uniform(9, 15), 9.0)
            self._put(house, "manmade", s, side * d, 0.1, np.pi if side > 0 else 0.0)
        else:
            for shift in (-4.0, 3.0):
                turn = rng.uniform(0, 6.28)
                self._put(props.tree(rng), "vegetation", s + shift, side * (d + rng.uniform(-4, 4)), 0.1, turn)

    def _move(self, name: str, mesh: Mesh, drive: Drive, d: float, z: float = 0.0) -> None:
        dips = tuple((c - self.section.side, c + self.section.side) for c in self.crossings) if z else ()
        self.things.append(Thing(name, self.names.index(name), mesh, travel=Travel(self.road, drive, d, z, dips)))

    def _build_traffic(self) -> None:
        """Cars before, behind and towards the ego, cyclists on their lanes, walkers on both sidewalks."""
        ego, section = self.ego.travel, self.section
        for lane in range(section.lanes):
            offset = section.lane(lane)
            if np.isclose(offset, -ego.d):
                self._platoon(ego.drive, -offset)
            else:
                self._stream(10 + lane, self.rng(10, lane).uniform(6.0, 10.0), -offset, 38.0, _vehicle)
            self._stream(20 + lane, -self.rng(20, lane).uniform(6.5, 10.5), offset, 28.0, _vehicle)
        for side in SIDES:
            edge = section.half - PARKING_M - BIKE_M / 2
            speed = -side * self.rng(30, side + 1).uniform(3.5, 5.5)
            self._stream(31 + side, speed, side * edge, 30.0, _cyclist)
            for row, z in enumerate((1.7, 2.5)):
                speed = (1 if row else -1) * self.rng(40, side + 1, row).uniform(1.0, 1.6)
                self._stream(41 + side + 3 * row, speed, side * (section.half + z), 14.0, _walker, 0.14)

    def _platoon(self, ego: Drive, d: float) -> None:
        """The ego's own lane: vehicles that keep their distance to it."""
        gap = 0.0
        for index in range(4):
            rng = self.rng(50, index)
            gap = -rng.uniform(14, 26) if index == 3 else gap + rng.uniform(15, 30)
            name, mesh = _vehicle(rng)
            self._move(name, mesh, Drive(ego.start + gap, ego.speed, ego.sway, ego.rate, ego.phase), d)

    def _stream(self, purpose: int, speed: float, d: float, spacing: float, maker: Callable, z: float = 0.0) -> None:
        """One lane of things at one speed, wherever some moment of the drive sees them."""
        travelled = speed * self.seconds
        first = int(np.floor((-AROUND_M - max(0.0, travelled)) / spacing))
        last = int(np.ceil((self.end - min(0.0, travelled)) / spacing))
        for index in range(first, last):
            rng = self.rng(60, purpose, index + MANY)
            name, mesh = maker(rng)
            self._move(name, mesh, Drive((index + rng.uniform(0, 0.45)) * spacing, speed), d, z)


def _vehicle(rng: np.random.Generator) -> tuple[str, Mesh]:
    name = str(rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.68, 0.11, 0.08, 0.13]))
    return name, people.motorcycle(rng, rider=True) if name == "motorcycle" else MAKERS[name](rng)


def _cyclist(rng: np.random.Generator) -> tuple[str, Mesh]:
    return "bicycle", people.bicycle(rng, rider=True)


def _walker(rng: np.random.Generator) -> tuple[str, Mesh]:
    return "pedestrian", people.pedestrian(rng)

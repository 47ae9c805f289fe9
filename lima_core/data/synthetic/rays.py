"""Ray casting by Embree (package embreex): one scene for what stands, one per rigid thing that moves.

Rays that may meet a moving thing are taken into its own frame at each ray's own time, so that rolling sensors
see exact motion. Scenes are built on first use and left out of pickles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from lima_core.data.synthetic.mesh import Mesh
from lima_core.data.synthetic.road import Drive
from lima_core.data.synthetic.world import World

SHADOW_M, MOVER_SHADOW_M = 80.0, 12.0  # what moves is low
BLOCK = 256  # rays that are tested together against the spheres of what moves
SLACK_M = 1.0  # a mover covers less than this during a sweep


@dataclass(frozen=True)
class Hits:
    """What N rays met: `distance` (N,) float32 m (inf = nothing), `face` (N,) index into `Caster` tables, -1 = nothing.

    `normal` (N, 3) float32 in the world, towards the viewer; `local` (N, 3) float32 point in the frame of the thing
    that was hit (the world for what stands); `cosine` (N,) float32 of the incidence.
    """

    distance: np.ndarray
    face: np.ndarray
    normal: np.ndarray
    local: np.ndarray
    cosine: np.ndarray

    def at(self, rows: np.ndarray) -> Hits:
        """The hits of some rays only."""
        return Hits(*(column[rows] for column in (self.distance, self.face, self.normal, self.local, self.cosine)))


class Caster:
    """Casts rays into a world at given times.

    Tables over all faces: `material`, `color`, `label`, `thing` (-1 = not annotated), `normal`.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._movers = [i for i, thing in enumerate(world.things) if thing.travel is not None]
        meshes = [world.static.mesh, *(world.things[i].mesh for i in self._movers)]
        counts = [len(m.faces) for m in meshes]
        self._first = np.cumsum([0, *counts])
        names = np.array([world.things[i].label for i in self._movers], np.uint8)
        self.material = np.concatenate([m.material for m in meshes])
        self.color = np.concatenate([m.color for m in meshes])
        self.label = np.concatenate([world.static.label, np.repeat(names, counts[1:])])
        self.thing = np.concatenate([world.static.thing, np.repeat(np.array(self._movers, np.int32), counts[1:])])
        self.normal = np.concatenate([_normals(m) for m in meshes])
        spheres = [np.linalg.norm(world.things[i].mesh.vertices, axis=1).max() for i in self._movers]
        self._radius = np.array(spheres, np.float32) + SLACK_M
        self._top = max((float(world.things[i].mesh.size[2]) for i in self._movers), default=0.0) + 0.2
        self._scenes: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scenes": {}}

    def _run(self, which: int, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray, query: str) -> Any:
        """Embree on scene `which`: 0 = what stands, k = mover k - 1."""
        if which not in self._scenes:
            mesh = self.world.things[self._movers[which - 1]].mesh if which else self.world.static.mesh
            scene = rtcore_scene.EmbreeScene()
            self._scenes[which] = (scene, TriangleMesh(scene, mesh.vertices, mesh.faces))
        return self._scenes[which][0].run(origins, directions, reach, query=query, output=query == "INTERSECT")

    def cast(self, origins: np.ndarray, directions: np.ndarray, times: np.ndarray | float, reach_m: float) -> Hits:
        """First hits of rays (N, 3) + (N, 3) unit, at times (N,) or one time in seconds, within `reach_m` metres."""
        origin, direction = (np.ascontiguousarray(a, np.float32) for a in (origins, directions))
        limit = np.full(len(origin), reach_m, np.float32)
        found = self._run(0, origin, direction, limit, "INTERSECT")
        face = found["primID"].astype(np.int64)
        distance = np.where(face >= 0, found["tfar"], np.float32(reach_m))
        normal = self.normal[face]
        local_origin, local_direction = origin.copy(), direction.copy()
        for which, rays, turn, start, heading in self._near(origin, direction, times, distance):
            met = self._run(which, start, heading, distance[rays], "INTERSECT")
            hit = met["primID"] >= 0
            rays, turn = rays[hit], turn[hit] if turn.ndim == 3 else turn
            distance[rays] = met["tfar"][hit]
            face[rays] = self._first[which] + met["primID"][hit]
            normal[rays] = np.einsum("ij,nj->ni" if turn.ndim == 2 else "nij,nj->ni", turn, self.normal[face[rays]])
            local_origin[rays], local_direction[rays] = start[hit], heading[hit]
        distance[face < 0] = np.inf
        cosine = -np.einsum("ij,ij->i", normal, direction)
        normal *= np.where(cosine < 0, np.float32(-1), np.float32(1))[:, None]
        local = local_origin + np.where(face < 0, np.float32(0), distance)[:, None] * local_direction
        return Hits(distance, face, normal, local, np.abs(cosine))

    def shadowed(self, origins: np.ndarray, direction: np.ndarray, time: float) -> np.ndarray:
        """(N,) bool: something stands between points (N, 3) and the sun in unit `direction` (3,)."""
        towards = np.ascontiguousarray(np.broadcast_to(direction.astype(np.float32), origins.shape))
        dark = self._run(0, origins, towards, np.full(len(origins), SHADOW_M, np.float32), "OCCLUDED") >= 0
        open_ = np.flatnonzero(~dark & (origins[:, 2] < self._top))
        limit = np.full(len(open_), MOVER_SHADOW_M, np.float32)
        for which, rays, _, start, heading in self._near(origins[open_], towards[open_], time, limit):
            dark[open_[rays]] |= self._run(which, start, heading, limit[rays], "OCCLUDED") >= 0
        return dark

    def _near(
        self, origin: np.ndarray, direction: np.ndarray, times: np.ndarray | float, reach: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Per mover that some rays may meet: (scene, ray indices, world_from_thing rotations, local rays)."""
        if not len(origin) or not self._movers:
            return
        centers = self._centers(float(np.mean(times))).astype(np.float32)
        candidates = self._blocks_in_view(centers, origin, direction, float(reach.max()))
        for k in np.flatnonzero(candidates.any(axis=0)):
            rays = (np.flatnonzero(candidates[:, k])[:, None] * BLOCK + np.arange(BLOCK)).ravel()
            rays = rays[: np.searchsorted(rays, len(origin))]
            offset = centers[k] - origin.take(rays, axis=0)
            along = np.einsum("ij,ij->i", offset, direction.take(rays, axis=0))
            square = np.einsum("ij,ij->i", offset, offset) - np.maximum(along, 0) ** 2
            rays = rays[(square < self._radius[k] ** 2) & (along < reach[rays] + self._radius[k])]
            if len(rays):
                travel = self.world.things[self._movers[k]].travel
                pose = travel.pose(times if np.ndim(times) == 0 else times[rays]).astype(np.float32)
                turn = pose[..., :3, :3]
                shape = "ji,nj->ni" if turn.ndim == 2 else "nji,nj->ni"
                start = np.einsum(shape, turn, origin[rays] - pose[..., :3, 3])
                heading = np.einsum(shape, turn, direction[rays])
                yield k + 1, rays, turn, np.ascontiguousarray(start), np.ascontiguousarray(heading)

    def _centers(self, time: float) -> np.ndarray:
        """(M, 3) where the moving things stand."""
        drives = [self.world.things[i].travel.drive for i in self._movers]
        columns = np.array([[d.start, d.speed, d.sway, d.rate, d.phase] for d in drives]).reshape(-1, 5).T
        across = np.array([self.world.things[i].travel.d for i in self._movers])
        xy = self.world.road.xy(Drive(*columns).s(time), across)
        return np.c_[xy, np.zeros(len(xy))]

    def _blocks_in_view(
        self, centers: np.ndarray, origin: np.ndarray, direction: np.ndarray, reach: float
    ) -> np.ndarray:
        """(B, M) bool: blocks of consecutive rays whose common cone meets the sphere of a mover."""
        count = -(-len(origin) // BLOCK)
        padded = np.minimum(np.arange(count * BLOCK), len(origin) - 1)
        origin, direction = (a[padded].reshape(count, BLOCK, 3) for a in (origin, direction))
        apex, axis = origin.mean(axis=1), direction.mean(axis=1)
        axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)
        width = np.sqrt(((origin - apex[:, None]) ** 2).sum(axis=2).max(axis=1))
        half = np.arccos(np.einsum("bni,bi->bn", direction, axis).min(axis=1).clip(-1, 1))
        offset = centers - apex[:, None]
        distance = np.linalg.norm(offset, axis=2).clip(1e-6)
        spread = self._radius + width[:, None]
        angle = np.arccos((np.einsum("bmi,bi->bm", offset, axis) / distance).clip(-1, 1))
        margin = np.arcsin((spread / distance).clip(0, 1))
        return (distance < spread) | ((distance < reach + spread) & (angle < half[:, None] + margin + 1e-3))


def _normals(mesh: Mesh) -> np.ndarray:
    """(F, 3) float32 unit normals; zero for degenerate triangles, which no ray hits."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)

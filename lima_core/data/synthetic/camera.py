"""Cameras of the simulated street: sunlight with cast shadows, skylight, textures, reflections, haze."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lima_core.data.frame import Image
from lima_core.data.synthetic.materials import GLOSS, Material
from lima_core.data.synthetic.rays import Caster, Hits
from lima_core.data.synthetic.sky import GROUND, HORIZON, Sky
from lima_core.data.synthetic.textures import shade

FAR_M, HAZE_M, EXPOSURE, NOISE = 400.0, 420.0, 0.62, 0.006
SUBPIXELS = np.array([[-0.35, 0.12], [0.12, -0.35], [0.30, 0.30]])
WHITE = 2.5  # radiance that the picture shows as white; brighter samples would leave stairs


def intrinsics(field_deg: float, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) pinhole matrix of a horizontal field of view; pixel centres at whole numbers."""
    focal = size[0] / 2 / np.tan(np.deg2rad(field_deg) / 2)
    return np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])


def pixel_rays(world_from_camera: np.ndarray, K: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unit directions (N, 3) float32 in the world through pixels (N,) u, (N,) v."""
    camera = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(len(u))], axis=1)
    camera /= np.sqrt(np.einsum("ij,ij->i", camera, camera))[:, None]
    return (camera @ world_from_camera[:3, :3].T).astype(np.float32)


@lru_cache
def _tiled(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (N,) of all pixels, 16 x 16 at a time: rays that follow each other stay close together."""
    v, u = np.divmod(np.arange(width * height), width)
    order = np.lexsort((u, v, u // 16, v // 16))
    return u[order], v[order]


class Renderer:
    """Draws what a camera sees of the caster's world under the sky of its seed."""

    def __init__(self, caster: Caster) -> None:
        self._caster = caster
        self._sky = Sky(caster.world.rng(90))

    def image(
        self,
        world_from_camera: np.ndarray,
        K: np.ndarray,
        size: tuple[int, int],
        time_s: float,
        rng: np.random.Generator,
    ) -> Image:
        """Picture at `time_s` (simulation time) of `size` (width, height); `rng` is the sensor's noise.

        One ray per pixel, and further ones where an outline runs through it.
        """
        u, v = _tiled(*size)
        origin, focal = world_from_camera[:3, 3].astype(np.float32), K[0, 0]
        color, face = self._look(origin, pixel_rays(world_from_camera, K, u, v), time_s, focal)
        faces = np.empty((size[1], size[0]), face.dtype)
        faces[v, u] = face
        rough = np.flatnonzero(self._outlines(faces)[v, u])
        spread = np.repeat(rough, len(SUBPIXELS))
        du, dv = np.tile(SUBPIXELS, (len(rough), 1)).T
        finer = pixel_rays(world_from_camera, K, u[spread] + du, v[spread] + dv)
        extra = self._look(origin, finer, time_s, focal)[0].reshape(-1, len(SUBPIXELS), 3)
        color = color.clip(0, WHITE)
        color[rough] = (color[rough] + extra.clip(0, WHITE).sum(axis=1)) / (1 + len(SUBPIXELS))
        picture = np.empty((size[1], size[0], 3), np.float32)
        picture[v, u] = color
        return Image(pixels=_develop(picture, rng), source="simulated image")

    def _look(
        self, origin: np.ndarray, directions: np.ndarray, time_s: float, focal: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Linear radiance (N, 3) along rays from one origin, and the faces they meet."""
        hits = self._caster.cast(np.broadcast_to(origin, directions.shape), directions, time_s, FAR_M)
        hit, missed = np.flatnonzero(hits.face >= 0), np.flatnonzero(hits.face < 0)
        color = np.empty_like(directions)
        color[missed] = self._sky.radiance(directions[missed])
        color[hit] = self._lit(origin, directions[hit], hits.at(hit), time_s, focal)
        return color, hits.face

    def _outlines(self, face: np.ndarray) -> np.ndarray:
        """(H, W) bool: pixels beside one that shows another thing or material."""
        mark = self._caster.material[face] + np.int32(32) * self._caster.thing[face]
        mark[face < 0] = -1000
        edge = np.zeros(mark.shape, bool)
        across, down = mark[:, 1:] != mark[:, :-1], mark[1:] != mark[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= down
        edge[:-1] |= down
        return edge

    def _lit(self, origin: np.ndarray, directions: np.ndarray, hits: Hits, time_s: float, focal: float) -> np.ndarray:
        """(N, 3) linear radiance of what was hit."""
        sky, material = self._sky, self._caster.material[hits.face]
        albedo = self._albedo(hits, material, focal)
        facing = hits.normal @ sky.sun
        leaf = material == Material.LEAF
        facing[leaf] = 0.35 + 0.65 * np.abs(facing[leaf])  # light shines through leaves
        lit = np.flatnonzero(facing > 0)
        start = origin + hits.distance[lit, None] * directions[lit] + 0.02 * hits.normal[lit]
        direct = np.zeros(len(facing), np.float32)
        direct[lit] = facing[lit] * ~self._caster.shadowed(start, sky.sun, time_s)
        up = 0.5 + 0.5 * hits.normal[:, 2:]
        light = direct[:, None] * sky.sunlight + up * sky.skylight + (1 - up) * GROUND * 2.2
        color = albedo * light
        self._reflect(color, directions, hits, material, direct)
        haze = 1 - np.exp(-hits.distance / HAZE_M)[:, None]
        return color + haze * (HORIZON - color)

    def _albedo(self, hits: Hits, material: np.ndarray, focal: float) -> np.ndarray:
        """(N, 3) textured albedo; patterns lie on the ground in x, y and on walls along the wall and up."""
        albedo = self._caster.color[hits.face]
        normal = self._caster.normal[hits.face]
        footprint = hits.distance / focal / np.maximum(hits.cosine, 0.05)
        for kind in Material:
            rows = np.flatnonzero(material == kind)
            if not len(rows):
                continue
            point, facing = hits.local[rows], normal[rows]
            level = np.abs(facing[:, 2]) > 0.7
            along = (point[:, 1] * facing[:, 0] - point[:, 0] * facing[:, 1]) / np.hypot(
                facing[:, 0], facing[:, 1]
            ).clip(1e-6)
            u, v = np.where(level, point[:, 0], along), np.where(level, point[:, 1], point[:, 2])
            factor = shade(kind, u, v, footprint[rows])
            albedo[rows] *= factor if factor.ndim == 2 else factor[:, None]
        return albedo.clip(0, 1)

    def _reflect(
        self, color: np.ndarray, directions: np.ndarray, hits: Hits, material: np.ndarray, direct: np.ndarray
    ) -> None:
        """Adds the mirrored sky and the sun's highlight to glossy surfaces, with Schlick's Fresnel term."""
        gloss = GLOSS[material]
        rows = np.flatnonzero(gloss > 0)
        normal, ray = hits.normal[rows], directions[rows]
        mirrored = ray + 2 * hits.cosine[rows, None] * normal
        fresnel = 0.12 + 0.88 * (1 - hits.cosine[rows]) ** 4
        strength = (gloss[rows] * fresnel)[:, None]
        color[rows] += strength * (self._sky.gradient(mirrored) - color[rows])
        highlight = np.maximum(mirrored @ self._sky.sun, 0) ** 60 * (direct[rows] > 0) * gloss[rows]
        color[rows] += 1.2 * highlight[:, None] * self._sky.sunlight


def _develop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear radiance -> (H, W, 3) uint8: exposure, filmic curve (Narkowicz 2015 fit of ACES), gamma, noise."""
    x = picture * np.float32(EXPOSURE)
    x = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    x = x.clip(0, 1) ** np.float32(1 / 2.2)
    x += rng.standard_normal(x.shape[:2], dtype=np.float32)[..., None] * np.float32(NOISE)
    return (x * 255 + 0.5).clip(0, 255).astype(np.uint8)

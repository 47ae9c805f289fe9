"""Procedural surface patterns: noise tiles sampled at object coordinates, faded where a pixel covers too much."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from lima_core.data.synthetic.materials import Material

TILE = 512


@lru_cache(maxsize=1)
def _tiles() -> tuple[np.ndarray, np.ndarray]:
    """(512, 512) float32 periodic noise in [0, 1]: smooth over many scales (clouds), and fine grain."""
    rng = np.random.default_rng(20)
    scale = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE)))
    scale[0, 0] = 1.0
    spectra = (scale**-1.6, scale**-0.35)
    tiles = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(TILE, TILE))) * s).real for s in spectra]
    return tuple((0.5 + 0.2 * (t - t.mean()) / t.std()).clip(0, 1).astype(np.float32) for t in tiles)


def smooth(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N,) cloud-like noise in [0, 1]; coordinates in tiles of 1."""
    return _sample(_tiles()[0], u, v)


def grain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N,) fine noise in [0, 1]; coordinates in tiles of 1."""
    return _sample(_tiles()[1], u, v)


def _sample(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    count, columns = len(u), 1024
    rows = max(1, -(-count // columns))
    maps = np.zeros((2, rows * columns), np.float32)
    maps[0, :count], maps[1, :count] = (u % 1.0) * TILE, (v % 1.0) * TILE
    where = maps.reshape(2, rows, columns)
    return cv2.remap(tile, where[0], where[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).ravel()[:count]


def _cells(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N,) a number in [0, 1) per integer cell, by a multiplicative hash."""
    mixed = np.floor(u).astype(np.int64) * 374761393 + np.floor(v).astype(np.int64) * 668265263
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 & 0xFFFFFF
    return (mixed / 0x1000000).astype(np.float32)


def _joints(u: np.ndarray, v: np.ndarray, width: float) -> np.ndarray:
    """(N,) 1 on the joints of a unit grid, 0 elsewhere; `width` is the joint's share of a cell."""
    near = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
    return np.clip(1.5 - near / width, 0, 1)


def _fade(footprint: np.ndarray, detail: float) -> np.ndarray:
    """(N,) how much of a pattern of `detail` metres survives in a pixel that covers `footprint` metres."""
    return np.clip(1.6 - 1.2 * footprint / detail, 0, 1)


def shade(material: Material, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Factor (N,) or (N, 3) on the albedo of one material at surface coordinates u, v (m, v up on walls)."""
    pattern = PATTERNS.get(material)
    return np.ones(len(u), np.float32) if pattern is None else pattern(u, v, footprint)


def _asphalt(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    large, fine = smooth(u / 60, v / 60), grain(u / 4, v / 4)
    seam = np.abs(smooth(u / 22 + 0.3, v / 22) - 0.5) < 0.004
    patch = 0.12 * (smooth(u / 45 + 0.5, v / 45 + 0.7) > 0.72)
    stone = 1.1 * _fade(footprint, 0.06) * (fine - 0.5)
    return 0.72 + 0.5 * large + stone - patch - 0.35 * seam * _fade(footprint, 0.1)


def _line(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    worn = np.clip(4.0 * (smooth(u / 7, v / 7) - 0.62) + 1.2 * (grain(u / 4, v / 4) - 0.5), 0, 1)
    return 1.0 - 0.75 * worn * _fade(footprint, 0.3)


def _paving(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    a, b = u / 0.6, v / 0.6
    clear = _fade(footprint, 0.16)
    slabs = 0.16 * (_cells(a + 0.5, b + 0.5) - 0.5) - 0.4 * _joints(a + 0.5, b + 0.5, 0.025)
    return 0.8 + 0.4 * smooth(u / 30, v / 30) + clear * (slabs + 0.35 * (grain(u / 5, v / 5) - 0.5))


def _grass(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    patches, blades = smooth(u / 18, v / 18), grain(u / 5, v / 5)
    level = 0.55 + 0.6 * patches + 1.3 * (blades - 0.5) * _fade(footprint, 0.25)
    dry = np.clip(smooth(u / 40 + 0.4, v / 40) - 0.45, 0, 1)
    return level[:, None] * (1 + dry[:, None] * np.array([1.6, 0.7, 0.4], np.float32))


def _cobble(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    b = v / 0.2
    a = u / 0.2 + 0.5 * (np.floor(b) % 2)
    clear = _fade(footprint, 0.09)
    return 0.85 + 0.3 * smooth(u / 25, v / 25) + clear * (0.5 * (_cells(a, b) - 0.5) - 0.5 * _joints(a, b, 0.07))


def _brick(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    b = v / 0.085
    a = u / 0.26 + 0.5 * (np.floor(b) % 2)
    mortar = np.maximum(np.abs(a - np.round(a)) < 0.03, np.abs(b - np.round(b)) < 0.08)
    bricks = (0.55 * (_cells(a, b) - 0.5) + 0.5 * mortar) * _fade(footprint, 0.06)
    return _stained(u, v) + bricks


def _plaster(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return _stained(u, v) + 0.3 * (grain(u / 6, v / 6) - 0.5) * _fade(footprint, 0.08)


def _stained(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Weathered walls: streaks that run down and dirt near the ground."""
    return 0.78 + 0.3 * smooth(u / 6, v / 50) + 0.15 * smooth(u / 25, v / 25) - 0.25 * np.exp(-np.abs(v) / 0.6)


def _concrete(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return 0.75 + 0.5 * smooth(u / 8, v / 8) + 0.4 * (grain(u / 5, v / 5) - 0.5) * _fade(footprint, 0.08)


def _roof(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return 0.9 + 0.3 * (smooth(u / 9, v / 9) - 0.5) - 0.3 * _joints(u / 0.3, v / 0.3, 0.1) * _fade(footprint, 0.12)


def _bark(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return 0.7 + 0.8 * (grain(u / 3, v / 20) - 0.2) * (0.3 + 0.7 * _fade(footprint, 0.1))


def _leaf(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return 0.65 + 0.9 * (0.4 + 0.6 * _fade(footprint, 0.3)) * (grain(u / 6, v / 6) - 0.1)


def _cloth(u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return 0.8 + 0.4 * smooth(u / 2, v / 2)


PATTERNS = {
    Material.ASPHALT: _asphalt,
    Material.LINE: _line,
    Material.PAVING: _paving,
    Material.CONCRETE: _concrete,
    Material.GRASS: _grass,
    Material.GRAVEL: _cobble,
    Material.PLASTER: _plaster,
    Material.BRICK: _brick,
    Material.ROOF: _roof,
    Material.BARK: _bark,
    Material.LEAF: _leaf,
    Material.CLOTH: _cloth,
}

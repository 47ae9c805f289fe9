"""Surfaces of the simulated street: what the LiDAR gets back from them and how they shine in the sun."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Material(IntEnum):
    """One id per kind of surface; indexes `REFLECTIVITY`, `PASSES` and `GLOSS`."""

    ASPHALT = 0
    LINE = 1
    PAVING = 2
    CONCRETE = 3
    GRASS = 4
    GRAVEL = 5
    PLASTER = 6
    BRICK = 7
    GLASS = 8
    ROOF = 9
    LACQUER = 10
    METAL = 11
    RUBBER = 12
    PLASTIC = 13
    CLOTH = 14
    LEAF = 15
    BARK = 16
    RETRO = 17
    LAMP = 18


def _table(values: dict[Material, float], default: float) -> np.ndarray:
    return np.array([values.get(m, default) for m in Material], np.float32)


# Fractions of full scale at normal incidence, chosen so that the intensities of a sweep spread as on the real
# nuScenes keyframes (mean about 18 and standard deviation about 22 of 255; ScaLR standardises with these).
REFLECTIVITY = _table(
    {
        Material.ASPHALT: 0.05,
        Material.LINE: 0.28,
        Material.PAVING: 0.11,
        Material.CONCRETE: 0.13,
        Material.GRASS: 0.13,
        Material.GRAVEL: 0.10,
        Material.PLASTER: 0.14,
        Material.BRICK: 0.09,
        Material.GLASS: 0.03,
        Material.ROOF: 0.07,
        Material.LACQUER: 0.16,
        Material.METAL: 0.20,
        Material.RUBBER: 0.02,
        Material.PLASTIC: 0.15,
        Material.CLOTH: 0.11,
        Material.LEAF: 0.15,
        Material.BARK: 0.08,
        Material.RETRO: 0.95,
        Material.LAMP: 0.55,
    },
    0.1,
)
"""(19,) returned fraction at normal incidence."""

PASSES = _table({Material.GLASS: 0.75, Material.LEAF: 0.08, Material.LACQUER: 0.04}, 0.004)
"""(19,) probability that a ray gets no return from the surface at normal incidence."""

GLOSS = _table(
    {Material.GLASS: 0.9, Material.LACQUER: 0.45, Material.METAL: 0.3, Material.LAMP: 0.5, Material.PLASTIC: 0.1}, 0.0
)
"""(19,) strength of mirror reflection for the cameras."""

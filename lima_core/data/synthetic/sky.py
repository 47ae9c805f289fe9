"""Sun, sky and clouds of one day, by seed. Linear RGB radiance."""

from __future__ import annotations

import numpy as np

from lima_core.data.synthetic.textures import smooth

ZENITH = np.array([0.16, 0.34, 0.72], np.float32)
HORIZON = np.array([0.62, 0.70, 0.78], np.float32)
GROUND = np.array([0.16, 0.15, 0.14], np.float32)


class Sky:
    """`sun` (3,) unit direction towards it, `sunlight` and `skylight` (3,) RGB irradiance."""

    def __init__(self, rng: np.random.Generator) -> None:
        azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(30, 58))
        self.sun = np.array(
            [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)], np.float32
        )
        self.cover = float(rng.uniform(0.35, 0.62))
        warmth = float(np.sin(height))
        self.sunlight = np.array([2.5, 2.05 + 0.35 * warmth, 1.55 + 0.6 * warmth], np.float32)
        self.skylight = np.array([0.52, 0.62, 0.80], np.float32)
        self._drift = rng.uniform(0, 1, 2)

    def gradient(self, directions: np.ndarray) -> np.ndarray:
        """(N, 3) unit directions -> (N, 3) clear sky above, dull ground below."""
        up = directions[:, 2:]
        blend = np.exp(-4.0 * np.maximum(up, 0))
        below = np.clip(-8.0 * up, 0, 1)
        return (ZENITH + blend * (HORIZON - ZENITH)) * (1 - below) + GROUND * below

    def radiance(self, directions: np.ndarray) -> np.ndarray:
        """(N, 3) unit directions -> (N, 3) sky with clouds and the glow of the sun."""
        color = self.gradient(directions)
        up = np.maximum(directions[:, 2], 0.0)
        reach = 0.16 / (up + 0.12)
        u, v = directions[:, 0] * reach + self._drift[0], directions[:, 1] * reach + self._drift[1]
        cloud = np.clip((smooth(u, v) - 1 + self.cover) * 4.0, 0, 1) * np.clip(up * 9, 0, 1)
        white = 0.72 + 0.35 * smooth(u + 0.05 * self.sun[0], v + 0.05 * self.sun[1])
        color += cloud[:, None] * (white[:, None] - color)
        facing = np.maximum(directions @ self.sun, 0)
        return color + (0.35 * facing**40 + 4.0 * (facing > 0.9993))[:, None] * self.sunlight

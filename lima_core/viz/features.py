"""Point features as colours: what the student has learned of its targets, in one bird's-eye picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lima_core.viz.bev import caption, render_bev

SPREAD = 2.5  # standard deviations from the middle of a colour channel to its end


def feature_picture(points_base: np.ndarray, target: Tensor, student: Tensor, size_px: int = 480) -> np.ndarray:
    """(R, 3) points with a target in base_link, (R, C) targets and student features -> (S, 2 S, 3) uint8 RGB.

    Left the targets, right the student; colours are the three principal components of the targets' directions.
    """
    wanted, learned = (functional.normalize(x.double().cpu(), dim=1) for x in (target, student))
    center = wanted.mean(0)
    _, basis = torch.linalg.eigh((wanted - center).T @ (wanted - center) / len(wanted))
    scale = ((wanted - center) @ basis[:, -3:]).std(0)
    panels = []
    for name, features in (("target", wanted), ("student", learned)):
        components = (features - center) @ basis[:, -3:] / (SPREAD * scale)
        colors = (127.5 * (components.clamp(-1, 1) + 1)).round().numpy().astype(np.uint8)
        panels.append(render_bev(points_base, colors, size_px=size_px))
        caption(panels[-1], name, (10, 20))
    return np.concatenate(panels, 1)

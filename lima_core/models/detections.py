"""What a detection head decodes, as the boxes that everybody else speaks of."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lima_core.data.frame import Boxes, Detections


def to_detections(rows: Tensor) -> Detections:
    """(D, 11) x, y, z, l, w, h, yaw, velocity x, y, class, score, as the heads' `decode` gives them -> Detections."""
    table = rows.detach().float().cpu().numpy()
    center, size, yaw, velocity = np.split(table[:, :9].astype(np.float64), (3, 6, 7), axis=1)
    return Detections(Boxes(center, size, yaw[:, 0], velocity, table[:, 9].astype(np.uint8)), table[:, 10])

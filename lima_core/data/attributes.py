"""What a detected object does: nuScenes' attributes (spec/datasets.md 2.4, nuscenes_detection.yaml)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lima_core.data.frame import Boxes

ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
NO_ATTRIBUTE = 255
MOVING_M_S = 0.2

_MOVING_AND_STILL = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), ("vehicle.moving", "vehicle.parked")),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.with_rider", "cycle.without_rider")),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    **dict.fromkeys(("barrier", "traffic_cone"), (None, None)),
}


def attributes_by_speed(boxes: Boxes, class_names: Sequence[str]) -> np.ndarray:
    """(B,) uint8 indices into ATTRIBUTES by class and speed, 255 = the class has none; unknown speed counts as still.

    The rule of nuscenes_detection.yaml (OpenPCDet's). Raises ValueError on a class that nuScenes does not detect.
    """
    unknown = [name for name in class_names if name not in _MOVING_AND_STILL]
    if unknown:
        raise ValueError(f"{unknown[0]!r} has no attributes in nuScenes; known are {', '.join(_MOVING_AND_STILL)}")
    names = [_MOVING_AND_STILL[name] for name in class_names]
    table = np.array([[NO_ATTRIBUTE if n is None else ATTRIBUTES.index(n) for n in pair] for pair in names], np.uint8)
    moving = np.linalg.norm(boxes.velocity, axis=1) > MOVING_M_S  # nan is not greater
    return table[boxes.class_id, np.where(moving, 0, 1)]

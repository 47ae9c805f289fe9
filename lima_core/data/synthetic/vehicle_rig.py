"""The simulated vehicle's sensors: nuScenes' mounting and channel names. It needs no ray caster."""

from __future__ import annotations

import numpy as np

from lima_core.data.rig import CameraMount, Rig
from lima_core.geometry import se3

# name: heading deg, horizontal field of view deg, stamp after the LiDAR's ms, mounting x y z m (as on nuScenes)
CAMERAS = {
    "CAM_FRONT_LEFT": (55.0, 70.0, -43.1, (1.52, 0.49, 1.51)),
    "CAM_FRONT": (0.0, 70.0, -35.5, (1.70, 0.02, 1.51)),
    "CAM_FRONT_RIGHT": (-55.0, 70.0, -27.6, (1.55, -0.49, 1.50)),
    "CAM_BACK_RIGHT": (-110.0, 70.0, -20.1, (1.01, -0.48, 1.56)),
    "CAM_BACK": (180.0, 110.0, -10.4, (0.03, 0.00, 1.58)),
    "CAM_BACK_LEFT": (110.0, 70.0, -0.5, (1.04, 0.48, 1.59)),
}
# Rows are the vehicle's axes in camera coordinates: z forward, x right, y down.
BASE_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def street_rig() -> Rig:
    """The rig of the simulated vehicle: nuScenes mounting and channel names."""
    cameras = tuple(
        CameraMount(
            name=name,
            frame_id=name,
            image_topic=f"/{name}/image_rect_compressed",
            info_topic=f"/{name}/camera_info",
            base_from_camera=se3.poses(*place, np.deg2rad(heading)) @ se3.transform(BASE_FROM_OPTICAL, np.zeros(3)),
            offset_ms=offset,
        )
        for name, (heading, _, offset, place) in CAMERAS.items()
    )
    base_from_lidar = se3.poses(0.94, 0.0, 1.84, -np.pi / 2)
    return Rig("street", "/LIDAR_TOP", "LIDAR_TOP", base_from_lidar, cameras)

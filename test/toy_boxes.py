"""Sweeps with boxes that are made in a moment: flat ground, and cuboids of points of two classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lima_core.data.boxed import BoxedSweep
from lima_core.data.frame import Boxes

CAR, PEDESTRIAN = 0, 8  # of nuScenes' detection classes
CAR_LABEL, PEDESTRIAN_LABEL, ROAD_LABEL = 3, 6, 10  # of its segmentation classes
# a small volume: 8 x 8 cells above
BOUNDS = ["--bounds.low=[-6.4,-6.4,-5]", "--bounds.high=[6.4,6.4,3]", "--bounds.size=[0.2,0.2,0.2]"]
NETWORK = ["--model=voxelnet_tiny", "--detector.bev_width=8", "--detector.head_channels=8"]


class ToyBoxes(Sequence[BoxedSweep]):
    """`count` sweeps, each with a car and a pedestrian; half of the points are 0.1 s old."""

    ego_xy = np.zeros(2)

    def __init__(self, count: int, labels: bool = True, boxes: bool = True) -> None:
        self._count, self._labels, self._boxes = count, labels, boxes
        self.sequences = tuple(f"toy-{i // 2}" for i in range(count))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> BoxedSweep:
        rng = np.random.default_rng(range(self._count)[index])
        centers = np.array(
            [[rng.uniform(-4, -2), rng.uniform(-4, 4), -1.0], [rng.uniform(2, 4), rng.uniform(-4, 4), -0.9]]
        )
        sizes, yaw = np.array([[4.0, 1.8, 1.6], [0.7, 0.7, 1.8]]), rng.uniform(-3, 3, 2)
        if not self._boxes:
            centers, sizes, yaw = centers[:0], sizes[:0], yaw[:0]
        ground = np.column_stack([rng.uniform(-6, 6, (300, 2)), np.full(300, -1.8), np.full(300, 0.1)])
        parts, labels = [ground], [np.full(300, ROAD_LABEL)]
        for center, size, angle, label in zip(centers, sizes, yaw, (CAR_LABEL, PEDESTRIAN_LABEL), strict=False):
            local = rng.uniform(-0.5, 0.5, (120, 3)) * size
            cos, sin = np.cos(angle), np.sin(angle)
            turned = local @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
            parts.append(np.column_stack([turned + center, np.full(120, 0.5)]))
            labels.append(np.full(120, label))
        points = np.concatenate(parts).astype(np.float32)
        cloud = np.concatenate([np.column_stack([points, np.full(len(points), lag, np.float32)]) for lag in (0.0, 0.1)])
        found = Boxes(
            centers, sizes, yaw, np.full((len(centers), 2), 0.5), np.array([CAR, PEDESTRIAN], np.uint8)[: len(centers)],
            np.full(len(centers), 120, np.int32),
        )  # fmt: skip
        label = np.concatenate(labels).astype(np.uint8) if self._labels else None
        return BoxedSweep(cloud, len(points), found, label, 32)

    def classes(self, index: int) -> np.ndarray:
        """Of the boxes of a sweep."""
        return np.unique(self[index].boxes.class_id)

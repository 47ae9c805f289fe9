"""From a PointCloud2 to the points a network takes: decoded, scaled, straightened, and compared with its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lima_core.data.rig import Rig
from lima_core.data.ros_cloud import CloudPoints, cloud_points
from lima_core.runtime.parameters import ParameterError, Resolved
from lima_core.runtime.sweeps import SweepTimeError, Trajectory, deskewed
from lima_core.runtime.transforms import PoseError

DEFAULT_SCALE = 255.0


class Intake:
    """One LiDAR's clouds for a network that was trained on `expected`, a checkpoint's `inputs`.

    Used by one thread, but for `facts` and `reset`.
    """

    def __init__(
        self, expected: Mapping[str, Any], rig: Rig | None, settings: Resolved, warn: Callable[[str], None]
    ) -> None:
        self._settings, self._warn = settings, warn
        self._base_from_lidar = None if rig is None else rig.base_from_lidar
        given = settings["intensity_scale"] or not settings["input_check.enabled"]
        if settings["input_check.auto_intensity"] and given:
            raise ParameterError("input_check.auto_intensity needs intensity_scale: 0 and input_check.enabled: true")
        self._scale = settings["intensity_scale"] or (rig.intensity_scale if rig else DEFAULT_SCALE)
        self._intensity: str | None = "unknown"
        self._counts: Counter[str] = Counter()
        self._check = self._auto = None
        if settings["input_check.enabled"]:
            from lima_core.training.input_check import AutoScale, InputCheck  # torch, which the node loads later

            self._check = InputCheck(expected)
            if settings["input_check.auto_intensity"]:
                self._auto = AutoScale(self._check, self._scale)

    def decode(self, message: Any) -> CloudPoints:
        """PointCloud2 -> points with intensity scaled. Raises CloudError."""
        cloud = cloud_points(message, self._scale)
        if cloud.intensity_field is None and self._intensity is not None:
            self._warn("the cloud has no intensity field: the network gets 0 and will label worse")
        self._intensity = cloud.intensity_field
        return cloud

    def straightened(self, cloud: CloudPoints, stamp_ns: int, poses: Trajectory) -> np.ndarray:
        """(N, 4) points, with `sweeps.deskew` all at the stamp; else, counted, as they came."""
        if not self._settings["sweeps.deskew"]:
            return cloud.points
        if self._base_from_lidar is None:
            self._counts["no_rig"] += 1
            return cloud.points
        if "time_s" not in cloud.extra:
            self._counts["bad_times" if cloud.time_problem else "no_times"] += 1
            if cloud.time_problem:
                self._warn(f"a sweep keeps the motion inside it: {cloud.time_problem}")
            return cloud.points
        try:
            points = deskewed(cloud.points, cloud.extra["time_s"], stamp_ns, poses, self._base_from_lidar)
        except (PoseError, SweepTimeError) as error:
            self._counts["no_pose" if isinstance(error, PoseError) else "bad_times"] += 1
            self._warn(f"a sweep keeps the motion inside it: {error}")
            return cloud.points
        self._counts["deskewed"] += 1
        return points

    def look(self, cloud: CloudPoints) -> None:
        """Compares a sweep with the training, after it was published; a found scale holds from the next one on."""
        if self._check is None:
            return
        self._check.see(cloud.points, cloud.raw_intensity, cloud.extra.get("ring"))
        if self._auto is not None and (line := self._auto.update()) is not None:
            self._scale = self._auto.scale
            self._warn(line)

    def facts(self) -> dict[str, object]:
        """What diagnostics say."""
        findings = [] if self._check is None else self._check.findings()
        facts: dict[str, object] = {
            "intensity_field": self._intensity or "none: the network gets 0",
            "intensity_scale": self._scale,
            **{f"input.{index}": str(finding) for index, finding in enumerate(findings)},
        }
        if self._counts:
            counts = list(self._counts.items())  # at once: the worker adds reasons meanwhile
            facts["deskew"] = ", ".join(f"{reason} {count}" for reason, count in counts)
        return facts

    def reset(self) -> None:
        """Forgets the sweeps it compares; the scale stays."""
        if self._check is not None:
            self._check.reset()

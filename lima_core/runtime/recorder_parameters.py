"""Every parameter of a recording, by the node or by `python -m lima_core.tools.record`: config/recorder.yaml."""

from __future__ import annotations

from lima_core.runtime.parameters import Parameter, ParameterError, Resolved

TIME, DISTANCE, NOVELTY, ALL = "time", "distance", "novelty", "all"
TRIGGERS = (TIME, DISTANCE, NOVELTY, ALL)
GIGABYTE = 1e9

RECORDING = (
    Parameter(
        "poses", "auto", "Where poses come from; auto = odometry where it is", choices=("auto", "odometry", "tf")
    ),
    Parameter("triggers", TIME, f"What lets a sweep be recorded, comma between: {', '.join(TRIGGERS)}"),
    Parameter("trigger.every_s", 0.5, "time: seconds since the last recorded sweep", 0.0, 1e6),
    Parameter("trigger.every_m", 1.0, "distance: metres driven since the last recorded sweep", 0.0, 1e6),
    Parameter("trigger.novelty", 0.1, "novelty: distance to what was recorded, 0 = the same .. 1", 0.0, 2.0),
    Parameter(
        "checkpoint", "", "novelty: network file whose features are compared; empty = the one that ships with lima"
    ),
    Parameter("snapshot_s", 0.0, "Seconds of sweeps kept in memory for ~/snapshot; 0 = none", 0.0, 600.0),
    Parameter("tolerance_ms", 45.0, "Largest distance of an image from its camera's offset, ms", 0.0, 1000.0),
    Parameter(
        "patience_ms", 1000.0, "How far the LiDAR may be ahead before a sweep goes without images, ms", 10.0, 60000.0
    ),
    Parameter("max_gap_ms", 2000.0, "LiDAR silence after which a new sequence begins, ms", 10.0, 1e6),
    Parameter("pose_gap_ms", 600.0, "Longest time between two poses to interpolate across, ms", 1.0, 10000.0),
    Parameter(
        "max_speed_m_s", 80.0, "A pose that is farther from the last is a reset: a new sequence begins", 0.1, 1e6
    ),
    Parameter("jpeg_quality", 95, "Quality of pictures that come raw, percent; JPEG and PNG stay as they are", 1, 100),
    Parameter("disk.quota_gb", 0.0, "Largest size of the recording, GB; 0 = no limit", 0.0, 1e6),
    Parameter("disk.min_free_gb", 2.0, "Recording stops where less is free on the disk, GB", 0.0, 1e6),
    Parameter(
        "disk.sync_s", 5.0, "Seconds between two syncs to the disk itself, against a loss of power; 0 = none", 0.0, 1e6
    ),
)


def chosen_triggers(settings: Resolved) -> tuple[str, ...]:
    """The parameter `triggers`. Raises ParameterError on an unknown one; empty = by ~/record_frame alone."""
    names = tuple(part.strip() for part in str(settings["triggers"]).split(",") if part.strip())
    unknown = [name for name in names if name not in TRIGGERS]
    if unknown:
        raise ParameterError(f"parameter triggers names {unknown[0]!r}; there are {', '.join(TRIGGERS)}")
    return names


def disk_limits(settings: Resolved) -> tuple[int, int]:
    """Quota, and what must stay free, in bytes."""
    return tuple(round(settings[f"disk.{name}_gb"] * GIGABYTE) for name in ("quota", "min_free"))

"""Every parameter of the perception node in one table, and how given values become checked settings.

The same dotted names stand in config/perception.yaml. No rclpy: the node declares what `resolve` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

Value = bool | int | float | str

# declared by rclpy itself, or its override namespace
FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides")


class ParameterError(ValueError):
    """A parameter has a wrong name, type or value; the message says what is expected."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: dotted name, default (which fixes its type), meaning; inclusive range or choices if it has.

    A `live` one may be changed while the node works; the others while it is unconfigured.
    """

    name: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    def check(self, value: object) -> Value:
        """The value in this parameter's type; an integer is welcome for a float. Raises ParameterError."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ParameterError(f"parameter {self.name} takes a {kind.__name__}, got {value!r}")
        if self.choices and value not in self.choices:
            raise ParameterError(f"parameter {self.name} is {value!r}; choose one of {', '.join(self.choices)}")
        if self.low is not None and not self.low <= value <= self.high:
            raise ParameterError(f"parameter {self.name} is {value}; its range is {self.low:g} .. {self.high:g}")
        return value


PARAMETERS = (
    Parameter("checkpoint", "", "Network file (.safetensors); empty = the street network that ships with lima"),
    Parameter("device", "auto", "Where the network runs", choices=("auto", "cpu", "cuda")),
    Parameter("rig", "", "Rig file (mounts, offsets and intensity scale); empty = LiDAR only"),
    Parameter("intensity_scale", 0.0, "Raw LiDAR intensity that means 1.0; 0 = the rig's, or 255", 0.0, 1e6),
    Parameter("autostart", True, "Configure and activate at once; false = wait for ~/enable or a lifecycle manager"),
    Parameter(
        "sync.policy",
        "sweep",
        "How images find their sweep; the last two by message_filters",
        choices=("sweep", "approximate", "exact"),
    ),
    Parameter("sync.timeout_ms", 50.0, "How long a sweep waits for its images, ms of real time", 0.0, 2000.0),
    Parameter("sync.tolerance_ms", 45.0, "Largest distance of an image from its camera's offset, ms", 0.0, 1000.0),
    Parameter("transforms", "auto", "Where poses come from", choices=("auto", "odometry", "tf")),
    Parameter("sweeps.count", 0, "Sweeps in a detector's cloud, the current one too; 0 = the checkpoint's", 0, 20),
    Parameter("sweeps.max_age_ms", 1000.0, "Oldest past sweep that is used, ms", 10.0, 8000.0),
    Parameter("sweeps.deskew", False, "Undo the motion inside a sweep whose points have times"),
    Parameter("detections.min_score", 0.3, "Least score of a box that is published", 0.0, 1.0, live=True),
    Parameter("detections.marker_lifetime_s", 0.5, "RViz shows a box for, s; 0 = until the next", 0.0, 60.0, live=True),
    Parameter("filter.classes", "", "Classes that ~/output/filtered leaves out, by name, comma between", live=True),
    Parameter("input_check.enabled", True, "Compare the input with what the network was trained on"),
    Parameter("input_check.auto_intensity", False, "Let the comparison choose intensity_scale, once"),
    Parameter("odometry.max_gap_ms", 600.0, "Longest time between two poses to interpolate across, ms", 1.0, 10000.0),
    Parameter("odometry.max_extrapolation_ms", 50.0, "How far motion is continued after the last pose, ms", 1.0, 500.0),
    Parameter("overlay.enabled", "auto", "Overlays: auto = when subscribed to", choices=("auto", "always", "never")),
    Parameter("overlay.point_radius_px", 0, "Radius of a drawn point, pixels; 0 = by image width", 0, 20, live=True),
    Parameter("overlay.jpeg_quality", 85, "JPEG quality of the overlays, percent", 1, 100, live=True),
    Parameter("watch.silent_after_s", 3.0, "Seconds without a message after which an input is reported", 0.1, 600.0),
    Parameter("ledger_file", "", "JSON file for the final counts, written at shutdown; empty = none"),
)


@dataclass(frozen=True)
class Resolved:
    """Checked value of every parameter, the names that were given, and names that are not of this node."""

    values: dict[str, Value]
    given: frozenset[str]
    foreign: tuple[str, ...]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def change(self, name: str, value: Value) -> None:
        """Sets a live parameter, whose value was checked."""
        self.values[name] = value

    def lines(self) -> list[str]:
        """`name = value (given|default)` for the log."""
        return [f"{n} = {v!r} ({'given' if n in self.given else 'default'})" for n, v in self.values.items()]


def resolve(given: Mapping[str, object], table: Iterable[Parameter] = PARAMETERS) -> Resolved:
    """Values given by the user over the defaults.

    A name close to one of ours is taken for a typing error and raises ParameterError; any other is left to other
    nodes of the same parameter file and listed in `foreign`.
    """
    known = {parameter.name: parameter for parameter in table}
    foreign = [name for name in given if name not in known and name.split(".")[0] not in FOREIGN]
    for name in foreign:
        near = get_close_matches(name, known, 1, cutoff=0.7)
        if near:
            raise ParameterError(f"there is no parameter {name!r}; did you mean {near[0]!r}?")
    values = {name: p.check(given.get(name, p.default)) for name, p in known.items()}
    return Resolved(values, frozenset(known.keys() & given.keys()), tuple(foreign))

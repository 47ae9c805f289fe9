"""Parameters of a node for its offline twin: the same names, from the same files, and from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lima_core.runtime.parameters import Parameter, ParameterError, Resolved, resolve


def given_settings(table: Sequence[Parameter], file: Path | None, pairs: Sequence[str]) -> Resolved:
    """Parameters of a ROS parameter file and of NAME=VALUE words, which win. Raises ParameterError."""
    given: dict[str, object] = {}
    try:
        if file is not None:
            given |= _flat(yaml.safe_load(file.read_text())["/**"]["ros__parameters"])
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals:
                raise ParameterError(f"{pair!r} is no NAME=VALUE")
            given[name] = yaml.safe_load(value) if value else ""
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"{file or pairs} is no parameter file with /**: ros__parameters: {error!r}") from error
    settings = resolve(given, table)
    if settings.foreign:
        raise ParameterError(f"there is no parameter {settings.foreign[0]!r}; there are {', '.join(settings.values)}")
    return settings


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested names -> dotted ones."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found

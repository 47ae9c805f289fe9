"""Configuration of every verb: frozen typed dataclasses, filled from YAML and `--a.b=c`.

`--config file.yaml` and options on the command line are read in the order they are given, the later one wins. An
unknown key or a wrong type is an error that names the nearest key; `--help` lists every key with unit and default.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

T = TypeVar("T")


class ConfigError(ValueError):
    """A key is unknown, a value has the wrong type or the file is missing."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with the line that --help prints: what it is, and its unit."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class _Leaf:
    """One key that can be set: dotted name, type hint, default and help line."""

    name: str
    hint: Any
    default: Any
    help: str


def read_config(kind: type[T], argv: Sequence[str], prog: str, description: str = "") -> T:
    """Command line -> an instance of the dataclass `kind`. Raises ConfigError; exits after --help."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    leaves = _leaves(kind)
    for leaf in leaves:
        bare = {"nargs": "?", "const": True} if leaf.hint is bool else {}
        parser.add_argument(f"--{leaf.name}", type=leaf.hint, default=leaf.default, help=leaf.help, **bare)
    try:
        values = parser.parse_args(list(argv)).as_dict()
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), [leaf.name for leaf in leaves])) from error
    return config_from_dict(kind, {key: value for key, value in values.items() if key != "config"})


def config_from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Nested plain values, as `plain` gives them -> `kind`. Raises ConfigError on an unknown key."""
    return _build(kind, values, "")


def plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts and lists, ready for YAML and JSON."""
    return _listed(asdict(config))


def to_yaml(config: Any) -> str:
    """A config as YAML that --config reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def _leaves(kind: type, prefix: str = "") -> list[_Leaf]:
    """The keys of a dataclass, those of nested ones included."""
    found: list[_Leaf] = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        name, hint = prefix + item.name, hints[item.name]
        if is_dataclass(hint):
            found += _leaves(hint, name + ".")
        elif item.default is MISSING:
            raise TypeError(f"{kind.__name__}.{item.name} needs a default")
        else:
            found.append(_Leaf(name, hint, item.default, item.metadata.get("help", "")))
    return found


def _build(kind: type[T], values: Any, prefix: str) -> T:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix[:-1]} is a group of keys ({_names(kind)}), got {values!r}")
    hints = get_type_hints(kind)
    unknown = [name for name in values if name not in hints]
    if unknown:
        raise ConfigError(f"unknown key {prefix}{unknown[0]}{_nearest(unknown[0], list(hints))}")
    return kind(**{name: _value(hints[name], value, f"{prefix}{name}.") for name, value in values.items()})


def _value(hint: Any, value: Any, prefix: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, prefix)
    return tuple(value) if isinstance(value, list) else value


def _names(kind: type) -> str:
    return ", ".join(item.name for item in fields(kind))


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(message: str, known: list[str]) -> str:
    """The parser's message, made plainer, with the nearest known key where a key is unknown."""
    unknown = re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: (?:--)?([\w.-]+)", message)
    if not unknown:
        return re.sub(r"Parser key \"([^\"]+)\":\s*", r"\1: ", message)
    name = unknown[1] or unknown[2]
    return f"unknown key {name}{_nearest(name, known)}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"

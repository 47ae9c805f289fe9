"""docs/complaints.md names tests: they must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "complaints.md").read_text()


def test_there_are_twenty_and_each_has_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*$", TEXT, re.M)
    assert [int(number) for number in rows] == list(range(1, 21))
    assert all("test/" in line for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line))


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for file, name in named:
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{file} has no {name}"

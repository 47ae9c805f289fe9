"""What a run writes about itself beside its results."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lima_core
from lima_core.config import to_yaml
from lima_core.files import write_whole


def describe_run(folder: Path, config: Any, command: Sequence[str]) -> None:
    """Writes config.yaml (the effective config, read back by --config) and run.json: command, revision, versions."""
    write_whole(folder / "config.yaml", to_yaml(config))
    facts = {"command": " ".join(command), "revision": revision(), "versions": versions()}
    write_whole(folder / "run.json", json.dumps(facts, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of what decides the result."""
    return {"lima": lima_core.__version__, "torch": torch.__version__, "python": platform.python_version()}


def revision() -> str | None:
    """Git revision of the code, `+changes` where files differ from it; None outside a checkout."""
    where = Path(__file__).parent
    head = _git(where, "rev-parse", "HEAD")
    return head and head + ("+changes" if _git(where, "status", "--porcelain") else "")


def _git(where: Path, *arguments: str) -> str | None:
    result = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None

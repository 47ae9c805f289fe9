"""Fixtures shared by every test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests share the cores; waiting threads of torch would spin
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the specification and the real sensor samples; LIMA_TEST_SHARED, or ../shared beside the checkout."""
    folder = Path(os.environ.get("LIMA_TEST_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real sensor samples are not at {folder}; set LIMA_TEST_SHARED to run this test")
    return folder


@pytest.fixture(scope="session")
def vectors(shared: Path) -> dict:
    """The golden vectors of the specification."""
    return json.loads((shared / "spec" / "datasets" / "reference_vectors.json").read_text())

"""A deterministic simulated street: world, spinning LiDAR and six cameras, ray-cast by Embree."""

from __future__ import annotations

import hashlib
from pathlib import Path


def simulator_version() -> str:
    """A hash of the simulator's source: what is kept of streets of another version is never taken for this one's."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]

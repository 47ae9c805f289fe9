"""Files: written whole or not at all, read from inside their folder only."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Writes to a temporary name in the same folder, then renames: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def inside(root: Path, name: str | Path) -> Path:
    """`root`/`name` with links followed. Raises ValueError where that leads out of `root`, itself resolved."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{root / name} leads out of {root}, to {path}; put the file itself there")
    return path


def hold_alone(descriptor: int) -> None:
    """Locks an open file until it is closed or the process ends. Raises BlockingIOError where another one holds it.

    Does nothing on file systems without locks, as some in networks are.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return

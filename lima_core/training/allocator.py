"""Memory of large tensors on the CPU, kept for the next step."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed memory instead of returning it; False where there is no glibc.

    By default every tensor above 32 MB is mapped anew, and a CPU step spends half of its time on page faults.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))

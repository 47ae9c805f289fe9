"""Measured values as the plain ones that JSON takes."""

from __future__ import annotations

import numpy as np


def number(value: float) -> float | None:
    """None for nan and infinity, which JSON does not know."""
    return float(value) if np.isfinite(value) else None


def latency_summary(latency_ms: np.ndarray) -> dict[str, float]:
    """(S,) ms of each sweep -> mean, p50 and p95."""
    return {"mean": latency_ms.mean(), **{f"p{p}": np.percentile(latency_ms, p) for p in (50, 95)}}

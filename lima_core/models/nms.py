"""Non-maximum suppression of detections: exact rotated IoU (SECOND), and centre distance (CenterPoint).

Both are greedy: the best box is kept, what it suppresses is dropped, and so on. The pairs that may suppress each other
are found first, by a sweep along x, and their overlaps computed together; the walk over them then costs next to
nothing. Source: spec/datasets.md 3.4 and 3.5, vector `nms`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lima_core.geometry.overlap import pairs_iou, rectangles

Suppresses = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (P,), (P,) ranks -> (P,) bool
FEW_PAIRS, LEADER_ROUNDS = 2048, 2
ROWS_AT_ONCE = 1024  # of the sweep: bounds its memory
ROUNDING = 1.0 + 1e-6


def rotated_nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    """(N, 5) boxes x, y, l, w in m, yaw in rad, (N,) scores -> (K <= limit,) int64 rows kept, best first.

    A box goes when its IoU with a better kept one is above `threshold` (>= 0); of equal scores the lower row is the
    better. Runs on the CPU, the rows return to the device of `boxes`. Raises ValueError as `bev_iou`, and on scores of
    another shape or with a nan.
    """
    _check(scores, len(boxes))
    with torch.inference_mode():
        order = _best_first(scores)
        columns = rectangles(boxes.cpu())[:, order]

        def suppresses(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
            iou = pairs_iou(columns, columns, torch.from_numpy(better), torch.from_numpy(worse))
            return iou.numpy() > threshold

        x, y, half_length, half_width = columns[:4].numpy()
        pairs = _touching(x, y, np.hypot(half_length, half_width))
        kept = order.numpy()[_greedy(*pairs, len(order), suppresses)[:limit]]
    return torch.from_numpy(kept).to(boxes.device)


def circle_nms(centers: Tensor, scores: Tensor, squared_radius: float, limit: int) -> Tensor:
    """(N, 2) centres x, y in m, (N,) scores -> (K <= limit,) int64 rows kept, best first; ties as `rotated_nms`.

    A centre goes when its squared distance to a better kept one is <= `squared_radius` (>= 0), which CenterPoint's
    configurations call a radius: 4 means 2 m (spec/datasets.md, trap 12). Raises ValueError on a nan or another shape.
    """
    _check(scores, len(centers))
    if centers.ndim != 2 or centers.shape[1] != 2 or not centers.isfinite().all():
        raise ValueError(f"centers must be (N, 2), finite x, y; got {tuple(centers.shape)}, or a nan in them")
    order = _best_first(scores)
    x, y = centers.detach().cpu().double()[order].T.contiguous().numpy()

    def suppresses(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        return np.square(x[better] - x[worse]) + np.square(y[better] - y[worse]) <= squared_radius

    pairs = _touching(x, y, np.full(len(x), 0.5 * ROUNDING * squared_radius**0.5))
    kept = order.numpy()[_greedy(*pairs, len(order), suppresses)[:limit]]
    return torch.from_numpy(kept).to(centers.device)


def _check(scores: Tensor, count: int) -> None:
    """ValueError unless there is one score per box, and none is nan."""
    if scores.shape != (count,) or scores.isnan().any():
        raise ValueError(f"scores must be ({count},), one per box, without nan; got {tuple(scores.shape)}")


def _best_first(scores: Tensor) -> Tensor:
    """(N,) int64 rows on the CPU, highest score first, ties in their order."""
    return torch.sort(scores.detach().cpu(), descending=True, stable=True).indices


def _touching(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) circles, best first -> (P,), (P,) int64 better and worse circle of each pair that touches."""
    first = np.argsort(x - radius)
    x, y, radius = x[first], y[first], radius[first]
    position = np.arange(len(x))
    # partners start along x after this circle does and before it ends
    end = np.searchsorted(x - radius, x + radius, side="right")
    found = [np.empty((2, 0), np.int64)]
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = position[start : start + ROWS_AT_ONCE]
        partners = end[rows] - rows - 1
        i = np.repeat(rows, partners)
        j = np.repeat(rows + 1 - np.cumsum(partners) + partners, partners)
        j += np.arange(len(j))
        right, up, reach = x[i] - x[j], y[i] - y[j], radius[i] + radius[j]
        touch = np.flatnonzero(right * right + up * up <= reach * reach)
        found.append(first[np.stack([i[touch], j[touch]])])
    pairs = np.concatenate(found, axis=1)
    return pairs.min(0), pairs.max(0)


def _greedy(better: np.ndarray, worse: np.ndarray, count: int, suppresses: Suppresses) -> np.ndarray:
    """(P,), (P,) ranks of the pairs to ask about, best = 0 -> ranks kept, ascending."""
    alive = np.ones(count, bool)
    for _ in range(LEADER_ROUNDS):
        if len(better) <= FEW_PAIRS:
            break
        better, worse = _led(better, worse, alive, suppresses)
    found = suppresses(better, worse)
    key = np.sort(better[found] * count + worse[found])  # by the better one: it is decided before its pairs come
    kept = bytearray(alive)
    for i, j in zip((key // count).tolist(), (key % count).tolist(), strict=True):
        if kept[i]:
            kept[j] = False
    return np.flatnonzero(kept)


def _led(
    better: np.ndarray, worse: np.ndarray, alive: np.ndarray, suppresses: Suppresses
) -> tuple[np.ndarray, np.ndarray]:
    """Lets boxes that touch no better one suppress theirs in `alive`; returns the pairs still open.

    In a crowd most boxes go this way, and their overlaps with each other need no computing.
    """
    leads = np.ones(len(alive), bool)
    leads[worse] = False
    led = leads[better]
    first, second = better[led], worse[led]
    alive[second[suppresses(first, second)]] = False
    still = ~led & alive[better] & alive[worse]
    return better[still], worse[still]

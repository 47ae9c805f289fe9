"""What every loss returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """`total` is what backward starts from; `parts` are its named terms, for the log."""

    total: Tensor
    parts: dict[str, Tensor]

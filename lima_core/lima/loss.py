"""Point-level distillation losses between the student's features F_p and the long-term features F_d.

`l2`      mean | F_p/|F_p| - F_d/|F_d| |        ScaLR's form, not squared: LiMA with one frame is ScaLR. The default.
`cosine`  mean (1 - cos(F_p, F_d))              same minimum, other gradient
`infonce` mean -log softmax_j(cos(F_p, F_d[j]) / T)[i], T = 0.07 as in SLidR, Seal and SuperFlow
Source: spec/lima.md section 2, step 7, and section 6.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Distance = Literal["l2", "cosine", "infonce"]

TEMPERATURE = 0.07
PAIRS = 4096  # as PPKT: the logits are square in it


def distance(student: Tensor, target: Tensor, kind: Distance, rng: np.random.Generator) -> Tensor:
    """(R, C) student and target features of the same points -> scalar in float32 or better; 0 for R = 0.

    `rng` draws the pairs of `infonce` where there are more than PAIRS.
    """
    if len(student) == 0:
        return student.sum()  # keeps the graph: its gradient is zero
    if kind == "infonce" and len(student) > PAIRS:
        drawn = torch.from_numpy(rng.permutation(len(student))[:PAIRS]).to(student.device)
        student, target = student[drawn], target[drawn]
    dtype = torch.promote_types(student.dtype, torch.float32)
    p, d = functional.normalize(student.to(dtype), dim=1), functional.normalize(target.to(dtype), dim=1)
    if kind == "l2":
        return torch.linalg.vector_norm(p - d, dim=1).mean()
    if kind == "cosine":
        return (1 - (p * d).sum(dim=1)).mean()
    if kind == "infonce":
        return functional.cross_entropy(p @ d.T / TEMPERATURE, torch.arange(len(p), device=p.device))
    raise ValueError(f"distance {kind!r} is unknown; use l2, cosine or infonce")

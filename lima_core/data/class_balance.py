"""Class-balanced group sampling of frames, CBGS (spec/datasets.md 3.6, vector `cbgs`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def balanced(classes_of_frame: Sequence[Collection[int]], num_classes: int, rng: np.random.Generator) -> list[int]:
    """Indices of the frames of one pass, class after class (shuffle them), drawn with replacement.

    `classes_of_frame[i]` are the classes in frame i. With T the sum of their numbers, each class that occurs is drawn
    T / `num_classes` times, rounded down but at least once; a frame without any class is never drawn. Raises
    ValueError where no frame has a class, or one is not in [0, `num_classes`).
    """
    frames: list[list[int]] = [[] for _ in range(num_classes)]
    for index, classes in enumerate(classes_of_frame):
        for class_id in sorted(set(classes)):
            if not 0 <= class_id < num_classes:
                raise ValueError(f"frame {index} has class {class_id}; there are {num_classes}, counted from 0")
            frames[class_id].append(index)
    total = sum(map(len, frames))
    if total == 0:
        raise ValueError(
            f"none of {len(classes_of_frame)} frames has an object to balance; take more or unpack the annotations"
        )
    # the formula, int(len * (1 / C) / (len / T)), in whole numbers: no rounding decides
    drawn = max(1, total // num_classes)
    return [index for own in frames if own for index in rng.choice(own, drawn).tolist()]

"""Class-balanced sampling of frames: the vector of the specification, and what happens at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima_core.data.class_balance import balanced


def test_draws_as_the_vector(vectors: dict) -> None:
    given_, expected = vectors["cbgs"]["inputs"], vectors["cbgs"]["expected"]
    names = given_["classes"]
    frames = [[names.index(name) for name in frame] for frame in given_["frames"]]
    drawn = balanced(frames, len(names), np.random.default_rng(0))
    start = 0
    for class_id, name in enumerate(names):
        group = drawn[start : start + expected["drawn"][name]]
        assert all(class_id in frames[index] for index in group), name
        start += len(group)
    assert start == len(drawn) == sum(expected["drawn"].values())


@given(frames=st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=40).filter(any), seed=st.integers(0, 2**32 - 1))
def test_every_class_that_occurs_is_drawn_alike_and_empty_frames_never(frames: list[set[int]], seed: int) -> None:
    drawn = balanced(frames, 5, np.random.default_rng(seed))
    present = set().union(*frames)
    share = max(1, sum(map(len, frames)) // 5)
    assert len(drawn) == share * len(present)
    for class_id, start in zip(sorted(present), range(0, len(drawn), share), strict=True):
        assert all(class_id in frames[index] for index in drawn[start : start + share])
    assert drawn == balanced(frames, 5, np.random.default_rng(seed))


def test_a_rare_class_comes_as_often_as_a_common_one() -> None:
    frames = [{0} for _ in range(990)] + [{1} for _ in range(10)]
    drawn = np.array(balanced(frames, 2, np.random.default_rng(1)))
    assert (drawn < 990).sum() == (drawn >= 990).sum() == 500
    assert set(drawn[drawn >= 990]) == set(range(990, 1000)), "with replacement, all rare frames come"


def test_a_class_named_twice_in_a_frame_counts_once() -> None:
    assert len(balanced([[0, 0, 0], [1]], 2, np.random.default_rng(0))) == 2


def test_nothing_to_balance_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of 2 frames has an object"):
        balanced([[], []], 3, np.random.default_rng(0))


@pytest.mark.parametrize("class_id", [-1, 3])
def test_an_unknown_class_is_named(class_id: int) -> None:
    with pytest.raises(ValueError, match=f"frame 1 has class {class_id}; there are 3"):
        balanced([[0], [class_id]], 3, np.random.default_rng(0))

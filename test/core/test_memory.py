"""The memory bank: first in first out, one sequence per slot, restorable, movable, bounded."""

from __future__ import annotations

import pytest
import torch

from lima_core.checkpoint import read_tensors, write_tensors
from lima_core.lima.memory import Memory, MemoryBank


def memory(tag: float, points: int = 3) -> Memory:
    """A memory that is told by its features."""
    return Memory(torch.full((points, 3), tag), torch.full((points, 2), tag), torch.eye(4, dtype=torch.float64) * tag)


def tags(memories: list[Memory]) -> list[float]:
    return [m.features[0, 0].item() for m in memories]


def test_first_in_first_out():
    bank = MemoryBank(3)
    for index in range(5):
        assert tags(bank.recall("a", index)) == list(range(max(0, index - 3), index))
        bank.push(memory(index), "a", index)
    assert tags(bank.recall("a", 5)) == [2, 3, 4]


def test_never_across_sequences():
    bank = MemoryBank(3)
    bank.push(memory(1), "a", 0)
    assert bank.recall("b", 1) == []
    bank.push(memory(2), "b", 0)
    assert tags(bank.recall("b", 1)) == [2]
    assert bank.recall("a", 1) == [], "the old sequence came back"


@pytest.mark.parametrize("index", [0, 3])
def test_time_that_goes_back_or_stands_still_starts_anew(index):
    bank = MemoryBank(5)
    for i in range(4):
        bank.push(memory(i), "a", i)
    assert bank.recall("a", index) == []
    bank.push(memory(9), "a", index)
    assert tags(bank.recall("a", index + 1)) == [9]


def test_slots_are_independent():
    bank = MemoryBank(2, slots=2)
    bank.push(memory(1), "a", 0, slot=0)
    bank.push(memory(2), "a", 0, slot=1)
    assert tags(bank.recall("a", 1, slot=0)) == [1] and tags(bank.recall("a", 1, slot=1)) == [2]
    bank.reset(0)
    assert bank.recall("a", 1, slot=0) == [] and tags(bank.recall("a", 1, slot=1)) == [2]
    bank.reset()
    assert bank.recall("a", 1, slot=1) == []


@pytest.mark.parametrize(("given", "kept"), [(0, []), (2, [0, 1]), (5, [2, 3, 4])])
def test_a_window_is_the_bank_as_a_stream_would_have_left_it(given, kept):
    bank = MemoryBank.window(3, [memory(i) for i in range(given)], "a", index=given)
    assert tags(bank.recall("a", given)) == kept
    assert bank.recall("b", given) == []


def test_without_frames_nothing_is_remembered():
    bank = MemoryBank(0)
    bank.push(memory(1), "a", 0)
    assert bank.recall("a", 1) == []


def test_a_long_stream_holds_no_more_than_its_frames():
    bank = MemoryBank(2, slots=2)
    for index in range(50):
        bank.push(memory(index), "a", index, slot=index % 2)
    held = bank.state_dict()["tensors"].values()
    assert sum(t.numel() for t in held) == 4 * (3 * 3 + 3 * 2 + 16)


def test_state_survives_a_safetensors_file(tmp_path):
    bank = MemoryBank(2, slots=3)
    for index in range(4):
        bank.push(memory(index), "a", index, slot=1)
    bank.push(memory(7, points=0), "b", 6, slot=2)
    state = bank.state_dict()
    tensors, meta = read_tensors(write_tensors(tmp_path / "bank.safetensors", state["tensors"], state["bank"]))
    restored = MemoryBank(2, slots=3)
    restored.push(memory(8), "z", 0, slot=0)
    restored.load_state_dict({"tensors": tensors, "bank": meta})
    assert restored.recall("z", 1, slot=0) == []
    assert tags(restored.recall("a", 4, slot=1)) == [2, 3] and restored.recall("a", 3, slot=1) == []
    (empty,) = restored.recall("b", 7, slot=2)
    assert empty.features.shape == (0, 2) and empty.world_from_lidar.dtype == torch.float64
    restored.push(memory(4), "a", 4, slot=1)
    assert tags(restored.recall("a", 5, slot=1)) == [3, 4], "the restored slot lost its bound"


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(3, 1\)"):
        MemoryBank(3).load_state_dict(MemoryBank(2).state_dict())


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_moves(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    bank = MemoryBank(2)
    for index in range(3):
        bank.push(memory(index), "a", index)
    moved = bank.to(device).recall("a", 3)
    assert len(moved) == 2
    assert {t.device.type for m in moved for t in (m.points, m.features, m.world_from_lidar)} == {device}


@pytest.mark.parametrize(("frames", "slots"), [(-1, 1), (2, 0)])
def test_impossible_sizes(frames, slots):
    with pytest.raises(ValueError, match="memory bank"):
        MemoryBank(frames, slots)


def test_features_and_points_must_belong_together():
    with pytest.raises(ValueError, match="3 points with 2 features"):
        Memory(torch.zeros(3, 3), torch.zeros(2, 5), torch.eye(4))

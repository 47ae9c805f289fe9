"""The memory bank (LiMA section 4.2): the last k frames of one sequence, first in first out.

A frame is remembered by its unified image features F_u, the points they sit on, and its pose. The bank is used in
two ways: streaming, one slot per stream of a batch, frames in order of time; and for windows, where a loader hands
over the last k frames of a randomly drawn one (the same mathematics with independent batches).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FIELDS = ("points", "features", "world_from_lidar")


@dataclass(frozen=True)
class Memory:
    """One remembered frame: `points` (M, 3) float32 m in its LiDAR frame, `features` (M, C) F_u of these points,
    `world_from_lidar` (4, 4) float64."""

    points: Tensor
    features: Tensor
    world_from_lidar: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError when features and points do not belong together."""
        if len(self.points) != len(self.features):
            raise ValueError(f"a memory of {len(self.points)} points with {len(self.features)} features")

    def to(self, device: str | torch.device) -> Memory:
        """A copy on a device."""
        return Memory(self.points.to(device), self.features.to(device), self.world_from_lidar.to(device))


@dataclass
class _Slot:
    """One stream: its sequence, the index of the newest frame, and the frames, oldest first."""

    frames: deque[Memory]
    sequence: str | None = None
    index: int = -1


class MemoryBank:
    """`slots` independent streams of at most `frames` memories each; each process has a bank of its own streams.

    A slot never mixes sequences: a frame of another sequence, or one that does not follow in time, starts it anew.
    """

    def __init__(self, frames: int, slots: int = 1) -> None:
        if frames < 0 or slots < 1:
            raise ValueError(f"a memory bank needs frames >= 0 and slots >= 1, got {frames} and {slots}")
        self.frames = frames
        self._slots = [_Slot(deque(maxlen=frames)) for _ in range(slots)]

    @classmethod
    def window(cls, frames: int, memories: Sequence[Memory], sequence: str, index: int) -> MemoryBank:
        """The bank as it stands before frame `index`, drawn at random: filled with those before it, oldest first."""
        bank = cls(frames)
        for past, memory in enumerate(memories, start=index - len(memories)):
            bank.push(memory, sequence, past)
        return bank

    def recall(self, sequence: str, index: int, slot: int = 0) -> list[Memory]:
        """What precedes frame `index` of `sequence`, oldest first; empty when the slot follows another stream."""
        stream = self._slots[slot]
        return list(stream.frames) if stream.sequence == sequence and stream.index < index else []

    def push(self, memory: Memory, sequence: str, index: int, slot: int = 0) -> None:
        """Remembers a frame after its step; the oldest of more than `frames` is forgotten."""
        stream = self._slots[slot]
        if stream.sequence != sequence or index <= stream.index:
            stream.frames.clear()
        stream.frames.append(memory)
        stream.sequence, stream.index = sequence, index

    def reset(self, slot: int | None = None) -> None:
        """Forgets one slot, or all."""
        for i in range(len(self._slots)) if slot is None else (slot,):
            self._slots[i] = _Slot(deque(maxlen=self.frames))

    def to(self, device: str | torch.device) -> MemoryBank:
        """Moves every memory, in place."""
        for slot in self._slots:
            slot.frames = deque((memory.to(device) for memory in slot.frames), maxlen=self.frames)
        return self

    def state_dict(self) -> dict[str, Any]:
        """`tensors` by name, as safetensors takes them (shared, not copied), and `bank`, plain values as JSON does."""
        tensors = {
            f"{number}.{age}.{name}": getattr(memory, name)
            for number, slot in enumerate(self._slots)
            for age, memory in enumerate(slot.frames)
            for name in FIELDS
        }
        streams = [{"sequence": slot.sequence, "index": slot.index, "length": len(slot.frames)} for slot in self._slots]
        return {"tensors": tensors, "bank": {"frames": self.frames, "slots": streams}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`. Raises ValueError when it is of a bank of another size."""
        bank, tensors = state["bank"], state["tensors"]
        sizes = bank["frames"], len(bank["slots"])
        if sizes != (self.frames, len(self._slots)):
            raise ValueError(f"saved bank has (frames, slots) {sizes}, this one {(self.frames, len(self._slots))}")
        for number, stream in enumerate(bank["slots"]):
            memories = (Memory(*(tensors[f"{number}.{i}.{f}"] for f in FIELDS)) for i in range(stream["length"]))
            self._slots[number] = _Slot(deque(memories, maxlen=self.frames), stream["sequence"], stream["index"])

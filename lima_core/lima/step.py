"""One LiMA pretraining step, as the algorithm of spec/lima.md section 2 reads.

for each scene of the batch
    F_u <- aggregate(teacher(images), sightings)              cross-view aggregation
    F_d <- propagate(points, F_u, memory of the last k)       long-term feature propagation
L   <- mean over scenes of  d(student(P), F_d)
L  += mean over pairs  of  d(student(mix(P_a, P_b)), F_d of each point's own sequence)     cross-sequence alignment

The teacher's patch grids arrive with the batch (computed or from the cache); nothing here has a gradient but the
student and its head, which is thrown away after pretraining. Every scene carries the seed of all that is drawn for
it, so that a batch gives the same loss on one process as on several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lima_core.config import option
from lima_core.data.augment import AugmentConfig, augment
from lima_core.lima.alignment import Mixing, mix
from lima_core.lima.cross_view import Operator, Sightings, aggregate
from lima_core.lima.loss import Distance, distance
from lima_core.lima.memory import Memory, MemoryBank
from lima_core.lima.propagation import VOXEL_M, propagate
from lima_core.lima.view import View
from lima_core.models.inputs import InputConfig, batch_column, encode
from lima_core.models.loss import Loss

CrossView = Literal["mean", "max", "apart"]


@dataclass(frozen=True)
class LimaConfig:
    """The method. Defaults are the paper's where it speaks, spec/lima.md section 6 where it is silent."""

    frames: int = option(6, "frames in all: the current one and frames - 1 remembered ones; 1 = ScaLR")
    cross_view: CrossView = option("mean", "a point's cameras fused by mean or max; apart: one target per camera")
    voxel_m: float = option(VOXEL_M, "edge of the voxels in which features of different frames meet, m")
    gate: float | None = option(None, "least cosine of a past feature to the current one of its voxel; null: none")
    mixing: Mixing | None = option("frustum", "frustum, laser or cutmix; null: no cross-sequence alignment")
    mix_weight: float = option(1.0, "weight of the mixed scenes' loss")
    distance: Distance = option("l2", "l2 (of unit vectors), cosine or infonce")


@dataclass(frozen=True)
class Scene:
    """One element of a batch: frame `index` of a sequence and the frames before it, oldest first, all with grids.

    `past` may hold fewer than frames - 1 at the start of a sequence, and is empty where a bank remembers. `seed` of
    the scene's augmentation and mixing.
    """

    sequence: str
    index: int
    current: View
    past: tuple[View, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """F_d (R, C) of the rows (R,) int64 of a sweep's points; a row may occur more than once."""

    features: Tensor
    rows: Tensor

    @classmethod
    def joined(cls, targets: Sequence[Target]) -> Target:
        """Several targets of one sweep as one."""
        return cls(torch.cat([t.features for t in targets]), torch.cat([t.rows for t in targets]))

    def moved(self, new_row: Tensor) -> Target:
        """After the points were chosen and reordered: `new_row` (N,) of each old row, -1 where it is gone."""
        rows = new_row[self.rows]
        return Target(self.features[rows >= 0], rows[rows >= 0])


class Lima(nn.Module):
    """The objective: the student (a plain module, voxels -> features) and a linear head to the teacher's width."""

    def __init__(
        self,
        student: nn.Module,
        teacher_channels: int,
        config: LimaConfig,
        voxels: InputConfig,
        augmentation: AugmentConfig,
    ) -> None:
        super().__init__()
        self.student, self.config, self.voxels, self.augmentation = student, config, voxels, augmentation
        self.head = nn.Linear(student.out_channels, teacher_channels)

    def step(self, scenes: Sequence[Scene], bank: MemoryBank | None = None) -> Loss:
        """Loss of a batch; with a `bank`, scene b streams through its slot b and past views are not needed.

        Targets come before augmentation, which moves points only. `parts`: the losses `distill` and `mix`, and
        counts: `targets` (pairs of point and target), `blind` scenes without any, `unmixed` scenes without a partner
        of another sequence in the batch, `dropped_points` of the current sweeps.
        """
        rngs = [np.random.default_rng(scene.seed) for scene in scenes]
        targets = [self.target(scene, bank, slot) for slot, scene in enumerate(scenes)]
        sweeps = [augment(s.current.points, rng, self.augmentation) for s, rng in zip(scenes, rngs, strict=True)]
        total = self._distill(sweeps, targets, rngs)
        parts = {"distill": total.detach(), **_counts(scenes, targets)}
        if self.config.mixing is not None:
            pairs = [(a, b) for a in range(len(scenes)) if (b := _partner(scenes, a)) is not None]
            parts["unmixed"] = torch.tensor(len(scenes) - len(pairs))
            if pairs:
                mixed = [self._mix(scenes, targets, a, b, rngs[a]) for a, b in pairs]
                loss = self._distill(*zip(*mixed, strict=True), [rngs[a] for a, _ in pairs])
                parts["mix"] = loss.detach()
                total = total + self.config.mix_weight * loss
        return Loss(total, parts)

    @torch.no_grad()
    def target(self, scene: Scene, bank: MemoryBank | None = None, slot: int = 0) -> Target:
        """F_d of the current frame, from it and its memories."""
        current = self._remember(scene.current)
        if bank is None:
            past = [self._remember(view) for view in scene.past]
            window = MemoryBank.window(self.config.frames - 1, past, scene.sequence, scene.index)
            memories = window.recall(scene.sequence, scene.index)
        else:
            memories = bank.recall(scene.sequence, scene.index, slot)
            bank.push(current, scene.sequence, scene.index, slot)
        if self.config.cross_view == "apart":
            return self._apart(scene.current, memories)
        points = torch.from_numpy(scene.current.points[:, :3]).to(self._device)
        return Target(*propagate(points, current, memories, self.config.voxel_m, self.config.gate))

    def _apart(self, view: View, past: Sequence[Memory]) -> Target:
        """Without cross-view aggregation: a pair for every camera that sees a point, one for a point seen only before.

        The memories stay unified.
        """
        points = torch.from_numpy(view.points[:, :3]).to(self._device)
        views = [self._remember(view, view.seen.of(camera)) for camera in range(view.cameras)]
        rows = [view.seen.of(camera).point.to(self._device) for camera in range(view.cameras)]
        unseen = torch.ones(len(points), dtype=torch.bool, device=self._device)
        unseen[view.seen.point.to(self._device)] = False
        views.append(self._remember(view, view.seen.of(-1)))
        rows.append(unseen.nonzero().squeeze(1))
        targets = []
        for current, own in zip(views, rows, strict=True):
            features, found = propagate(points[own], current, past, self.config.voxel_m, self.config.gate)
            targets.append(Target(features, own[found]))
        return Target.joined(targets)

    def _remember(self, view: View, seen: Sightings | None = None) -> Memory:
        """F_u of a frame, of some of its sightings where `seen` is given."""
        operator = "max" if self.config.cross_view == "max" else "mean"
        return remember(view if seen is None else replace(view, seen=seen), self._device, operator)

    def _mix(
        self, scenes: Sequence[Scene], targets: Sequence[Target], a: int, b: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Target]:
        """Scene `a` mixed with scene `b`: points, and for each the target of its own source."""
        sources = scenes[a].current.points, scenes[b].current.points
        rows = mix(*sources, self.config.mixing, rng)
        points = np.concatenate([source[chosen] for source, chosen in zip(sources, rows, strict=True)])
        moved, start = [], 0
        for source, chosen, target in zip(sources, rows, (targets[a], targets[b]), strict=True):
            new_row = torch.full((len(source),), -1)
            new_row[torch.from_numpy(chosen)] = torch.arange(start, start + len(chosen))
            moved.append(target.moved(new_row.to(self._device)))
            start += len(chosen)
        return augment(points, rng, self.augmentation), Target.joined(moved)

    def _distill(
        self, sweeps: Sequence[np.ndarray], targets: Sequence[Target], rngs: Sequence[np.random.Generator]
    ) -> Tensor:
        """Mean over the sweeps of the distance over their points with a target.

        A sweep without any counts as 0, so that the mean does not depend on how a batch is spread over processes.
        """
        points = torch.from_numpy(np.concatenate(sweeps)).to(self._device)
        sizes = [len(sweep) for sweep in sweeps]
        found = encode(points, self.voxels, batch_column(sizes).to(self._device))
        features = self.head(self.student(found.voxels).features)
        losses = []
        for voxel_of_point, target, rng in zip(found.voxel_of_point.split(sizes), targets, rngs, strict=True):
            rows = voxel_of_point[target.rows]
            inside = rows >= 0
            losses.append(distance(features[rows[inside]], target.features[inside], self.config.distance, rng))
        return torch.stack(losses).mean()

    @property
    def _device(self) -> torch.device:
        return self.head.weight.device


def remember(view: View, device: str | torch.device = "cpu", operator: Operator = "mean") -> Memory:
    """F_u of a frame, with the points it sits on and its pose. Raises ValueError on a view without patch features."""
    if view.grids is None:
        raise ValueError(f"{view.where}: no patch features; give them with View.with_grids")
    features, rows = aggregate(view.grids.to(device, torch.float32), view.seen.to(device), operator)
    points = torch.from_numpy(view.points[:, :3]).to(device)
    return Memory(points[rows], features, torch.from_numpy(view.world_from_lidar).to(device))


def _counts(scenes: Sequence[Scene], targets: Sequence[Target]) -> dict[str, Tensor]:
    return {
        "targets": torch.tensor(sum(len(target.rows) for target in targets)),
        "blind": torch.tensor(sum(len(target.rows) == 0 for target in targets)),
        "dropped_points": torch.tensor(sum(scene.current.dropped_points for scene in scenes)),
    }


def _partner(scenes: Sequence[Scene], a: int) -> int | None:
    """A scene of another sequence than scene `a`: its neighbour in the pairs (0, 1), (2, 3), ..., else the next one.

    Pairs come first because they stay together when a batch is spread over processes.
    """
    around = [a ^ 1, *((a + i) % len(scenes) for i in range(1, len(scenes)))]
    return next((j for j in around if j < len(scenes) and scenes[j].sequence != scenes[a].sequence), None)

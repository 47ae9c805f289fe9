"""The training loop: steps, learning rate, log, state for resume, and a clean stop on SIGINT or SIGTERM.

Everything random is a function of (seed, step), so the state is the weights, the moments and the step: a resumed run
repeats the uninterrupted one bit for bit on the CPU.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lima_core.checkpoint import load_weights, read_tensors, write_tensors
from lima_core.files import write_whole
from lima_core.training.loss import Loss
from lima_core.training.optim import OptimConfig, adamw, one_cycle

STATE, LOG = "state.safetensors", "metrics.jsonl"


class StoppedError(RuntimeError):
    """A signal stopped the run after its state was saved; `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Loss],
    evaluate: Callable[[], dict[str, Any]],
    steps: int,
    steps_per_epoch: int,
    optim: OptimConfig,
    folder: Path,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Trains `model` for `steps`; `loss_at(step)` runs it forward, `evaluate()` gives metrics after each epoch.

    Writes metrics.jsonl and state.safetensors to `folder`. Returns the log. Raises StoppedError after SIGINT/SIGTERM.
    """
    optimizer = adamw(model, optim)
    first = _restore(folder, model, optimizer) if resume else 0
    log = _read_log(folder, first) if resume else []
    with _caught_signals() as caught, tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True) as bar:
        for step in range(first, steps):
            record = _step(model, optimizer, loss_at, step, one_cycle(step, steps, optim.peak_lr))
            epoch_ends = (step + 1) % steps_per_epoch == 0 or step + 1 == steps
            if epoch_ends:
                record["epoch"] = -(-(step + 1) // steps_per_epoch)
                record.update(evaluate())
            log.append(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}", **_shown(record), refresh=False)
            bar.update()
            if epoch_ends or caught:
                _save(folder, model, optimizer, step + 1, log)
            if caught and step + 1 < steps:
                message = f"stopped after step {step + 1} of {steps}; continue with --resume"
                raise StoppedError(caught[0], message)
    return log


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_at: Callable[[int], Loss], step: int, rate: float
) -> dict[str, Any]:
    """One update; returns its line of the log."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    loss = loss_at(step)
    total = float(loss.total.detach())
    if total != total:
        raise FloatingPointError(f"the loss is nan at step {step}; lower optim.peak_lr (now {rate:g})")
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()
    return {"step": step, "lr": rate, "loss": total, **{name: float(part) for name, part in loss.parts.items()}}


def _shown(record: dict[str, Any]) -> dict[str, str]:
    return {"val_miou": f"{record['val_miou']:.3f}"} if "val_miou" in record else {}


def _save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, log: list[dict]) -> None:
    """Log first: a state never knows of steps that the log lacks."""
    write_whole(folder / LOG, "".join(json.dumps(record) + "\n" for record in log))
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value for name, value in moments.items()})
    write_tensors(folder / STATE, tensors, {"step": step})


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads weights and moments; returns the step to go on with."""
    tensors, meta = read_tensors(folder / STATE)
    prefix = "model."
    weights = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    load_weights(model, weights, str(folder / STATE))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta["step"]


def _read_log(folder: Path, steps: int) -> list[dict[str, Any]]:
    """The log of the first `steps` steps."""
    lines = (folder / LOG).read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["step"] < steps]


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append themselves to, instead of ending the process; a second one ends it."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

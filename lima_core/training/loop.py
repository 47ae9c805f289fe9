"""The training loop of every verb: steps, learning rate, log, state for resume, a clean stop on SIGINT or SIGTERM.

Devices, precision and processes are Lightning Fabric's. Everything random is a function of (seed, step), so the state
is the weights, the moments and the step: a resumed run repeats the uninterrupted one bit for bit on the CPU, after
SIGTERM as after kill -9.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lima_core.checkpoint import CheckpointError, load_weights, part, read_tensors, write_tensors
from lima_core.files import write_whole
from lima_core.models.loss import Loss
from lima_core.training.optim import OptimConfig, build_optimizer, first_beta, learning_rate

STATE, LOG, BOARD = "state.safetensors", "metrics.jsonl", "tensorboard"

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]


class StoppedError(RuntimeError):
    """A signal stopped the run after its state was saved; `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def open_fabric(device: Device = "cpu", precision: Precision = "fp32") -> Fabric:
    """Device, precision and, under torchrun, the processes of this run.

    Raises RuntimeError for cuda on a machine without, ValueError for less than fp32 on a CPU.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise RuntimeError("device is cuda, but PyTorch finds no GPU; use --device=auto or cpu")
    accelerator = "cuda" if cuda and device != "cpu" else "cpu"
    if accelerator == "cpu" and precision != "fp32":
        raise ValueError(f"precision {precision} needs a GPU; a CPU trains with --precision=fp32")
    processes, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
    )
    fabric.launch()
    return fabric


def leave_processes() -> None:
    """Ends the group of processes, if any: left to the interpreter's exit, gloo's threads may abort the process."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Loss],
    evaluate: Callable[[], dict[str, Any]],
    steps: int,
    steps_per_epoch: int,
    optim: OptimConfig,
    folder: Path,
    resume: bool = False,
    fabric: Fabric | None = None,
    save_minutes: float = 10.0,
) -> list[dict[str, Any]]:
    """Trains `model` for `steps`; `loss_at(step)` runs it forward on this process's share of the batch.

    `evaluate()` gives metrics after each epoch, and pictures (H, W, 3) uint8 for TensorBoard. The state is saved at
    each epoch's end, every `save_minutes`, and on SIGINT/SIGTERM, which raise StoppedError. Returns the log, of which
    `folder` holds metrics.jsonl and TensorBoard's event files.
    """
    fabric = fabric or open_fabric()
    model.to(fabric.device)
    optimizer = build_optimizer(model, optim)
    first = _restore(folder, fabric, model, optimizer) if resume else 0
    records = _Records(folder, first, fabric.is_global_zero)
    last_save = time.monotonic()
    bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, disable=not fabric.is_global_zero)
    with _caught_signals() as caught, bar, records:
        for step in range(first, steps):
            rate = learning_rate(step, steps, steps_per_epoch, optim)
            beta = first_beta(step, steps, optim)
            record = _step(fabric, model, optimizer, loss_at, step, rate, beta, optim)
            epoch_ends = (step + 1) % steps_per_epoch == 0 or step + 1 == steps
            if epoch_ends:
                record["epoch"] = -(-(step + 1) // steps_per_epoch)
                record.update(evaluate())
            records.add(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}", **_shown(record), refresh=False)
            bar.update()
            stop = _agreed(fabric, caught)
            if epoch_ends or stop or time.monotonic() - last_save > 60 * save_minutes:
                _save(folder, fabric, model, optimizer, step + 1)
                last_save = time.monotonic()
            if stop and step + 1 < steps:
                raise StoppedError(stop, f"stopped after step {step + 1} of {steps}; continue with --resume")
    return records.log


def _step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Loss],
    step: int,
    rate: float,
    beta: float | None,
    optim: OptimConfig,
) -> dict[str, Any]:
    """One update; returns its line of the log."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
        if beta is not None:
            group["betas"] = (beta, group["betas"][1])
    model.train()
    with fabric.autocast():
        loss = loss_at(step)
    total = _over_processes(fabric, loss.total.detach())
    if total != total:
        raise FloatingPointError(f"the loss is nan at step {step}; lower optim.peak_lr (now {rate:g})")
    stepper = fabric.setup_optimizers(optimizer)
    stepper.zero_grad(set_to_none=True)
    fabric.backward(loss.total)
    average_gradients(fabric, model)
    if optim.clip_norm is not None:
        fabric.clip_gradients(model, stepper, max_norm=optim.clip_norm)
    stepper.step()
    parts = {name: _over_processes(fabric, part) for name, part in loss.parts.items()}
    return {"step": step, "lr": rate, "loss": total, **parts}


def average_gradients(fabric: Fabric, model: nn.Module) -> None:
    """Mean over the processes, as DistributedDataParallel has it; that wraps one forward pass, a method is several."""
    if fabric.world_size == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    mean = fabric.all_reduce(torch.cat([p.grad.flatten() for p in parameters]), reduce_op="mean")
    for parameter, grad in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(grad.view_as(parameter))


def _over_processes(fabric: Fabric, value: Tensor) -> float:
    """Mean of a loss, sum of a count."""
    if fabric.world_size == 1:
        return float(value)
    kind = "mean" if value.is_floating_point() else "sum"
    return float(fabric.all_reduce(value.to(fabric.device).clone(), reduce_op=kind))


def _agreed(fabric: Fabric, caught: list[int]) -> int:
    """The signal that any process caught, or 0: all stop after the same step."""
    number = caught[0] if caught else 0
    if fabric.world_size == 1:
        return number
    return int(fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="max"))


def _shown(record: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:.3f}" for name, value in record.items() if name.startswith("val_")}


class _Records:
    """The log, line by line on disk as it grows, and in TensorBoard; only the first process writes."""

    def __init__(self, folder: Path, first: int, writes: bool) -> None:
        self.log = _read_log(folder, first) if first else []
        self._folder, self._first, self._writes = folder, first, writes
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None

    def __enter__(self) -> _Records:
        if self._writes:
            # lines beyond the state belong to steps that are about to be repeated
            path = write_whole(self._folder / LOG, "".join(json.dumps(record) + "\n" for record in self.log))
            self._file = path.open("a")
            self._board = SummaryWriter(str(self._folder / BOARD), purge_step=self._first)
        return self

    def __exit__(self, *error: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def add(self, record: dict[str, Any]) -> None:
        """Appends a step's record; pictures in it go to TensorBoard alone."""
        pictures = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
        for name in pictures:
            del record[name]
        self.log.append(record)
        if not self._writes:
            return
        print(json.dumps(record), file=self._file, flush=True)
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, record["step"])
        for name, picture in pictures.items():
            self._board.add_image(name, picture, record["step"], dataformats="HWC")


def _save(folder: Path, fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """All processes hold the same state, so the first one writes it; the log on disk is never behind."""
    if not fabric.is_global_zero:
        return
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value for name, value in moments.items()})
    meta = {"step": step, "precision": fabric.strategy.precision.state_dict()}
    write_tensors(folder / STATE, tensors, meta)


def _restore(folder: Path, fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads weights and moments; returns the step to go on with."""
    tensors, meta = read_tensors(folder / STATE)
    load_weights(model, part(tensors, "model."), str(folder / STATE))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer.").items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    fabric.strategy.precision.load_state_dict(meta["precision"])
    return meta["step"]


def _read_log(folder: Path, steps: int) -> list[dict[str, Any]]:
    """The log of the first `steps` steps; a last line cut short by a kill is beyond them."""
    lines = (folder / LOG).read_text().splitlines()
    if len(lines) < steps:
        raise CheckpointError(f"{folder / LOG} has {len(lines)} lines, the state is at step {steps}; start anew")
    return [json.loads(line) for line in lines[:steps]]


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

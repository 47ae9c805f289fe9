"""One file that explains itself: weights in safetensors, everything else as JSON in its header. Nothing is unpickled.

Header key `lima` (one key, so that the bytes are reproducible): format, model, classes {names, colors}, config (the
effective one), inputs (statistics of the training set), metrics, versions, provenance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lima_core.config import config_from_dict
from lima_core.files import write_whole
from lima_core.models.backbones import BACKBONES, inputs_of
from lima_core.models.detector import Detector, DetectorConfig
from lima_core.models.heads import Segmenter, build_segmenter
from lima_core.models.inputs import InputConfig
from lima_core.models.voxelize import VoxelConfig
from lima_core.models.voxelize_range import RangeConfig

FORMAT = 1
SEGMENTATION = "segmentation"
REQUIRED = ("format", "model", "classes", "config", "inputs", "metrics", "versions", "provenance")


class CheckpointError(ValueError):
    """A checkpoint is missing, broken or made for something else; the message names the difference and the fix."""


def save_checkpoint(path: str | Path, model: nn.Module, meta: dict[str, Any], half: bool = False) -> Path:
    """Writes weights and metadata whole or not at all; `half` stores the weight matrices as float16."""
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        raise CheckpointError(f"metadata of {path} lacks {', '.join(missing)}")
    weights = {name: _stored(value, half) for name, value in model.state_dict().items()}
    return write_tensors(path, weights, meta)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name and metadata. Raises CheckpointError."""
    weights, meta = read_tensors(path)
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        raise CheckpointError(f"{path}: metadata lacks {', '.join(missing)}; was it written by lima_core.finetune?")
    if meta["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {meta['format']}, this lima reads {FORMAT}; install another")
    return weights, meta


def load_network(path: str | Path) -> tuple[Segmenter | Detector, InputConfig, dict[str, Any]]:
    """The trained network on the CPU in eval mode, the voxels it expects, and the metadata. Raises CheckpointError."""
    weights, meta = load_checkpoint(path)
    model = meta["model"]
    if model not in BACKBONES:
        raise CheckpointError(f"{path}: model {model!r} is unknown to this lima; known: {', '.join(BACKBONES)}")
    if not meta["classes"]["names"] and task_of(meta) == SEGMENTATION:
        raise CheckpointError(
            f"{path} is a pretrained backbone, it has no classes yet; `python -m lima_core.finetune --init {path}` "
            "makes a network of it"
        )
    try:
        inputs = stored_inputs(meta)
        network = _build(meta, inputs)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: broken metadata: {type(error).__name__}: {error}") from error
    load_weights(network, weights, str(path))
    return network.eval(), inputs, meta


def task_of(meta: dict[str, Any]) -> str:
    """segmentation, detection or both; checkpoints from before there was a choice segment."""
    return meta.get("task", SEGMENTATION)


def stored_inputs(meta: dict[str, Any]) -> InputConfig:
    """The voxels that the network of a checkpoint takes. Raises KeyError, TypeError, ValueError on broken metadata."""
    config = meta["config"]
    voxels = config_from_dict(VoxelConfig, config["voxels"])
    return inputs_of(meta["model"], voxels, config_from_dict(RangeConfig, config.get("bounds", {})))


def _build(meta: dict[str, Any], inputs: InputConfig) -> Segmenter | Detector:
    """The untrained network that the metadata describe."""
    classes = len(meta["classes"]["names"])
    if task_of(meta) == SEGMENTATION:
        return build_segmenter(meta["model"], classes, inputs)
    config = config_from_dict(DetectorConfig, meta["config"]["detector"])
    return Detector(meta["model"], inputs, config, tuple(meta["detection"]["names"]), classes)


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copies weights into a model of the same names and shapes. Raises CheckpointError naming what differs."""
    wanted = model.state_dict()
    classes = _classes(wanted), _classes(weights)
    if None not in classes and classes[0] != classes[1]:
        raise CheckpointError(f"{source}: weights for {classes[1]} classes, the model has {classes[0]}")
    absent, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if absent or extra:
        raise CheckpointError(
            f"{source}: made for another model: {_some(absent, 'missing')}; {_some(extra, 'unexpected')}"
        )
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, the model needs {tuple(value.shape)}"
            raise CheckpointError(f"{source}: made for another model: {name} is {shapes}")
    model.load_state_dict({name: weights[name].to(value.dtype) for name, value in wanted.items()})


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def write_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Tensors and a JSON header, atomically; equal input gives equal bytes."""
    header = {"lima": json.dumps(meta, sort_keys=True)}
    return write_whole(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What write_tensors wrote. Raises CheckpointError for a missing, broken or foreign file."""
    if not Path(path).is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; train one with `python -m lima_core.finetune`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        meta = json.loads(header["lima"])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {path} is broken or cut short ({error}); copy it again") from error
    except KeyError:
        raise CheckpointError(f"{path} is a safetensors file without lima's metadata: not a lima checkpoint") from None
    return tensors, meta


def _stored(value: Tensor, half: bool) -> Tensor:
    return value.half() if half and value.ndim > 1 and value.is_floating_point() else value


def _classes(weights: dict[str, Tensor]) -> int | None:
    return len(weights["head.bias"]) if "head.bias" in weights else None


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})" if names else f"0 {what}"

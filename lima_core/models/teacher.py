"""The frozen 2D teacher: a DINOv2 vision transformer from timm, giving patch features before the final norm.

Source: spec/lima.md section 2, step 1 (`x_pre_norm` of the last block, CLS dropped; SuperFlow, LiMoE and ScaLR agree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lima_core.config import option

PATCH_PX = 14
NAMES = {size: f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large")}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TeacherSize = Literal["small", "base", "large"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TeacherConfig:
    """What the teacher is; `Teacher(**vars(config))` builds it."""

    size: TeacherSize = option("small", "DINOv2 ViT: small (384 channels), base (768) or large (1024)")
    image_size: tuple[int, int] = option((448, 224), "width and height that pictures are resized to, px; times 14")
    weights: str | None = option(None, "safetensors or pth file; null: from the timm hub")
    layer: int = option(-1, "index of the block whose output is taken; -1 = the last")
    precision: Precision = option("fp32", "fp32, bf16 or fp16 on a GPU; a CPU computes in fp32")


class TeacherError(ValueError):
    """The teacher's weights are missing or of another network; the message says which file to get."""


class Teacher(nn.Module):
    """Images -> patch features, without gradients.

    `image_size` (width, height) in pixels, multiples of 14; `weights` a .safetensors or .pth file with timm's or
    DINOv2's own key names, None = from the timm hub; `layer` index of the block whose output is taken, -1 = the last;
    `precision` of the arithmetic on a GPU, while a CPU always computes in float32.
    Raises TeacherError, or ValueError on an image size that is no multiple of 14 or a layer that is not there.
    """

    def __init__(
        self,
        size: TeacherSize = "small",
        image_size: tuple[int, int] = (448, 224),
        weights: str | Path | None = None,
        layer: int = -1,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        width, height = image_size
        if min(image_size) < PATCH_PX or width % PATCH_PX or height % PATCH_PX:
            raise ValueError(f"image size {width} x {height}: both must be multiples of {PATCH_PX}")
        self.image_size = image_size
        self.grid = (height // PATCH_PX, width // PATCH_PX)
        self.dtype = DTYPES[precision]
        self.vit = timm.create_model(NAMES[size], pretrained=False, img_size=(height, width), num_classes=0)
        depth = len(self.vit.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"teacher layer {layer}: {NAMES[size]} has {depth} blocks, 0 to {depth - 1} or -1 = last")
        self.layer = layer % depth
        self.channels: int = self.vit.embed_dim
        self._load(_state(NAMES[size], weights), NAMES[size], weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: the teacher is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C, H/14, W/14) float32 features before the final norm."""
        if not len(images):  # a frame without pictures: the cameras had not begun
            return images.new_zeros((0, self.channels, *self.grid))
        lower = images.is_cuda and self.dtype is not torch.float32
        # disabled explicitly otherwise: the trainer's own autocast must not reach the teacher
        with torch.autocast(images.device.type, self.dtype, enabled=lower):
            (grid,) = self.vit.forward_intermediates(
                images, indices=[self.layer], norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        return grid.float()

    def prepare(self, pictures: list[np.ndarray]) -> Tensor:
        """[(H, W, 3) uint8 RGB, ...] of any sizes -> (B, 3, h, w) float32: whole pictures resized, ImageNet norm."""
        batch = np.empty((len(pictures), *self.image_size[::-1], 3), np.uint8)
        for resized, picture in zip(batch, pictures, strict=True):
            resized[:] = _resized(picture, self.image_size)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        normalised = torch.from_numpy(batch).float().div_(255).sub_(mean).div_(std)
        return normalised.permute(0, 3, 1, 2).contiguous()

    def _load(self, state: dict[str, Tensor], name: str, weights: str | Path | None) -> None:
        """Copies the weights, the position embedding resampled to this image size."""
        if "pos_embed" in state:
            state["pos_embed"] = _resampled(state["pos_embed"], self.grid)
        wanted = self.vit.state_dict()
        wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
        if wrong:
            raise TeacherError(
                f"{weights} holds no {name}: {len(wrong)} of {len(wanted)} tensors are missing or differ, "
                f"e.g. {wrong[0]}; {_where_to_get(name)}"
            )
        self.vit.load_state_dict({key: state[key].float() for key in wanted})


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The whole picture at (width, height), free of aliasing: averaged where it shrinks, bilinear where it grows."""
    shrinks = picture.shape[1] > size[0] and picture.shape[0] > size[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _resampled(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + n * n, C) position embedding with CLS -> (1, 1 + h * w, C), bicubic; any other shape is left alone."""
    patches = embedding.shape[1] - 1
    if math.isqrt(patches) ** 2 != patches:
        return embedding  # of a network with other tokens, which the check of shapes reports
    return resample_abs_pos_embed(embedding.float(), list(grid), num_prefix_tokens=1)


def _state(name: str, weights: str | Path | None) -> dict[str, Tensor]:
    """Weights by timm's key names, from a file or from the hub. Never unpickles objects."""
    if weights is None:
        return _hub_state(name)
    path = Path(weights)
    if not path.is_file():
        raise TeacherError(f"teacher weights {path} do not exist; {_where_to_get(name)}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # both readers raise errors of many kinds on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherError(f"{path} cannot be read as weights ({reason}); {_where_to_get(name)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(f"{path} holds no tensors by name; {_where_to_get(name)}")
    return dict(state)


def _hub_state(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(f"{name} cannot be had from the timm hub ({reason}); {_where_to_get(name)}") from error


def _where_to_get(name: str) -> str:
    return (
        f"get model.safetensors from https://huggingface.co/timm/{name}, put it anywhere on this machine "
        "and name it with teacher.weights=FILE"
    )

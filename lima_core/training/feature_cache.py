"""The teacher's patch features on disk, so that the vision transformer sees every frame once.

Folder  <cache>/<key>/   key = hash of the teacher's weights, size, layer, image size, precision and preprocessing
Shard   NNNNNN-<process>.safetensors   one float16 tensor (V, C, h, w) per frame, with its CRC-32 in the header
Frame   named by the hash of its pictures' bytes: another data set, or a changed picture, can never hit

Shards are written whole or not at all, so a killed run loses the frames of one unfinished shard. A shard that cannot
be read, or a tensor that does not match its checksum, counts as absent: it is warned of, counted in `corrupt` and its
frames are computed again. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lima_core.checkpoint import write_tensors
from lima_core.data.frame import Frame
from lima_core.models.teacher import Teacher

SHARD_BYTES = 64 << 20
RESERVE_BYTES = 1 << 30  # left free for checkpoints and logs
DIGEST_BYTES = 16

logger = logging.getLogger(__name__)


class CacheError(ValueError):
    """The cache does not fit on the disk, or the teacher gave features that cannot be stored."""


class FeatureCache:
    """Patch features by frame digest, for the teacher of one key; `process` keeps the shards of processes apart."""

    def __init__(self, folder: str | Path, key: str, process: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = Path(folder) / key
        self.corrupt = 0
        self._process, self._shard_bytes = process, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._index: dict[str, tuple[Path, int]] = {}
        self._known: set[Path] = set()
        self._scan()

    def __len__(self) -> int:
        return len(self._index.keys() | self._pending.keys())

    def __contains__(self, digest: str) -> bool:
        return digest in self._pending or digest in self._index

    def get(self, digest: str) -> Tensor | None:
        """(V, C, h, w) float16, or None when it has to be computed."""
        if digest in self._pending:
            return self._pending[digest]
        if digest not in self._index:
            self._scan()  # another process may have written it
        if digest not in self._index:
            return None
        path, checksum = self._index[digest]
        try:
            with safe_open(path, framework="pt") as shard:
                features = shard.get_tensor(digest)
        except (SafetensorError, OSError) as error:
            return self._forget(digest, path, str(error))
        return features if _checksum(features) == checksum else self._forget(digest, path, "checksum differs")

    def put(self, digest: str, features: Tensor) -> Tensor:
        """Stores (V, C, h, w) features; returns them as they will be read, in float16 on the CPU."""
        stored = features.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(stored).all():
            raise CacheError(f"the teacher's features of frame {digest} do not fit float16; use another layer")
        self._pending[digest] = stored
        if sum(tensor.nbytes for tensor in self._pending.values()) >= self._shard_bytes:
            self.flush()
        return stored

    def flush(self) -> None:
        """Writes what is pending."""
        if not self._pending:
            return
        number = 1 + max((int(path.name[:6]) for path in self.folder.glob("*.safetensors")), default=-1)
        path = self.folder / f"{number:06d}-{self._process}.safetensors"
        write_tensors(path, self._pending, {"crc32": {name: _checksum(t) for name, t in self._pending.items()}})
        self._pending = {}
        self._scan()

    def _scan(self) -> None:
        """Indexes the shards that are new; a later shard's frame replaces an earlier one's."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                with safe_open(path, framework="pt") as shard:
                    checksums = json.loads(shard.metadata()["lima"])["crc32"]
            except (SafetensorError, OSError, TypeError, KeyError, json.JSONDecodeError) as error:
                self._warn(path, str(error))
                continue
            self._index.update({digest: (path, checksum) for digest, checksum in checksums.items()})

    def _forget(self, digest: str, path: Path, reason: str) -> None:
        del self._index[digest]
        self._warn(path, f"frame {digest}: {reason}")

    def _warn(self, path: Path, reason: str) -> None:
        self.corrupt += 1
        logger.warning("%s is corrupt (%s); its frames are computed again, the file can be deleted", path, reason)


def teacher_key(teacher: Teacher) -> str:
    """Names all that the features depend on but the pictures: equal keys mean equal features.

    Preprocessing is fingerprinted by its result on two fixed pictures, one that shrinks and one that grows.
    """
    ramp = np.arange(3 * 97 * 89, dtype=np.uint32).reshape(89, 97, 3).astype(np.uint8)
    probes = teacher.prepare([ramp[:9, :9], np.tile(ramp, (12, 24, 1))])
    digest = hashlib.sha256(probes.numpy().tobytes())
    for name, value in sorted(teacher.vit.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    facts = [teacher.vit.embed_dim, teacher.layer, *teacher.image_size, str(teacher.dtype)]
    digest.update(json.dumps(facts).encode())
    width, height = teacher.image_size
    return f"vit{teacher.channels}-{width}x{height}-layer{teacher.layer}-{digest.hexdigest()[:16]}"


def frame_digest(frame: Frame) -> str:
    """Hash of the pictures of a frame, in the order of its cameras."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for camera in frame.cameras:
        content = camera.image.jpeg()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def bytes_per_frame(teacher: Teacher, cameras: int) -> int:
    """Disk space of one frame's features."""
    return cameras * teacher.channels * teacher.grid[0] * teacher.grid[1] * 2


def check_space(folder: str | Path, frames: int, size: int) -> str:
    """A line with the need of `frames` frames of `size` bytes. Raises CacheError when the disk has less."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(place).free, frames * size
    line = f"feature cache {place}: {frames} frames to store, {need / 1e9:.2f} GB; {free / 1e9:.1f} GB free"
    if need + RESERVE_BYTES > free:
        raise CacheError(
            f"{line} (1 GB stays reserved): free some space, point teacher.cache to another disk, "
            "use a smaller teacher.image_size, or teacher.cache=null to go without"
        )
    return line


def _checksum(features: Tensor) -> int:
    array: Any = features.numpy()
    return zlib.crc32(array.tobytes())

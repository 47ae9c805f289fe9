"""VoxelNet: the sparse encoder of the LiDAR detectors, from voxels to a bird's-eye-view map (spec/datasets.md 3.2).

Two plans with the same output. The residual one (VoxelResBackBone8x of OpenPCDet, block type "basicblock" of mmdet3d,
whose convolutions have no bias) carries CenterPoint and SECOND; the plain one (VoxelBackBone8x) is what SLidR
pretrains. Our axes run x, y, z; the tables of the specification list z, y, x.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lima_core.models.minkunet import BasicBlock, ConvNorm
from lima_core.sparse.conv import SparseConv3d, SubMConv3d
from lima_core.sparse.kernel_map import Triple, output_shape
from lima_core.sparse.tensor import SparseTensor

VOLUME = (1024, 1024, 41)  # voxels of 0.1 x 0.1 x 0.2 m in +-51.2 m, -5 to 3 m, and an empty one on top
EPS, MOMENTUM = 1e-3, 0.01


class VoxelNet(nn.Module):
    """Five stages, conv1 to conv4 and conv_out; voxels grow eightfold in x and y and sixteenfold in z.

    The input's maps know the border, SparseTensor(features, coords, maps=Maps(coords, volume)), because a strided
    convolution of the detectors has no outputs beyond it. `stem` width of the first stage, 16 in the papers;
    `stage_channels` widths of the stages, `out_channels` of the map: 256 for the default volume; `bev_size` (X, Y).
    """

    def __init__(self, in_channels: int = 5, *, residual: bool = True, volume: Triple = VOLUME, stem: int = 16) -> None:
        super().__init__()
        self.volume = volume
        self.stage_channels = (stem, 2 * stem, 4 * stem, (8 if residual else 4) * stem, 8 * stem)
        stem, second, third, top, out = self.stage_channels
        self.encoder = nn.ModuleDict(
            {
                "conv1": _stage(SubMConv3d(in_channels, stem), 2 if residual else 1, residual),
                "conv2": _stage(SparseConv3d(stem, second, 3, 2, 1), 2, residual),
                "conv3": _stage(SparseConv3d(second, third, 3, 2, 1), 2, residual),
                "conv4": _stage(SparseConv3d(third, top, 3, 2, (1, 1, 0)), 2, residual),
                "conv_out": _stage(SparseConv3d(top, out, (1, 1, 3), (1, 1, 2), 0), 0, residual),
            }
        )
        *self.bev_size, height = self._bev_shape()
        self.out_channels = out * height
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eps = EPS

    def forward(self, x: SparseTensor, batch_size: int) -> Tensor:
        """(M, in_channels) voxels of `batch_size` scenes -> (B, C * Z, Y, X), zeros for a scene without voxels.

        (B, 256, 128, 128) for the default volume; channel c * Z + z, see `bev_map`.
        """
        return bev_map(self.stages(x)[-1], batch_size)

    def stages(self, x: SparseTensor) -> list[SparseTensor]:
        """The outputs of conv1 to conv4 and conv_out. Raises ValueError when x lies in another volume."""
        if x.maps.shape != self.volume:
            raise ValueError(
                f"the voxels lie in the volume {x.maps.shape}, this network was built for {self.volume}; "
                "pass SparseTensor(features, coords, maps=Maps(coords, network.volume))"
            )
        outputs = []
        for stage in self.encoder.values():
            x = stage(x)
            outputs.append(x)
        return outputs

    def _bev_shape(self) -> Triple:
        """Voxels of the last stage. Raises ValueError where a volume is too small to have any."""
        shape = self.volume
        for conv in self.modules():
            if isinstance(conv, SparseConv3d):
                shape = output_shape(shape, conv.kernel, conv.stride, conv.padding)
        if min(shape) < 1:
            raise ValueError(
                f"a volume of {self.volume} voxels leaves {shape} after the last stage; it needs at least 25 in z: "
                "enlarge the range or take smaller voxels"
            )
        return shape


class Hypercolumn(nn.Module):
    """A feature vector for every input voxel: those of its ancestors in the five stages of `network`, side by side.

    So the detectors' encoder learns from point features alone, every stage of it, without a decoder that the detector
    would throw away (spec/datasets.md 3.7 (a)). `out_channels` is the sum of the stages' widths: 368 for the residual
    one.
    """

    def __init__(self, network: VoxelNet) -> None:
        super().__init__()
        self.network = network
        self.out_channels = sum(network.stage_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(M, in_channels) -> (M, out_channels) on the same voxels."""
        return self.gather(x, self.network.stages(x))

    def gather(self, x: SparseTensor, stages: list[SparseTensor]) -> SparseTensor:
        """The columns of `x` from the outputs of the stages."""
        coords, columns = x.coords, []
        for stage, level in zip(self.network.encoder.values(), stages, strict=True):
            coords = _ancestors(coords, stage[0].conv, level.maps.shape)
            columns.append(level.features[level.maps.rows_of(coords)])
        return x.with_features(torch.cat(columns, 1))


def _ancestors(coords: Tensor, conv: SubMConv3d | SparseConv3d, shape: Triple) -> Tensor:
    """(M, 4) voxels -> for each, an output of the convolution that it has a part in; `shape` of the outputs.

    in = stride * out + offset - padding: the outputs of the offsets below the stride tile the volume, and the last
    one takes what the border leaves over.
    """
    if isinstance(conv, SubMConv3d):
        return coords
    place = coords[:, 1:] + coords.new_tensor(conv.padding)
    parents = place.div(coords.new_tensor(conv.stride), rounding_mode="floor")
    return torch.cat([coords[:, :1], torch.minimum(parents, coords.new_tensor(shape) - 1)], 1)


def bev_map(x: SparseTensor, batch_size: int) -> Tensor:
    """(M, C) on voxels of a volume of X x Y x Z -> dense (B, C * Z, Y, X) with zeros where there is no voxel.

    Channel c * Z + z holds channel c at height z, as `dense.view(N, C * D, H, W)` in OpenPCDet. The number of scenes
    is an argument because the last ones of a batch may be empty.
    """
    size_x, size_y, size_z = x.maps.shape
    if len(x) and int(x.coords[:, 0].max()) >= batch_size:
        raise ValueError(f"voxels of scene {int(x.coords[:, 0].max())} in a batch of {batch_size}, counted from 0")
    scene, i, j, k = x.coords.long().unbind(1)
    dense = x.features.new_zeros(batch_size, x.features.shape[1], size_z, size_y, size_x)
    dense.permute(0, 2, 3, 4, 1)[scene, k, j, i] = x.features
    return dense.flatten(1, 2)


def _stage(conv: SubMConv3d | SparseConv3d, repeats: int, residual: bool) -> nn.Sequential:
    """A convolution, then residual blocks or plain convolutions of its width."""
    width = conv.weight.shape[0]
    body = (
        BasicBlock(width, width, MOMENTUM) if residual else ConvNorm(SubMConv3d(width, width), MOMENTUM)
        for _ in range(repeats)
    )
    return nn.Sequential(ConvNorm(conv, MOMENTUM), *body)


ENCODERS = {
    "voxelnet": partial(VoxelNet, residual=True),
    "voxelnet_plain": partial(VoxelNet, residual=False),
    "voxelnet_tiny": partial(VoxelNet, residual=False, stem=8),  # for a CPU
}

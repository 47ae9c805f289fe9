"""VoxelNet: the sparse encoder of the LiDAR detectors, from voxels to a bird's-eye-view map (spec/datasets.md 3.2).

Two plans with the same output. The residual one (VoxelResBackBone8x of OpenPCDet, block type "basicblock" of mmdet3d,
whose convolutions have no bias) carries CenterPoint and SECOND; the plain one (VoxelBackBone8x) is what SLidR
pretrains. Our axes run x, y, z; the tables of the specification list z, y, x.
"""

from __future__ import annotations

from functools import partial

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
    convolution of the detectors has no outputs beyond it. `stage_channels` widths of the stages, `out_channels` of
    the map: 256 for the default volume.
    """

    def __init__(self, in_channels: int = 5, *, residual: bool = True, volume: Triple = VOLUME) -> None:
        super().__init__()
        self.volume = volume
        self.stage_channels = (16, 32, 64, 128 if residual else 64, 128)
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
        self.out_channels = out * self._height()
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

    def _height(self) -> int:
        """Voxels in z of the last stage."""
        shape = self.volume
        for conv in self.modules():
            if isinstance(conv, SparseConv3d):
                shape = output_shape(shape, conv.kernel, conv.stride, conv.padding)
        return shape[2]


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
}

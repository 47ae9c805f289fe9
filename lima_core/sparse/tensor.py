"""Features on occupied voxels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lima_core.sparse.kernel_map import Maps, Triple


@dataclass(frozen=True)
class SparseTensor:
    """Features of M voxels of one or more clouds.

    `features` (M, C) float; `coords` (M, 4) int32 [batch, x, y, z] in voxels of this level, in any order, may be
    negative; `stride` (x, y, z) size of this level's voxels in input voxels; `maps` is shared by all tensors on these
    voxels, and knows the volume's border where there is one.
    """

    features: Tensor
    coords: Tensor
    stride: Triple = (1, 1, 1)
    maps: Maps | None = None

    def __post_init__(self) -> None:
        """Raises ValueError when features and coordinates do not belong together."""
        if self.maps is None:
            object.__setattr__(self, "maps", Maps(self.coords))
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise ValueError(f"{tuple(self.features.shape)} features for {len(self.coords)} voxels")
        if self.maps.coords is not self.coords:
            raise ValueError("these maps were built on other coordinates; pass maps=None")

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other (M, C') features on the same voxels."""
        return SparseTensor(features, self.coords, self.stride, self.maps)

    def to(self, device: str) -> SparseTensor:
        """A copy on a device; kernel maps are built anew there."""
        coords = self.coords.to(device)
        return SparseTensor(self.features.to(device), coords, self.stride, Maps(coords, self.maps.shape))

    def __len__(self) -> int:
        return len(self.coords)

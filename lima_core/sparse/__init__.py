"""Sparse 3D convolution: cost follows the occupied voxels, not the volume (spec/sparse.md)."""

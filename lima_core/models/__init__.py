"""Networks: voxelisation, MinkUNet and heads."""

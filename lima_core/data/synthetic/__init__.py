"""A deterministic simulated street: world, spinning LiDAR and six cameras, ray-cast by Embree."""

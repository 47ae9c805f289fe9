"""Rigid transforms, cameras and boxes: the only place where transforms are multiplied."""

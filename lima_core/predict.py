"""`Predictor`, the networks as robots use them (lima_core/predictor.py)."""

from lima_core.predictor import Perception, Predictor, Segmentation

__all__ = ["Perception", "Predictor", "Segmentation"]

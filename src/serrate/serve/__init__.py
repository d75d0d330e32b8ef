"""From a saved run to answers: recommendations for histories never seen in training."""

from .batch import recommend_file
from .predictor import Predictor, Recommended

__all__ = ["Predictor", "Recommended", "recommend_file"]

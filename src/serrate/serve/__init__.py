"""From a saved run to answers: recommendations for histories never seen in training, scores of what is shown."""

from .batch import recommend_file
from .indexed import build_index, open_index
from .predictor import Predictor, Recommended
from .scorer import Scorer
from .scores import score_file

__all__ = ["Predictor", "Recommended", "Scorer", "build_index", "open_index", "recommend_file", "score_file"]

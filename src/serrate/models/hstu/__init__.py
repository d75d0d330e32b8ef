"""HSTU, pointwise attention with time: for the next item, and for ranking."""

from ..tasks import BinaryTask, RegressionTask
from .config import HSTUConfig, HSTURankingConfig
from .inference import encode_history, score_candidates
from .model import HSTU
from .ranking import HSTURanker

__all__ = ["HSTU", "BinaryTask", "HSTUConfig", "HSTURanker", "HSTURankingConfig", "RegressionTask",
           "encode_history", "score_candidates"]

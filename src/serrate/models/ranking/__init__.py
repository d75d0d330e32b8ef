"""Ranking with features and histories: DLRM, DCN v2, DIN and their like, of one set of parts."""

from .config import RankingConfig
from .export import export
from .model import RankingModel

__all__ = ["RankingConfig", "RankingModel", "export"]

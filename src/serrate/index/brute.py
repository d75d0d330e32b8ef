"""Exact search: every item is scored."""

from ..config import Config
from ..nn.similarity import Sides
from .base import PAIRS_AT_A_TIME, Index
from .best import Best, Found
from .corpus import Corpus, QueryFilter


class ExactConfig(Config):
    """Exact search has nothing to set."""


class ExactIndex(Index):
    """Scores every item, chunk by chunk, and keeps the best: memory does not grow with queries × items."""

    kind = "exact"
    config_type = ExactConfig

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        rows = len(next(iter(queries.values())))
        best = Best(rows, k, corpus.device)
        for chunk in corpus.chunks(max(1, PAIRS_AT_A_TIME // max(1, rows))):
            scores = self.similarity.score(queries, chunk.sides).float()
            best.add(closed.close(chunk, scores), chunk.ids)
        return Found(best.scores, best.ids, closed.num_open, closed.num_open, best.scores.new_zeros(rows))

"""Exact search: every item is scored."""

import torch

from ..config import Config
from ..nn.similarity import Sides
from .base import PAIRS_AT_A_TIME, Index
from .best import Best, Found
from .corpus import Corpus, QueryFilter
from .sides import at_a_time


class ExactConfig(Config):
    """Exact search has nothing to set."""


class ExactIndex(Index):
    """Scores every item and keeps the best: memory does not grow with queries × items.

    In one pass over the items where the similarity has one (`Similarity.top_k`), else chunk by chunk.
    """

    kind = "exact"
    config_type = ExactConfig

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        rows = len(next(iter(queries.values())))
        best = Best(rows, k, corpus.device)
        for number in range(len(corpus.segments)):
            self._search_segment(corpus, number, queries, closed, best)
        return Found(best.scores, best.ids, closed.num_open, closed.num_open, best.scores.new_zeros(rows))

    def _search_segment(self, corpus: Corpus, number: int, queries: Sides, closed: QueryFilter, best: Best) -> None:
        segment, (rows, k) = corpus.segments[number], best.scores.shape
        found = self.similarity.top_k(queries, segment.sides, min(k, len(segment)), exclude=closed.excluded(number),
                                      allowed=closed.shared.open[number])
        if found is not None:
            scores, at = found
            best.add(scores, corpus.ids_at(torch.where(at >= 0, at + corpus.starts[number], -1)))
            return
        for chunk in corpus.chunks(max(1, at_a_time(PAIRS_AT_A_TIME, corpus.device) // max(1, rows)), number):
            scores = self.similarity.score(queries, chunk.sides).float()
            best.add(closed.close(chunk, scores), chunk.ids)

"""Approximate search in two stages: a cheap score of everything in INT8, then the similarity on what passes.

Source: Jiaqi Zhai et al., "Revisiting Neural Retrieval on Accelerators", KDD 2023 (arXiv 2306.04039).
"""

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..errors import InvalidArgument
from ..nn.similarity import Sides, Similarity
from ..nn.similarity.base import count
from ..ops.threshold import over_provisioned, quantise, r_for, sample_positions, scores_of, select_above
from .base import Index
from .best import Found
from .corpus import Corpus, Filter, QueryFilter
from .sides import mean_component, require

_ROOM = 6.0  # deviations by which more than was asked for has place at once


class HIndexerConfig(Config):
    """How many items pass stage one, and how sure that is."""

    keep: int = Field(default=10_000, ge=1, description="how many items stage one should pass on")
    sample_rank: int = Field(
        default=400, ge=1, description="the threshold is this large a score of a sample: the number that passes has a "
                                       "relative standard deviation of one over its root; below 10 it is unusable")
    margin: float = Field(
        default=3.0, ge=0, description="deviations by which more items are asked for, so that `keep` is a floor")
    seed: int = Field(default=0, description="of the sample")


class HIndexer(Index):
    """Scores everything by a product of INT8 vectors, passes on what lies above a sampled threshold, scores that.

    Stage one reads a side called `stage_one`, `(·, d)` on both sides, where the similarity has one; else the mean
    component, whose product is the mean of all component logits, or the vector of a dot product. The threshold of a
    query is a large score of a sample of the items, so that about `keep` items are above it: no sort of the corpus.

    `Found.gap` is infinite unless stage one passed every open item. What a query excludes counts among those that pass.
    """

    kind = "h-indexer"
    config_type = HIndexerConfig
    config: HIndexerConfig

    def __init__(self, similarity: Similarity, config: Any = None):
        super().__init__(similarity, config)
        self._samples: WeakKeyDictionary[Corpus, Sides] = WeakKeyDictionary()  # of all items, as most queries want it

    def _check(self, argument: str, sides: Sides) -> None:
        require(argument, sides, self.kind, ("stage_one", "components", "vector"))

    def _derive(self, items: Sides) -> Sides:
        values, scales = quantise(stage_one(items))
        return {"values": values, "scales": scales}

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        if self.config.keep < k:
            raise InvalidArgument("k", f"at most {self.config.keep:,}, which stage one keeps", k)
        values, scales = quantise(stage_one(queries))
        rank = self.config.sample_rank
        wanted = over_provisioned(self.config.keep, rank, self.config.margin)
        rows = self._passed(corpus, (values, scales), closed.shared, wanted, over_provisioned(wanted, rank, _ROOM))
        return self._passed_on(corpus, queries, rows, k, closed)

    def _passed(self, corpus: Corpus, query: tuple[Tensor, Tensor], shared: Filter, wanted: int,
                capacity: int) -> Tensor:
        """Return the rows `(R, M)` of the corpus that pass stage one, -1 for none."""
        threshold = self._threshold(corpus, query, shared, wanted)
        parts, base = [], 0
        for segment, allowed in zip(corpus.segments, shared.open, strict=True):
            items = segment.derived["values"], segment.derived["scales"]
            room = min(capacity, len(segment))
            while True:
                rows, counts = select_above(*query, *items, threshold, capacity=room, allowed=allowed)
                most = int(counts.max()) if len(counts) else 0
                if most <= room:
                    break
                room = most  # scores that tie in large numbers pass together
            parts.append(torch.where(rows[:, :most] >= 0, rows[:, :most] + base, -1))
            base += len(segment)
        return torch.cat(parts, 1)

    def _threshold(self, corpus: Corpus, query: tuple[Tensor, Tensor], shared: Filter, wanted: int) -> Tensor:
        """Return the score `(R,)` that about `wanted` open items reach; `-inf` where all may pass."""
        if shared.num_open <= wanted:
            return torch.full_like(query[1], -float("inf"))
        drawn = self._sample(corpus, shared, wanted)
        sample = count(drawn)
        scores = scores_of(*query, drawn["values"], drawn["scales"], torch.arange(sample, device=corpus.device))
        rank = r_for(wanted, sample, shared.num_open)
        return scores.topk(rank, dim=1, sorted=False).values.amin(1)

    def _sample(self, corpus: Corpus, shared: Filter, wanted: int) -> Sides:
        """Return what stage one reads of some open items: of so many that the threshold has the rank told."""
        unfiltered = shared.num_open == len(corpus)
        drawn = self._samples.get(corpus) if unfiltered else None
        if drawn is None:
            sample = min(shared.num_open, math.ceil(self.config.sample_rank * shared.num_open / wanted))
            places = sample_positions(shared.num_open, sample, seed=self.config.seed, device=corpus.device)
            drawn = corpus.derived_at(shared.open_rows(places))
            if unfiltered:
                self._samples[corpus] = drawn
        return drawn


def stage_one(sides: Sides) -> Tensor:
    """Return the vectors `(N, d)` float32 that stage one multiplies."""
    return sides["stage_one"].float() if "stage_one" in sides else mean_component(sides)

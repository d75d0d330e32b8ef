"""Exact search of a mixture in two passes over its components, of which the second skips what cannot win.

Source: Bailu Ding and Jiaqi Zhai, "Retrieval with Learned Similarities", WWW 2025 (arXiv 2407.15462).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..errors import InvalidArgument
from ..nn.similarity import MixtureOfLogits, Sides
from .base import PAIRS_AT_A_TIME, Index
from .best import Best, Found, true_columns
from .bounds import gate_bound
from .component import LOGITS_AT_A_TIME, best_of_components, distinct
from .corpus import Chunk, Corpus, QueryFilter
from .sides import at_a_time, component_logits, components, require, temperature_of

_ROUNDING = 1e-5  # of the largest logit of a pair: by so much a rounded mixture may lie above its largest logit


class TwoPassConfig(Config):
    """How the second pass is kept small."""

    threshold: Literal["kth", "smallest"] = Field(
        default="kth", description="which score of the first pass an item has to reach: the k-th, or the smallest of "
                                   "all candidates, as published")
    bound: Literal["component", "gate"] = Field(
        default="component", description="what no score of an item exceeds: its largest component logit, or what the "
                                         "gate lets it be; the second keeps less and costs more")
    each: int = Field(default=0, ge=0, description="candidates of each component in the first pass; 0: as many as k")


class TwoPassIndex(Index):
    """Exact search that scores by the mixture only items one of whose component logits is large enough.

    Pass one scores the best `k` items of each component. Pass two scores every item that has a component logit of at
    least the threshold `S`; no other item can score above `S`, while at least `k` items reach it. Published is the
    smallest score of pass one as `S`; its `k`-th largest serves as well and keeps less. `Found.candidates` counts what
    pass two keeps.

    With `bound: gate` an item must also be able to reach `S` under every gate that its kept part allows, see
    `bounds.gate_bound`. That bound is research: it costs about as much as the score that it may save.
    """

    kind = "two-pass"
    config_type = TwoPassConfig
    config: TwoPassConfig

    def _check(self, argument: str, sides: Sides) -> None:
        require(argument, sides, self.kind)
        if self.config.bound == "gate" and not ("gate" in sides and isinstance(self.similarity, MixtureOfLogits)):
            raise InvalidArgument("similarity", "a mixture of logits, whose gate can be bounded", self.similarity)

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        temperature = temperature_of(self.similarity)
        rows, number = len(components(queries)), self.config.each or k
        first, _ = best_of_components(corpus, queries, number, temperature, closed)
        needed = self._threshold(corpus, queries, first, k, closed)
        best, kept = Best(rows, k, corpus.device), torch.zeros(rows, dtype=torch.int64, device=corpus.device)
        width = min(LOGITS_AT_A_TIME // max(1, first.numel() // number), PAIRS_AT_A_TIME // max(1, rows))
        for chunk in corpus.chunks(max(1, at_a_time(width, corpus.device))):
            bound = closed.close(chunk, self._bound(queries, chunk.sides, temperature))
            wanted = (bound >= needed[:, None]) & (bound > -float("inf"))
            kept += wanted.sum(1)
            best.add(*self._scored(queries, chunk, wanted))
        return Found(best.scores, best.ids, kept, closed.num_open, best.scores.new_zeros(rows))

    def _bound(self, queries: Sides, items: Sides, temperature: float) -> Tensor:
        """Return `(R, C)` what no score exceeds, its rounding included."""
        logits = component_logits(queries, items, temperature)
        rounding = max(_ROUNDING, 2 * torch.finfo(next(iter(items.values())).dtype).eps)  # of what is kept in halves
        highest, size = logits.amax(1), logits.abs().amax(1)
        if self.config.bound == "gate" and isinstance(self.similarity, MixtureOfLogits):
            kept = queries["gate"].float()[:, :, None] * items["gate"].float().T
            highest = highest.minimum(gate_bound(logits, kept, self.similarity))
        return highest + rounding * size

    def _scored(self, queries: Sides, chunk: Chunk, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and ids of the items of a chunk that are `wanted` `(R, C)`: together, or apart if fewer."""
        together = wanted.any(0).nonzero()[:, 0]
        apart = true_columns(wanted, len(together) // 2)
        if apart is not None:
            ids = chunk.ids[apart.clamp(min=0)]
            return self.similarity.score_rows(queries, chunk.sides, apart).float(), ids
        scores = self.similarity.score(queries, {name: side[together] for name, side in chunk.sides.items()})
        return scores.float().masked_fill(~wanted[:, together], -float("inf")), chunk.ids[together]

    def _threshold(self, corpus: Corpus, queries: Sides, ids: Tensor, k: int, closed: QueryFilter) -> Tensor:
        """Return `(R,)` what the `k`-th best item is known to score at least; `-inf` where too few are known."""
        candidates = distinct(ids)
        number = k if self.config.threshold == "kth" else max(k, candidates.shape[1])
        scores = self._rescored(corpus, queries, corpus.find(candidates), number, closed).scores
        kth = scores[:, k - 1]
        if self.config.threshold == "kth":
            return kth
        last = (scores > -float("inf")).sum(1, keepdim=True).clamp(min=1) - 1
        return torch.where(kth > -float("inf"), scores.gather(1, last)[:, 0], kth)

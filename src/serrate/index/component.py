"""Approximate search of a mixture by its components: the best items of each, their union, and a certificate.

Source: Bailu Ding and Jiaqi Zhai, "Retrieval with Learned Similarities", WWW 2025 (arXiv 2407.15462).
"""

import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..nn.similarity import Sides
from .base import Index
from .best import Best, Found
from .corpus import Corpus, QueryFilter
from .sides import at_a_time, component_logits, components, mean_component, require, rows_of, temperature_of

LOGITS_AT_A_TIME = 2**22


class ComponentConfig(Config):
    """How many candidates each selector gives; 0 leaves it out."""

    each: int = Field(default=100, ge=0, description="the best items of each component (the paper's TopKPerEmbd)")
    mean: int = Field(default=0, ge=0, description="the best items by the mean of all components (TopKAvg)")


class ComponentIndex(Index):
    """The best items by each component logit, by their unweighted mean, or both (CombTopK), scored by the mixture.

    The weights of a mixture sum to one, so no score is above the largest component logit of its pair. What was not
    among the best `each` of any component therefore scores at most the largest of the components' `each`-th logits:
    `Found.gap` is how far this lies above the `k`-th score that was found. The mean alone gives no such bound.

    The mean of all component logits of a pair is the product of the mean components, one product instead of `P`.
    """

    kind = "component"
    config_type = ComponentConfig
    config: ComponentConfig

    def _check(self, argument: str, sides: Sides) -> None:
        require(argument, sides, self.kind)

    def _derive(self, items: Sides) -> Sides:
        return {"mean": mean_component(items)} if self.config.mean else {}

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        rows = len(next(iter(queries.values())))
        ids = torch.full((rows, 1), -1, device=corpus.device)
        ceiling = torch.full((rows,), float("inf"), device=corpus.device)
        if self.config.each:
            temperature = temperature_of(self.similarity)
            ids, ceiling = best_of_components(corpus, queries, self.config.each, temperature, closed)
        if self.config.mean:
            ids = torch.cat([ids, self._best_means(corpus, queries, closed).ids], 1)
        candidates = distinct(ids)
        number = (candidates >= 0).sum(1)
        best = self._rescored(corpus, queries, corpus.find(candidates), k, closed)
        gap = (ceiling - best.scores[:, -1]).clamp(min=0)
        return Found(best.scores, best.ids, number, closed.num_open, gap.masked_fill(number == closed.num_open, 0))

    def _best_means(self, corpus: Corpus, queries: Sides, closed: QueryFilter) -> Best:
        query = mean_component(queries)
        best = Best(len(query), self.config.mean, query.device)
        for chunk in corpus.chunks(max(1, at_a_time(LOGITS_AT_A_TIME, query.device) // max(1, len(query)))):
            best.add(closed.close(chunk, query @ chunk.derived["mean"].T), chunk.ids)
        return best


def best_of_components(corpus: Corpus, queries: Sides, number: int, temperature: float,
                       closed: QueryFilter) -> tuple[Tensor, Tensor]:
    """Return the ids of the best open items by each of the `P` component logits, and what no other item exceeds.

    Ids `(R, P · number)` int64, -1 for none, an item as often as it is among the best; `(R,)` float32, the largest of
    the `number`-th logits, `-inf` where no component has so many items.
    """
    rows, per_query = components(queries).shape[:2]
    per_pair = per_query * components(rows_of(corpus.segments[0].sides, 0, 0)).shape[1]
    best = Best(rows * per_pair, number, corpus.device)
    for chunk in corpus.chunks(max(1, at_a_time(LOGITS_AT_A_TIME, corpus.device) // max(1, rows * per_pair))):
        logits = closed.close(chunk, component_logits(queries, chunk.sides, temperature))
        best.add(logits.flatten(0, 1), chunk.ids)
    ids, last = best.ids.unflatten(0, (rows, per_pair)), best.scores[:, -1].unflatten(0, (rows, per_pair))
    return ids.flatten(1), last.amax(1)


def distinct(ids: Tensor) -> Tensor:
    """Return the ids `(R, M)` of each row, each once, ascending within those that are not -1."""
    ids = ids.sort(dim=1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(again, -1)
    longest = int((ids >= 0).sum(1).max()) if len(ids) else 0
    return ids.sort(dim=1).values[:, ids.shape[1] - longest :]


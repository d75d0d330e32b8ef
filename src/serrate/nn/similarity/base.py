"""What every similarity promises, so that losses, models and indexes work with any: two sides, and scores of pairs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What is computed once for some queries `(R, …)` or some items `(V, …)`, by name: the first axis counts them.
Sides = dict[str, Tensor]

_PAIRS = 2**16  # that a score computed pair by pair holds at a time


class Similarity(nn.Module):
    """A learned score of queries and items, each with a side of its own that can be kept.

    What depends on one of them alone belongs into its side: the side of an item is computed once for many queries, in
    training once for each distinct item of a step. A similarity of your own has `queries`, `items` and `score_each`;
    `score` where all pairs together are cheaper than one by one; `penalty` where training needs more than its scores;
    `stages` where a cheaper one is to be learnt beside it.
    """

    def stages(self) -> "Sequence[Similarity]":
        """Return the similarities that a loss teaches on the sides that this one makes: itself, and what else there is.

        A cheap one that finds candidates for this one reads a part of the sides of its own.
        """
        return (self,)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Let `torch.compile` fuse, in place, what training computes for every pair; here nothing.

        Arguments are those of `torch.compile`. There is no `forward` that `nn.Module.compile` could mean.
        """

    def queries(self, x: Tensor, users: Tensor | None = None) -> Sides:
        """Return the side of queries, every part `(R, …)`.

        Args:
            x: `(R, E)` floating, the outputs of an encoder.
            users: `(R,)` int64, whose queries these are, negative where that is not known; None: of nobody. For
                similarities that know users; others do not look at it.
        """
        raise NotImplementedError

    def items(self, table: Tensor) -> Sides:
        """Return the side of items, every part `(V, …)`; `table` `(V, E)` floating are their vectors."""
        raise NotImplementedError

    def score_each(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, K)` float32 (float64 of float64): each query with `K` items of its own, sides `(R, K, …)`."""
        raise NotImplementedError

    def score(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, V)` float32 (float64 of float64): every query with every item, sides `(R, …)` and `(V, …)`."""
        rows = count(queries)

        def of(part: Sides) -> Tensor:
            return self.score_each(queries, {name: side.expand(rows, *side.shape) for name, side in part.items()})

        return by_chunks(of, items, max(1, _PAIRS // max(1, rows)))

    def score_rows(self, queries: Sides, items: Sides, rows: Tensor) -> Tensor:
        """Return `(R, K)` float32: each query with `K` of the items, `rows` `(R, K)` int64 of sides `(V, …)`.

        `-inf` where a row is negative. Without gradients: of what is kept, to be searched.
        """
        scores = self.score_each(queries, take(items, rows.clamp(min=0)))
        return scores.masked_fill(rows < 0, -math.inf)

    def top_k(self, queries: Sides, items: Sides, k: int, *, exclude: tuple[Tensor, Tensor] | None = None,
              allowed: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Return the best `k` items of each query, scores and rows `(R, k)`; None: `score` is the way to find them.

        For a similarity that finds them in one pass, without keeping the scores of all pairs, and without gradients.
        Scores descending, equal ones by row ascending; `-inf` and -1 where there are fewer.

        Args:
            queries: sides `(R, …)`.
            items: sides `(V, …)`.
            k: how many; may exceed `V`.
            exclude: offsets `(R + 1,)` and rows of items that each query must not get.
            allowed: `(V,)` bool, items that any query may get; None: all.
        """
        return None

    def log_sum(self, queries: Sides, items: Sides, *, scale: float = 1.0, shifts: Tensor | None = None,
                excluded: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        """Return `log Σ exp(scale · score + shift)` `(R,)` over the items; None: by `score` and in chunks it is to be.

        For a similarity that trains without the scores of all pairs ever being there.

        Args:
            queries: sides `(R, …)`.
            items: sides `(V, …)`.
            scale: of the scores.
            shifts: `(V,)`, without a gradient; None: 0.
            excluded: labels of items `(V,)` and of queries `(R,)` int64; equal ones are no pair. None: all are.
        """
        return None

    def penalty(self, queries: Sides, items: Sides, *, users: Tensor | None = None,
                weights: Tensor | None = None) -> Tensor:
        """Return what training adds to the mean loss of an event, a scalar; 0 unless a similarity says otherwise.

        Args:
            queries: sides `(R, …)`.
            items: sides `(R, …)` of the item that each query should have found.
            users: `(R,)` int64, as in `queries`.
            weights: `(R,)` floating, how much each query counts; None: alike.
        """
        return next(iter(queries.values())).new_zeros((), dtype=torch.float32)


def count(sides: Sides) -> int:
    """Return how many queries or items `sides` are of: `R` or `V`."""
    return next(iter(sides.values())).shape[0]


def take(sides: Sides, index: Tensor) -> Sides:
    """Return the sides of those at `index`, int64 of any shape `(…)`: every part becomes `(…, *)`."""
    return {name: side[index] for name, side in sides.items()}


def by_chunks(score: Callable[[Sides], Tensor], items: Sides, most: int) -> Tensor:
    """Return `(R, V)`: what `score` gives, `(R, ·)`, for at most `most` of the `V` items at a time.

    All at once where gradients are wanted: what autograd keeps would not be less.
    """
    num_items = count(items)
    if torch.is_grad_enabled() or num_items <= most:
        return score(items)
    return torch.cat([score({name: side[start : start + most] for name, side in items.items()})
                      for start in range(0, num_items, most)], 1)

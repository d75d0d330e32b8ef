"""`Evaluation`: the ranks of the events to predict, and the metrics they give."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument, suggest
from ..jagged import JaggedTensor
from .bootstrap import Estimate, bootstrap_by_user
from .config import EvaluateConfig

_MEANS = ("hr", "ndcg", "recall")  # at a cutoff, a mean over examples


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """`M` examples, the rank of each item to predict, and what was recommended.

    Attributes:
        config: what was measured.
        users: `(M,)` int64, the history each example belongs to.
        ranks: `M` rows of float64: the rank, from 1, of each distinct item to predict; infinite when it was
            no candidate. No row is empty.
        coverage: cutoff → share of all items that are in the top k of at least one example.
        seen_truths: items to predict that were misses because the seen-item filter took them.
        without_truth: examples left out because they have nothing to predict.
    """

    config: EvaluateConfig
    users: Tensor
    ranks: JaggedTensor
    coverage: Mapping[int, float]
    seen_truths: int = 0
    without_truth: int = 0

    def __len__(self) -> int:
        return len(self.ranks)

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.values().items())
        return f"Evaluation({len(self)} examples: {values})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of this evaluation, such as `hr@10`, in the order of the table."""
        at = [f"{kind}@{cutoff}" for cutoff in self.config.cutoffs for kind in (*_MEANS, "coverage")]
        return (*at, "mrr")

    def per_example(self, metric: str) -> Tensor:
        """Return the metric of each example, `(M,)` float64.

        - `hr@k`: 1 when any item to predict ranks within k, else 0.
        - `recall@k`: share of the items to predict that rank within k.
        - `ndcg@k`: sum of 1 / log2(rank + 1) over those within k, divided by the sum for the best possible
          ranks 1 … min(k, items to predict).
        - `mrr`: 1 / the best rank, without a cutoff.

        Raises:
            InvalidArgument: any other name; `coverage@k` is a property of all examples together.
        """
        kind, cutoff = self._parse(metric)
        ranks, rows = self.ranks.values, self.ranks.row_index()
        zeros = ranks.new_zeros(len(self))
        if kind == "mrr":
            best = torch.full_like(zeros, float("inf")).scatter_reduce(0, rows, ranks, "amin")
            return best.reciprocal()
        hits = (ranks <= cutoff).to(ranks.dtype)
        if kind == "ndcg":
            best_gains = (torch.arange(cutoff, dtype=ranks.dtype) + 2).log2().reciprocal().cumsum(0)
            ideal = best_gains[self.ranks.lengths.clamp(max=cutoff) - 1]
            return zeros.index_add(0, rows, hits / (ranks + 1).log2()) / ideal
        found = zeros.index_add(0, rows, hits)
        return found.clamp(max=1) if kind == "hr" else found / self.ranks.lengths

    def values(self) -> dict[str, float]:
        """Return name → value of every metric, without intervals (quick)."""
        return {name: self.coverage[int(name.removeprefix("coverage@"))] if name.startswith("coverage@")
                else float(self.per_example(name).mean()) for name in self.names}

    def metrics(self) -> dict[str, Estimate]:
        """Return name → estimate of every metric, with bootstrap intervals by user.

        Coverage has no interval (low and high are None): resampled users cover fewer items by construction.
        """
        means = [name for name in self.names if not name.startswith("coverage@")]
        columns = torch.stack([self.per_example(name) for name in means], dim=1)
        estimates = dict(zip(means, self._bootstrap(columns), strict=True))
        return {name: estimates.get(name) or Estimate(self.coverage[int(name.removeprefix("coverage@"))])
                for name in self.names}

    def difference(self, other: "Evaluation", metric: str) -> Estimate:
        """Estimate the paired difference of a metric, this less `other`; bootstrap interval by user as configured here.

        Both must be evaluations of the same examples. An interval without 0 is a difference beyond chance.

        Raises:
            InvalidArgument: evaluations of other examples, or a metric that is not a mean over examples.
        """
        same = torch.equal(self.users, other.users) and torch.equal(self.ranks.offsets, other.ranks.offsets)
        if not same or self.config.exclude_seen != other.config.exclude_seen:
            got = (f"{len(other)} examples against {len(self)}, exclude_seen {other.config.exclude_seen} "
                   f"against {self.config.exclude_seen}")
            raise InvalidArgument("other", "an evaluation of the same examples, with the same seen-item filter", got)
        values = self.per_example(metric) - other.per_example(metric)
        return self._bootstrap(values.unsqueeze(1))[0]

    def _bootstrap(self, columns: Tensor) -> list[Estimate]:
        return bootstrap_by_user(columns, self.users, confidence=self.config.confidence,
                                 resamples=self.config.resamples, seed=self.config.seed)

    def _parse(self, metric: str) -> tuple[str, int]:
        found = re.fullmatch(rf"({'|'.join(_MEANS)})@([1-9][0-9]{{0,8}})", metric)
        if found:
            return found[1], int(found[2])
        if metric == "mrr":
            return metric, 0
        known = [name for name in self.names if not name.startswith("coverage@")]
        expected = f"a mean over examples: {', '.join(known)}{suggest(metric, known)}"
        raise InvalidArgument("metric", expected, repr(metric))

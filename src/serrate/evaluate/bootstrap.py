"""Confidence intervals: the percentile bootstrap over users."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_BLOCKS = 20_000
_DRAWS_AT_A_TIME = 2**20


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its confidence interval; None where no interval is defined."""

    value: float
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, float | None]:
        """Return `{"value", "low", "high"}`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_by_user(values: Tensor, users: Tensor, *, confidence: float = 0.95, resamples: int = 1000,
                      seed: int = 0) -> list[Estimate]:
    """Estimate the mean over examples of each column, with a percentile interval from resampling users.

    A user stands for all of their examples, because these are not independent of each other: a resample
    draws as many users as there are, with replacement, and is the mean over the examples of those drawn.
    Beyond 20,000 users, random blocks of users are drawn instead of single ones: the mean over blocks has the
    same variance, and work and memory stay bounded. Same inputs, same interval.

    Args:
        values: `(M, C)` float64, one row an example, `M` ≥ 1.
        users: `(M,)` int64, whose example it is.
        confidence: share of the resampled means within the interval.
        resamples: how many means to draw.
        seed: seed of the draws.

    Returns:
        `C` estimates.
    """
    resampled = Resamples(users, resamples, seed)
    totals = resampled.totals(torch.cat([values, values.new_ones(len(values), 1)], dim=1))
    sums = torch.cat([times.to(totals.dtype) @ totals for times in resampled])
    return intervals(values.mean(dim=0), sums[:, :-1] / sums[:, -1:], confidence)


def intervals(values: Tensor, resampled: Tensor, confidence: float) -> list[Estimate]:
    """Return `values` `(C,)`, each with the bounds between which `confidence` of its `resampled` `(R, C)` lie.

    NaN among these, where a metric is not defined, does not count; a value with no other has no bounds.
    """
    tail = (1 - confidence) / 2
    bounds = resampled.nanquantile(resampled.new_tensor([tail, 1 - tail]), dim=0)
    return [Estimate(value, None if low != low else low, None if high != high else high)
            for value, low, high in zip(values.tolist(), *bounds.tolist(), strict=True)]


class Resamples:
    """Draws of users with replacement, as many as there are, the same for the same seed; iterated once or often.

    Iterating gives how often each group is drawn, `(rows, G)` int64, some resamples at a time. A group is a user, or
    a random block of users where there are more than 20,000.

    Args:
        users: `(M,)` int64, whose example it is.
        resamples: how many.
        seed: of the draws.

    Attributes:
        group: `(M,)` int64, the group of each example, from 0 to `groups - 1`.
        groups: `G`.
    """

    def __init__(self, users: Tensor, resamples: int, seed: int):
        self._resamples = resamples
        generator = torch.Generator().manual_seed(seed)
        self.group = users.unique(return_inverse=True)[1]
        self.groups = int(self.group.max()) + 1
        if self.groups > _MOST_BLOCKS:
            self.group = torch.randperm(self.groups, generator=generator)[self.group] % _MOST_BLOCKS
            self.groups = _MOST_BLOCKS
        self._state = generator.get_state()

    def totals(self, values: Tensor) -> Tensor:
        """Return the sums of `values` `(M, C)` over each group, `(G, C)`."""
        return values.new_zeros(self.groups, values.shape[1]).index_add(0, self.group, values)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator()
        generator.set_state(self._state)
        remaining, at_a_time = self._resamples, max(1, _DRAWS_AT_A_TIME // self.groups)
        while remaining > 0:
            rows = min(at_a_time, remaining)
            remaining -= rows
            drawn = torch.randint(self.groups, (rows, self.groups), generator=generator)
            drawn += torch.arange(rows).unsqueeze(1) * self.groups
            yield torch.bincount(drawn.flatten(), minlength=rows * self.groups).reshape(rows, self.groups)

"""Confidence intervals: the percentile bootstrap over users."""

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
    generator = torch.Generator().manual_seed(seed)
    group = users.unique(return_inverse=True)[1]
    groups = int(group.max()) + 1
    if groups > _MOST_BLOCKS:
        group = torch.randperm(groups, generator=generator)[group] % _MOST_BLOCKS
        groups = _MOST_BLOCKS
    with_count = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    totals = values.new_zeros(groups, with_count.shape[1]).index_add(0, group, with_count)

    means, remaining, at_a_time = [], resamples, max(1, _DRAWS_AT_A_TIME // groups)
    while remaining > 0:
        rows = min(at_a_time, remaining)
        remaining -= rows
        drawn = torch.randint(groups, (rows, groups), generator=generator)
        drawn += torch.arange(rows).unsqueeze(1) * groups
        times = torch.bincount(drawn.flatten(), minlength=rows * groups).reshape(rows, groups)
        sums = times.to(totals.dtype) @ totals
        means.append(sums[:, :-1] / sums[:, -1:])
    tail = (1 - confidence) / 2
    bounds = torch.cat(means).quantile(values.new_tensor([tail, 1 - tail]), dim=0)
    return [Estimate(value, low, high)
            for value, low, high in zip(values.mean(dim=0).tolist(), *bounds.tolist(), strict=True)]

"""Thresholds that let about `k` items through, from the scores of a sample of them."""

import math

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ..dropout import BITS, mixed
from .quantised import scores_of


def r_for(k: int, sample: int, total: int) -> int:
    """Return the rank in a sample of the score that about `k` of `total` items reach: `k · sample / total`, at least 1.

    How many items reach it varies by a relative standard deviation of `1 / √r`: ask for 100 and more. Below 10 the
    number is of little use.

    Raises:
        InvalidArgument: a number below 1.
    """
    for name, value in (("k", k), ("sample", sample), ("total", total)):
        if value < 1:
            raise InvalidArgument(name, "1 or more", value)
    return max(1, round(k * sample / total))


def over_provisioned(k: int, r: int, deviations: float = 3.0) -> int:
    """Return how many items to ask for, by rank `r` in a sample, so that `k` pass almost surely: `k (1 + 3 / √r)`.

    That is three standard deviations more, or as many as are told.
    """
    return math.ceil(k * (1 + deviations / math.sqrt(r)))


def sample_positions(total: int, sample: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return rows to look at, `(sample,)` int64 from 0 to below `total`, with repetition.

    A hash of the seed and the place: the same on every device, without random state. Where the sample is no smaller
    than the whole, all rows in their order, `(total,)`.

    Raises:
        InvalidArgument: `total` outside 1 … 2³¹ - 1, `sample` < 1.
    """
    if not 1 <= total < 2**31:
        raise InvalidArgument("total", "1 to 2**31 - 1", total)
    if sample < 1:
        raise InvalidArgument("sample", "1 or more", sample)
    places = torch.arange(min(sample, total), device=device)
    if sample >= total:
        return places
    # between two rounds, or seeds that are close would draw the same rows in another order
    return mixed(mixed(places) ^ _mixed(_mixed(seed) ^ seed >> 32)) * total >> 32


def _mixed(seed: int) -> int:
    return int(mixed(torch.tensor(seed & BITS)))


def sample_threshold(
    queries: Tensor,
    query_scales: Tensor,
    items: Tensor,
    item_scales: Tensor,
    k: int,
    *,
    sample: int,
    seed: int = 0,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the scores, `(R,)` float32, that about `k` items reach: the `r_for(k, sample, V)`-th largest of a sample.

    Where the sample is no smaller than the corpus it is the `k`-th largest itself. `-inf` where the sample holds fewer
    allowed items than the rank: everything may pass. To be sure of `k`, ask for `over_provisioned(k, r)`.

    Args:
        queries, query_scales, items, item_scales: as of `select_above`.
        k: how many items should pass.
        sample: how many rows of items are looked at.
        seed: of their choice; the same for every query.
        allowed: `(V,)` bool, the items that may be selected and are to be counted; None: all.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, `k` or `sample` < 1, no item.

    Source: Jiaqi Zhai et al., "Revisiting Neural Retrieval on Accelerators", KDD 2023 (arXiv 2306.04039).
    """
    total = items.shape[0]
    ids = sample_positions(total, sample, seed=seed, device=items.device)
    rank = r_for(k, len(ids), total)
    scores = scores_of(queries, query_scales, items, item_scales, ids)
    if allowed is not None:
        scores.masked_fill_(~allowed[ids], float("-inf"))
    if rank > len(ids):
        return scores.new_full((len(scores),), float("-inf"))
    return scores.topk(rank, dim=1, sorted=False).values.amin(1)

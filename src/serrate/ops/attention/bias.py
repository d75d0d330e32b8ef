"""What is added to scores for where and when query and key are: one value for all implementations, and its meaning."""

from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET = 0.301  # of the natural logarithm of a difference in time, as HSTU's public code has it
FARTHEST = 2**30  # from the first key of its row: 34 years in seconds; times beyond count as that
_KEPT_BITS = -(2**12)  # of a float32: its sign, its exponent and 11 bits after the leading one


@dataclass(frozen=True, eq=False)
class Bias:
    """Relative bias: `position[distance] + time[bucket(difference)]` is added to the scaled score of query and key.

    Tables may be of one head each, `(H, …)`, or shared by all. Nothing of the size of the scores is stored, and entries
    that no pair hits get a gradient of 0.

    Attributes:
        position: `(2 R - 1,)` or `(H, 2 R - 1)`: the entry `R - 1 + d` is for a key that stands `d` positions before
            its query; distances beyond `R - 1` on either side count as `R - 1`. Targets all stand where the history
            ends, see `Mask`, so they are at a distance of 0 from themselves. None: no such bias.
        time: `(N,)` or `(H, N)`: the entry `n` is for differences in time of about `exp(0.301 n)`, see `bucket`; the
            last one is for all larger ones too. None: no such bias.
        query_times: `(T,)` int32 or int64, or `(B, K)` of dense queries: when a query is asked, in seconds (or another
            unit; a row should span less than 2³⁰ of it). None, in self-attention: the times of the keys.
        key_times: `(S,)`, dtype of `query_times`: when the events of the keys happened.

    Source: Jiaqi Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).
    """

    position: Tensor | None = None
    time: Tensor | None = None
    query_times: Tensor | None = None
    key_times: Tensor | None = None


def bucket(difference: Tensor) -> Tensor:
    """Return `floor(ln(max(1, |difference|)) / 0.301)` of integers, int64, any shape.

    Differences are cut to their 12 leading bits first (those under 4096 stay exact), so that no value lies so close to
    a border that float32 arithmetic could miss it: every implementation finds the same bucket.
    """
    size = difference.abs().clamp(min=1).float()
    cut = (size.view(torch.int32) & _KEPT_BITS).view(torch.float32)
    return (cut.double().log() / BUCKET).floor().long()


def since(times: Tensor, first: Tensor) -> Tensor:
    """Return int64 times counted from that of the row's first key, those beyond `FARTHEST` counted as that."""
    return (times.long() - first.long()).clamp(-FARTHEST, FARTHEST)


def relative(bias: Bias, queries: slice, keys: slice, targets: int = 0) -> Tensor:
    """Return what is added to the scores of one row, `(H, M, N)` or `(1, M, N)`: the definition of `Bias`.

    Args:
        bias: with tables `(H, …)` or `(1, …)`.
        queries: the places of the row's M queries on the packed axis.
        keys: the places of its N keys on theirs.
        targets: how many of these are targets.
    """
    m, n = queries.stop - queries.start, keys.stop - keys.start
    total = torch.zeros(())
    if bias.position is not None:
        history, reach = max(n - targets, 0), bias.position.shape[1] // 2
        stand = torch.arange(n - m, n, device=bias.position.device).clamp(max=history)
        place = torch.arange(n, device=bias.position.device).clamp(max=history)
        distance = (stand[:, None] - place[None, :]).clamp(-reach, reach)
        total = total.to(bias.position) + bias.position[:, distance + reach]
    if bias.time is not None and bias.query_times is not None and bias.key_times is not None:
        asked, happened = bias.query_times.flatten()[queries], bias.key_times[keys]
        first = happened[0] if n else asked.new_zeros(())
        difference = since(asked, first)[:, None] - since(happened, first)[None, :]
        total = total.to(bias.time) + bias.time[:, bucket(difference).clamp(max=bias.time.shape[1] - 1)]
    return total

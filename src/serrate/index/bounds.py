"""How high a mixture of logits can be when only a part of its gate is known."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.similarity import MixtureOfLogits

_LOWEST_SILU = -1.2784645  # where x · sigmoid(x) is least
_VANISHED = 1e-30  # a sum of weights whose mean is not to be told


def gate_bound(logits: Tensor, kept: Tensor, similarity: MixtureOfLogits) -> Tensor:
    """Return what the scores of pairs cannot exceed, `(R, C)` float32, without looking at the gate pair by pair.

    The gate is `silu(kept + c(logits))`, and `c` is the part that is dear. For the smallest and the largest of each
    logit of a query among these items, interval arithmetic gives the least and the largest that `c` can be, hence an
    interval for every weight. A weighted mean is largest where the weights of all logits above some level are at their
    upper ends and all others at their lower ends; the level is found by trying every one.

    Args:
        logits: `(R, P, C)` float32, the component logits of each query with `C` items.
        kept: `(R, P, C)` float32, `a(query) · b(item)`.
        similarity: has the weights of `c`, `cross`.
    """
    low, high = _silu(*(kept + end[:, :, None] for end in cross_interval(logits.amin(2), logits.amax(2), similarity)))
    top = high.amax(1, keepdim=True)
    order = logits.argsort(1, descending=True)
    sorted_, low, high = (part.gather(1, order) for part in (logits, (low - top).exp(), (high - top).exp()))
    total = high.cumsum(1) + _after(low)
    means = ((high * sorted_).cumsum(1) + _after(low * sorted_)) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > _VANISHED, means, sorted_[:, :1]).amax(1)


def _after(x: Tensor) -> Tensor:
    """Return the sums of what comes after each place of the middle axis; never by a difference, which would round."""
    return F.pad(x.flip(1).cumsum(1).flip(1)[:, 1:], (0, 0, 0, 1))


def cross_interval(low: Tensor, high: Tensor, similarity: MixtureOfLogits) -> tuple[Tensor, Tensor]:
    """Return the least and the largest `c` of logits from `low` to `high`, all `(R, P)`.

    The ends hold, but are not tight.
    """
    first, _, second = similarity.cross
    for layer in (first, second):
        weight, bias = (part.detach().float() for part in layer.parameters())
        up, down = weight.clamp(min=0).T, weight.clamp(max=0).T
        low, high = low @ up + high @ down + bias, high @ up + low @ down + bias
        if layer is first:
            low, high = _silu(low, high)
    return low, high


def _silu(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of `x · sigmoid(x)` from `low` to `high`; it falls, then rises."""
    ends = F.silu(low), F.silu(high)
    bottom = F.silu(torch.full_like(low, _LOWEST_SILU))
    inside = (low < _LOWEST_SILU) & (high > _LOWEST_SILU)
    return torch.where(inside, bottom, ends[0].minimum(ends[1])), ends[0].maximum(ends[1])

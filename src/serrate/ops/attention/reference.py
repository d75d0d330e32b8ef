"""The oracle: one row at a time, written as the formula is. Slow; any device, any dtype, any width."""

import torch
from torch import Tensor

from .. import dropout
from .api import Call, Rows, Settings
from .bias import relative
from .mask import seen
from .weights import POINTWISE, Weights


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor]:
    """Attend within each row; see `api.attention`. Half precision is computed in float32, so waits for the device."""
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, offsets = rows.pack(q)
    group = q.shape[-2] // k.shape[1]
    key, value = (x.to(wide).repeat_interleave(group, 1) for x in (k, v))
    parts = []
    for row in range(offsets.shape[0] - 1):
        ours, theirs = (slice(*x[row:row + 2].tolist()) for x in (offsets, rows.keys))
        context, targets = (int(counts[row]) if isinstance(counts, Tensor) else 0
                            for counts in (settings.mask.context, settings.mask.targets))
        m, n = ours.stop - ours.start, theirs.stop - theirs.start
        hidden = ~seen(settings.mask, m, n, context, targets, device=q.device)
        scores = torch.einsum("ihd,jhd->hij", queries[ours].to(wide), key[theirs]) * settings.scale
        if settings.bias is not None:
            scores = scores + relative(settings.bias, ours, theirs, targets)
        weights = _weights(scores, hidden, settings.weights, n - targets) * _kept(settings, scores, ours, theirs)
        parts.append((torch.einsum("hij,jhd->ihd", weights, value[theirs]),
                      scores.masked_fill(hidden, float("-inf")).logsumexp(-1).T))
    if not parts:  # one empty row, so that the graph reaches every input
        nothing = queries.to(wide) @ key.mT @ value
        tables = () if settings.bias is None else (settings.bias.position, settings.bias.time)
        parts.append((nothing + sum(0 * table.sum() for table in tables if table is not None), queries.sum(-1)))
    out, lse = (torch.cat(part) for part in zip(*parts, strict=True))
    return out.to(q.dtype).reshape(*q.shape[:-1], v.shape[2]), lse.to(wide).reshape(q.shape[:-1])


def _weights(scores: Tensor, hidden: Tensor, weights: Weights, history: int) -> Tensor:
    """Return the weights of one row, `(H, m, n)`, 0 where `hidden` `(m, n)`."""
    if weights.pointwise:
        return (POINTWISE[weights.activation](scores) / weights.divisor(history)).masked_fill(hidden, 0.0)
    blind = hidden.all(-1, keepdim=True)  # sees nothing: 0, not 0 / 0
    seen = scores.masked_fill(hidden, float("-inf")).masked_fill(blind, 0.0)
    return seen.softmax(-1).masked_fill(blind, 0.0)


def _kept(settings: Settings, scores: Tensor, ours: slice, theirs: slice) -> Tensor | float:
    """Return what dropout multiplies the weights of this row by, `(H, m, n)`, or 1 for all."""
    if settings.seed is None:
        return 1.0
    rate = settings.weights.dropout
    queries, keys = (torch.arange(x.start, x.stop, device=scores.device) for x in (ours, theirs))
    return dropout.kept(settings.seed, rate, len(scores), queries, keys).to(scores) / (1 - rate)

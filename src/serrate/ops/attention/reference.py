"""The oracle: one row at a time, written as the formula is. Slow; any device, any dtype, any width."""

import torch
from torch import Tensor

from . import dropout
from .api import Call, Rows, Settings
from .mask import seen


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
        hidden = ~_seen(settings, row, ours, theirs, q.device)
        weights = _kept(settings, q.shape[-2], ours, theirs, q.device).to(wide) / (1 - settings.dropout)
        parts.append(_row(queries[ours].to(wide), key[theirs], value[theirs], settings.scale, hidden, weights))
    # no rows: one empty row, so that the graph reaches every input
    outputs, lse = zip(*parts, strict=True) if parts else ((queries.to(wide) @ key.mT @ value,), (queries.sum(-1),))
    out = torch.cat(outputs).to(q.dtype)
    return out.reshape(*q.shape[:-1], v.shape[2]), torch.cat(lse).to(wide).reshape(q.shape[:-1])


def _row(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """One row: `q` `(m, H, D)`, `k` `(n, H, D)`, `v` `(n, H, Dv)` → `(m, H, Dv)` and `(m, H)`."""
    scores = (torch.einsum("ihd,jhd->hij", q, k) * scale).masked_fill(hidden, float("-inf"))
    blind = hidden.all(-1, keepdim=True)  # sees nothing: 0, not 0 / 0
    p = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) * weights
    return torch.einsum("hij,jhd->ihd", p, v), scores.logsumexp(-1).T


def _seen(settings: Settings, row: int, ours: slice, theirs: slice, device: torch.device) -> Tensor:
    """Which keys each query of this row sees, `(m, n)`."""
    context, targets = (int(counts[row]) if isinstance(counts, Tensor) else 0
                        for counts in (settings.mask.context, settings.mask.targets))
    return seen(settings.mask, ours.stop - ours.start, theirs.stop - theirs.start, context, targets, device=device)


def _kept(settings: Settings, heads: int, ours: slice, theirs: slice, device: torch.device) -> Tensor:
    """Which weights of this row dropout keeps, `(H, m, n)` or one for all."""
    if settings.seed is None:
        return torch.ones((), device=device)
    queries, keys = (torch.arange(x.start, x.stop, device=device) for x in (ours, theirs))
    return dropout.kept(settings.seed, settings.dropout, heads, queries, keys)

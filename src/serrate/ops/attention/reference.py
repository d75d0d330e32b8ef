"""The oracle: one row at a time, written as the formula is. Slow; any device, any dtype, any width."""

import torch
from torch import Tensor

from .api import Call, Mask


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: Mask, scale: float, longest: int) -> Tensor:
    """Attend within each row; see `api.attention`. Half precision is computed in float32, so waits for the device."""
    wide = torch.promote_types(q.dtype, torch.float32)
    lengths = offsets.diff().tolist() or [0]  # no rows: one empty row, so that the graph reaches every input
    rows = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    outputs = [_row(query.to(wide), key.to(wide), value.to(wide), mask, scale) for query, key, value in rows]
    return torch.cat(outputs).to(q.dtype)


def _row(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """One row: `q`, `k` `(n, H, D)`, `v` `(n, H, Dv)` → `(n, H, Dv)`."""
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if mask.causal:
        n = q.shape[0]
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)

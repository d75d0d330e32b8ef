"""The oracle: one row at a time, with torch's own operations. Slow; any device, any dtype."""

import torch
from torch import Tensor

from .api import Call, Unique


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def pool(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> Tensor:
    """Pool events `(T, H, D)` with weights `(T, H)`; see `api.pool`. Half precision is computed in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if weights is None:
        rows = [_pooled(row, how) for row in _rows(wide, offsets)]
        nothing = wide.sum(0)
    else:
        scales = [_softmax(row) if softmax else row for row in _rows(weights.to(wide.dtype), offsets)]
        rows = [(row * scale[..., None]).sum(0) for row, scale in zip(_rows(wide, offsets), scales, strict=True)]
        nothing = (wide * weights[..., None]).sum(0)
    rows = rows or [nothing]  # without rows the graph reaches every input all the same
    return torch.stack(rows)[:offsets.shape[0] - 1].to(x.dtype)


def softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of logits `(T, W)` over the events of each row; see `api.softmax`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.cat([wide[:0], *map(_softmax, _rows(wide, offsets))]).to(x.dtype)


def top_n(scores: Tensor, offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Find the highest scores `(T,)` of each row; see `api.top_n`."""
    indices = offsets.new_full((offsets.shape[0] - 1, n), -1, dtype=torch.int64)
    for row, (first, own) in enumerate(zip(offsets.tolist(), _rows(scores, offsets), strict=False)):
        best = own.sort(descending=True, stable=True).indices[:n]
        indices[row, :len(best)] = first + best
    return indices, offsets.diff().long().clamp(max=n)


def unique(ids: Tensor, offsets: Tensor) -> Unique:
    """Find the different ids `(T,)` of each row; see `api.unique`."""
    values, counts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.int64)
    ends, inverse = [0], [counts[:0]]
    for row in _rows(ids, offsets):
        found, places, occurs = row.unique(return_inverse=True, return_counts=True)
        own = slice(ends[-1], ends[-1] + len(found))
        values[own], counts[own] = found, occurs
        inverse.append(places + ends[-1])
        ends.append(own.stop)
    return Unique(values, torch.tensor(ends, dtype=offsets.dtype, device=offsets.device), torch.cat(inverse), counts)


def _rows(x: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """Return each row `(n, *)`, for which a device is waited for."""
    return x.split(offsets.diff().tolist()) if offsets.shape[0] > 1 else ()


def _pooled(row: Tensor, how: str) -> Tensor:
    if how == "logsumexp":
        blind = _blind(row)  # −∞, and no gradient that is not a number
        return row.masked_fill(blind, 0.0).logsumexp(0).masked_fill(blind, -torch.inf)
    if how == "sum" or not len(row):
        return row.sum(0)
    return row.mean(0) if how == "mean" else row.gather(0, row.argmax(0, keepdim=True))[0]  # the first of equal ones


def _softmax(row: Tensor) -> Tensor:
    blind = _blind(row)  # 0, not 0 / 0
    return row.masked_fill(blind, 0.0).softmax(0).masked_fill(blind, 0.0)


def _blind(row: Tensor) -> Tensor:
    """Return of which columns all of a row is −∞, as it is where the row is empty."""
    return (row == -torch.inf).all(0)

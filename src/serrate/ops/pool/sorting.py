"""Top n and unique ids of rows by two stable sorts, on any device: torch sorts well, and nothing waits."""

import torch
from torch import Tensor

from .api import Call, Unique


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def top_n(scores: Tensor, offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Find the highest scores `(T,)` of each row; see `api.top_n`."""
    order, _ = _within_rows(scores, offsets, descending=True)
    counts = offsets.diff().long().clamp(max=n)
    rank = torch.arange(n, device=offsets.device)
    there = rank < counts[:, None]
    places = torch.where(there, offsets[:-1, None] + rank, order.shape[0])
    return torch.cat([order, order.new_full((1,), -1)])[places], counts


def unique(ids: Tensor, offsets: Tensor) -> Unique:
    """Find the different ids `(T,)` of each row; see `api.unique`."""
    order, row = _within_rows(ids, offsets, descending=False)
    ordered = ids[order]
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (row[1:] != row[:-1])
    seen = torch.cat([new.new_zeros(1, dtype=torch.int64), new.cumsum(0)])  # up to each event, itself left out
    place = seen[1:] - 1
    values = torch.zeros_like(ids).scatter(0, place, ordered)  # repeats write the same
    counts = torch.zeros_like(place).index_add(0, place, torch.ones_like(place))
    return Unique(values, seen[offsets].to(offsets.dtype), torch.empty_like(place).scatter(0, order, place), counts)


def _within_rows(x: Tensor, offsets: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the events `(T,)` of each row in the order of `x`, equal ones in their own, and the row of each place."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    row = torch.repeat_interleave(rows, offsets.diff(), output_size=x.shape[0])
    order = x.argsort(stable=True, descending=descending)
    return order[row[order].argsort(stable=True)], row

"""The oracle: rows one by one, in torch's own operations. Any device, any dtype, any derivative."""

import torch
from torch import Tensor
from torch.types import Number

from .api import Call
from .parts import joined_dtype, of_each


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def concatenate(parts: list[Tensor], offsets: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Join row by row; see `api.concatenate` and, for the arguments, `parts.py`."""
    of_parts = [_rows(part, own) for part, own in zip(parts, of_each(offsets, lengths), strict=True)]
    joined = [torch.cat(of_row) for of_row in zip(*of_parts, strict=True)]
    nothing = parts[0][:0] if lengths[0] < 0 else parts[0].flatten(0, 1)[:0]
    ends = torch.tensor([0, *(len(row) for row in joined)]).cumsum(0)
    values = torch.cat([nothing, *joined])
    return values, ends.to(values.device, joined_dtype(offsets, len(values)))


def split(x: Tensor, offsets: list[Tensor], lengths: list[int], events: list[int]) -> list[Tensor]:
    """Take joined rows apart; see `api.split` and, for the arguments, `parts.py`."""
    rows = len(offsets[0]) - 1
    sizes = [[length] * rows if own is None else own.diff().tolist()
             for own, length in zip(of_each(offsets, lengths), lengths, strict=True)]
    pieces = x.split([size for of_row in zip(*sizes, strict=True) for size in of_row]) if rows else ()
    parts = [torch.cat([x[:0], *pieces[i::len(lengths)]]) for i in range(len(lengths))]
    return [part if length < 0 else part.unflatten(0, (rows, length))
            for part, length in zip(parts, lengths, strict=True)]


def to_padded(x: Tensor, offsets: Tensor, length: int, fill: Number, left: bool) -> Tensor:
    """Put rows into a dense tensor; see `api.to_padded`."""
    out = []
    for row in _rows(x, offsets):
        kept = row[max(len(row) - length, 0):] if left else row[:length]
        padding = row.new_full((length - len(kept), *row.shape[1:]), fill)
        out.append(torch.cat([padding, kept] if left else [kept, padding]))
    return torch.stack(out) if out else x.unsqueeze(1).expand(-1, length, *x.shape[1:])


def from_padded(padded: Tensor, offsets: Tensor, num_events: int, left: bool) -> Tensor:
    """Take rows out of a dense tensor; see `api.from_padded`."""
    out = [padded.flatten(0, 1)[:0]]
    for row, length in zip(padded, offsets.diff().tolist(), strict=True):
        kept = row[max(len(row) - length, 0):] if left else row[:length]
        nothing = row.new_zeros(length - len(kept), *row.shape[1:])
        out.append(torch.cat([nothing, kept] if left else [kept, nothing]))
    return torch.cat(out)


def _rows(part: Tensor, offsets: Tensor | None) -> list[Tensor]:
    return list(part if offsets is None else part.split(offsets.diff().tolist()))

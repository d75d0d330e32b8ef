"""The oracle: one row after the other, in plain torch. Any device, any dtype.

Events are `(T, H, D)` and blocks `(P, H)` here, as in every implementation; half precision is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Call, Rows


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def offsets(offsets: Tensor) -> Tensor:
    """Return `(B + 1,)` int64; see `api.block_offsets`."""
    squares = offsets.long().diff().square()
    return torch.cat([squares.new_zeros(1), squares.cumsum(0)])


def products(x: Tensor, y: Tensor, rows: Rows, pairs: int) -> Tensor:
    """Return `(P, H)` of `(T, H, D)` each; see `api.block_products`."""
    both = zip(_events(_wide(x), rows), _events(_wide(y), rows), strict=True)
    return _joined([torch.einsum("ihd,jhd->ijh", *row) for row in both], pairs, x, y)


def matmul(a: Tensor, y: Tensor, rows: Rows, transposed: bool) -> Tensor:
    """Return `(T, H, D)` of `(P, H)` and `(T, H, D)`; see `api.block_matmul`."""
    both = zip(_blocks(_wide(a), rows), _events(_wide(y), rows), strict=True)
    equation = "ijh,ihd->jhd" if transposed else "ijh,jhd->ihd"
    found = [torch.einsum(equation, *row) for row in both]
    return torch.cat([*found, _wide(y)[:0] + _nothing(a)]).to(y.dtype)


def softmax(a: Tensor, rows: Rows, over_queries: bool) -> Tensor:
    """Return `(P, H)` of `(P, H)`; see `api.block_softmax`."""
    found = []
    for block in _blocks(_wide(a), rows):
        axis = 0 if over_queries else 1
        blind = (block == -torch.inf).all(axis, keepdim=True)
        found.append(block.masked_fill(blind, 0.0).softmax(axis) * ~blind)
    return _joined(found, a.shape[0], a)


def differences(x: Tensor, y: Tensor, rows: Rows, pairs: int) -> Tensor:
    """Return `(P, H)` of `(T, H)` each; see `api.block_differences`."""
    both = zip(_events(x, rows), _events(y, rows), strict=True)
    return _joined([own[:, None] - other[None] for own, other in both], pairs, x, y)


def multiply(a: Tensor, square: Tensor, rows: Rows) -> Tensor:
    """Return `(P, H)` of `(P, H)` and `(N, N)`; see `api.block_multiply`."""
    found = []
    for block in _blocks(a, rows):
        more = block.shape[0] - square.shape[0]
        found.append(block * F.pad(square, (0, more, 0, more))[..., None])  # less than none: cut
    return _joined(found, a.shape[0], a, square)


def to_padded(a: Tensor, rows: Rows, length: int, fill: float) -> Tensor:
    """Return `(B, N, N, H)` of `(P, H)`; see `api.to_padded_blocks`."""
    found = []
    for block in _blocks(a, rows):
        more = length - block.shape[0]
        found.append(F.pad(block, (0, 0, 0, more, 0, more), value=fill))
    return torch.stack(found) if found else a.new_empty((0, length, length, a.shape[1])) + _nothing(a)


def from_padded(padded: Tensor, rows: Rows, pairs: int) -> Tensor:
    """Return `(P, H)` of `(B, N, N, H)`; see `api.from_padded_blocks`."""
    found = []
    for block, size in zip(padded, rows.offsets.diff().tolist(), strict=True):
        more = size - block.shape[0]
        found.append(F.pad(block, (0, 0, 0, more, 0, more)))
    return _joined(found, pairs, padded)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _events(x: Tensor, rows: Rows) -> list[Tensor]:
    """Return the events of each row, `(L, …)`."""
    return list(x.split(rows.offsets.diff().tolist()))


def _blocks(a: Tensor, rows: Rows) -> list[Tensor]:
    """Return the block of each row, `(L, L, H)`."""
    lengths = rows.offsets.diff().tolist()
    parts = a[:sum(length**2 for length in lengths)].split([length**2 for length in lengths])
    return [part.reshape(length, length, a.shape[1]) for part, length in zip(parts, lengths, strict=True)]


def _joined(found: list[Tensor], pairs: int, like: Tensor, *others: Tensor) -> Tensor:
    """Return blocks `(L, L, H)` end to end as `(P, H)` in the dtype of `like`, 0 past the last.

    Without a row, too, the result belongs to the graph of what it was made of.
    """
    heads = like.shape[1] if like.dim() < 4 else like.shape[3]
    flat = [block.reshape(-1, heads) for block in found]
    there = torch.cat([*flat, like.new_zeros((0, heads)) + _nothing(like, *others)]).to(like.dtype)
    return F.pad(there, (0, 0, 0, pairs - there.shape[0]))


def _nothing(*given: Tensor) -> Tensor:
    """Return 0, with a gradient of 0 to each of the tensors."""
    return torch.stack([x[:0].sum() for x in given]).sum()

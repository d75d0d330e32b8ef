"""Square blocks on the CPU: rows of one length together, as dense batches. No loop over rows, only over lengths."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .api import Call
from .autograd import Operators


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


class _Group(NamedTuple):
    """The rows of one length: which they are, and where their events and pairs lie."""

    length: int
    rows: Tensor
    events: slice | Tensor
    pairs: slice | Tensor

    def events_of(self, x: Tensor) -> Tensor:
        """Return their part of `(T, …)` as `(rows, L, …)`."""
        return x[self.events].unflatten(0, (len(self.rows), self.length))

    def blocks_of(self, a: Tensor) -> Tensor:
        """Return their part of `(P, H)` as `(rows, L, L, H)`."""
        return a[self.pairs].unflatten(0, (len(self.rows), self.length, self.length))

    def store(self, out: Tensor, blocks: Tensor) -> None:
        """Write blocks `(rows, L, L, H)` to their part of `(P, H)`."""
        out[self.pairs] = blocks.flatten(0, 2).to(out.dtype)


def _groups(offsets: Tensor, blocks: Tensor) -> Iterator[_Group]:
    """Yield the rows that are not empty, by length."""
    lengths, order = offsets.diff().sort(stable=True)
    sizes, counts = lengths.unique_consecutive(return_counts=True)
    for length, rows in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
        if not length:
            continue
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):  # one after the other: nothing is gathered
            events, pairs = (slice(int(each[first]), int(each[last + 1])) for each in (offsets, blocks))
        else:
            events, pairs = ((each[rows, None] + torch.arange(size)).flatten()
                             for each, size in ((offsets.long(), length), (blocks, length**2)))
        yield _Group(length, rows, events, pairs)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _empty(like: Tensor, pairs: int, heads: int, blocks: Tensor) -> Tensor:
    """Return `(P, H)` to be filled, 0 past the last block."""
    out = like.new_empty((pairs, heads))
    out[int(blocks[-1]):] = 0
    return out


def _offsets(offsets: Tensor) -> Tensor:
    return reference.offsets(offsets)


def _products(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    out = _empty(x, pairs, x.shape[1], blocks)
    for group in _groups(offsets, blocks):
        queries, keys = (_wide(group.events_of(each)).transpose(1, 2) for each in (x, y))
        group.store(out, (queries @ keys.mT).permute(0, 2, 3, 1))
    return out


def _matmul(a: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, transposed: bool) -> Tensor:
    out = y.new_empty(y.shape)
    for group in _groups(offsets, blocks):
        block = _wide(group.blocks_of(a)).permute(0, 3, 1, 2)
        events = _wide(group.events_of(y)).transpose(1, 2)
        found = (block.mT if transposed else block) @ events
        out[group.events] = found.transpose(1, 2).flatten(0, 1).to(out.dtype)
    return out


def _both_matmuls(a: Tensor, y: Tensor, x: Tensor, offsets: Tensor, blocks: Tensor) -> list[Tensor]:
    return [_matmul(a, y, offsets, blocks, False), _matmul(a, x, offsets, blocks, True)]


def _sums(a: Tensor, offsets: Tensor, blocks: Tensor, events: int) -> list[Tensor]:
    outs = [a.new_zeros((events, a.shape[1])) for _ in range(2)]
    for group in _groups(offsets, blocks):
        block = _wide(group.blocks_of(a))
        for out, axis in zip(outs, (2, 1), strict=True):
            out[group.events] = block.sum(axis).flatten(0, 1).to(a.dtype)
    return outs


def _softmax(a: Tensor, offsets: Tensor, blocks: Tensor, over_queries: bool) -> Tensor:
    out, axis = _empty(a, a.shape[0], a.shape[1], blocks), 1 if over_queries else 2
    for group in _groups(offsets, blocks):
        block = _wide(group.blocks_of(a))
        top = block.amax(axis, keepdim=True)
        weights = (block - top.masked_fill(top == -torch.inf, 0.0)).exp_()
        total = weights.sum(axis, keepdim=True)
        group.store(out, weights.div_(total.masked_fill_(total == 0, 1.0)))
    return out


def _softmax_backward(out: Tensor, grad: Tensor, offsets: Tensor, blocks: Tensor, over_queries: bool) -> Tensor:
    found, axis = _empty(out, out.shape[0], out.shape[1], blocks), 1 if over_queries else 2
    for group in _groups(offsets, blocks):
        weights, incoming = (_wide(group.blocks_of(each)) for each in (out, grad))
        along = (weights * incoming).sum(axis, keepdim=True)
        group.store(found, (incoming - along) * weights)
    return found


def _differences(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    out = _empty(x, pairs, x.shape[1], blocks)
    for group in _groups(offsets, blocks):
        group.store(out, group.events_of(x)[:, :, None] - group.events_of(y)[:, None])
    return out


def _multiply(a: Tensor, square: Tensor, offsets: Tensor, blocks: Tensor) -> Tensor:
    out = _empty(a, a.shape[0], a.shape[1], blocks)
    for group in _groups(offsets, blocks):
        group.store(out, group.blocks_of(a) * square[:group.length, :group.length, None])
    return out


def _totals(a: Tensor, b: Tensor, offsets: Tensor, blocks: Tensor, side: int) -> Tensor:
    out = _wide(a.new_zeros((side, side)))
    for group in _groups(offsets, blocks):
        both = _wide(group.blocks_of(a)) * _wide(group.blocks_of(b))
        out[:group.length, :group.length] += both.sum((0, 3))
    return out.to(a.dtype)


def _both_multiplies(a: Tensor, b: Tensor, square: Tensor, offsets: Tensor, blocks: Tensor) -> list[Tensor]:
    return [_multiply(a, square, offsets, blocks), _totals(a, b, offsets, blocks, square.shape[0])]


def _to_padded(a: Tensor, offsets: Tensor, blocks: Tensor, length: int, fill: float) -> Tensor:
    out = a.new_full((offsets.shape[0] - 1, length, length, a.shape[1]), fill)
    for group in _groups(offsets, blocks):
        size = min(length, group.length)
        out[group.rows, :size, :size] = group.blocks_of(a)[:, :size, :size]
    return out


def _from_padded(padded: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    out = padded.new_zeros((pairs, padded.shape[3]))
    for group in _groups(offsets, blocks):
        size = min(padded.shape[1], group.length)
        block = padded.new_zeros((len(group.rows), group.length, group.length, padded.shape[3]))
        block[:, :size, :size] = padded[group.rows, :size, :size]
        group.store(out, block)
    return out


OPERATORS = Operators("cpu", {
    "offsets": _offsets, "products": _products, "matmul": _matmul,
    "both_matmuls": _both_matmuls, "sums": _sums, "softmax": _softmax,
    "softmax_backward": _softmax_backward, "differences": _differences, "multiply": _multiply, "totals": _totals,
    "both_multiplies": _both_multiplies, "to_padded": _to_padded, "from_padded": _from_padded}, "cpu")

"""Edits of jagged rows: concatenate, interleave, split, truncate, gather, reverse. Plain torch, no loops over rows.

Every edit keeps gradients and the dtype of `offsets` (int32 becomes int64 where the events would not fit). An
edit whose number of events depends on the contents of `offsets` waits for the device to learn it. Pass
`num_events` (the `T` of the result) where it is known and nothing waits; `torch.compile(fullgraph=True)` needs
that.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .batch import EventBatch, in_same_rows
from .tensor import INT32_MAX, JaggedTensor, longest_row, offsets_from_lengths, readable

Rows = TypeVar("Rows", JaggedTensor, EventBatch)


def concatenate_rows(parts: Sequence[JaggedTensor]) -> JaggedTensor:
    """Return all rows of the first part, then those of the second, …; never waits for the device.

    Args:
        parts: at least one; values of one dtype, device and inner shape.

    Raises:
        InvalidArgument: no parts, or parts that do not fit together.
    """
    _require_alike(parts)
    if len(parts) == 1:
        return parts[0]
    bases = [0, *accumulate(part.num_events for part in parts)]
    wide = bases[-1] > INT32_MAX or any(part.offsets.dtype == torch.int64 for part in parts)
    dtype = torch.int64 if wide else torch.int32
    offsets = [parts[0].offsets.to(dtype)]
    offsets += [part.offsets[1:].to(dtype) + base for part, base in zip(parts[1:], bases[1:-1], strict=True)]
    known = [part.longest for part in parts if part.longest is not None]
    return JaggedTensor.trusted(torch.cat([part.values for part in parts]), torch.cat(offsets),
                                max(known) if len(known) == len(parts) else None)


def concatenate_events(parts: Sequence[JaggedTensor]) -> JaggedTensor:
    """Join row by row: row `b` is row `b` of the first part, then row `b` of the second, …; never waits.

    Args:
        parts: at least one; the same number of rows; values of one dtype, device and inner shape.

    Raises:
        InvalidArgument: no parts, or parts that do not fit together.
    """
    _require_alike(parts)
    if len(parts) == 1:
        return parts[0]
    rows, count = parts[0].offsets.shape[0] - 1, len(parts)
    for i, part in enumerate(parts):
        if part.offsets.shape[0] - 1 != rows:
            raise InvalidArgument(f"parts[{i}]", f"{rows} rows, as parts[0]", len(part))
    stacked = concatenate_rows(parts)  # (part, row); what is wanted is (row, part)
    order = torch.arange(count * rows, device=stacked.device).view(count, rows).t().flatten()
    joined = gather_rows(stacked, order, num_events=stacked.num_events)
    offsets = joined.offsets[::count].contiguous()
    known = [part.longest for part in parts if part.longest is not None]
    bound = sum(known) if len(known) == count else None
    return JaggedTensor.trusted(joined.values, offsets, longest_row(offsets, bound))


def interleave_events(parts: Sequence[JaggedTensor]) -> JaggedTensor:
    """Take turns: row `b` is the first event of row `b` of each part, then the second of each, …; never waits.

    Args:
        parts: at least one; the same rows; values of one dtype, device and inner shape.

    Raises:
        InvalidArgument: no parts, or parts that do not fit together.
    """
    _require_alike(parts)
    first, count = parts[0], len(parts)
    for i, part in enumerate(parts):
        if not in_same_rows(part, first):
            raise InvalidArgument(f"parts[{i}]", "the rows of parts[0]", "other rows")
    values = torch.stack([part.values for part in parts], 1).flatten(0, 1)
    offsets = (first.offsets.long() if values.shape[0] > INT32_MAX else first.offsets) * count
    known = [part.longest for part in parts if part.longest is not None]
    return JaggedTensor.trusted(values, offsets, min(known) * count if known else None)


def deinterleave_events(x: JaggedTensor, count: int) -> list[JaggedTensor]:
    """Return the `count` parts that take turns in `x`, as views; reverses `interleave_events`, never waits.

    Raises:
        InvalidArgument: a `count` below 1, or a row whose length is not a multiple of it; on an accelerator only the
            events of all rows together are looked at.
    """
    if count < 1:
        raise InvalidArgument("count", "at least 1", count)
    if x.num_events % count or (readable(x.offsets) and bool((x.offsets % count).any())):
        raise InvalidArgument("x", f"rows of a multiple of {count} events", x.lengths.tolist())
    turns = x.values.view(x.num_events // count, count, *x.values.shape[1:])
    offsets = torch.div(x.offsets, count, rounding_mode="floor")
    longest = None if x.longest is None else x.longest // count
    return [JaggedTensor.trusted(part, offsets, longest) for part in turns.unbind(1)]


def split_rows(x: JaggedTensor, sizes: Sequence[int]) -> list[JaggedTensor]:
    """Split into parts of `sizes` rows each, as views; the reverse of `concatenate_rows`.

    Reads `len(sizes)` offsets on the host, so it waits for the device if there is one.

    Raises:
        InvalidArgument: a negative size, or sizes that do not sum to `B`.
    """
    if any(size < 0 for size in sizes) or sum(sizes) != len(x):
        raise InvalidArgument("sizes", f"sizes of at least 0 that sum to B = {len(x)}", list(sizes))
    cuts = [0, *accumulate(sizes)]
    bases = x.offsets[cuts].tolist()
    parts = []
    for begin, end, base, stop in zip(cuts, cuts[1:], bases, bases[1:], strict=False):
        offsets = x.offsets[begin : end + 1]
        offsets = offsets - base if base else offsets
        parts.append(JaggedTensor.trusted(x.values[base:stop], offsets, longest_row(offsets, x.longest)))
    return parts


def split_events(x: Rows, lengths: Tensor, *, num_events: int | None = None) -> tuple[Rows, Rows]:
    """Split every row after its first `lengths[b]` events → `(heads, tails)`; reverses `concatenate_events`.

    Args:
        x: `B` rows. Of an `EventBatch` all events are split, the context goes to both.
        lengths: `(B,)` int32 or int64, each within the row. On an accelerator they are not checked but clamped.
        num_events: `T` of the heads, if known.

    Raises:
        InvalidArgument: lengths of a wrong shape or dtype, negative, or beyond the row; a wrong `num_events`.
    """
    _require_index("lengths", lengths, x)
    if lengths.shape[0] != x.offsets.shape[0] - 1:
        raise InvalidArgument("lengths", f"shape ({len(x)},)", tuple(lengths.shape))
    heads = torch.minimum(lengths.clamp(min=0).to(x.offsets.dtype), x.lengths)
    if readable(heads) and not torch.equal(heads.long(), lengths.long()):
        row = int((heads != lengths).nonzero()[0])
        raise InvalidArgument("lengths", f"0 … {int(x.lengths[row])} for row {row}", int(lengths[row]))
    starts = x.offsets[:-1]
    head = take_events(x, starts, heads, num_events)
    return head, take_events(x, starts + heads, x.lengths - heads, x.num_events - head.num_events)


def newest(x: Rows, n: int, *, num_events: int | None = None) -> Rows:
    """Return the last `n` events of every row (all of a shorter row); `x` itself where no row is longer.

    Args:
        x: rows whose events go from old to new. Of an `EventBatch` all events are cut, the context stays.
        n: at least 0.
        num_events: `T` of the result, if known.

    Raises:
        InvalidArgument: a negative `n`, a wrong `num_events`.
    """
    if _all_shorter(x, n):
        return x
    lengths = x.lengths.clamp(max=min(n, x.num_events))
    return take_events(x, x.offsets[1:] - lengths, lengths, num_events, bound=n)


def oldest(x: Rows, n: int, *, num_events: int | None = None) -> Rows:
    """Return the first `n` events of every row; otherwise as `newest`."""
    if _all_shorter(x, n):
        return x
    return take_events(x, x.offsets[:-1], x.lengths.clamp(max=min(n, x.num_events)), num_events, bound=n)


def gather_rows(x: Rows, index: Tensor, *, num_events: int | None = None) -> Rows:
    """Return the rows `index`, in any order, repeated or not; negative ones count from the end.

    Args:
        x: `B` rows; of an `EventBatch` the context is gathered too, which waits where context is jagged.
        index: `(M,)` int32 or int64, on the device of `x`. On an accelerator its contents are not checked here.
        num_events: `T` of the result, if known.

    Raises:
        InvalidArgument: an index of a wrong shape, dtype or device, or beyond the rows; a wrong `num_events`.
    """
    _require_index("index", index, x)
    rows = x.offsets.shape[0] - 1
    if readable(index) and index.numel() and not -rows <= int(index.min()) <= int(index.max()) < rows:
        wrong = int(index[(index < -rows) | (index >= rows)][0])
        raise InvalidArgument("index", f"rows of x, which has {rows}", wrong)
    taken = take_events(x, x.offsets[:-1][index], x.lengths[index], num_events)
    if isinstance(taken, EventBatch):
        context = {name: value[index] if isinstance(value, Tensor) else gather_rows(value, index)
                   for name, value in taken.context.items()}
        return EventBatch.trusted(dict(taken.events), context)
    return taken


def reverse(x: Rows) -> Rows:
    """Return every row with its events in reverse order (of an `EventBatch` all events); never waits."""
    both_ends = x.offsets[:-1].long() + x.offsets[1:] - 1
    positions = torch.repeat_interleave(both_ends, x.lengths, output_size=x.num_events)
    positions = positions - torch.arange(x.num_events, device=x.device)
    return _at(x, positions, x.offsets, x.longest)


def sized_offsets(lengths: Tensor, num_events: int | None = None) -> tuple[Tensor, int]:
    """Return the offsets of rows of `lengths` `(B,)`, int64 where the sum asks for it, and the sum, `T`.

    Waits for the device, if there is one, only where `num_events` does not tell the sum; raises `InvalidArgument`
    where it can be seen to be wrong.
    """
    if num_events is None or readable(lengths):
        total = int(lengths.sum())
        if num_events not in (None, total):
            raise InvalidArgument("num_events", f"{total}, the events of the result", num_events)
        num_events = total
    return offsets_from_lengths(lengths.long() if num_events > INT32_MAX else lengths), num_events


def take_events(x: Rows, starts: Tensor, lengths: Tensor, num_events: int | None = None, *,
                bound: int | None = None) -> Rows:
    """Return rows of `lengths` `(M,)` events that begin at `starts` `(M,)` in the values of `x`, unchecked."""
    offsets, num_events = sized_offsets(lengths, num_events)
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=num_events)
    longest = longest_row(offsets, x.longest if bound is None else bound)
    return _at(x, shift + torch.arange(num_events, device=x.device), offsets, longest)


def _at(x: Rows, positions: Tensor, offsets: Tensor, longest: int | None) -> Rows:
    """Rows of `offsets` over the events of `x` at `positions` `(T,)`."""
    if isinstance(x, EventBatch):
        events = {name: JaggedTensor.trusted(x[name].values[positions], offsets, longest) for name in x}
        return EventBatch.trusted(events, dict(x.context))
    return JaggedTensor.trusted(x.values[positions], offsets, longest)


def _all_shorter(x: JaggedTensor | EventBatch, n: int) -> bool:
    if n < 0:
        raise InvalidArgument("n", "at least 0", n)
    return x.longest is not None and x.longest <= n


def _require_index(argument: str, index: object, x: JaggedTensor | EventBatch) -> None:
    if not isinstance(index, Tensor):
        raise InvalidArgument(argument, "a tensor", type(index).__name__)
    if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument(argument, "one axis, dtype int32 or int64", f"{tuple(index.shape)} {index.dtype}")
    if index.device != x.device:
        raise InvalidArgument(argument, f"a tensor on {x.device}", index.device)


def _require_alike(parts: Sequence[JaggedTensor]) -> None:
    if not parts:
        raise InvalidArgument("parts", "at least one JaggedTensor", "none")
    for i, part in enumerate(parts):
        if not isinstance(part, JaggedTensor):
            raise InvalidArgument(f"parts[{i}]", "a JaggedTensor", type(part).__name__)
        mine, first = ((one.values.shape[1:], one.dtype, one.device) for one in (part, parts[0]))
        if mine != first:
            expected, got = (f"events {tuple(shape)} {dtype} on {device}" for shape, dtype, device in (first, mine))
            raise InvalidArgument(f"parts[{i}]", f"{expected}, as parts[0]", got)

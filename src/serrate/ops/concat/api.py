"""The contract of concatenation, split and padding of jagged rows: shapes, errors and the choice of an implementation.

All four move events and change none: the results are exact, in any dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...jagged.tensor import readable
from .. import select


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype
    parts: int


def concatenate(
    parts: Sequence[Tensor],
    offsets: Sequence[Tensor | None],
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Join row by row: row `b` is row `b` of the first part, then row `b` of the second, …

    Dense parts have as many events in every row: before jagged ones they are a prefix, after them a suffix.

    Args:
        parts: at least one; jagged `(T, *)`, dense `(B, K, *)`; any dtype and strides; all of one dtype, device and
            shape of an event `*`.
        offsets: of each part `(B + 1,)` int32 or int64 on its device, or None where it is dense; one at least is there.
            Their contents are not read on the host, except that on a CPU the last entry is checked.
        implementation: a name from `implementations("concatenate")`, or None for the automatic choice.

    Returns:
        `(values, offsets)`: `(T, *)` of the dtype of the parts, with as many events as they have together,
        differentiable in all of them; `(B + 1,)`, int32 where all offsets are and the events allow it, else int64.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    if not parts or len(parts) != len(offsets):
        raise InvalidArgument("offsets", "an entry for each of one or more parts", f"{len(offsets)} for {len(parts)}")
    rows = _rows("offsets", offsets)
    for i, (part, own) in enumerate(zip(parts, offsets, strict=True)):
        name = f"parts[{i}]"
        if own is None and (part.dim() < 2 or part.shape[0] != rows):
            raise InvalidArgument(name, f"shape ({rows}, K, ...), as it has no offsets", tuple(part.shape))
        _check_events(name, part)
        shapes = [x.shape[1 if each is not None else 2:] for x, each in ((part, own), (parts[0], offsets[0]))]
        if shapes[0] != shapes[1] or part.dtype != parts[0].dtype:
            expected, got = (f"events {tuple(shape)} {x.dtype}" for shape, x in
                             ((shapes[1], parts[0]), (shapes[0], part)))
            raise InvalidArgument(name, f"{expected}, as parts[0]", got)
        if part.device != parts[0].device:
            raise InvalidArgument(name, f"a tensor on {parts[0].device}, as parts[0]", part.device)
        if own is not None:
            _check_offsets(f"offsets[{i}]", own, part)
    compute = _chosen("concatenate", parts[0], implementation, len(parts))
    lengths = [part.shape[1] if own is None else -1 for part, own in zip(parts, offsets, strict=True)]
    return compute(list(parts), [own for own in offsets if own is not None], lengths)


def split(
    x: Tensor,
    parts: Sequence[Tensor | int],
    *,
    num_events: Sequence[int] | None = None,
    implementation: str | None = None,
) -> list[Tensor]:
    """Take joined rows apart again; reverses `concatenate`.

    Args:
        x: `(T, *)`, rows that each have the events of the first part, then those of the second, …; any dtype, any
            strides.
        parts: at least one tensor, and any ints: `(B + 1,)` int32 or int64 offsets of a jagged part, on the device of
            `x`, or K, the events of every row of a dense one. The rows of `x` are as long as theirs together.
        num_events: T of the jagged parts, in their order; the last may be left out, as it follows. Needed where more
            than one is jagged and offsets cannot be read without waiting for a device.
        implementation: a name from `implementations("split")`, or None for the automatic choice.

    Returns:
        The parts, of the dtype of `x`: jagged `(T, *)`, dense `(B, K, *)`; differentiable in `x`.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit; `num_events` missing.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_events("x", x)
    rows = _rows("parts", [part if isinstance(part, Tensor) else None for part in parts])
    for i, part in enumerate(parts):
        if isinstance(part, Tensor):
            _check_offsets(f"parts[{i}]", part, x, ends=False)
        elif part < 0:
            raise InvalidArgument(f"parts[{i}]", "a length of at least 0", part)
    offsets = [part for part in parts if isinstance(part, Tensor)]
    events = _events(x, offsets, rows * sum(part for part in parts if not isinstance(part, Tensor)), num_events)
    compute = _chosen("split", x, implementation, len(parts))
    return compute(x, offsets, [-1 if isinstance(part, Tensor) else part for part in parts], events)


def to_padded(
    x: Tensor,
    offsets: Tensor,
    length: int,
    *,
    fill: float = 0,
    side: Literal["left", "right"] = "right",
    implementation: str | None = None,
) -> Tensor:
    """Put rows into a dense tensor: event `n` of row `b` becomes cell `[b, n]`.

    Where a row is longer than `length`, its oldest events stay with padding on the right, its newest with padding on
    the left: pass the longest row to keep all, and a smaller number to cut on purpose.

    Args:
        x: `(T, *)`, any dtype, any strides.
        offsets: `(B + 1,)` int32 or int64, on the device of `x`; contents as `concatenate` has them.
        length: N.
        fill: what padding holds.
        side: where padding is, "right" or "left" of the events.
        implementation: a name from `implementations("to_padded")`, or None for the automatic choice.

    Returns:
        `(B, N, *)` of the dtype of `x`, differentiable in `x`.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_events("x", x)
    _rows("offsets", [offsets])
    _check_offsets("offsets", offsets, x)
    if length < 0:
        raise InvalidArgument("length", "at least 0", length)
    return _chosen("to_padded", x, implementation, 1)(x, offsets, length, fill, _left(side))


def from_padded(
    padded: Tensor,
    offsets: Tensor,
    *,
    num_events: int | None = None,
    side: Literal["left", "right"] = "right",
    implementation: str | None = None,
) -> Tensor:
    """Take rows out of a dense tensor: event `n` of row `b` is cell `[b, n]`, and 0 past the last cell.

    Args:
        padded: `(B, N, *)`, any dtype, any strides.
        offsets: `(B + 1,)` int32 or int64, on the device of `padded`, of the rows to take.
        num_events: T, the last entry of `offsets`; needed where that cannot be read without waiting for a device.
        side: where padding is, "right" or "left" of the events; on the left the last cell is the newest event.
        implementation: a name from `implementations("from_padded")`, or None for the automatic choice.

    Returns:
        `(T, *)` of the dtype of `padded`, differentiable in it.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit; `num_events` missing.
        NotUsable: the implementation asked for cannot serve this call.
    """
    rows = _rows("offsets", [offsets])
    if padded.dim() < 2 or padded.shape[0] != rows:
        raise InvalidArgument("padded", f"shape ({rows}, N, ...)", tuple(padded.shape))
    _check_events("padded", padded)
    _check_offsets("offsets", offsets, padded, ends=False)
    if readable(offsets):
        if num_events not in (None, int(offsets[-1])):
            raise InvalidArgument("num_events", f"{int(offsets[-1])}, the last entry of offsets", num_events)
        num_events = int(offsets[-1])
    if num_events is None:
        raise InvalidArgument("num_events", "a number, as offsets cannot be read here without waiting", None)
    return _chosen("from_padded", padded, implementation, 1)(padded, offsets, num_events, _left(side))


def _chosen(operation: str, x: Tensor, implementation: str | None, parts: int) -> Callable[..., Any]:
    call = Call(x.device, x.dtype, parts)
    return select.choose(operation, call, implementation).implementation.compute


def _events(x: Tensor, offsets: list[Tensor], dense: int, given: Sequence[int] | None) -> list[int]:
    """Return T of every jagged part, from what was given, what can be read and what follows from `x`."""
    found = list(given or ())
    if all(map(readable, offsets)):
        read = [int(each[-1]) for each in offsets]
        if found not in (read, read[:-1], []):
            raise InvalidArgument("num_events", f"{read}, the last entries of the offsets", found)
        found = read
    elif len(found) not in (len(offsets) - 1, len(offsets)):
        told = f"{len(offsets) - 1} or {len(offsets)} numbers, as offsets cannot be read here without waiting"
        raise InvalidArgument("num_events", told, found or None)
    left = x.shape[0] - dense - sum(found)
    found += [left] * (len(offsets) - len(found))
    if sum(found) + dense != x.shape[0] or min(found) < 0:
        raise InvalidArgument("x", "as many events as its parts have together", x.shape[0])
    return found


def _rows(name: str, offsets: Sequence[Tensor | None]) -> int:
    """Return B, which all offsets that there are tell."""
    given = [each for each in offsets if each is not None]
    # compared one by one: a set would fix B in torch.compile
    if not given or any(each.dim() != 1 or each.shape[0] < 1 or each.shape != given[0].shape for each in given):
        got = ", ".join("None" if each is None else str(tuple(each.shape)) for each in offsets)
        raise InvalidArgument(name, "at least one tensor of shape (B + 1,), with the same B in all", got)
    return given[0].shape[0] - 1


def _check_events(name: str, x: Tensor) -> None:
    if x.dim() < 1:
        raise InvalidArgument(name, "shape (T, ...)", tuple(x.shape))


def _check_offsets(name: str, offsets: Tensor, x: Tensor, *, ends: bool = True) -> None:
    """Raise where offsets `(B + 1,)` do not fit the events `x` `(T, *)`, whose number they end at unless told."""
    if offsets.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument(name, "dtype int32 or int64", offsets.dtype)
    if offsets.device != x.device:
        raise InvalidArgument(name, f"a tensor on {x.device}, as the events", offsets.device)
    if ends and readable(offsets) and int(offsets[-1]) != x.shape[0]:
        raise InvalidArgument(name, f"a last entry of T = {x.shape[0]}", int(offsets[-1]))


def _left(side: str) -> bool:
    if side not in ("left", "right"):
        raise InvalidArgument("side", "'left' or 'right'", repr(side))
    return side == "left"

"""How implementations are told of parts: the offsets of the jagged ones in their order, and a length of each.

The length is that of every row of a dense part, and -1 of a jagged one.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...jagged.tensor import INT32_MAX

Told = TypeVar("Told")


def of_each(jagged: Sequence[Told], lengths: Sequence[int]) -> list[Told | None]:
    """Return what is told of jagged parts for each part, None of a dense one."""
    told = iter(jagged)
    return [next(told) if length < 0 else None for length in lengths]


def joined_shape(parts: Sequence[Tensor], lengths: Sequence[int]) -> tuple[int, ...]:
    """Return `(T, *)`, the shape of joined parts."""
    events = [part.shape[0] if length < 0 else part.shape[0] * length
              for part, length in zip(parts, lengths, strict=True)]
    return sum(events), *parts[0].shape[1 if lengths[0] < 0 else 2:]


def joined_dtype(offsets: Sequence[Tensor], events: int) -> torch.dtype:
    """Return the dtype of the offsets `(B + 1,)` of joined rows: int32 where all are and the events allow it."""
    wide = any(each.dtype == torch.int64 for each in offsets)
    return torch.int64 if wide or events > INT32_MAX else torch.int32


def part_shapes(x: Tensor, offsets: Sequence[Tensor], lengths: Sequence[int],
                events: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shape of each part of joined rows, `(T, *)` or `(B, K, *)`. events: T of the jagged ones."""
    rows = offsets[0].shape[0] - 1
    return [(rows, length, *x.shape[1:]) if count is None else (count, *x.shape[1:])
            for count, length in zip(of_each(events, lengths), lengths, strict=True)]

"""Concatenation, split and padding on the CPU: torch's own gathers and scatters of whole events."""

import torch
from torch import Tensor
from torch.types import Number

from .api import Call
from .autograd import operators
from .parts import joined_dtype, joined_shape, of_each, part_shapes


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def _concatenate(parts: list[Tensor], offsets: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    values = parts[0].new_empty(joined_shape(parts, lengths))
    flat = [part if length < 0 else part.flatten(0, 1) for part, length in zip(parts, lengths, strict=True)]
    places, ends = _places(offsets, lengths, [part.shape[0] for part in flat])
    for part, place in zip(flat, places, strict=True):
        values.index_copy_(0, place, part)
    return values, ends.to(joined_dtype(offsets, len(values)))


def _split(x: Tensor, offsets: list[Tensor], lengths: list[int], events: list[int]) -> list[Tensor]:
    shapes = part_shapes(x, offsets, lengths, events)
    counts = [shape[0] if length < 0 else shape[0] * length for shape, length in zip(shapes, lengths, strict=True)]
    places, _ = _places(offsets, lengths, counts)
    return [x.index_select(0, place).view(shape) for place, shape in zip(places, shapes, strict=True)]


def _to_padded(x: Tensor, offsets: Tensor, length: int, fill: Number, left: bool) -> Tensor:
    padded = x.new_full((offsets.shape[0] - 1, length, *x.shape[1:]), fill)
    cells, inside = _cells(offsets, length, left, x.shape[0])
    if not bool(inside.all()):
        cells, x = cells[inside], x[inside]
    padded.view(-1, *x.shape[1:]).index_copy_(0, cells, x) if x.numel() else None
    return padded


def _from_padded(padded: Tensor, offsets: Tensor, num_events: int, left: bool) -> Tensor:
    cells, inside = _cells(offsets, padded.shape[1], left, num_events)
    flat = padded.flatten(0, 1)
    if bool(inside.all()):
        return flat.index_select(0, cells)
    out = flat.new_zeros(num_events, *flat.shape[1:])
    out[inside] = flat[cells[inside]]
    return out


def _places(offsets: list[Tensor], lengths: list[int], events: list[int]) -> tuple[list[Tensor], Tensor]:
    """Return where the events of each part stand among the joined ones, `(T,)` int64, and the joined offsets."""
    rows = torch.arange(len(offsets[0]))
    of_parts = [length * rows if own is None else own.long()
                for own, length in zip(of_each(offsets, lengths), lengths, strict=True)]
    joined = torch.stack(of_parts).sum(0)
    begins, places = joined[:-1], []
    for own, count in zip(of_parts, events, strict=True):
        shift = torch.repeat_interleave(begins - own[:-1], own.diff(), output_size=count)
        places.append(shift.add_(torch.arange(count)))
        begins = begins + own.diff()
    return places, joined


def _cells(offsets: Tensor, length: int, left: bool, num_events: int) -> tuple[Tensor, Tensor]:
    """Return which cell of a padded tensor each event has, `(T,)` int64, and whether there is one, `(T,)` bool."""
    own = offsets.long()
    first = length * torch.arange(len(own) - 1)
    shift = first - own[:-1] + (length - own.diff() if left else 0)
    first, shift = (torch.repeat_interleave(each, own.diff(), output_size=num_events) for each in (first, shift))
    cells = shift.add_(torch.arange(num_events))
    return cells, (cells >= first) & (cells < first + length)


concatenate, split, to_padded, from_padded = operators("cpu", _concatenate, _split, _to_padded, _from_padded)

"""Concatenation, split and padding on CUDA in Triton: custom operators, whose kernel is imported at the first call.

One kernel does all four. It goes over events of rows that are joined of parts, a block a program, and moves each from
or to its part.
"""

from torch import Tensor
from torch.types import Number

from ...direct import no_triton, on_device_of
from ..api import Call
from ..autograd import operators
from ..parts import joined_dtype, joined_shape, of_each, part_shapes

MOST_PARTS = 16


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors of any width, up to 16 parts, where Triton is installed."""
    if (reason := no_triton(call.device)) is not None:
        return reason
    if call.dtype.itemsize > 8:
        return f"needs numbers of at most 8 bytes, got {call.dtype}"
    return f"needs at most {MOST_PARTS} parts, got {call.parts}" if call.parts > MOST_PARTS else None


def _concatenate(parts: list[Tensor], offsets: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    from .kernels import Rows, move

    shape = joined_shape(parts, lengths)
    values = parts[0].new_empty(shape)
    ends = offsets[0].new_empty(offsets[0].shape, dtype=joined_dtype(offsets, shape[0]))
    rows = [Rows(own, part.shape[own is None]) for part, own in zip(parts, of_each(offsets, lengths), strict=True)]
    with on_device_of(values):
        move(values, rows, parts, rows, ends=ends)
    return values, ends


def _split(x: Tensor, offsets: list[Tensor], lengths: list[int], events: list[int]) -> list[Tensor]:
    from .kernels import Rows, move

    parts = [x.new_empty(shape) for shape in part_shapes(x, offsets, lengths, events)]
    rows = [Rows(own, part.shape[own is None]) for part, own in zip(parts, of_each(offsets, lengths), strict=True)]
    with on_device_of(x):
        move(x, rows, parts, rows, apart=True)
    return parts


def _to_padded(x: Tensor, offsets: Tensor, length: int, fill: Number, left: bool) -> Tensor:
    from .kernels import Rows, move

    padded = x.new_empty((offsets.shape[0] - 1, length, *x.shape[1:]))
    with on_device_of(x):
        move(padded.flatten(0, 1), [Rows(None, length)], [x], [Rows(offsets, x.shape[0])], fill=fill, left=left)
    return padded


def _from_padded(padded: Tensor, offsets: Tensor, num_events: int, left: bool) -> Tensor:
    from .kernels import Rows, move

    out = padded.new_empty((num_events, *padded.shape[2:]))
    with on_device_of(padded):
        move(out, [Rows(offsets, num_events)], [padded], [Rows(None, padded.shape[1])], left=left)
    return out


concatenate, split, to_padded, from_padded = operators("triton", _concatenate, _split, _to_padded, _from_padded)

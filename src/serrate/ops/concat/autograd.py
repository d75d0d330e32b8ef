"""What the operators of every implementation share: each of the four is the backward pass of another.

So derivatives of any order are right. Events only move: what comes back to an event is what its place got.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.types import Number

from ..direct import Operator
from .parts import joined_dtype, joined_shape, part_shapes


def operators(implementation: str, *computations: Callable) -> list[Operator]:
    """Make concatenate, split, to_padded and from_padded, in this order, operators of an implementation."""
    made = [Operator(f"serrate::{name}_{implementation}", compute)
            for name, compute in zip(_FAKES, computations, strict=True)]
    joined, parted, padded, taken = made
    for each, fake in zip(made, _FAKES.values(), strict=True):
        each.register_fake(fake)

    def of_joined(ctx: Any, grad: Tensor, _: Tensor) -> tuple:
        offsets = list(ctx.saved_tensors)
        return parted(grad, offsets, ctx.lengths, ctx.events), [None] * len(offsets), None

    def of_parted(ctx: Any, grads: list[Tensor]) -> tuple:
        offsets = list(ctx.saved_tensors)
        return joined(grads, offsets, ctx.lengths)[0], [None] * len(offsets), None, None

    def of_padded(ctx: Any, grad: Tensor) -> tuple:
        return taken(grad, *ctx.saved_tensors, ctx.events, ctx.left), None, None, None, None

    def of_taken(ctx: Any, grad: Tensor) -> tuple:
        return padded(grad, *ctx.saved_tensors, ctx.length, 0, ctx.left), None, None, None

    joined.register_autograd(of_joined, setup_context=_keep_parts)
    parted.register_autograd(of_parted, setup_context=_keep_offsets)
    padded.register_autograd(of_padded, setup_context=_keep_events)
    taken.register_autograd(of_taken, setup_context=_keep_length)
    return made


# --- shapes of results ---


def _joined(parts: list[Tensor], offsets: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    shape = joined_shape(parts, lengths)
    return parts[0].new_empty(shape), offsets[0].new_empty(offsets[0].shape, dtype=joined_dtype(offsets, shape[0]))


def _parted(x: Tensor, offsets: list[Tensor], lengths: list[int], events: list[int]) -> list[Tensor]:
    return [x.new_empty(shape) for shape in part_shapes(x, offsets, lengths, events)]


def _padded(x: Tensor, offsets: Tensor, length: int, fill: Number, left: bool) -> Tensor:
    return x.new_empty((offsets.shape[0] - 1, length, *x.shape[1:]))


def _taken(padded: Tensor, offsets: Tensor, num_events: int, left: bool) -> Tensor:
    return padded.new_empty((num_events, *padded.shape[2:]))


_FAKES = {"concatenate": _joined, "split": _parted, "to_padded": _padded, "from_padded": _taken}


# --- what the backward pass needs ---


def _keep_parts(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    parts, offsets, ctx.lengths = inputs
    ctx.save_for_backward(*offsets)
    ctx.events = [part.shape[0] for part, length in zip(parts, ctx.lengths, strict=True) if length < 0]


def _keep_offsets(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    _, offsets, ctx.lengths, _ = inputs
    ctx.save_for_backward(*offsets)


def _keep_events(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, offsets, *_, ctx.left = inputs
    ctx.save_for_backward(offsets)
    ctx.events = x.shape[0]


def _keep_length(ctx: Any, inputs: tuple, output: Tensor) -> None:
    padded, offsets, _, ctx.left = inputs
    ctx.save_for_backward(offsets)
    ctx.length = padded.shape[1]

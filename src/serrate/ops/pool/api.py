"""The contract of pooling, softmax, top n and unique ids of jagged rows: shapes, numerics, errors and the choice."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...errors import InvalidArgument, suggest
from ...jagged import JaggedTensor
from ...jagged.tensor import readable
from .. import select

How = Literal["sum", "mean", "max", "logsumexp"]
HOWS: tuple[str, ...] = get_args(How)


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


class Unique(NamedTuple):
    """The ids of each row without repeats.

    Attributes:
        values: `(U,)` of the dtype of the ids, ascending within a row. The first `offsets[-1]` count, 0 follow.
        offsets: `(B + 1,)` of the dtype of the offsets given.
        inverse: `(T,)` int64, where in `values` each event has its id: `values[inverse]` are the ids.
        counts: `(U,)` int64, how often each occurs in its row; 0 where `values` no longer count.
    """

    values: Tensor
    offsets: Tensor
    inverse: Tensor
    counts: Tensor


def pool(
    x: Tensor,
    offsets: Tensor,
    *,
    how: How = "sum",
    weights: Tensor | None = None,
    activation: Literal["softmax"] | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Pool the events of each row into one.

    Weights make it `Σ w x`; with `activation="softmax"` they are logits, and it is `Σ softmax(w) x`, the softmax over
    the events of the row: the pooling of attention, in one pass over the events. Sums are float32 (float64 for float64
    inputs) whatever the dtype. For the backward pass sums, means and maxima without weights keep no events.

    Args:
        x: `(T, *)` events; float64, float32, bfloat16 or float16; any strides.
        offsets: `(B + 1,)` int32 or int64, on the device of `x`.
        how: "sum", "mean", "max" (the gradient goes to the first of equal ones; NaN counts as the largest) or
            "logsumexp".
        weights: `(T,)`, or `(T, H)` with `x` `(T, H, *)`, dtype and device of `x`; for sums alone.
        activation: "softmax" over the weights of a row, or None for the weights as they are.
        implementation: a name from `implementations("pool")`, or None for the automatic choice.

    Returns:
        `(B, *)` of the dtype of `x`, differentiable in `x` and `weights`. An empty row gives 0 and the log-sum-exp of
        it −∞; a row whose logits are all −∞ gives 0.

    Raises:
        InvalidArgument: shapes, dtypes, devices or words that do not fit; malformed offsets on a CPU.
        NotUsable: the implementation asked for cannot serve this call.

    Source: pooling by a softmax of scores: Bahdanau et al., ICLR 2015 (arXiv 1409.0473); by scores as they are: Zhou et
    al., "Deep Interest Network", KDD 2018 (arXiv 1706.06978).
    """
    check_events("x", x, offsets)
    if how not in HOWS:
        raise InvalidArgument("how", f"one of {', '.join(HOWS)}{suggest(str(how), HOWS)}", repr(how))
    if activation not in (None, "softmax"):
        raise InvalidArgument("activation", "'softmax' or None", repr(activation))
    if weights is None:
        if activation is not None:
            raise InvalidArgument("activation", "None, as there are no weights", repr(activation))
        events = x.reshape(x.shape[0], 1, x.shape[1:].numel())
    else:
        _check_weights(weights, x, how)
        heads = weights.shape[1:].numel()
        events = x.reshape(x.shape[0], heads, x.shape[weights.dim():].numel())
        weights = weights.reshape(x.shape[0], heads)
    chosen = select.choose("pool", Call(x.device, x.dtype), implementation).implementation
    out = chosen.compute(events, offsets, weights, how, activation == "softmax")
    return out.reshape(offsets.shape[0] - 1, *x.shape[1:])


def softmax(x: Tensor, offsets: Tensor, *, implementation: str | None = None) -> Tensor:
    """Softmax over the events of each row, apart for each column.

    Args:
        x: `(T, *)` logits, such as `(T,)` or `(T, H)`; float64, float32, bfloat16 or float16; any strides.
        offsets: `(B + 1,)` int32 or int64, on the device of `x`.
        implementation: a name from `implementations("softmax")`, or None for the automatic choice.

    Returns:
        `(T, *)` of the dtype of `x`, differentiable in it; 0 where all logits of a row and column are −∞.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit; malformed offsets on a CPU.
        NotUsable: the implementation asked for cannot serve this call.
    """
    check_events("x", x, offsets)
    chosen = select.choose("softmax", Call(x.device, x.dtype), implementation).implementation
    return chosen.compute(x.reshape(x.shape[0], x.shape[1:].numel()), offsets).reshape(x.shape)


def top_n(scores: Tensor, offsets: Tensor, n: int, *, implementation: str | None = None) -> tuple[Tensor, Tensor]:
    """Find the `n` events of each row with the highest scores, the highest first.

    Of equal scores the earlier event comes first; NaN counts as the highest. Not differentiable: gather with the
    result what gradients are wanted of.

    Args:
        scores: `(T,)` of any real dtype.
        offsets: `(B + 1,)` int32 or int64, on the device of `scores`.
        n: at least 0.
        implementation: a name from `implementations("top_n")`, or None for the automatic choice.

    Returns:
        `(indices, counts)`: `(B, n)` int64 into the `T` events, −1 past the events of a shorter row; `(B,)` int64, how
        many of them are not −1.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, a negative `n`; malformed offsets on a CPU.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_flat("scores", scores, offsets)
    if scores.is_complex() or scores.dtype == torch.bool:
        raise InvalidArgument("scores", "a real dtype", scores.dtype)
    if n < 0:
        raise InvalidArgument("n", "at least 0", n)
    chosen = select.choose("top_n", Call(scores.device, scores.dtype), implementation).implementation
    return chosen.compute(scores.detach(), offsets, n)


def unique(ids: Tensor, offsets: Tensor, *, num_events: int | None = None,
           implementation: str | None = None) -> Unique:
    """Find the different ids of each row, without waiting for the device to count them.

    Args:
        ids: `(T,)` of any integer dtype.
        offsets: `(B + 1,)` int32 or int64, on the device of `ids`.
        num_events: U, how many there are in all rows together, if known; by default T, the most there can be.
        implementation: a name from `implementations("unique")`, or None for the automatic choice.

    Returns:
        A `Unique`: values `(U,)`, offsets `(B + 1,)`, inverse `(T,)` and counts `(U,)`.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit; malformed offsets or a wrong `num_events` on a CPU.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_flat("ids", ids, offsets)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InvalidArgument("ids", "an integer dtype", ids.dtype)
    if num_events is not None and not 0 <= num_events <= ids.shape[0]:
        raise InvalidArgument("num_events", f"0 … T = {ids.shape[0]}", num_events)
    chosen = select.choose("unique", Call(ids.device, ids.dtype), implementation).implementation
    found = chosen.compute(ids, offsets)
    if num_events is None:
        return found
    if readable(found.offsets) and int(found.offsets[-1]) != num_events:
        raise InvalidArgument("num_events", f"{int(found.offsets[-1])}, the different ids of all rows", num_events)
    return found._replace(values=found.values[:num_events], counts=found.counts[:num_events])


def check_events(name: str, x: Tensor, offsets: Tensor) -> None:
    """Raise `InvalidArgument` unless `x` is `(T, *)` of a floating dtype and the offsets `(B + 1,)` are of its rows."""
    if x.dim() < 1 or 0 in x.shape[1:]:
        raise InvalidArgument(name, "shape (T, ...), with no axis of 0 after the first", tuple(x.shape))
    if not x.dtype.is_floating_point:
        raise InvalidArgument(name, "a floating-point dtype", x.dtype)
    JaggedTensor(x, offsets)  # raises where they do not fit


def _check_flat(name: str, x: Tensor, offsets: Tensor) -> None:
    if x.dim() != 1:
        raise InvalidArgument(name, "shape (T,)", tuple(x.shape))
    JaggedTensor(x, offsets)


def _check_weights(weights: Tensor, x: Tensor, how: str) -> None:
    if how != "sum":
        raise InvalidArgument("weights", f"None, as how is {how!r} and not 'sum'", tuple(weights.shape))
    if weights.dim() not in (1, 2) or weights.shape != x.shape[:weights.dim()]:
        heads = f" or {tuple(x.shape[:2])}" if x.dim() > 1 else ""
        raise InvalidArgument("weights", f"shape ({x.shape[0]},){heads}, as x", tuple(weights.shape))
    if weights.dtype != x.dtype:
        raise InvalidArgument("weights", f"{x.dtype}, as x", weights.dtype)
    if weights.device != x.device:
        raise InvalidArgument("weights", f"a tensor on {x.device}, as x", weights.device)


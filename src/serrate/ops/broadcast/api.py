"""The contract of sums and products of events with what belongs to rows and positions: shapes, errors, the choice."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...errors import InvalidArgument, suggest
from .. import select
from ..pool.api import check_events

Along = Literal["rows", "positions", "both"]
ALONG: tuple[str, ...] = get_args(Along)


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


def add(x: Tensor, y: Tensor, offsets: Tensor, *, along: Along = "rows", implementation: str | None = None) -> Tensor:
    """Add to each event what belongs to its row, to its position in the row, or to both.

    Such as a bias of each user, or a table of positions. To subtract, pass `-y`.

    Args:
        x: `(T, *)` events; float64, float32, bfloat16 or float16; any strides.
        y: "rows": `(B, *)`; "positions": `(N, *)`, shared by all rows; "both": `(B, N, *)`, such as padded rows. What
            `*` is of `y` is broadcast to that of `x` as torch does. Dtype and device of `x`. No row is longer than N:
            on a CPU one is refused, on an accelerator `y` counts as 0 there.
        offsets: `(B + 1,)` int32 or int64, on the device of `x`.
        along: which axes `y` has, "rows", "positions" or "both".
        implementation: a name from `implementations("broadcast")`, or None for the automatic choice.

    Returns:
        `(T, *)` of the dtype of `x`, differentiable in `x` and `y`. The gradient of `y` is a sum in float32 (float64
        for float64), taken in the same order every time, and 0 where there is no event.

    Raises:
        InvalidArgument: shapes, dtypes, devices or words that do not fit; malformed offsets on a CPU.
        NotUsable: the implementation asked for cannot serve this call.
    """
    return _broadcast(x, y, offsets, along, False, implementation)


def multiply(x: Tensor, y: Tensor, offsets: Tensor, *, along: Along = "rows",
             implementation: str | None = None) -> Tensor:
    """Multiply each event with what belongs to its row, to its position in the row, or to both.

    Shapes `(T, *)`, dtypes and all else are as in `add`.
    """
    return _broadcast(x, y, offsets, along, True, implementation)


def require_positions(offsets: Tensor, along: str, positions: int) -> None:
    """Raise `InvalidArgument` where a row of offsets `(B + 1,)`, int32 or int64, is longer than there are positions."""
    if along == "rows" or offsets.shape[0] < 2:
        return
    longest = int(offsets.diff().max())
    if longest > positions:
        raise InvalidArgument("y", f"at least {longest} positions, the longest row", positions)


def _broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: Along, product: bool,
               implementation: str | None) -> Tensor:
    check_events("x", x, offsets)
    if along not in ALONG:
        raise InvalidArgument("along", f"one of {', '.join(ALONG)}{suggest(str(along), ALONG)}", repr(along))
    rows, event = offsets.shape[0] - 1, x.shape[1:]
    leading = 2 if along == "both" else 1
    lead, own = y.shape[:leading], (1,) * (len(event) + leading - y.dim()) + y.shape[leading:]
    fits = y.dim() >= leading and len(own) == len(event) and (along == "positions" or lead[0] == rows)
    if not fits or any(size not in (1, full) for size, full in zip(own, event, strict=True)):
        axes = {"rows": f"{rows}", "positions": "N", "both": f"{rows}, N"}[along]
        raise InvalidArgument("y", f"shape ({axes}, ...), the rest as {tuple(event)} or 1", tuple(y.shape))
    if y.dtype != x.dtype:
        raise InvalidArgument("y", f"{x.dtype}, as x", y.dtype)
    if y.device != x.device:
        raise InvalidArgument("y", f"a tensor on {x.device}, as x", y.device)
    y = y.reshape(*lead, *own)
    alone = all(size == 1 for size in own)  # one number for all columns stays one
    y = y.reshape(*lead, 1) if alone else y.expand(*lead, *event).reshape(*lead, event.numel())
    chosen = select.choose("broadcast", Call(x.device, x.dtype), implementation).implementation
    return chosen.compute(x.reshape(x.shape[0], event.numel()), y, offsets, along, product).reshape(x.shape)

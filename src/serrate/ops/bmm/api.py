"""The contract of jagged products: shapes, numerics, errors and the choice of an implementation."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


def jagged_dense_bmm(
    x: Tensor,
    y: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Multiply the events of each row by the matrix of their row: `out[t] = x[t] @ y[b] + bias[b]`, t in row b.

    Row `b` is `[offsets[b], offsets[b + 1])`. Sums are float32 (float64 for float64 inputs) whatever the dtype. For the
    backward pass `x` and `y` are kept and nothing else.

    Args:
        x: `(T, D)` or `(T, H, D)` events; float64, float32, bfloat16 or float16; any strides.
        y: `(B, D, F)`, or `(B, H, D, F)` for events with heads; dtype and device of `x`; any strides.
        offsets: `(B + 1,)` int32 or int64, starts at 0, non-decreasing, ends at `T`; its contents are not read here.
        bias: `(B, F)` or `(B, H, F)`, added to each event of a row; dtype and device of `x`; None: none.
        implementation: a name from `implementations("jagged_dense_bmm")`, or None for the automatic choice.

    Returns:
        `(T, F)` or `(T, H, F)` of the dtype of `x`, differentiable in `x`, `y` and `bias`, and its gradients too.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_events("x", x)
    _check_offsets(offsets, x)
    rows, width = (offsets.shape[0] - 1, *x.shape[1:-1]), x.shape[-1]
    if y.dim() != x.dim() + 1 or y.shape[:-1] != (*rows, width) or y.shape[-1] < 1:
        inner = ", ".join(map(str, (*rows, width)))
        raise InvalidArgument("y", f"shape ({inner}, F) with F >= 1", tuple(y.shape))
    _check_alike("y", y, x)
    if bias is not None:
        if bias.shape != (*rows, y.shape[-1]):
            raise InvalidArgument("bias", f"shape {(*rows, y.shape[-1])}", tuple(bias.shape))
        _check_alike("bias", bias, x)
    compute = select.choose("jagged_dense_bmm", Call(x.device, x.dtype), implementation).implementation.compute
    if x.dim() == 3:
        return compute(x, y, bias, offsets.contiguous())
    return compute(x[:, None], y[:, None], None if bias is None else bias[:, None], offsets.contiguous()).squeeze(1)


def jagged_jagged_bmm(
    x: Tensor,
    y: Tensor,
    offsets: Tensor,
    *,
    implementation: str | None = None,
) -> Tensor:
    """Multiply two jagged tensors row by row: `out[b] = x[row b].T @ y[row b]`; zeros for a row without events.

    Row `b` is `[offsets[b], offsets[b + 1])`. Sums are float32 (float64 for float64 inputs) whatever the dtype. For the
    backward pass `x` and `y` are kept and nothing else.

    Args:
        x: `(T, D)` or `(T, H, D)` events; float64, float32, bfloat16 or float16; any strides.
        y: `(T, F)` or `(T, H, F)`, the same events; dtype and device of `x`; any strides.
        offsets: `(B + 1,)` int32 or int64, starts at 0, non-decreasing, ends at `T`; its contents are not read here.
        implementation: a name from `implementations("jagged_jagged_bmm")`, or None for the automatic choice.

    Returns:
        `(B, D, F)` or `(B, H, D, F)` of the dtype of `x`, differentiable in `x` and `y`, and its gradients too.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_events("x", x)
    _check_offsets(offsets, x)
    if y.dim() != x.dim() or y.shape[:-1] != x.shape[:-1] or y.shape[-1] < 1:
        inner = ", ".join(map(str, x.shape[:-1]))
        raise InvalidArgument("y", f"shape ({inner}, F) with F >= 1", tuple(y.shape))
    _check_alike("y", y, x)
    compute = select.choose("jagged_jagged_bmm", Call(x.device, x.dtype), implementation).implementation.compute
    if x.dim() == 3:
        return compute(x, y, offsets.contiguous())
    return compute(x[:, None], y[:, None], offsets.contiguous()).squeeze(1)


def _check_events(name: str, x: Tensor) -> None:
    if x.dim() not in (2, 3) or 0 in x.shape[1:]:
        raise InvalidArgument(name, "shape (T, D) or (T, H, D) with H, D >= 1", tuple(x.shape))
    if not x.dtype.is_floating_point:
        raise InvalidArgument(name, "a floating-point dtype", x.dtype)


def _check_offsets(offsets: Tensor, x: Tensor) -> None:
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(offsets.shape)} {offsets.dtype}"
        raise InvalidArgument("offsets", "shape (B + 1,), dtype int32 or int64", got)
    if offsets.device != x.device:
        raise InvalidArgument("offsets", f"a tensor on {x.device}, as x", offsets.device)


def _check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        raise InvalidArgument(name, f"{x.dtype}, as x", tensor.dtype)
    if tensor.device != x.device:
        raise InvalidArgument(name, f"a tensor on {x.device}, as x", tensor.device)

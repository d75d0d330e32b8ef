"""The contract of jagged attention: shapes, mask, numerics, errors and the choice of an implementation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see, within its own row.

    Attributes:
        causal: a query sees itself and the events before it.
    """

    causal: bool = False


@dataclass(frozen=True)
class Call:
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype
    width: int
    value_width: int
    mask: Mask


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    mask: Mask = Mask(),
    scale: float | None = None,
    longest: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Softmax attention of every event over the events of its own row: `softmax(scale · q kᵀ + mask) v`.

    Row `b` is `[offsets[b], offsets[b + 1])` of the packed axis; rows never see each other and nothing is padded.
    Empty rows cost nothing. Sums and log-sum-exp are float32 (float64 for float64 inputs) whatever the dtype.

    Args:
        q: `(T, H, D)` queries; float64, float32, bfloat16 or float16; any strides.
        k: `(T, H, D)` keys, dtype and device of `q`.
        v: `(T, H, Dv)` values, dtype and device of `q`.
        offsets: `(B + 1,)` int32 or int64, starts at 0, non-decreasing, ends at `T`; its contents are not read here.
        mask: which keys a query may see.
        scale: factor on the scores; `1 / sqrt(D)` when None.
        longest: length of the longest row, when the caller knows it; an upper bound is right too.
        implementation: a name from `implementations("attention")`, or None for the automatic choice.

    Returns:
        `(T, H, Dv)`, dtype of `q`. Differentiable in `q`, `k` and `v`.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, a scale that is not finite.
        NotUsable: the implementation asked for cannot serve this call.

    Source: Rengan Xu et al., "Enhancing Performance and Scalability of Large-Scale Recommendation Systems with Jagged
    Flash Attention", RecSys 2024 (arXiv 2409.15373).
    """
    _check(q, k, v, offsets)
    factor: float = q.shape[2] ** -0.5 if scale is None else scale
    if not -math.inf < factor < math.inf:
        raise InvalidArgument("scale", "a finite number", scale)
    call = Call(q.device, q.dtype, q.shape[2], v.shape[2], mask)
    choice = select.choose("attention", call, implementation)
    return choice.implementation.compute(q, k, v, offsets, mask, factor, q.shape[0] if longest is None else longest)


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> None:
    if q.dim() != 3 or q.shape[2] < 1:
        raise InvalidArgument("q", "shape (T, H, D) with D >= 1", tuple(q.shape))
    if k.shape != q.shape:
        raise InvalidArgument("k", f"the shape of q, {tuple(q.shape)}", tuple(k.shape))
    if v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        raise InvalidArgument("v", f"shape ({q.shape[0]}, {q.shape[1]}, Dv)", tuple(v.shape))
    if not q.dtype.is_floating_point:
        raise InvalidArgument("q", "a floating-point dtype", q.dtype)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise InvalidArgument(name, f"{q.dtype}, as q", tensor.dtype)
    for name, tensor in (("k", k), ("v", v), ("offsets", offsets)):
        if tensor.device != q.device:
            raise InvalidArgument(name, f"a tensor on {q.device}, as q", tensor.device)
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(offsets.shape)} {offsets.dtype}"
        raise InvalidArgument("offsets", "shape (B + 1,), dtype int32 or int64", got)

"""The contract of norm, gate and dropout: shapes, numerics, errors and the choice of an implementation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select
from ..dropout import seed_tensor


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve. width: of a group."""

    device: torch.device
    dtype: torch.dtype
    result: torch.dtype
    width: int


class Settings(NamedTuple):
    """The rest of a call: groups, what is added to variances, share to drop, dtype of the result.

    The seed is `()` int64 on the device of the events `(T, E)`; None where nothing is dropped.
    """

    groups: int
    eps: float
    dropout: float
    seed: Tensor | None
    dtype: torch.dtype


def norm_gate(
    x: Tensor,
    gate: Tensor | None,
    *,
    groups: int = 1,
    eps: float = 1e-6,
    dropout: float = 0.0,
    seed: int | Tensor = 0,
    dtype: torch.dtype | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Normalise each event, multiply by its gate and drop: `dropout(norm(x) · gate)`.

    The norm is that of a layer without learned scale: less the mean, over the root of variance + `eps`. With `groups`
    it is taken of each of so many equal parts of an event apart, such as the heads of attention. Sums are float32
    (float64 for float64 inputs) whatever the dtype. For the backward pass `x` and `gate` are kept and nothing else.

    Args:
        x: `(T, E)` events; float64, float32, bfloat16 or float16; any strides.
        gate: `(T, E)`, dtype and device of `x`; None: no gate.
        groups: a divisor of `E`.
        eps: above 0; added to the variance.
        dropout: share of the results that is dropped, 0 to below 1; the others are divided by `1 - dropout`.
        seed: `()` int64 on the device of `x`, or an int. The draw follows from it and the place in `(T, E)`, so it is
            the same in every implementation; with a tensor a captured graph can be given another one.
        dtype: of the result; that of `x` when None.
        implementation: a name from `implementations("norm_gate")`, or None for the automatic choice.

    Returns:
        `(T, E)` of `dtype`, differentiable in `x` and `gate`.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: layer norm: Ba et al., 2016 (arXiv 1607.06450); as the gate of a layer: Jiaqi Zhai et al., "Actions Speak
    Louder than Words", ICML 2024 (arXiv 2402.17152).
    """
    _check(x, gate)
    if groups < 1 or x.shape[1] % groups:
        raise InvalidArgument("groups", f"a divisor of width {x.shape[1]}", groups)
    if not 0 < eps < math.inf:
        raise InvalidArgument("eps", "a finite number above 0", eps)
    if not 0 <= dropout < 1:
        raise InvalidArgument("dropout", "a number from 0 to below 1", dropout)
    result = x.dtype if dtype is None else dtype
    if not result.is_floating_point:
        raise InvalidArgument("dtype", "a floating-point dtype", dtype)
    settings = Settings(groups, eps, dropout, seed_tensor("seed", seed, x.device) if dropout else None, result)
    call = Call(x.device, x.dtype, result, x.shape[1] // groups)
    return select.choose("norm_gate", call, implementation).implementation.compute(x, gate, settings)


def _check(x: Tensor, gate: Tensor | None) -> None:
    if x.dim() != 2 or x.shape[1] < 1:
        raise InvalidArgument("x", "shape (T, E) with E >= 1", tuple(x.shape))
    if not x.dtype.is_floating_point:
        raise InvalidArgument("x", "a floating-point dtype", x.dtype)
    if gate is None:
        return
    if gate.shape != x.shape:
        raise InvalidArgument("gate", f"shape {tuple(x.shape)}, as x", tuple(gate.shape))
    if gate.dtype != x.dtype:
        raise InvalidArgument("gate", f"{x.dtype}, as x", gate.dtype)
    if gate.device != x.device:
        raise InvalidArgument("gate", f"a tensor on {x.device}, as x", gate.device)

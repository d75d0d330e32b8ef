"""The contract of what a pre-norm transformer block does but attend: shapes, numerics, errors, choice."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select


class Layer(NamedTuple):
    """Weight and bias of a norm, both `(E,)`, or of a linear layer, `(F, E)` and `(F,)`; any floating dtype."""

    weight: Tensor
    bias: Tensor


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve.

    dtypes: of events and weights; result: of what is multiplied; widths: of events and, if any, of the layer's results.
    """

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    result: torch.dtype
    widths: tuple[int, ...]


def norm_linear(x: Tensor, norm: Layer, *, linear: Layer | None = None, eps: float = 1e-5,
                dtype: torch.dtype | None = None, implementation: str | None = None) -> Tensor:
    """Normalise each event, then a linear layer: `linear(norm(x))`, what a block begins with.

    Means, variances and sums are float32 (float64 for float64 events); what is multiplied is rounded to `dtype`, as
    under autocast. For the backward pass `x` and the weights are kept and nothing else.

    Args:
        x: `(T, E)` events, any floating dtype, any strides.
        norm: scale and shift, `(E,)`.
        linear: weight `(F, E)` and bias `(F,)`; None: the norm alone, F is E.
        eps: above 0; added to variances.
        dtype: of the result and of what is multiplied; that of `x` when None.
        implementation: a name from `implementations("norm_linear")`, or None for the automatic choice.

    Returns:
        `(T, F)` of `dtype`, differentiable in events and weights.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: the entry of the pre-norm block of Xiong et al., "On Layer Normalization in the Transformer Architecture",
    ICML 2020 (arXiv 2002.04745).
    """
    width = _check_events("x", x)
    layers: dict[str, tuple[Layer, tuple[int, ...]]] = {"norm": (norm, (width,))}
    widths = (width,)
    if linear is not None:
        columns = linear.weight.shape[0] if linear.weight.dim() == 2 else 0
        layers["linear"], widths = (linear, (columns, width)), (width, columns)
    _check_layers(x, layers, eps)
    result = x.dtype if dtype is None else dtype
    weights = tuple(each for layer, _ in layers.values() for each in layer)
    call = Call(x.device, (x.dtype, *{each.dtype for each in weights}), result, widths)
    return select.choose("norm_linear", call, implementation).implementation.compute(x, weights, eps, result)


def feed_forward(x: Tensor, attended: Tensor, layers: Sequence[Layer], *, eps: float = 1e-5,
                 implementation: str | None = None) -> Tensor:
    """Finish a block: with `y = x + out(attended)`, `y + last(gelu(first(norm(y))))`.

    Numerics as in `norm_linear`, of which `dtype` is that of `attended`. For the backward pass `x`, `attended` and the
    weights are kept and nothing else: hidden layers are made again.

    Args:
        x: `(T, E)` events that the block began with, any floating dtype, any strides.
        attended: `(T, E)` what attention found, in the dtype of what is multiplied.
        layers: four: `out` `(E, E)`, `norm` `(E,)`, `first` `(F, E)`, `last` `(E, F)`.
        eps: above 0; added to variances.
        implementation: a name from `implementations("feed_forward")`, or None for the automatic choice.

    Returns:
        `(T, E)` of the dtype that `x` and `attended` promote to, differentiable in all tensors.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: as `norm_linear`; GELU as its formula, not approximated: Hendrycks and Gimpel, 2016 (arXiv 1606.08415).
    """
    width = _check_events("x", x)
    if attended.shape != x.shape or attended.device != x.device or not attended.dtype.is_floating_point:
        raise InvalidArgument("attended", f"floating-point {tuple(x.shape)} on {x.device}, as x",
                              f"{attended.dtype} {tuple(attended.shape)} on {attended.device}")
    if len(layers) != 4:
        raise InvalidArgument("layers", "four: out, norm, first, last", len(layers))
    out, norm, first, last = layers
    hidden = first.weight.shape[0] if first.weight.dim() == 2 else 0
    _check_layers(x, {"out": (out, (width, width)), "norm": (norm, (width,)), "first": (first, (hidden, width)),
                      "last": (last, (width, hidden))}, eps)
    weights = tuple(each for layer in layers for each in layer)
    call = Call(x.device, (x.dtype, *{each.dtype for each in weights}), attended.dtype, (width, hidden))
    return select.choose("feed_forward", call, implementation).implementation.compute(x, attended, weights, eps)


def _check_events(argument: str, x: Tensor) -> int:
    if x.dim() != 2 or x.shape[1] < 1 or not x.dtype.is_floating_point:
        raise InvalidArgument(argument, "floating-point (T, E) with E >= 1", f"{x.dtype} {tuple(x.shape)}")
    return x.shape[1]


def _check_layers(x: Tensor, layers: Mapping[str, tuple[Layer, tuple[int, ...]]], eps: float) -> None:
    for name, (layer, shape) in layers.items():
        for part, given, expected in (("weight", layer.weight, shape), ("bias", layer.bias, shape[:1])):
            if given.shape != expected or 0 in expected:
                raise InvalidArgument(f"{name}.{part}", f"shape {expected}", tuple(given.shape))
            if given.device != x.device:
                raise InvalidArgument(f"{name}.{part}", f"a tensor on {x.device}, as x", given.device)
    if not 0 < eps < math.inf:
        raise InvalidArgument("eps", "a finite number above 0", eps)

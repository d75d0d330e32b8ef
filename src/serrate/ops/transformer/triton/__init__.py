"""A transformer block but for attention on CUDA in Triton: operators, whose kernels are imported at the first call."""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of, operator
from ..api import Call

WIDEST, WIDEST_RESULT = 64, 256  # of events, and of what they are multiplied to: all weights stay on the chip
_HALF = (torch.bfloat16, torch.float16)


def unusable(call: Call) -> str | None:
    """Serve products in half precision, on CUDA where Triton is installed, of narrow events."""
    if (reason := no_kernel(call.device, *call.dtypes, call.result)) is not None:
        return reason
    if len(call.widths) > 1 and call.result not in _HALF:
        return f"needs products in bfloat16 or float16, got {call.result}"
    if call.widths[0] > WIDEST or call.widths[-1] > WIDEST_RESULT:
        return f"needs events of width {WIDEST} or less, of results {WIDEST_RESULT} or less, got {call.widths}"
    return None


def norm_linear(x: Tensor, weights: tuple[Tensor, ...], eps: float, dtype: torch.dtype) -> Tensor:
    """Norm and linear layer; see `api.norm_linear`."""
    return _norm_linear(x, list(weights), eps, dtype)


def feed_forward(x: Tensor, attended: Tensor, weights: tuple[Tensor, ...], eps: float) -> Tensor:
    """Projection, residual, norm, two layers, residual; see `api.feed_forward`."""
    return _feed_forward(x, attended, list(weights), eps)


def _whole(weights: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple([x.contiguous() for x in weights])


def _apart(whole: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return the gradient of each weight of those of all side by side."""
    ends = accumulate((x.numel() for x in weights), initial=0)
    return [whole[begin:end].view(x.shape).to(x.dtype)
            for x, (begin, end) in zip(weights, pairwise(ends), strict=True)]


def _size(weights: list[Tensor]) -> int:
    return sum(x.numel() for x in weights)


@operator("serrate::norm_linear_triton")
def _norm_linear(x: Tensor, weights: list[Tensor], eps: float, dtype: torch.dtype) -> Tensor:
    from . import kernels

    out = x.new_empty(x.shape[0], weights[-1].shape[0], dtype=dtype)
    if x.shape[0]:
        with on_device_of(x):
            kernels.launch_norm_linear(x.contiguous(), _whole(weights), eps, out)
    return out


@_norm_linear.register_fake
def _(x: Tensor, weights: list[Tensor], eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[0], weights[-1].shape[0], dtype=dtype)


@operator("serrate::norm_linear_triton_backward")
def _norm_linear_backward(grad: Tensor, x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    """Return the gradients of the events, and float32 those of the weights side by side."""
    from . import kernels

    d_x = x.new_empty(x.shape)
    if not x.shape[0]:
        return [d_x, x.new_zeros(_size(weights), dtype=torch.float32)]
    with on_device_of(x):
        parts = kernels.launch_norm_linear_backward(grad.contiguous(), x.contiguous(), _whole(weights), eps, d_x)
    return [d_x, parts.sum(0)]


@_norm_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    return [x.new_empty(x.shape), x.new_empty(_size(weights), dtype=torch.float32)]


def _keep_norm_linear(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weights, ctx.eps, _ = inputs
    ctx.save_for_backward(x, *weights)


def _norm_linear_gradients(ctx: Any, grad: Tensor) -> tuple:
    x, *weights = ctx.saved_tensors
    d_x, whole = _norm_linear_backward(grad, x, weights, ctx.eps)
    return d_x, _apart(whole, weights), None, None


_norm_linear.register_autograd(_norm_linear_gradients, setup_context=_keep_norm_linear)


@operator("serrate::feed_forward_triton")
def _feed_forward(x: Tensor, attended: Tensor, weights: list[Tensor], eps: float) -> Tensor:
    from . import kernels

    out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, attended.dtype))
    if x.shape[0]:
        with on_device_of(x):
            kernels.launch_feed_forward(x.contiguous(), attended.contiguous(), _whole(weights), eps, out)
    return out


@_feed_forward.register_fake
def _(x: Tensor, attended: Tensor, weights: list[Tensor], eps: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, attended.dtype))


@operator("serrate::feed_forward_triton_backward")
def _feed_forward_backward(grad: Tensor, x: Tensor, attended: Tensor, weights: list[Tensor],
                           eps: float) -> list[Tensor]:
    """Return the gradients of events and of what attention found, float32 those of the eight weights side by side."""
    from . import kernels

    d_x, d_attended = x.new_empty(x.shape), attended.new_empty(x.shape)
    if not x.shape[0]:
        return [d_x, d_attended, x.new_zeros(_size(weights), dtype=torch.float32)]
    with on_device_of(x):
        parts = kernels.launch_feed_forward_backward(
            grad.contiguous(), x.contiguous(), attended.contiguous(), _whole(weights), eps, d_x, d_attended)
    return [d_x, d_attended, parts.sum(0)]


@_feed_forward_backward.register_fake
def _(grad: Tensor, x: Tensor, attended: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    return [x.new_empty(x.shape), attended.new_empty(x.shape), x.new_empty(_size(weights), dtype=torch.float32)]


def _keep_feed_forward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, attended, weights, ctx.eps = inputs
    ctx.save_for_backward(x, attended, *weights)


def _feed_forward_gradients(ctx: Any, grad: Tensor) -> tuple:
    x, attended, *weights = ctx.saved_tensors
    d_x, d_attended, whole = _feed_forward_backward(grad, x, attended, weights, ctx.eps)
    return d_x, d_attended, _apart(whole, weights), None


_feed_forward.register_autograd(_feed_forward_gradients, setup_context=_keep_feed_forward)

"""The target unit's first layer on CUDA in Triton: custom operators, whose kernels are imported at the first call."""

from typing import Any

import torch
from torch import Tensor

from ....jagged.tensor import INT32_MAX
from ...direct import no_kernel, on_device_of, operator, unit_stride
from ..api import Call, Reading

_MOST_RESULTS = 64  # of the kernel that finds two gradients in one pass


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision where Triton is installed."""
    return no_kernel(call.device, call.dtype)


def target_unit(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading) -> Tensor:
    """Let each target meet its events; see `api.target_unit`."""
    return _forward(q, k, weight, bias, *reading)


@operator("serrate::target_unit_triton")
def _forward(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, rows: Tensor | None,
             ends: Tensor, num_events: int) -> Tensor:
    from . import kernels

    out = q.new_empty(num_events, weight.shape[1])
    if num_events:
        with on_device_of(q):
            kernels.launch(unit_stride(q), unit_stride(k), weight.contiguous(), bias,
                           Reading(offsets, rows, ends, num_events), out)
    return out


@_forward.register_fake
def _(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, rows: Tensor | None, ends: Tensor,
      num_events: int) -> Tensor:
    return q.new_empty(num_events, weight.shape[1])


@operator("serrate::target_unit_triton_events")
def _events_gradient(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor, rows: Tensor | None,
                     ends: Tensor) -> Tensor:
    from . import kernels

    out = k.new_empty(k.shape)
    if out.numel():
        with on_device_of(q):
            kernels.launch_of_events(grad.contiguous(), unit_stride(q), weight.contiguous(),
                                     Reading(offsets, rows, ends, grad.shape[0]), out)
    return out


@_events_gradient.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, *others: Any) -> Tensor:
    return k.new_empty(k.shape)


@operator("serrate::target_unit_triton_others")
def _others_gradients(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor, rows: Tensor | None,
                      ends: Tensor) -> list[Tensor]:
    """Return the gradients of targets, weight and bias."""
    from . import gradients

    found = q.new_empty(q.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[1])
    with on_device_of(q):
        q, weight, reading = unit_stride(q), weight.contiguous(), Reading(offsets, rows, ends, grad.shape[0])
        parts = gradients.launch_of_matrices(grad.contiguous(), q, unit_stride(k), weight, reading)
        gradients.launch_of_others(parts, grad.shape[0], q, weight, found)
    return list(found)


@_others_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, *others: Any) -> list[Tensor]:
    return [q.new_empty(q.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[1])]


@operator("serrate::target_unit_triton_gradients")
def _gradients(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor) -> list[Tensor]:
    """Return the gradients of targets, events, weight and bias, where every history has one target."""
    from . import gradients

    found = q.new_empty(q.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[1])
    d_k = k.new_empty(k.shape)
    if not grad.shape[0]:
        return [x.zero_() for x in (found[0], d_k, *found[1:])]
    q, weight = unit_stride(q), weight.contiguous()
    with on_device_of(q):
        parts = gradients.launch_of_both(grad.contiguous(), q, unit_stride(k), weight, offsets, d_k)
        gradients.launch_of_others(parts, grad.shape[0], q, weight, found)
    return [found[0], d_k, *found[1:]]


@_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor) -> list[Tensor]:
    return [*(x.new_empty(x.shape) for x in (q, k, weight)), weight.new_empty(weight.shape[1])]


def _in_one_pass(grad: Tensor, rows: Tensor | None) -> bool:
    """Whether one kernel finds the gradients of events and matrices: the latter have to fit, and float32 takes more."""
    events, columns = grad.shape
    return rows is None and grad.dtype != torch.float32 and columns <= _MOST_RESULTS and events <= INT32_MAX


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, weight, _, offsets, rows, ends, _ = inputs
    ctx.save_for_backward(q, k, weight, offsets, rows, ends)


def _differentiated(ctx: Any, grad: Tensor) -> tuple:
    of_q, of_k, of_weight, of_bias = ctx.needs_input_grad[:4]
    if of_k and (of_q or of_weight) and _in_one_pass(grad, ctx.saved_tensors[4]):
        d_q, d_k, d_weight, d_bias = _gradients(grad, *ctx.saved_tensors[:4])
        return d_q, d_k, d_weight, d_bias if of_bias else None, None, None, None, None
    d_k = _events_gradient(grad, *ctx.saved_tensors) if of_k else None
    # of float32 the sums over targets are rounded, and again where they are added up: more than their sum may be
    apart = of_bias and grad.dtype == torch.float32
    by_kernels = of_q or of_weight or (of_bias and not apart)
    d_q, d_weight, d_bias = _others_gradients(grad, *ctx.saved_tensors) if by_kernels else (None, None, None)
    if apart:
        d_bias = grad.sum(0, dtype=torch.float64).to(grad.dtype)
    return d_q, d_k, d_weight, d_bias if of_bias else None, None, None, None, None


_forward.register_autograd(_differentiated, setup_context=_setup_context)

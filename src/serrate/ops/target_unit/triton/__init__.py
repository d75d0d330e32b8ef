"""The target unit's first layer on CUDA in Triton: custom operators, whose kernels are imported at the first call."""

from typing import Any

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of, operator, unit_stride
from ..api import Call, Reading


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
            kernels.launch(unit_stride(q), unit_stride(k), weight, bias, Reading(offsets, rows, ends, num_events), out)
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
            kernels.launch_of_events(grad.contiguous(), unit_stride(q), weight,
                                     Reading(offsets, rows, ends, grad.shape[0]), out)
    return out


@_events_gradient.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, *others: Any) -> Tensor:
    return k.new_empty(k.shape)


@operator("serrate::target_unit_triton_others")
def _others_gradients(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor, rows: Tensor | None,
                      ends: Tensor) -> list[Tensor]:
    """Return the gradients of targets, weight and bias."""
    from . import kernels

    with on_device_of(q):
        reading = Reading(offsets, rows, ends, grad.shape[0])
        return _of_others(*kernels.matrices(grad.contiguous(), q, unit_stride(k), reading), q, weight)


@_others_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, *others: Any) -> list[Tensor]:
    return [q.new_empty(q.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[1])]


def _of_others(matrices: Tensor, sums: Tensor, q: Tensor, weight: Tensor) -> list[Tensor]:
    """Return the gradients of targets, weight and bias from those of the targets' matrices and constants.

    matrices: `(M, D, F)`, the sums of k ⊗ gradient over what a target reads; sums: `(M, F)`, of the gradient alone.
    """
    target, _, difference, product = weight.float().unflatten(0, (4, -1))
    q_wide = q.float()
    d_q = torch.einsum("mdf,df->md", matrices, product) + sums @ (target + difference).T
    outer, events = q_wide.T @ sums, matrices.sum(0)
    d_weight = torch.cat([outer, events, outer - events, torch.einsum("md,mdf->df", q_wide, matrices)])
    return [each.to(q.dtype).contiguous() for each in (d_q, d_weight, sums.sum(0))]  # as products do not come


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, weight, _, offsets, rows, ends, _ = inputs
    ctx.save_for_backward(q, k, weight, offsets, rows, ends)


def _differentiated(ctx: Any, grad: Tensor) -> tuple:
    of_q, of_k, of_weight, of_bias = ctx.needs_input_grad[:4]
    d_k = _events_gradient(grad, *ctx.saved_tensors) if of_k else None
    # of float32 the sums over targets are rounded, and again where they are added up: more than their sum may be
    apart = of_bias and grad.dtype == torch.float32
    by_kernels = of_q or of_weight or (of_bias and not apart)
    d_q, d_weight, d_bias = _others_gradients(grad, *ctx.saved_tensors) if by_kernels else (None, None, None)
    if apart:
        d_bias = grad.sum(0, dtype=torch.float64).to(grad.dtype)
    return d_q, d_k, d_weight, d_bias if of_bias else None, None, None, None, None


_forward.register_autograd(_differentiated, setup_context=_setup_context)

"""Attention on CUDA in Triton: custom operators, whose kernels are imported at the first call.

The axis of events is cut into tiles by a kernel (`plan.py`), so that the host waits for nothing and the grid follows
from the numbers of events and rows alone. Gradients are written once, by the program they belong to: no atomics.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..api import Call, Rows, Settings

if TYPE_CHECKING:
    from .plan import Plan

_INSTALLED = find_spec("triton") is not None
_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, widths up to 256, where Triton is installed."""
    if call.device.type != "cuda":
        return f"needs a CUDA device, got {call.device.type}"
    if call.dtype not in _DTYPES:
        return f"needs float32, bfloat16 or float16, got {call.dtype}"
    if not 1 <= call.value_width <= 256 or call.width > 256:
        return f"needs widths from 1 to 256, got {call.width} and {call.value_width}"
    return call.beyond_plain() if _INSTALLED else "needs the package triton"


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, None]:
    """Attend within each row; see `api.attention`. Float32 products are IEEE unless torch is told to use TF32."""
    scale, offsets, mask = settings.scale, rows.keys, settings.mask
    if scale <= 0:  # the kernels take the largest score times the scale for the largest scaled score
        q, scale = q * (-1.0 if scale else 0.0), -scale or 1.0
    if torch.compiler.is_compiling() or type(q) not in _PLAIN:  # tracers and tensor subclasses need operators
        return _forward(q, k, v, offsets, mask.causal, scale)[0], None
    out = _Direct.apply(q, k, v, offsets, mask.causal, scale)
    assert isinstance(out, Tensor)
    return out, None


def _compute(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool,
             scale: float) -> tuple[Tensor, Tensor, "Plan"]:
    """Return the output `(T, H, Dv)`, the log-sum-exp `(H, T)` in base 2, and the plan of the tiles."""
    from .forward import launch
    from .plan import make_plan

    out, logsumexp = _outputs(q, v)
    plan = make_plan(offsets, q, v, causal)
    if v.numel():
        launch((_unit_stride(q), _unit_stride(k), _unit_stride(v)), plan, (out, logsumexp), causal, scale)
    return out, logsumexp, plan


def _compute_gradients(grad: Tensor, saved: Sequence[Tensor], plan: "Plan", causal: bool,
                       scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous; saved are these, the output and the log-sum-exp."""
    from .backward import launch

    q, k, v, *results = saved
    gradients = _gradients(q, k, v)
    if v.numel():
        inputs = (_unit_stride(q), _unit_stride(k), _unit_stride(v))
        launch(grad.contiguous(), inputs, plan, results, gradients, causal, scale)
    return gradients


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    return out, torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv


@torch.library.custom_op("serrate::attention_triton", mutates_args=(), device_types="cuda")
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of `_compute`; the plan, no tensor, is made again for the gradients."""
    out, logsumexp, _ = _compute(q, k, v, offsets, causal, scale)
    return out, logsumexp


@torch.library.custom_op("serrate::attention_triton_backward", mutates_args=(), device_types="cuda")
def _backward(grad: Tensor, saved: list[Tensor], causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    from .plan import make_plan

    *saved, offsets = saved
    plan = make_plan(offsets, saved[0], saved[2], causal)
    return _compute_gradients(grad, saved, plan, causal, scale)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(grad: Tensor, saved: list[Tensor], causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(*saved[:3])


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, offsets, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad: Tensor | None, _: Tensor | None):
    if grad is None:
        return None, None, None, None, None, None
    return *_backward(grad, list(ctx.saved_tensors), ctx.causal, ctx.scale), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


class _Direct(torch.autograd.Function):
    """The same two computations without torch's dispatcher in between, which takes half of a small call's time."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> Tensor:
        out, logsumexp, ctx.plan = _compute(q, k, v, offsets, causal, scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = _compute_gradients(grad, ctx.saved_tensors, ctx.plan, ctx.causal, ctx.scale)
        return *gradients, None, None, None

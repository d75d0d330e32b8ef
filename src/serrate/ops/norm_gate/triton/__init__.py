"""Norm, gate and dropout on CUDA in Triton: custom operators, whose kernels are imported at the first call.

A program owns some events of one group, whole, so that means and gradients need no second pass and no atomics.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from ...direct import INTERPRETED, on_device_of, unit_stride, watched
from ..api import Call, Settings
from ..autograd import register

WIDEST = 8192
_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, groups up to 8192 wide, where Triton is installed."""
    if call.device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA device, got {call.device.type}"
    for dtype in (call.dtype, call.result):
        if dtype not in _DTYPES:
            return f"needs float32, bfloat16 or float16, got {dtype}"
    if call.width > WIDEST:
        return f"needs groups of at most {WIDEST}, got {call.width}"
    return None if _INSTALLED else "needs the package triton"


def norm_gate(x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
    """Normalise, gate and drop; see `api.norm_gate`."""
    if watched(x, gate):
        return _forward(x, gate, settings.seed, settings.groups, settings.eps, settings.dropout, settings.dtype)
    if not torch.is_grad_enabled():
        return _compute(x, gate, settings)
    return _Direct.apply(x, gate, settings)  # pyright: ignore[reportGeneralTypeIssues]


def _compute(x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
    from . import kernels

    out = _output(x, settings.dtype)
    if out.numel():
        with on_device_of(x):
            kernels.launch(unit_stride(x), None if gate is None else unit_stride(gate), settings, out)
    return out


def _compute_gradients(grad: Tensor, x: Tensor, gate: Tensor | None,
                       settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and gate, contiguous."""
    from . import kernels

    gradients = _gradients(x, gate)
    if x.numel():
        with on_device_of(x):
            kernels.launch_backward(grad.contiguous(), unit_stride(x), None if gate is None else unit_stride(gate),
                                    settings, gradients)
    return gradients


def _output(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _gradients(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return x.new_empty(x.shape), None if gate is None else gate.new_empty(gate.shape)


@torch.library.custom_op("serrate::norm_gate_triton", mutates_args=())
def _forward(x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float, dropout: float,
             dtype: torch.dtype) -> Tensor:
    return _compute(x, gate, Settings(groups, eps, dropout, seed, dtype))


@torch.library.custom_op("serrate::norm_gate_triton_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float,
              dropout: float) -> list[Tensor]:
    """Return the gradient of x, and that of the gate where there is one."""
    gradients = _compute_gradients(grad, x, gate, Settings(groups, eps, dropout, seed, grad.dtype))
    return [each for each in gradients if each is not None]


register(_forward, _backward)


class _Direct(torch.autograd.Function):
    """The same two computations without torch's dispatcher in between."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, gate, settings.seed)
        ctx.settings = settings
        return _compute(x, gate, settings)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gate, seed = ctx.saved_tensors
        groups, eps, dropout = ctx.settings[:3]
        if torch.is_grad_enabled():  # a graph of the gradients is wanted: the operator refuses to be differentiated
            d_x, *d_gate = _backward(grads[0], x, gate, seed, groups, eps, dropout)
            return d_x, *(d_gate or [None]), None
        return *_compute_gradients(grads[0], x, gate, ctx.settings), None

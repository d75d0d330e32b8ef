"""Norm, gate and dropout on CUDA in Triton: custom operators, whose kernels are imported at the first call.

A program owns some events of one group, whole, so that means and gradients need no second pass and no atomics.
"""

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of, operator, unit_stride
from ..api import Call, Settings
from ..autograd import register

WIDEST = 8192


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, groups up to 8192 wide, where Triton is installed."""
    if (reason := no_kernel(call.device, call.dtype, call.result)) is not None:
        return reason
    return f"needs groups of at most {WIDEST}, got {call.width}" if call.width > WIDEST else None


def norm_gate(x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
    """Normalise, gate and drop; see `api.norm_gate`."""
    return _forward(x, gate, settings.seed, settings.groups, settings.eps, settings.dropout, settings.dtype)


@operator("serrate::norm_gate_triton")
def _forward(x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float, dropout: float,
             dtype: torch.dtype) -> Tensor:
    from . import kernels

    out = x.new_empty(x.shape, dtype=dtype)
    if out.numel():
        with on_device_of(x):
            kernels.launch(unit_stride(x), None if gate is None else unit_stride(gate),
                           Settings(groups, eps, dropout, seed, dtype), out)
    return out


@operator("serrate::norm_gate_triton_backward")
def _backward(grad: Tensor, x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float,
              dropout: float) -> list[Tensor]:
    """Return the gradient of x, and that of the gate where there is one."""
    from . import kernels

    gradients = x.new_empty(x.shape), None if gate is None else gate.new_empty(gate.shape)
    if x.numel():
        with on_device_of(x):
            kernels.launch_backward(grad.contiguous(), unit_stride(x), None if gate is None else unit_stride(gate),
                                    Settings(groups, eps, dropout, seed, grad.dtype), gradients)
    return [each for each in gradients if each is not None]


register(_forward, _backward)

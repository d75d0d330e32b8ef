"""Norm, gate and dropout on the CPU: torch's layer norm on a few events at a time, which a cache holds with all else.

Unlike the oracle's, its backward pass keeps `x` and `gate` alone; README.md has the measurements.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..direct import operator
from .api import Call, Settings
from .autograd import register
from .reference import stays

_ELEMENTS = 2**16  # of a chunk: small enough for a cache, large enough that calls cost little


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def norm_gate(x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
    """Normalise, gate and drop; see `api.norm_gate`. Half precision is computed in float32."""
    return _forward(x, gate, settings.seed, settings.groups, settings.eps, settings.dropout, settings.dtype)


def _chunks(x: Tensor) -> Iterator[slice]:
    step = max(1, _ELEMENTS // x.shape[1])
    return (slice(first, min(first + step, x.shape[0])) for first in range(0, x.shape[0], step))


def _normed(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return events `(t, E)` normalised, `(t, G, W)` in the dtype of sums, and one over their deviation `(t, G, 1)`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1))
    normed, _, inverse = torch.native_layer_norm(wide, wide.shape[-1:], None, None, eps)
    return normed, inverse


def _drop(x: Tensor, seed: Tensor | None, rate: float, first: int) -> None:
    """Drop in place from `(t, E)`, the events from `first` on."""
    if seed is not None:
        x.mul_(stays(seed, rate, *x.shape, first=first)).div_(1 - rate)


@operator("serrate::norm_gate_cpu", device_types="cpu")
def _forward(x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float, dropout: float,
             dtype: torch.dtype) -> Tensor:
    out = x.new_empty(x.shape, dtype=dtype)
    for part in _chunks(x):
        y = _normed(x[part], groups, eps)[0].flatten(1)
        if gate is not None:
            y.mul_(gate[part])
        _drop(y, seed, dropout, part.start)
        out[part] = y
    return out


@operator("serrate::norm_gate_cpu_backward", device_types="cpu")
def _backward(grad: Tensor, x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float,
              dropout: float) -> list[Tensor]:
    """Return the gradient of x, and that of the gate where there is one."""
    gradients = [x.new_empty(x.shape) for _ in range(1 if gate is None else 2)]
    for part in _chunks(x):
        normed, inverse = _normed(x[part], groups, eps)
        dy = grad[part].to(normed.dtype, copy=True)
        _drop(dy, seed, dropout, part.start)
        if gate is not None:
            gradients[1][part] = dy * normed.flatten(1)
            dy.mul_(gate[part])
        dy = dy.unflatten(1, (groups, -1))
        along = (dy * normed).mean(-1, keepdim=True)
        dy.sub_(dy.mean(-1, keepdim=True)).sub_(normed.mul_(along)).mul_(inverse)
        gradients[0][part] = dy.flatten(1)
    return gradients


register(_forward, _backward)

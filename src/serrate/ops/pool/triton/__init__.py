"""Pooling and softmax on CUDA in Triton: custom operators, whose kernels are imported at the first call.

A program owns a chunk of one row (`chunks.py`): rows of any lengths fill a device evenly, sums need no atomics, and a
second small kernel combines the chunks of long rows in their order.
"""

from torch import Tensor

from ...direct import no_kernel, on_device_of, operator, unit_stride
from ..api import Call
from ..autograd import like_kept, register_pool, register_softmax


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, where Triton is installed."""
    return no_kernel(call.device, call.dtype)


def pool(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> Tensor:
    """Pool events `(T, H, D)` with weights `(T, H)`; see `api.pool`."""
    return _pool(x, offsets, weights, how, softmax)[0]


def softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of logits `(T, W)` over the events of each row; see `api.softmax`."""
    return _softmax(x, offsets)


@operator("serrate::pool_triton")
def _pool(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> tuple[Tensor, Tensor]:
    from .reduce import reduce

    rows = offsets.shape[0] - 1
    out, kept = x.new_empty((rows, *x.shape[1:])), like_kept(x, weights, rows, how, softmax)
    with on_device_of(x):
        reduce(unit_stride(x), offsets.contiguous(), out, "softmax" if softmax else how, kept, weights)
    return out, kept


@operator("serrate::pool_triton_backward")
def _pool_backward(grad: Tensor, offsets: Tensor, x: Tensor | None, weights: Tensor | None, kept: Tensor,
                   how: str, softmax: bool, events: int) -> list[Tensor]:
    """Return the gradient of x, and that of the weights where there are some."""
    from .spread import spread, spread_weighted

    grad, offsets, x = grad.contiguous(), offsets.contiguous(), None if x is None else unit_stride(x)
    d_x = grad.new_empty((events, *grad.shape[1:]))
    with on_device_of(grad):
        if weights is None or x is None:
            spread(grad, offsets, d_x, how, kept, x)
            return [d_x]
        d_weights = weights.new_empty(weights.shape)
        spread_weighted(grad, offsets, x, weights, kept if softmax else None, (d_x, d_weights))
    return [d_x, d_weights]


@operator("serrate::softmax_triton")
def _softmax(x: Tensor, offsets: Tensor) -> Tensor:
    from .normalise import normalise

    out = x.new_empty(x.shape)
    with on_device_of(x):
        normalise(unit_stride(x), offsets.contiguous(), out)
    return out


@operator("serrate::softmax_triton_backward")
def _softmax_backward(grad: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    from .normalise import normalise

    out = y.new_empty(y.shape)
    with on_device_of(y):
        normalise(y, offsets.contiguous(), out, unit_stride(grad))
    return out


register_pool(_pool, _pool_backward)
register_softmax(_softmax, _softmax_backward)

"""Broadcast on CUDA in Triton: custom operators, whose kernels are imported at the first call.

As in pooling, a program owns a chunk of one row, found by search: it reads what belongs to the row once.
"""

import torch
from torch import Tensor

from ...direct import on_device_of, operator, unit_stride
from ...pool.triton import unusable as unusable_of_rows
from ..api import Call
from ..autograd import like_other, register


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, where Triton is installed."""
    return unusable_of_rows(call)


def broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool) -> Tensor:
    """Add to events `(T, W)` what belongs to rows or positions, or multiply; see `api.add`."""
    return _broadcast(x, y, offsets, along, product)


@operator("serrate::broadcast_triton")
def _broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool) -> Tensor:
    from .kernels import launch

    out = x.new_empty(x.shape)
    with on_device_of(x):
        launch(unit_stride(x), y.contiguous(), offsets.contiguous(), along, product, out)
    return out


@operator("serrate::broadcast_triton_reduced")
def _reduced(grad: Tensor, x: Tensor | None, offsets: Tensor, along: str, positions: int,
             dtype: torch.dtype) -> Tensor:
    out = like_other(grad, offsets, along, positions, dtype)
    _reduce(grad, x, offsets, along, out, None)
    return out


@operator("serrate::broadcast_triton_gradients")
def _gradients(grad: Tensor, x: Tensor, y: Tensor, offsets: Tensor, along: str, dtype: torch.dtype) -> list[Tensor]:
    """Return the gradient of each factor of a product, that of `y` before a sum over columns: read once for both."""
    out = like_other(grad, offsets, along, y.shape[-2], dtype)
    scaled = x.new_empty(x.shape) if out.numel() else x.new_zeros(x.shape)
    _reduce(grad, x, offsets, along, out, (y.contiguous(), scaled))
    return [scaled, out]


def _reduce(grad: Tensor, x: Tensor | None, offsets: Tensor, along: str, out: Tensor,
            scaled: tuple[Tensor, Tensor] | None) -> None:
    from ...pool.triton.reduce import reduce
    from .kernels import launch_over_rows, launch_to_cells

    grad, x, offsets = unit_stride(grad), None if x is None else unit_stride(x), offsets.contiguous()
    with on_device_of(grad):
        if along == "rows":
            whole = scaled and (scaled[0].expand(out.shape).contiguous()[:, None], scaled[1][:, None])
            reduce(grad[:, None], offsets, out[:, None], "sum", other=None if x is None else x[:, None], scaled=whole)
        elif along == "both":
            launch_to_cells(grad, x, offsets, out, scaled)
        else:
            launch_over_rows(grad, x, offsets, out, scaled)


register(_broadcast, _reduced, _gradients)

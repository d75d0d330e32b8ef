"""Jagged products on CUDA in Triton: custom operators, whose kernels are imported at the first call."""

from torch import Tensor

from ...direct import no_kernel, on_device_of, operator, unit_stride
from ..api import Call
from ..autograd import register


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision where Triton is installed."""
    return no_kernel(call.device, call.dtype)


def jagged_dense_bmm(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Multiply by the matrix of the row; see `api`."""
    return _dense(x, y, bias, offsets)


def jagged_jagged_bmm(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Multiply row by row; see `api`."""
    return _jagged(x, y, offsets, False)[0]


@operator("serrate::jagged_dense_bmm_triton")
def _dense(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    from . import kernels

    out = x.new_empty(*x.shape[:2], y.shape[3])
    if out.numel():
        with on_device_of(x):
            kernels.launch_dense(unit_stride(x), _one_dense(y), None if bias is None else unit_stride(bias), offsets,
                                 out)
    return out


@operator("serrate::jagged_jagged_bmm_triton")
def _jagged(x: Tensor, y: Tensor, offsets: Tensor, sums: bool) -> list[Tensor]:
    """Return the products and, if asked for, the sums of `y` over each row."""
    from . import kernels

    rows, heads, width = offsets.shape[0] - 1, x.shape[1], y.shape[2]
    out = x.new_empty(rows, heads, x.shape[2], width)
    total = x.new_empty(rows, heads, width) if sums else None
    if rows:
        with on_device_of(x):
            kernels.launch_jagged(unit_stride(x), unit_stride(y), offsets, out, total)
    return [out] if total is None else [out, total]


@operator("serrate::jagged_dense_bmm_backward_triton")
def _dense_backward(x: Tensor, y: Tensor, grad: Tensor, offsets: Tensor, sums: bool) -> list[Tensor]:
    """Return the gradients of x and y and, if asked for, of the bias: `grad` is read once where widths allow that."""
    from . import kernels

    if not kernels.back_too(x.shape[2], grad.shape[2], x.dtype) or not x.shape[0]:
        return [_dense(grad, y.mT, None, offsets), *_jagged(x, grad, offsets, sums)]
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape)
    total = y.new_empty(*y.shape[:2], y.shape[3]) if sums else None
    if y.shape[0]:
        with on_device_of(x):
            kernels.launch_jagged(unit_stride(x), unit_stride(grad), offsets, d_y, total, back=(_one_dense(y), d_x))
    return [d_x, d_y] if total is None else [d_x, d_y, total]


def _one_dense(y: Tensor) -> Tensor:
    """Return matrices `(B, H, D, F)` of which one of the last two axes is dense, so that a transpose is no copy."""
    return y if 1 in y.stride()[2:] else y.contiguous()


register(_dense, _jagged, _dense_backward)

"""Square blocks on CUDA in Triton: custom operators, whose kernels are imported at the first call.

`rows.py` finds the row of a program, `products.py` multiplies, `softmax.py` and `pairs.py` go through pairs.
"""

import torch
from torch import Tensor

from ...direct import no_triton, on_device_of, unit_stride
from ..api import Call
from ..autograd import Operators

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int16, torch.int32, torch.int64)


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, and integers, where Triton is installed."""
    if (reason := no_triton(call.device)) is not None:
        return reason
    return None if call.dtype in _DTYPES else f"needs float32, bfloat16, float16 or integers, got {call.dtype}"


def _offsets(offsets: Tensor) -> Tensor:
    from . import rows

    out = offsets.new_empty(offsets.shape, dtype=torch.int64)
    with on_device_of(out):
        rows.launch(offsets, out)
    return out


def _products(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    from . import products

    out = _pairs_of(x, pairs, x.shape[1], blocks)
    if out.numel():
        with on_device_of(x):
            products.launch(unit_stride(x), unit_stride(y), offsets, blocks, out)
    return out


def _matmul(a: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, transposed: bool) -> Tensor:
    found, = _sums(a, (None, y) if transposed else (y, None), offsets, blocks)
    return found


def _both_matmuls(a: Tensor, y: Tensor, x: Tensor, offsets: Tensor, blocks: Tensor) -> list[Tensor]:
    return _sums(a, (y, x), offsets, blocks)


def _sums(a: Tensor, events: tuple[Tensor | None, Tensor | None], offsets: Tensor, blocks: Tensor) -> list[Tensor]:
    from . import products

    outs = [None if x is None else x.new_empty(x.shape) for x in events]
    found = [out for out in outs if out is not None]
    if found[0].numel() and blocks.shape[0] > 1:
        with on_device_of(a):
            products.launch_sums(a, tuple(None if x is None else unit_stride(x) for x in events), offsets, blocks,
                                 tuple(outs))
    return found


def _sums_of_pairs(a: Tensor, offsets: Tensor, blocks: Tensor, events: int) -> list[Tensor]:
    from . import pairs as kernels

    if not a.numel() or not events:
        return [a.new_zeros((events, a.shape[1])) for _ in range(2)]
    with on_device_of(a):
        return kernels.sums(a, offsets, blocks, events)


def _softmax(a: Tensor, offsets: Tensor, blocks: Tensor, over_queries: bool) -> Tensor:
    from . import softmax

    out = _pairs_of(a, a.shape[0], a.shape[1], blocks)
    if out.numel():
        with on_device_of(a):
            softmax.launch(a, None, offsets, blocks, over_queries, out)
    return out


def _softmax_backward(out: Tensor, grad: Tensor, offsets: Tensor, blocks: Tensor, over_queries: bool) -> Tensor:
    from . import softmax

    found = _pairs_of(out, out.shape[0], out.shape[1], blocks)
    if found.numel():
        with on_device_of(out):
            softmax.launch(out, grad, offsets, blocks, over_queries, found)
    return found


def _differences(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    from . import pairs as kernels

    out = _pairs_of(x, pairs, x.shape[1], blocks)
    if out.numel():
        with on_device_of(x):
            kernels.launch_differences(x, y, offsets, blocks, out)
    return out


def _multiply(a: Tensor, square: Tensor, offsets: Tensor, blocks: Tensor) -> Tensor:
    from . import pairs as kernels

    out = _pairs_of(a, a.shape[0], a.shape[1], blocks)
    if out.numel():
        with on_device_of(a):
            kernels.launch_squares(a, square[None, :, :, None], offsets, blocks, out)
    return out


def _totals(a: Tensor, b: Tensor, offsets: Tensor, blocks: Tensor, side: int) -> Tensor:
    total, = _multiplied(a, b, None, offsets, blocks, side)
    return total


def _both_multiplies(a: Tensor, b: Tensor, square: Tensor, offsets: Tensor, blocks: Tensor) -> list[Tensor]:
    return _multiplied(a, b, square, offsets, blocks, square.shape[0])


def _multiplied(a: Tensor, b: Tensor, square: Tensor | None, offsets: Tensor, blocks: Tensor,
                side: int) -> list[Tensor]:
    from . import pairs as kernels

    if not a.numel() or not side or blocks.shape[0] == 1:
        return [a.new_zeros(shape) for shape in ([] if square is None else [a.shape]) + [(side, side)]]
    with on_device_of(a):
        return kernels.totals(a, b, square, offsets, blocks, side)


def _to_padded(a: Tensor, offsets: Tensor, blocks: Tensor, length: int, fill: float) -> Tensor:
    from . import pairs as kernels

    out = a.new_empty((offsets.shape[0] - 1, length, length, a.shape[1]))
    if out.numel():
        with on_device_of(a):
            kernels.launch_to_padded(a, offsets, blocks, fill, out)
    return out


def _from_padded(padded: Tensor, offsets: Tensor, blocks: Tensor, pairs: int) -> Tensor:
    from . import pairs as kernels

    out = _pairs_of(padded, pairs, padded.shape[3], blocks)
    if out.numel():
        with on_device_of(padded):
            kernels.launch_squares(None, padded, offsets, blocks, out)
    return out


def _pairs_of(like: Tensor, pairs: int, heads: int, blocks: Tensor) -> Tensor:
    """Return `(P, H)` to be filled by a kernel, or zeros where there is no row and so no program."""
    return like.new_zeros((pairs, heads)) if blocks.shape[0] == 1 else like.new_empty((pairs, heads))


OPERATORS = Operators("triton", {
    "offsets": _offsets, "products": _products, "matmul": _matmul,
    "both_matmuls": _both_matmuls, "sums": _sums_of_pairs, "softmax": _softmax,
    "softmax_backward": _softmax_backward, "differences": _differences, "multiply": _multiply, "totals": _totals,
    "both_multiplies": _both_multiplies, "to_padded": _to_padded, "from_padded": _from_padded})

"""How the kernels of jagged products load and store: events of a row, and the matrices they meet."""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl


def precision(dtype: torch.dtype, short: bool = False) -> str:
    """Return how products are computed: of float32 by three of TF32, or by one where torch allows that.

    short: as IEEE has it instead of by three, for few results of few terms each, where no other hides the lost bits.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee" if short else "tf32x3"


@triton.jit
def load_tile(source, stride, count, width, columns, N: tl.constexpr):
    """`N` events from `source` on, `(N, columns)`; zeros from event `count` and from column `width` on."""
    step = tl.arange(0, N)
    inside = (step < count)[:, None] & (columns < width)[None, :]
    return tl.load(source + step[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_matrix(source, stride_d, stride_f, first, columns, D, F, BD: tl.constexpr):
    """The lines from `first` on of a matrix (D, F), (BD, columns); zeros past its sides."""
    line = first + tl.arange(0, BD)
    inside = (line < D)[:, None] & (columns < F)[None, :]
    return tl.load(source + line[:, None] * stride_d + columns[None, :] * stride_f, mask=inside, other=0.0)


@triton.jit
def store_tile(target, rows, stride, count, columns, width, N: tl.constexpr):
    """Store `rows` (N, columns), of which there are `count` and `width`."""
    step = tl.arange(0, N)
    inside = (step < count)[:, None] & (columns < width)[None, :]
    tl.store(target + step[:, None] * stride + columns[None, :], rows.to(target.dtype.element_ty), mask=inside)

"""The oracle: one product a row. Any device, any dtype; waits for the device to know the rows."""

import torch
from torch import Tensor

from .api import Call


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def jagged_dense_bmm(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Multiply by the matrix of the row; see `api`. `(T, H, D)`, `(B, H, D, F)`, `(B, H, F)` or None → `(T, H, F)`.

    Half precision is computed in float32.
    """
    if not len(y):  # no rows: what is empty has gradients too
        empty = torch.einsum("nhd,bhdf->nhf", x, y)
        return empty if bias is None else empty + bias.sum(0)
    out = [torch.einsum("nhd,hdf->nhf", events, matrix.to(events.dtype))
           for events, matrix in zip(_rows(x, offsets), y.unbind(), strict=True)]
    if bias is not None:
        out = [product + row.to(product.dtype) for product, row in zip(out, bias.unbind(), strict=True)]
    return torch.cat(out).to(x.dtype)


def jagged_jagged_bmm(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Multiply row by row; see `api`. `(T, H, D)`, `(T, H, F)` → `(B, H, D, F)`. Half precision is float32 inside."""
    if len(offsets) == 1:
        return torch.einsum("nhd,nhf->nhdf", x, y)
    return torch.stack([torch.einsum("nhd,nhf->hdf", *row)
                        for row in zip(_rows(x, offsets), _rows(y, offsets), strict=True)]).to(x.dtype)


def _rows(x: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """Return the events of each row, `(n, H, D)`, in the dtype of sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).split(offsets.diff().tolist())

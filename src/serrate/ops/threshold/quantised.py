"""Rows as INT8 with a scale each, and exact scores of some of them."""

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .api import check_rows, check_together

_LARGEST = 127
_EXACT = 1024  # of the width: 127² of each fit into the 24 bits of float32, whatever the order of the sum


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as integers and what to multiply them with: `x[n] ≈ values[n] · scales[n]`.

    Symmetric, row by row: the largest magnitude of a row becomes 127, halves are rounded to even numbers.

    Args:
        x: `(N, d)` floating point.

    Returns:
        `(values, scales)`: `(N, d)` int8 from -127 to 127, and `(N,)` float32, 0 for a row of zeros. A row with a
        number that is not finite has a scale of NaN on an accelerator, so that nothing is selected for it.

    Raises:
        InvalidArgument: a wrong shape or dtype; on the CPU, a number that is not finite.
    """
    if x.dim() != 2 or not x.is_floating_point():
        raise InvalidArgument("x", "shape (N, d), floating point", f"{tuple(x.shape)} {x.dtype}")
    if not x.shape[1]:
        return x.new_zeros(x.shape, dtype=torch.int8), x.new_zeros(x.shape[0], dtype=torch.float32)
    lowest, highest = x.float().aminmax(dim=1)
    largest = highest.maximum(-lowest)  # hands NaN on
    finite = largest.isfinite()
    if x.device.type == "cpu" and not bool(finite.all()):
        raise InvalidArgument("x", "finite numbers", f"another in row {int(finite.logical_not().nonzero()[0])}")
    scales = torch.where(finite, largest / _LARGEST, float("nan"))
    there = scales > 0  # a row of the least subnormal numbers is one of zeros too
    values = x.float() / scales.where(there, 1.0)[:, None]
    values.round_().clamp_(-_LARGEST, _LARGEST).mul_(there[:, None]).nan_to_num_(0.0)
    return values.to(torch.int8), scales


def dots(queries: Tensor, items: Tensor) -> Tensor:
    """Return the products of rows `(R, d)` and `(S, d)` int8 as `(R, S)` float32, exact before they are rounded once.

    By products of float32 matrices, which every device has and which are exact: the integers are narrow.
    """
    width = queries.shape[1]
    if width <= _EXACT:
        return queries.float() @ items.float().T
    parts = zip(queries.split(_EXACT, 1), items.split(_EXACT, 1), strict=True)
    return sum((dots(*part).long() for part in parts), torch.zeros((), dtype=torch.long, device=items.device)).float()


def scaled(products: Tensor, query_scales: Tensor, item_scales: Tensor) -> Tensor:
    """Return products `(R, S)` float32 as scores, in place: times item scales `(S,)`, then query scales `(R,)`."""
    return products.mul_(item_scales).mul_(query_scales[:, None])


def scores_of(queries: Tensor, query_scales: Tensor, items: Tensor, item_scales: Tensor, ids: Tensor) -> Tensor:
    """Return the scores of some items with every query, `(R, S)` float32: those that `select_above` compares.

    Args:
        queries: `(R, d)` int8.
        query_scales: `(R,)` float32.
        items: `(V, d)` int8.
        item_scales: `(V,)` float32.
        ids: `(S,)` int64, rows of items.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
    """
    check_rows("queries", queries, "query_scales", query_scales)
    check_rows("items", items, "item_scales", item_scales)
    check_together(queries, items)
    if ids.dim() != 1 or ids.dtype != torch.int64 or ids.device != items.device:
        got = f"{tuple(ids.shape)} {ids.dtype} on {ids.device}"
        raise InvalidArgument("ids", f"(S,) int64 on {items.device}", got)
    return scaled(dots(queries, items[ids]), query_scales, item_scales[ids])

"""The contract of selection by a threshold: shapes, numerics, errors and the choice of an implementation."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve. width: d."""

    device: torch.device
    width: int


class Problem(NamedTuple):
    """Queries `(R, d)` int8, their scales `(R,)` float32; items `(V, d)`, `(V,)`; thresholds `(R,)` float32; allowed.

    allowed: `(V,)` bool, or None.
    """

    queries: Tensor
    query_scales: Tensor
    items: Tensor
    item_scales: Tensor
    threshold: Tensor
    allowed: Tensor | None


def select_above(
    queries: Tensor,
    query_scales: Tensor,
    items: Tensor,
    item_scales: Tensor,
    threshold: Tensor,
    *,
    capacity: int,
    allowed: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the items whose score reaches the threshold of a query, ids ascending: `score(r, v) >= threshold[r]`.

    `score(r, v) = (dot(queries[r], items[v]) · item_scales[v]) · query_scales[r]`: the product of integers is exact,
    the two multiplications are rounded to float32. So the answer is the same to the bit in every implementation. A
    score of NaN, from a scale that is, and a threshold of NaN select nothing.

    On an accelerator items are read once for up to 128 queries, and no score is written: what leaves the pass over the
    corpus is one bit a score. Nothing waits for the device.

    Args:
        queries: `(R, d)` int8, as of `quantise`; any strides.
        query_scales: `(R,)` float32, finite and 0 or more.
        items: `(V, d)` int8; `V · d` may exceed 2³¹.
        item_scales: `(V,)` float32.
        threshold: `(R,)` float32; `-inf` selects everything whose score is not NaN.
        capacity: how many ids a query has place for, 0 or more.
        allowed: `(V,)` bool, the items that may be selected; None: all.
        implementation: a name from `implementations("threshold")`, or None for the automatic choice.

    Returns:
        `(ids, counts)`. ids `(R, capacity)` int64, ascending, -1 past the last. counts `(R,)` int64: how many items
        reach the threshold, which may exceed `capacity`; then ids are the smallest of them.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, `capacity` < 0.
        NotUsable: the implementation asked for cannot serve this call.

    Source: stage one of the h-indexer: Jiaqi Zhai et al., "Revisiting Neural Retrieval on Accelerators", KDD 2023
    (arXiv 2306.04039).
    """
    check_rows("queries", queries, "query_scales", query_scales)
    check_rows("items", items, "item_scales", item_scales)
    check_together(queries, items)
    check_each("threshold", threshold, "R", queries, torch.float32)
    if allowed is not None:
        check_each("allowed", allowed, "V", items, torch.bool)
    if capacity < 0:
        raise InvalidArgument("capacity", "0 or more", capacity)
    problem = Problem(queries, query_scales, items, item_scales, threshold, allowed)
    call = Call(items.device, items.shape[1])
    return select.choose("threshold", call, implementation).implementation.compute(problem, capacity)


def check_rows(argument: str, rows: Tensor, scales_argument: str, scales: Tensor) -> None:
    """Raise InvalidArgument unless rows are `(N, d)` int8 with scales `(N,)` float32 on one device."""
    if rows.dim() != 2 or rows.shape[1] < 1 or rows.dtype != torch.int8:
        raise InvalidArgument(argument, "shape (N, d) with d >= 1, int8", f"{tuple(rows.shape)} {rows.dtype}")
    check_each(scales_argument, scales, "N", rows, torch.float32)


def check_together(queries: Tensor, items: Tensor) -> None:
    """Raise InvalidArgument unless queries `(R, d)` and items `(V, d)`, int8, have one width and one device."""
    if queries.shape[1] != items.shape[1]:
        raise InvalidArgument("items", f"width {queries.shape[1]}, as queries", items.shape[1])
    if queries.device != items.device:
        raise InvalidArgument("items", f"a tensor on {queries.device}, as queries", items.device)


def check_each(argument: str, given: Tensor, letter: str, rows: Tensor, dtype: torch.dtype) -> None:
    """Raise InvalidArgument unless `given` has a number of this dtype, such as float32, for each of the rows `(N, d)`.

    letter: what the number of rows is called.
    """
    if given.shape != rows.shape[:1] or given.dtype != dtype or given.device != rows.device:
        got = f"{tuple(given.shape)} {given.dtype} on {given.device}"
        raise InvalidArgument(argument, f"({letter},) = ({rows.shape[0]},) {dtype} on {rows.device}", got)

"""Selection on the CPU: products of chunks of items that a cache holds, and the few that reach a threshold told apart.

Integer products where the processor has instructions for them, else float32, exact too; README.md has the measurements.
"""

import torch
from torch import Tensor

from ..direct import operator
from .api import Call, Problem
from .quantised import dots, scaled

_SCORES = 2**18  # of a chunk, which a core's cache holds
_ITEMS = 2**15


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def select_above(problem: Problem, capacity: int) -> tuple[Tensor, Tensor]:
    """Select the items that reach a threshold; see `api.select_above`."""
    return _select(*problem, capacity)


@operator("serrate::threshold_cpu", device_types="cpu")
def _select(queries: Tensor, query_scales: Tensor, items: Tensor, item_scales: Tensor, threshold: Tensor,
            allowed: Tensor | None, capacity: int) -> tuple[Tensor, Tensor]:
    rows = len(queries)
    ids, counts = like_selected(queries, capacity)
    ids.fill_(-1)
    counts.zero_()
    step = max(1, min(_ITEMS, _SCORES // max(1, rows)))
    for first in range(0, len(items) if rows else 0, step):
        part = slice(first, first + step)
        scores = scaled(_products(queries, items[part]), query_scales, item_scales[part])
        reached = scores >= threshold[:, None]
        if allowed is not None:
            reached &= allowed[part]
        query, item = reached.nonzero(as_tuple=True)  # query by query, items ascending
        if not len(query):
            continue
        found = torch.bincount(query, minlength=rows)
        place = torch.arange(len(query)) + (counts + found - found.cumsum(0))[query]
        fits = place < capacity
        ids[query[fits], place[fits]] = item[fits] + first
        counts += found
    return ids, counts


@_select.register_fake
def _(queries: Tensor, query_scales: Tensor, items: Tensor, item_scales: Tensor, threshold: Tensor,
      allowed: Tensor | None, capacity: int) -> tuple[Tensor, Tensor]:
    return like_selected(queries, capacity)


def like_selected(queries: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Return tensors such as the result for queries `(R, d)`: `(R, capacity)` and `(R,)` int64, not filled."""
    rows = queries.shape[0]
    return queries.new_empty((rows, capacity), dtype=torch.int64), queries.new_empty(rows, dtype=torch.int64)


def _products(queries: Tensor, items: Tensor) -> Tensor:
    """Return the products of rows `(R, d)` and `(S, d)` as `(R, S)` float32."""
    if _HAS_INTEGERS and queries.shape[1] > 1:  # of rows of one number torch makes a wrong product
        return torch._int_mm(queries, items.T).float()  # pyright: ignore[reportPrivateImportUsage]
    return dots(queries, items)


def _has_integers() -> bool:
    """Whether this processor multiplies int8 and adds in int32 without a detour, and torch makes use of it."""
    names = "_is_vnni_supported", "_is_avx512_vnni_supported"  # of one torch and another
    asked = next((getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)), None)
    return asked is not None and bool(asked()) and torch.backends.mkldnn.is_available()


_HAS_INTEGERS = _has_integers()

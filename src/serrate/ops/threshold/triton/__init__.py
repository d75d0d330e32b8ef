"""Selection on CUDA in Triton: a custom operator, whose kernels are imported at the first call.

One pass over the items writes a bit a score. Counts of bits and their running sum say where the ids of a block of items
stand, so they are written in their order: no atomics, no sort, the same result whatever the device does first.
"""

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of, operator
from ..api import Call, Problem
from ..cpu import like_selected

WIDEST = 1024


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors of a width up to 1024, where Triton is installed."""
    if call.width > WIDEST:
        return f"needs a width of at most {WIDEST}, got {call.width}"
    return no_kernel(call.device, torch.float32)


def select_above(problem: Problem, capacity: int) -> tuple[Tensor, Tensor]:
    """Select the items that reach a threshold; see `api.select_above`."""
    return _select(*problem, capacity)


@operator("serrate::threshold_triton")
def _select(queries: Tensor, query_scales: Tensor, items: Tensor, item_scales: Tensor, threshold: Tensor,
            allowed: Tensor | None, capacity: int) -> tuple[Tensor, Tensor]:
    from .kernels import launch

    ids, counts = like_selected(queries, capacity)
    ids.fill_(-1)
    if not len(queries) or not len(items):
        return ids, counts.zero_()
    problem = Problem(*(None if x is None else x.contiguous()
                        for x in (queries, query_scales, items, item_scales, threshold, allowed)))
    with on_device_of(items):
        counts.copy_(launch(problem, ids))
    return ids, counts


@_select.register_fake
def _(queries: Tensor, query_scales: Tensor, items: Tensor, item_scales: Tensor, threshold: Tensor,
      allowed: Tensor | None, capacity: int) -> tuple[Tensor, Tensor]:
    return like_selected(queries, capacity)

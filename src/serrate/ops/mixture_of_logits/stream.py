"""One pass over the items: scores of a chunk beside the best so far, and of both what is among the best.

The best so far stand by id ascending before the chunk, so places in what is looked at are in the order of ids: ties
need no more than "the first ones". Scores put them in order once, at the end.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .api import Filters, Problem

# Writes the scores `(R, last - first)` of items first … last where it is told, those not allowed as -inf.
Fill = Callable[[int, int, Tensor], None]
# Takes scores (R, W), which are not contiguous, and k < W; gives the places (R, k) of the best, ascending.
Keep = Callable[[Tensor, int], Tensor]


def best(problem: Problem, k: int, filters: Filters, chunk: int, fill: Fill, keep: Keep) -> tuple[Tensor, Tensor]:
    """Return scores and ids `(R, k)` of the best items, of about `chunk` of the `V` at a time; see `api`."""
    rows, count = len(problem.query_gate), len(problem.item_gate)
    dtype = torch.promote_types(problem.item_gate.dtype, torch.float32)
    scores = problem.item_gate.new_empty((rows, 0), dtype=dtype)
    ids = torch.empty_like(scores, dtype=torch.int64)
    excluded = None if filters.exclude is None else _by_row(*filters.exclude, rows)
    chunks = max(1, -(-count // max(8, chunk)))
    step = max(8, 8 * -(-count // (8 * chunks)))  # alike, and whole bytes of bits that allow items
    for first in range(0, count if rows and k else 0, step):
        last = min(first + step, count)
        held = ids.shape[1]
        width = held + last - first
        flat = scores.new_empty(rows * width + 1)  # one more place, for excluded ids of other chunks
        looked_at = flat[:-1].view(rows, width)
        looked_at[:, :held] = scores
        fill(first, last, looked_at[:, held:])
        if excluded is not None:
            _exclude(flat, width, *excluded, first - held, (first, last))
        scores, ids = _kept(looked_at, ids, first, k, keep)
    return _in_order(scores, ids, k)


def _kept(scores: Tensor, ids: Tensor, first: int, k: int, keep: Keep) -> tuple[Tensor, Tensor]:
    """Return the best `k` of `scores` `(R, W)`, of which the last ones are those of items from `first` on."""
    held = ids.shape[1]
    if scores.shape[1] <= k:
        new = torch.arange(first, first + scores.shape[1] - held, device=ids.device)
        return scores, torch.cat([ids, new.expand(len(ids), -1)], 1)
    places = keep(scores, k)
    new = places + (first - held)
    if held:
        new = torch.where(places < held, ids.gather(1, places.clamp(max=held - 1)), new)
    return scores.gather(1, places), new


def _in_order(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return `(R, k)` of what was kept, `(R, K)` by id ascending: by score descending, then nothing."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order).masked_fill_(scores == -torch.inf, -1)
    missing = (0, k - scores.shape[1])
    return torch.nn.functional.pad(scores, missing, value=-torch.inf), torch.nn.functional.pad(ids, missing, value=-1)


def _by_row(offsets: Tensor, ids: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the row of each excluded id `(T',)`, int64, and the ids."""
    every = torch.arange(len(ids), device=ids.device)
    ends = offsets[1:].long().contiguous()
    return torch.searchsorted(ends, every, right=True).clamp_(max=max(rows - 1, 0)), ids.long()


def _exclude(flat: Tensor, width: int, rows: Tensor, ids: Tensor, shift: int, within: tuple[int, int]) -> None:
    """Write -inf for excluded ids that are `within` a chunk; an id has the place `id - shift` of its row."""
    here = (ids >= within[0]) & (ids < within[1])
    flat.index_fill_(0, torch.where(here, rows * width + (ids - shift), flat.shape[0] - 1), -torch.inf)

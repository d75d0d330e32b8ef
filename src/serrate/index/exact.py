"""Exact top-k over all items: deterministic for every tie, with filters per row and per batch."""

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..jagged import JaggedTensor

_INFINITY = float("inf")


def top_k(scores: Tensor, k: int, *, exclude: JaggedTensor | None = None, allow: Tensor | None = None,
          deny: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the best `k` items of each row: score descending, equal scores by item id ascending.

    Items that `exclude`, `allow` or `deny` filter out (see `mask_items`) and items scored `-inf` are no
    candidates. A row with fewer than `k` candidates ends in score `-inf` and id `-1`. The order depends on
    neither the device nor the other rows nor `k`: a larger `k` only adds to the end.

    Args:
        scores: `(B, V)` floating point, one column an item.
        k: how many items; 0 or more, may exceed `V`.
        exclude: `B` rows of item ids that this row must not get.
        allow: `(A,)` the only item ids that may come back, for all rows.
        deny: `(D,)` item ids that may not come back, for all rows.

    Returns:
        `(scores, ids)`, both `(B, k)`, in the dtype of `scores` and int64.

    Raises:
        InvalidArgument: a wrong shape or dtype, `k` < 0, a NaN score, an item id outside `0 … V-1`.
    """
    if k < 0:
        raise InvalidArgument("k", "0 or more", k)
    masked = mask_items(scores, exclude=exclude, allow=allow, deny=deny)
    rows, num_items = masked.shape
    best_scores = masked.new_full((rows, k), -_INFINITY)
    best_ids = torch.full((rows, k), -1, dtype=torch.int64, device=masked.device)
    kept = min(k, num_items)
    if kept == 0 or rows == 0:
        return best_scores, best_ids

    values, ids = masked.topk(min(k + 1, num_items), dim=1)  # free to choose among equal scores
    if bool(values[:, 0].isnan().any()):  # NaN comes first
        raise InvalidArgument("scores", "no NaN", f"NaN in row {int(values[:, 0].isnan().nonzero()[0])}")
    ids = ids[:, :kept].contiguous()
    last = values[:, kept - 1]
    tied = ((values[:, kept:] == last.unsqueeze(1)) & (last > -_INFINITY).unsqueeze(1)).any(dim=1)
    if bool(tied.any()):
        ids[tied] = _smallest_ids(masked[tied], last[tied].unsqueeze(1), kept)
    ids = ids.sort(dim=1).values  # ascending, so that a stable sort by score breaks ties by id
    values, order = masked.gather(1, ids).sort(dim=1, descending=True, stable=True)
    best_scores[:, :kept] = values
    best_ids[:, :kept] = ids.gather(1, order).masked_fill(values == -_INFINITY, -1)
    return best_scores, best_ids


def mask_items(scores: Tensor, *, exclude: JaggedTensor | None = None, allow: Tensor | None = None,
               deny: Tensor | None = None) -> Tensor:
    """Return `scores` `(B, V)` with `-inf` for items that are no candidates.

    The input is left as it is, and is returned itself when there is no filter.

    Args:
        scores: `(B, V)` floating point.
        exclude: `B` rows of item ids, each filtered out of its own row; repeated ids are fine.
        allow: `(A,)` item ids; all others are filtered out of every row. None allows all, empty none.
        deny: `(D,)` item ids filtered out of every row.

    Raises:
        InvalidArgument: a wrong shape or dtype, an item id outside `0 … V-1`.
    """
    if scores.dim() != 2 or not scores.is_floating_point():
        got = f"{tuple(scores.shape)} {scores.dtype}"
        raise InvalidArgument("scores", "shape (B, V), floating point", got)
    if exclude is None and allow is None and deny is None:
        return scores
    rows, num_items = scores.shape
    masked = scores.clone(memory_format=torch.contiguous_format)
    if allow is not None:
        denied = torch.ones(num_items, dtype=torch.bool, device=scores.device)
        denied[_item_ids("allow", allow, scores)] = False
        masked[:, denied] = -_INFINITY
    if deny is not None:
        masked[:, _item_ids("deny", deny, scores)] = -_INFINITY
    if exclude is not None:
        if len(exclude) != rows:
            raise InvalidArgument("exclude", f"{rows} rows, as scores", len(exclude))
        items = _item_ids("exclude", exclude.values, scores)
        masked[exclude.row_index().to(scores.device), items] = -_INFINITY
    return masked


def _smallest_ids(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Return ids `(B, k)`: all above the k-th best score `kth` `(B, 1)`, then the smallest ids at it."""
    above, level = scores > kth, scores == kth
    places = k - above.view(torch.uint8).sum(dim=1, keepdim=True, dtype=torch.int32)  # bool.sum is slow
    keep = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= places))
    return keep.nonzero()[:, 1].reshape(len(scores), k)


def _item_ids(argument: str, ids: Tensor, scores: Tensor) -> Tensor:
    """Return `ids` as int64 on the device of `scores`, checked to be columns of it."""
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InvalidArgument(argument, "one axis of integer item ids", f"{tuple(ids.shape)} {ids.dtype}")
    num_items = scores.shape[1]
    outside = (ids < 0) | (ids >= num_items)
    if bool(outside.any()):
        raise InvalidArgument(argument, f"item ids from 0 to {num_items - 1}", int(ids[outside][0]))
    return ids.to(device=scores.device, dtype=torch.int64)

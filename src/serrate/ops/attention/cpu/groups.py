"""The rows of a batch by shape, so that rows of one shape run together.

Events are brought into order of the shapes of their rows (where they are not), so that each group of `n` rows of `m`
queries and `l` keys is one contiguous slice of either and becomes a dense batch, `(n, H, m, D)` and `(n, H, l, D)`,
without a copy. Long rows mostly have a shape of their own and run alone, short ones share a call; README.md has the
measurements.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..mask import Mask


def tabulated(queries: Tensor, keys: Tensor, mask: Mask) -> Tensor:
    """Return offsets of queries, offsets of keys, context and targets: `(4, B + 1)`, or fewer where that is all.

    `(2, B + 1)` without context and targets, `(1, B + 1)` where rows of queries are those of keys besides. Counts have
    one 0 more than there are rows; lengths are not taken here, for a traced `diff` is of two rows and more only.
    """
    if not mask.per_row:
        return keys[None] if queries is keys else torch.stack([queries, keys])
    counts = (pad(count.to(keys.dtype), (0, 1)) if isinstance(count, Tensor) else torch.zeros_like(keys)
              for count in (mask.context, mask.targets))
    return torch.stack([queries, keys, *counts])


def limits_of(mask: Mask) -> list[int]:
    """Return how far a query sees to the left and to the right and the size of a block, -1 for no limit."""
    return [-1 if number is None else number for number in (*mask.reach, mask.block)]


def limited(numbers: list[int]) -> Mask:
    """Return the mask with these limits, see `limits_of`, without context and targets."""
    left, right, block = (None if number < 0 else number for number in numbers)
    return Mask(causal=right == 0, window=(left, right), block=block)


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype in which tensors like `x` are summed."""
    return torch.promote_types(x.dtype, torch.float32)


class Groups:
    """The rows of a batch by shape: how many queries, keys, and, where the mask asks, context events and targets.

    shapes: of each group; of_rows: its rows `(n,)`, as indices or a slice; queries, keys: the two sides, each group of
    rows one contiguous slice of either.
    """

    def __init__(self, table: Tensor):
        shapes = table.diff() if len(table) < 4 else torch.cat([table[:2].diff(), table[2:, :-1]])
        same = len(shapes) == 1 or torch.equal(shapes[0], shapes[1])
        number = _numbered(shapes)
        order = None if bool((number.diff() >= 0).all()) else number.argsort(stable=True)
        sizes = (number if order is None else number[order]).unique_consecutive(return_counts=True)[1]
        first = sizes.cumsum(0) - sizes
        kinds = shapes[:, first if order is None else order[first]].T.tolist()
        self.shapes = [tuple(kind) if len(kind) > 1 else (kind[0], kind[0]) for kind in kinds]
        groups = list(zip(sizes.tolist(), self.shapes, strict=True))
        begins = first.tolist()
        self.of_rows = [slice(begin, begin + rows) if order is None else order[begin : begin + rows]
                        for begin, (rows, _) in zip(begins, groups, strict=True)]
        self.queries = Side(shapes[0], order, [(rows, shape[0]) for rows, shape in groups])
        self.keys = self.queries if same else Side(shapes[1], order, [(rows, shape[1]) for rows, shape in groups])


def _numbered(shapes: Tensor) -> Tensor:
    """Return a number `(B,)` for each row: equal for rows of one shape, in the order of the shapes."""
    number = shapes[0]
    for column in shapes[1:]:
        base = column.amax() + 1 if len(column) else 1
        number = number.unique(return_inverse=True)[1] * base + column  # of the ranks: no overflow
    return number


class Side:
    """The queries or the keys of a batch, group after group; rows that come in this order already are not moved."""

    def __init__(self, lengths: Tensor, order: Tensor | None, shapes: list[tuple[int, int]]):
        self._shapes = shapes
        self._sizes = [rows * length for rows, length in shapes]
        self._order: Tensor | None = None
        self._places: Tensor | None = None
        if order is not None:
            begins, lengths = (lengths.cumsum(0) - lengths)[order], lengths[order]
            shift = torch.repeat_interleave(begins - (lengths.cumsum(0) - lengths), lengths)
            place = torch.arange(shift.shape[0])
            self._order = shift + place
            self._places = torch.empty_like(place).index_copy_(0, self._order, place)

    def dense(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return for each group its part of all tensors `(T, H, ...)`, as `(rows, H, length, ...)`."""
        return self.views(*(x if self._order is None else x.index_select(0, self._order) for x in tensors))

    def views(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the same of tensors that are in the order of the groups: views, to be written to."""
        if not self._sizes:
            return []
        parts = [x.split(self._sizes) for x in tensors]
        return [tuple(part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in group)
                for shape, group in zip(self._shapes, zip(*parts, strict=True), strict=True)]

    def restore(self, x: Tensor) -> Tensor:
        """Bring `(T, ...)` from the order of the groups back into that of the events."""
        return x if self._places is None else x.index_select(0, self._places)

    def gather(self, empty: Tensor, parts: list[Tensor]) -> Tensor:
        """Put the results `(rows, H, length, ...)` of all groups back into the order of the events, `(T, H, ...)`."""
        if not parts:
            return empty
        events = [part.transpose(1, 2).flatten(0, 1) for part in parts]
        if self._places is None:
            return torch.cat(events, out=empty)
        return torch.index_select(torch.cat(events), 0, self._places, out=empty)

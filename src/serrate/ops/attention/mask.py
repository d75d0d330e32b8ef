"""Which keys a query sees: one value for every implementation, and its meaning written out in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query sees, within its own row. All parts combine; `Mask()` hides nothing.

    A row of `n` keys is `context` events that everything sees, history, and `targets` at its end. The `m` queries of
    the row are its last `m` positions, so with as many queries as keys query `i` stands at position `i`; a query before
    the first key (`m > n`) stands at a negative one. A query that sees no key gives 0 and a log-sum-exp of -inf.

    Attributes:
        causal: a query sees itself and what stands before it.
        window: how many positions a query sees to its left and to its right, itself apart; None is no limit.
        block: rows are cut into blocks of this many positions, and a query sees its own block only.
        context: `(B,)` integers (or one for all rows; fewer than 0 are 0): the first keys of a row, which every query
            sees whatever the three above say. Context itself is bound by them: under a causal mask it never sees the
            history.
        targets: `(B,)` integers (or one for all rows): the last events of a row, which nothing sees but each one
            itself. As queries they all stand where the history ends: what is asked of one does not depend on the
            others.
    """

    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    block: int | None = None
    context: Tensor | int | None = None
    targets: Tensor | int | None = None

    def __post_init__(self):
        if len(self.window) != 2 or any(side is not None and side < 0 for side in self.window):
            raise InvalidArgument("mask.window", "(left, right), each None or 0 and more", self.window)
        if self.block is not None and self.block < 1:
            raise InvalidArgument("mask.block", "1 or more", self.block)
        for name, count in (("context", self.context), ("targets", self.targets)):
            if isinstance(count, int) and count < 0:
                raise InvalidArgument(f"mask.{name}", "0 or more", count)
        if self.window[1] == 0:  # the same by another name
            object.__setattr__(self, "causal", True)

    @property
    def plain(self) -> bool:
        """Whether the mask is causal or nothing: what every implementation knows."""
        return self.reach in ((None, None), (None, 0)) and self.block is None and not self.per_row

    @property
    def per_row(self) -> bool:
        """Whether the mask has context or targets."""
        return self.context is not None or self.targets is not None

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """How far a query sees to the left and to the right, causality included."""
        left, right = self.window
        return left, 0 if self.causal else right


def seen(mask: Mask, queries: int, keys: int, context: int = 0, targets: int = 0, *, part: slice = slice(None),
         device: torch.device | None = None) -> Tensor:
    """Return which keys each query of one row sees, `(queries, keys)` bool: the definition of `Mask`.

    part: the queries that are asked of, where not all.
    """
    at = (torch.arange(queries, device=device)[part] + keys - queries)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    history = max(keys - targets, 0)
    stand = at.clamp(max=history)  # targets all stand where the history ends
    left, right = mask.reach
    near = key < history
    if left is not None:
        near = near & (key >= stand - left)
    if right is not None:
        near = near & (key <= stand + right)
    if mask.block is not None:
        near = near & (torch.div(stand, mask.block, rounding_mode="floor") == key // mask.block)
    prefix = key < min(context, history)
    itself = (at >= history) & (at == key)
    return (near | prefix | itself).expand(at.shape[0], keys)

"""What a search finds: the running best of each query, and the answer that is made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import top_k

_INFINITY = float("inf")


@dataclass(frozen=True, eq=False)
class Found:
    """The answers to `R` queries, best first: score descending, equal scores by item id ascending.

    Attributes:
        scores: `(R, k)` float32; `-inf` where a query has fewer than `k` candidates.
        ids: `(R, k)` int64; -1 there.
        candidates: `(R,)` int64, how many items of the corpus were scored by the similarity for the sake of the query.
        open: `(R,)` int64, how many could have been: all items less those that are filtered out.
        gap: `(R,)` float32, how much higher the true `k`-th score can be than the one found; 0 where the answer is
            certain, infinite where the index cannot tell. Up to the rounding of the similarity.
    """

    scores: Tensor
    ids: Tensor
    candidates: Tensor
    open: Tensor
    gap: Tensor

    @property
    def certified(self) -> Tensor:
        """`(R,)` bool: the scores are known to be those of a search through the whole corpus."""
        return self.gap == 0

    @property
    def share(self) -> Tensor:
        """`(R,)` float64: the share of the open items that was scored; 0 where none is open."""
        return self.candidates / self.open.clamp(min=1)

    @classmethod
    def joined(cls, parts: Sequence["Found"]) -> "Found":
        """Return the answers of several blocks of queries as one; at least one block."""
        return cls(*(torch.cat([getattr(part, name) for part in parts])
                     for name in ("scores", "ids", "candidates", "open", "gap")))


class Best:
    """The best `k` so far of `R` rows, fed block by block.

    Attributes:
        scores: `(R, k)` float32, descending; `-inf` in places that are not filled.
        ids: `(R, k)` int64, of equal scores the smaller first; -1 in places that are not filled.
    """

    def __init__(self, rows: int, k: int, device: torch.device):
        self.scores = torch.full((rows, k), -_INFINITY, device=device)
        self.ids = torch.full((rows, k), -1, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, ids: Tensor) -> None:
        """Take in `C` candidates more.

        Args:
            scores: `(R, C)` floating point, `-inf` for those that are none.
            ids: `(C,)` of all rows or `(R, C)` int64; ascending where the score is above `-inf`, so that the place of
                a column breaks ties.

        Raises:
            InvalidArgument: a score is NaN.
        """
        k = self.scores.shape[1]
        scores, ids = self._beating(scores, ids)
        values, at = top_k(scores.float(), min(k, scores.shape[1]))
        new = (ids.expand_as(scores) if ids.dim() == 1 else ids).gather(1, at.clamp(min=0)).masked_fill(at < 0, -1)
        if k == 0 or scores.shape[1] == 0:
            return
        ids, by_id = torch.cat([self.ids, new], 1).sort(dim=1)
        values, order = torch.cat([self.scores, values], 1).gather(1, by_id).sort(dim=1, descending=True, stable=True)
        self.scores, self.ids = values[:, :k].contiguous(), ids.gather(1, order)[:, :k].contiguous()

    def _beating(self, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates that can still be among the best, in their order, where these are few; else all.

        Once the places are filled few candidates of a chunk beat the last of them, and a comparison is far cheaper than
        a selection. NaN stays.
        """
        if scores.shape[1] <= 2 * self.scores.shape[1] or self.scores.numel() == 0:
            return scores, ids
        columns = true_columns(~(scores < self.scores[:, -1:]), scores.shape[1] // 4)
        if columns is None:
            return scores, ids
        none, columns = columns < 0, columns.clamp(min=0)
        own = ids[columns] if ids.dim() == 1 else ids.gather(1, columns)
        return scores.gather(1, columns).masked_fill(none, -_INFINITY), own.masked_fill(none, -1)


def true_columns(mask: Tensor, most: int) -> Tensor | None:
    """Return the columns of a mask `(R, C)` bool where it is true, `(R, M)` int64: ascending, -1 at the end of a row.

    `M` is their number in the row that has most; None where that is above `most`.
    """
    number = mask.view(torch.uint8).sum(1, dtype=torch.int32).long()  # bool.sum is slow
    width = int(number.max()) if len(number) else 0
    if width > most:
        return None
    row, column = mask.nonzero().unbind(1)
    place = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    columns = torch.full((len(mask), width), -1, dtype=torch.int64, device=mask.device)
    columns[row, place] = column
    return columns

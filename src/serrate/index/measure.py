"""How fast an index answers, and how much of the exact answer it finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..nn.similarity import Sides
from ..ops.measure import milliseconds
from .base import Index
from .brute import ExactIndex
from .sides import count, rows_of

BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Measured:
    """An index at one batch size.

    Attributes:
        batch: queries of a search.
        milliseconds: the median time of a search.
        recall: the mean share of the exact answer that is in the index's, over all queries.
        share: the mean share of the open items that the similarity scored.
        certified: the share of the queries whose answer was known to be exact.
    """

    batch: int
    milliseconds: float
    recall: float
    share: float
    certified: float


def recall(ids: Tensor, truth: Tensor) -> Tensor:
    """Return `(R,)` float64: the share of the ids of `truth` `(R, k)` that are among `ids` `(R, k)`, -1 aside.

    1 where there is no truth.
    """
    hits = ((truth[:, :, None] == ids[:, None]).any(2) & (truth >= 0)).sum(1)
    wanted = (truth >= 0).sum(1)
    return torch.where(wanted > 0, hits.double() / wanted.clamp(min=1), 1.0)


def measure(index: Index, queries: Sides, k: int, *, batches: Sequence[int] = BATCHES, seconds: float = 1.0,
            truth: Tensor | None = None) -> list[Measured]:
    """Return what the searches of an index take at some batch sizes, and how right they are.

    Args:
        index: the index.
        queries: sides of `R` queries; a batch is the first of them, so no more than `R` are taken at once.
        k: how many items a query asks for.
        batches: numbers of queries.
        seconds: for how long each is repeated on a CPU.
        truth: `(R, k)` the ids of the exact answers; None: they are found by scoring every item.

    Raises:
        InvalidArgument: no query, and as `Index.search`.
    """
    rows = count("queries", queries)
    if rows == 0:
        raise InvalidArgument("queries", "at least one", 0)
    truth = ExactIndex.over(index).search(queries, k).ids if truth is None else truth
    found = index.search(queries, k)
    right = float(recall(found.ids, truth).mean())
    share, certified = float(found.share.mean()), float(found.certified.double().mean())
    measured = []
    for batch in sorted({min(batch, rows) for batch in batches}):
        some = rows_of(queries, 0, batch)
        taken = milliseconds(lambda some=some: index.search(some, k), truth.device.type, seconds)
        measured.append(Measured(batch, taken, right, share, certified))
    return measured

"""The weights of a tile: some queries of some rows of one shape, few enough to stay in a core's cache.

What all rows of a shape share is found once for them, in a `Block`: what its queries see, and how far away it is.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ...dropout import kept
from ..bias import BUCKET, FARTHEST, bucket
from ..mask import seen
from ..weights import POINTWISE
from .groups import wide
from .problem import Problem

SCORES = 2**17  # of a tile
FEWEST = 64  # queries of a row in a tile, or a multiple: products of matrices with fewer have little to do
_CUT = 12  # bits at the end of a float32 that make no difference to its bucket
_LAST_BUCKET = int(math.log(2 * FARTHEST) / BUCKET)

_TO_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # gradient of the weights, scores → that of the scores
    "silu": torch.ops.aten.silu_backward,
    "gelu": torch.ops.aten.gelu_backward,
    "relu_squared": lambda grad, scores: grad * F.relu(scores).mul_(2),
    "identity": lambda grad, scores: grad,
}


class Block:
    """Some queries of a row and the keys that any of them sees: the same in all rows of one shape.

    queries, keys: which these are, M and N of them; history: events of the row that are no targets; distances:
    `(M · N,)` entries in the table of positions, None without one; added: `(H, M, N)`, `(1, M, N)` or `(M, N)`, None
    for nothing: the bias of position, and for a softmax -inf where a key is hidden.
    """

    def __init__(self, problem: Problem, shape: tuple[int, ...], queries: slice, dtype: torch.dtype):
        rows, length, _, targets = (*shape, 0, 0)[:4]
        first, count = length - rows + queries.start, queries.stop - queries.start  # where the first query stands
        self.queries, self.keys, self.history = queries, slice(0, length), max(length - targets, 0)
        self._activation = problem.weights.activation
        self._diagonal: int | None = None  # of a causal mask, beyond which nothing is seen
        self._hidden: Tensor | None = None
        self._blind: Tensor | None = None  # queries that see nothing
        if not problem.mask.plain or len(shape) > 2:
            visible = seen(problem.mask, *shape, part=queries)
            columns = visible.any(0).nonzero()
            self.keys = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)
            self._hidden = ~visible[:, self.keys]
        elif problem.mask.causal:
            self.keys = slice(0, max(0, min(length, first + count)))
            self._diagonal = first
        self.shape = count, self.keys.stop - self.keys.start
        self.distances = self.added = None
        if problem.position is not None:
            self.distances = self._distances(first, problem.position.shape[1] // 2)
            self.added = problem.position.index_select(1, self.distances).view(len(problem.position), *self.shape)
        if not problem.weights.pointwise:
            self._prepare_softmax(dtype)

    def _distances(self, first: int, reach: int) -> Tensor:
        stand = torch.arange(first, first + self.shape[0]).clamp(max=self.history)
        place = torch.arange(self.keys.start, self.keys.stop).clamp(max=self.history)
        return (stand[:, None] + reach - place).clamp_(0, 2 * reach).flatten()

    def _prepare_softmax(self, dtype: torch.dtype) -> None:
        if self._diagonal is not None:
            self._hidden = torch.ones(self.shape, dtype=torch.bool).triu_(self._diagonal + 1)
        if self._hidden is not None:
            added = torch.zeros((), dtype=dtype) if self.added is None else self.added
            self.added = added.masked_fill(self._hidden, -math.inf)
            blind = self._hidden.all(-1, keepdim=True)
            self._blind = blind if blind.any() else None

    def weights(self, scores: Tensor) -> Tensor:
        """Return the weights of scores `(n, H, M, N)`, before dropout and not yet divided."""
        if self._activation != "softmax":
            return self._hide(POINTWISE[self._activation](scores))
        weights = scores.softmax(-1)  # of a query that sees nothing it is no number
        return weights if self._blind is None else weights.masked_fill_(self._blind, 0.0)

    def to_scores(self, grad: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient of the scores, from that of the weights, which may be written over."""
        if self._activation != "softmax":
            return self._hide(_TO_SCORES[self._activation](grad, scores))
        return torch.ops.aten._softmax_backward_data(grad, weights, -1, grad.dtype)

    def _hide(self, weights: Tensor) -> Tensor:
        """Put 0 for what is hidden, in place."""
        if self._diagonal is not None:
            return weights.tril_(self._diagonal)
        return weights if self._hidden is None else weights.masked_fill_(self._hidden, 0.0)


class Tile:
    """One block of queries and keys, of some rows `n`: the scores and weights `(n, H, M, N)`, in the dtype of sums.

    ours, theirs: of all rows of the shape, `q` with its marks, see `Problem.marks`, and `k` and `v` with theirs, as
    `Side.dense` gives them.
    """

    def __init__(self, problem: Problem, block: Block, rows: slice, ours: tuple[Tensor, ...],
                 theirs: tuple[Tensor, ...]):
        self.rows, self.block = rows, block
        self._problem = problem
        dtype = wide(ours[0])
        q, asked = _part(ours, rows, block.queries)
        k, v, happened = _part(theirs, rows, block.keys)
        self._q, self._k, self._v = q.to(dtype) * problem.scale, k.to(dtype), v.to(dtype)
        self.scores = self._q @ self._k.mT
        if block.added is not None:
            self.scores += block.added
        self._buckets: Tensor | None = None
        if problem.time is not None:
            self._buckets = _buckets(asked[:, 0], happened[:, 0], problem.time.shape[1])
            bias = problem.time.index_select(1, self._buckets).view(len(problem.time), -1, *block.shape)
            self.scores += bias.transpose(0, 1)
        self._weights = block.weights(self.scores)
        rate = problem.weights.dropout
        self._kept = None if problem.seed is None else \
            kept(problem.seed, rate, q.shape[1], asked[:, 1], happened[:, 1])
        self._factor = 1 / (problem.weights.divisor(block.history) * (1 - rate))

    def output(self) -> Tensor:
        """Return what the queries get, `(n, H, M, Dv)`."""
        return (self._dropped() @ self._v).mul_(self._factor)

    def gradients(self, grad: Tensor, grad_lse: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of `q`, `k`, `v` and of the scores, from those of output and log-sum-exp.

        grad: `(n, H, M, Dv)`; grad_lse: `(n, H, M)` or None.
        """
        grad = grad.to(self.scores.dtype) * self._factor
        dv = self._dropped().mT @ grad
        of_weights = grad @ self._v.mT
        if self._kept is not None:
            of_weights *= self._kept
        of_scores = self.block.to_scores(of_weights, self.scores, self._weights)
        if grad_lse is not None:
            of_scores += self._weights * grad_lse[..., None]
        return (of_scores @ self._k).mul_(self._problem.scale), of_scores.mT @ self._q, dv, of_scores

    def table_gradients(self, of_scores: Tensor) -> Iterator[Tensor]:
        """Yield the gradients of the tables of bias, of position before that of time, from that of scores."""
        if self._problem.position is not None and self.block.distances is not None:
            yield _by_entry(self._problem.position, self.block.distances, of_scores.sum(0))
        if self._problem.time is not None and self._buckets is not None:
            yield _by_entry(self._problem.time, self._buckets, of_scores.transpose(0, 1))

    def _dropped(self) -> Tensor:
        return self._weights if self._kept is None else self._weights * self._kept


def tiles(problem: Problem, shape: tuple[int, ...], ours: tuple[Tensor, ...],
          theirs: tuple[Tensor, ...]) -> Iterator[Tile]:
    """Yield the tiles of all rows of one shape, those apart in which nothing is seen; see `Tile`."""
    rows, length = shape[:2]
    count, heads = ours[0].shape[:2]
    step = max(1, SCORES // max(1, heads * length) // FEWEST) * FEWEST
    for first in range(0, rows, step):
        block = Block(problem, shape, slice(first, min(first + step, rows)), wide(ours[0]))
        size = heads * math.prod(block.shape)
        together = max(1, SCORES // max(1, size))
        for row in range(0, count if size else 0, together):
            yield Tile(problem, block, slice(row, row + together), ours, theirs)


def _by_entry(table: Tensor, entries: Tensor, grad: Tensor) -> Tensor:
    """Sum a gradient `(H, …)` by the entries of a table `(H, N)` or `(1, N)` that it belongs to."""
    if len(table) < len(grad):
        grad = grad.sum(0, keepdim=True)
    grad = grad.reshape(len(table), -1)
    return torch.zeros_like(table).scatter_add_(1, entries.expand(len(table), -1), grad)


def _part(tensors: tuple[Tensor, ...], rows: slice, events: slice) -> tuple[Tensor, ...]:
    """Return some rows and some events of each, of tensors `(n, H, length, …)`; slices of all cost time too."""
    count, _, length = tensors[0].shape[:3]
    whole = rows.start == 0 and rows.stop >= count and events.start == 0 and events.stop == length
    return tensors if whole else tuple(x[rows, :, events] for x in tensors)


def _buckets(asked: Tensor, happened: Tensor, entries: int) -> Tensor:
    """Return the entries `(n · M · N,)` in a table of times, from times `(n, M)` and `(n, N)` counted within rows.

    The same as `bias.bucket`, which follows from the leading bits of a float32 alone: they are looked up. Differences
    are exact in float64 and rounded once, as there.
    """
    bits = (asked[:, :, None] - happened[:, None, :]).float().view(torch.int32)
    known = _by_leading_bits()
    number = known.index_select(0, (bits.bitwise_and_(0x7FFFFFFF) >> _CUT).flatten())
    return number if entries > _LAST_BUCKET else number.clamp_(max=entries - 1)


@cache
def _by_leading_bits() -> Tensor:
    """Return the bucket for the leading bits of each float32 from 0 to the largest difference, int64."""
    largest = int(torch.tensor(2.0 * FARTHEST, device="cpu").view(torch.int32)) >> _CUT
    bits = torch.arange(largest + 1, dtype=torch.int32, device="cpu") << _CUT
    return bucket(bits.view(torch.float32))

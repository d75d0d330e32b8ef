"""A call as the kernels take it: which rows there are, what kind of mask, which factors."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...dropout import threshold
from ..api import Rows, Settings

FULL, CAUSAL, GENERAL = 0, 1, 2  # kinds of mask: each has code of its own in the kernels
NO_LIMIT = 2**30  # longer than any row
LOG2_E = 1.4426950408889634
_SELF, _CROSS, _DENSE = 0, 1, 2


class Problem(NamedTuple):
    """A call as the kernels take it.

    queries: offsets, the same object as `keys` in self-attention, None for dense ones; context, targets: `(B,)`, both
    or neither; seed: () int64 or None; kind of the mask, its reach to the left and right and its block; which of the
    `ACTIVATIONS`, what it is divided by (0: the length of the history); tables of bias `(H, …)` or `(1, …)` and times
    of queries and keys, each None where there is none; what is kept of calls like this, see `api.Settings`.
    """

    queries: Tensor | None
    keys: Tensor
    context: Tensor | None
    targets: Tensor | None
    seed: Tensor | None
    kind: int
    limits: tuple[int, int, int]
    scale: float
    dropout: float
    activation: int = 0
    normaliser: float = 1.0
    position: Tensor | None = None
    time: Tensor | None = None
    query_times: Tensor | None = None
    key_times: Tensor | None = None
    memory: dict[Hashable, Any] | None = None

    @property
    def dense(self) -> bool:
        """Whether queries are `(B, K, H, D)`."""
        return self.queries is None

    @property
    def per_row(self) -> bool:
        """Whether rows have context and targets."""
        return self.context is not None

    @property
    def self_attention(self) -> bool:
        """Whether the kernels need no more of a row than where it begins and ends."""
        return self.queries is self.keys and not self.per_row

    @property
    def plain(self) -> bool:
        """Whether this is self-attention, causal or not, softmax or pointwise, with nothing else asked for."""
        return self.plain_but_biased and not self.biased

    @property
    def plain_but_biased(self) -> bool:
        """Whether this is plain, but for a bias that there may be."""
        return self.self_attention and self.kind != GENERAL and self.seed is None

    @property
    def pointwise(self) -> bool:
        """Whether weights follow each from its own score, so that there is no log-sum-exp."""
        return self.activation > 0

    @property
    def biased(self) -> bool:
        """Whether there is a table of bias."""
        return self.position is not None or self.time is not None

    @property
    def tables(self) -> list[Tensor]:
        """The tables of bias that there are."""
        return [table for table in (self.position, self.time) if table is not None]

    @property
    def factor(self) -> float:
        """What products are multiplied by: a softmax counts in base 2."""
        return self.scale if self.pointwise else self.scale * LOG2_E

    @property
    def counts(self) -> tuple[Tensor | None, Tensor | None]:
        """Context and targets of the rows."""
        return self.context, self.targets

    @property
    def dropped(self) -> tuple[Tensor | None, int, float]:
        """The seed, the number below which a hash means that a weight is dropped, the factor of those that stay."""
        return self.seed, threshold(self.dropout), 1 / (1 - self.dropout)

    @property
    def index(self) -> list[Tensor]:
        """The tensors of whole numbers: offsets of the keys first."""
        others = (None if self.queries is self.keys else self.queries, self.context, self.targets, self.seed,
                  self.query_times, self.key_times)
        return [self.keys, *(each for each in others if each is not None)]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.keys] if self.plain else self.tables + self.index

    def as_arguments(self) -> tuple[list[Tensor], list[Tensor], list[int], list[float]]:
        """Return the same as types that an operator takes, the tables first; see `from_arguments`."""
        shape = _SELF if self.queries is self.keys else _DENSE if self.dense else _CROSS
        there = [int(each is not None) for each in (
            self.position, self.time, self.queries if shape == _CROSS else None, self.context, self.targets, self.seed,
            self.query_times, self.key_times)]
        return (self.tables, self.index, [shape, self.kind, *self.limits, self.activation, *there],
                [self.scale, self.dropout, self.normaliser])


def from_arguments(tables: list[Tensor], given: list[Tensor], numbers: list[int], factors: list[float]) -> Problem:
    """Return the problem that `as_arguments` took apart."""
    keys, *others = given
    shape, kind, left, right, block, activation, *there = numbers
    following = iter([*tables, *others])
    position, time, queries, context, targets, seed, *times = (next(following) if each else None for each in there)
    scale, dropout, normaliser = factors
    return Problem(keys if shape == _SELF else queries, keys, context, targets, seed, kind, (left, right, block),
                   scale, dropout, activation, normaliser, position, time, *times)


def is_pointwise(numbers: list[int]) -> bool:
    """Return `Problem.pointwise` of the numbers that `as_arguments` gives."""
    return numbers[5] > 0


def make_problem(rows: Rows, settings: Settings) -> Problem:
    """Return the problem of a call."""
    mask, bias, memory = settings.mask, settings.bias, settings.memory
    numbers = None if memory is None else memory.get("numbers")
    if numbers is None:
        kind = (CAUSAL if mask.causal else FULL) if mask.plain else GENERAL
        limits = tuple(NO_LIMIT if limit is None else min(limit, NO_LIMIT) for limit in (*mask.reach, mask.block))
        numbers = kind, limits, settings.scale, settings.weights.dropout, *settings.weights.numbers
        if memory is not None:
            memory["numbers"] = numbers
    context = targets = None
    if mask.per_row:
        nothing = torch.zeros(rows.keys.shape[0] - 1, dtype=torch.int32, device=rows.keys.device)
        context, targets = (count if isinstance(count, Tensor) else nothing for count in (mask.context, mask.targets))
    return Problem(rows.queries, rows.keys, context, targets, settings.seed, *numbers,
                   *((None,) * 4 if bias is None else (bias.position, bias.time, bias.query_times, bias.key_times)),
                   memory)

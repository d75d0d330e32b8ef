"""A call with weights that are written out, as the operator takes it."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..api import Settings
from ..bias import Bias, since
from ..mask import Mask
from ..weights import ACTIVATIONS, Weights
from .groups import limited, limits_of


class Problem(NamedTuple):
    """A call, `mask` without its counts, which are in `table` with the offsets: see `groups.tabulated`.

    seed: () int64, None where nothing is dropped; position, time: tables of bias `(H, …)` or `(1, …)`; query_times,
    key_times: `(T,)` and `(S,)` int64.
    """

    table: Tensor
    mask: Mask
    weights: Weights
    scale: float
    with_lse: bool
    position: Tensor | None
    time: Tensor | None
    seed: Tensor | None
    query_times: Tensor | None
    key_times: Tensor | None

    def marks(self, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        """Return for each query and each key its time, counted from the first key of its row, and its place.

        `(T, 2)` and `(S, 2)` float64, the place that on the packed axis; `(T, 0)` and `(S, 0)` where neither is needed.
        """
        if self.time is None and self.seed is None:
            return torch.empty(queries, 0), torch.empty(keys, 0)
        ours, theirs = (torch.arange(count).repeat(2, 1) for count in (queries, keys))
        if self.query_times is not None and self.key_times is not None and keys:
            starts = self.table[:2][-1]
            first = self.key_times[starts[:-1].clamp(max=keys - 1)]  # of a row without keys it does not matter
            for side, times, offsets in ((ours, self.query_times, self.table[0]), (theirs, self.key_times, starts)):
                side[0] = since(times, first.repeat_interleave(offsets.diff(), output_size=len(times)))
        return ours.T.double(), theirs.T.double()


def arguments_of(table: Tensor, settings: Settings) -> tuple[list[Tensor], list[Tensor], list[int], list[float]]:
    """Return a call as types that an operator takes, the tables of bias first; `table`: see `groups.tabulated`."""
    weights, bias = settings.weights, settings.bias or Bias()
    tables, index = (bias.position, bias.time), (settings.seed, bias.query_times, bias.key_times)
    there = [int(each is not None) for each in (*tables, *index)]
    activation, normaliser = weights.numbers
    numbers = [*limits_of(settings.mask), activation, int(settings.with_lse), *there]
    return ([each for each in tables if each is not None], [table, *(each for each in index if each is not None)],
            numbers, [settings.scale, normaliser, weights.dropout])


def from_arguments(tables: list[Tensor], index: list[Tensor], numbers: list[int], factors: list[float]) -> Problem:
    """Return the call that `arguments_of` took apart."""
    table, *others = index
    *limits, activation, with_lse = numbers[:5]
    following = iter([*tables, *others])
    scale, normaliser, dropout = factors
    chosen = ACTIVATIONS[activation]
    weights = Weights(chosen, None if chosen == "softmax" else normaliser or "length", dropout)
    return Problem(table, limited(limits), weights, scale, bool(with_lse),
                   *(next(following) if each else None for each in numbers[5:]))

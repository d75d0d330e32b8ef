"""The three computations as operators of torch, so that tracers see through an implementation; without gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..direct import operator
from .api import Filters, Gate, Problem


class Operators(NamedTuple):
    """What an implementation computes: scores `(R, V)`, scores `(R, K)` of `ids`, the best `(R, k)`; see `api`."""

    scores: Callable[[Problem], Tensor]
    each: Callable[[Problem, Tensor], Tensor]
    top_k: Callable[[Problem, int, Filters], tuple[Tensor, Tensor]]


def registered(implementation: str, plain: Operators, device_types: str | None = None) -> Operators:
    """Return the same computations, which torch knows as `serrate::mixture_of_logits…_<implementation>`.

    The tensors of a problem are handed over as one list: sides of queries and of items, then the gate.
    """
    @operator(f"serrate::mixture_of_logits_{implementation}", device_types)
    def scores(tensors: list[Tensor], temperature: float) -> Tensor:
        return plain.scores(_problem(tensors, temperature))

    @operator(f"serrate::mixture_of_logits_each_{implementation}", device_types)
    def each(tensors: list[Tensor], temperature: float, ids: Tensor) -> Tensor:
        return plain.each(_problem(tensors, temperature), ids)

    @operator(f"serrate::mixture_of_logits_top_k_{implementation}", device_types)
    def top_k(tensors: list[Tensor], temperature: float, k: int, exclude: list[Tensor],
              allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        filters = Filters((exclude[0], exclude[1]) if exclude else None, allowed)
        return plain.top_k(_problem(tensors, temperature), k, filters)

    scores.register_fake(lambda tensors, temperature: _empty(tensors, len(tensors[3])))
    each.register_fake(lambda tensors, temperature, ids: _empty(tensors, ids.shape[1]))
    top_k.register_fake(lambda tensors, temperature, k, exclude, allowed: (
        _empty(tensors, k), tensors[1].new_empty((len(tensors[1]), k), dtype=torch.int64)))
    return Operators(
        lambda problem: scores(_tensors(problem), problem.temperature),
        lambda problem, ids: each(_tensors(problem), problem.temperature, ids),
        lambda problem, k, filters: top_k(_tensors(problem), problem.temperature, k, list(filters.exclude or ()),
                                          filters.allowed))


def _tensors(problem: Problem) -> list[Tensor]:
    return [*problem[:4], *problem.gate]


def _problem(tensors: list[Tensor], temperature: float) -> Problem:
    queries, query_gates, items, item_gates, *gate = tensors
    return Problem(queries, query_gates, items, item_gates, Gate(*gate), temperature)


def _empty(tensors: list[Tensor], columns: int) -> Tensor:
    """Return what holds scores of every query, of the dtype of sums."""
    return tensors[3].new_empty((len(tensors[1]), columns), dtype=torch.promote_types(tensors[3].dtype, torch.float32))

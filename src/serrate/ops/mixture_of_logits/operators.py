"""The computations as operators of torch, so that tracers see through an implementation; sums with gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..direct import operator
from .api import Filters, Gate, Problem, Terms


class Operators(NamedTuple):
    """What an implementation computes: scores `(R, V)`, scores `(R, K)` of `ids`, the best `(R, k)`; see `api`."""

    scores: Callable[[Problem], Tensor]
    each: Callable[[Problem, Tensor], Tensor]
    top_k: Callable[[Problem, int, Filters], tuple[Tensor, Tensor]]


class Summed(NamedTuple):
    """What an implementation computes to train by: sums `(R,)`, and gradients by these and by theirs; see `api`."""

    log_sums: Callable[[Problem, Terms], Tensor]
    gradients: Callable[[Problem, Terms, Tensor, Tensor], list[Tensor]]


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


def registered_sum(implementation: str, plain: Summed) -> Callable[[Problem, Terms], Tensor]:
    """Return the same sums with their gradients, `serrate::mixture_of_logits_logsumexp_<implementation>` to torch.

    Tensors of a problem are handed over as in `registered`, numbers as temperature, scale and dropout.
    """
    name = f"serrate::mixture_of_logits_logsumexp{{}}_{implementation}"

    @operator(name.format(""))
    def log_sums(tensors: list[Tensor], shifts: Tensor | None, excluded: list[Tensor], seed: Tensor | None,
                 numbers: list[float]) -> Tensor:
        return plain.log_sums(*_sum(tensors, shifts, excluded, seed, numbers))

    @operator(name.format("_gradients"))
    def gradients(tensors: list[Tensor], shifts: Tensor | None, excluded: list[Tensor], seed: Tensor | None,
                  numbers: list[float], sums: Tensor, grad: Tensor) -> list[Tensor]:
        return plain.gradients(*_sum(tensors, shifts, excluded, seed, numbers), sums, grad)

    def keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
        tensors, shifts, excluded, seed, ctx.numbers = inputs
        ctx.excludes = len(excluded)
        ctx.save_for_backward(output, shifts, seed, *excluded, *tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        output, shifts, seed, *rest = ctx.saved_tensors
        excluded, tensors = rest[:ctx.excludes], rest[ctx.excludes:]
        return (gradients(tensors, shifts, excluded, seed, ctx.numbers, output, grad.contiguous()), None,
                [None] * ctx.excludes, None, None)

    log_sums.register_fake(lambda tensors, *_: _empty(tensors, 1)[:, 0].contiguous())
    gradients.register_fake(lambda tensors, *_: [torch.empty_like(x, memory_format=torch.contiguous_format)
                                                 for x in tensors])
    log_sums.register_autograd(backward, setup_context=keep)
    return lambda problem, terms: log_sums(_tensors(problem), terms.shifts, list(terms.excluded or ()), terms.seed,
                                           [problem.temperature, terms.scale, terms.dropout])


def _sum(tensors: list[Tensor], shifts: Tensor | None, excluded: list[Tensor], seed: Tensor | None,
         numbers: list[float]) -> tuple[Problem, Terms]:
    temperature, scale, dropout = numbers
    pair = (excluded[0], excluded[1]) if excluded else None
    return _problem(tensors, temperature), Terms(scale, shifts, pair, dropout, seed)


def _tensors(problem: Problem) -> list[Tensor]:
    return [*problem[:4], *problem.gate]


def _problem(tensors: list[Tensor], temperature: float) -> Problem:
    queries, query_gates, items, item_gates, *gate = tensors
    return Problem(queries, query_gates, items, item_gates, Gate(*gate), temperature)


def _empty(tensors: list[Tensor], columns: int) -> Tensor:
    """Return what holds scores of every query, of the dtype of sums."""
    return tensors[3].new_empty((len(tensors[1]), columns), dtype=torch.promote_types(tensors[3].dtype, torch.float32))

"""The oracle: one query after the other, the formula step by step. Any device, any dtype, any sizes."""

import torch
from torch import Tensor

from ..dropout import kept
from .api import Call, Filters, Gate, Problem, Terms


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def mixture_of_logits(problem: Problem) -> Tensor:
    """Score every query `(R, P_Q, d)` with every item `(V, P_X, d)`; see `api.mixture_of_logits`."""
    problem = widened(problem)
    scores = problem.item_gate.new_empty(len(problem.query_gate), len(problem.item_gate))
    for row in range(len(scores)):
        scores[row] = _of_query(problem, row, problem.item_components, problem.item_gate)
    return scores


def mixture_of_logits_each(problem: Problem, ids: Tensor) -> Tensor:
    """Score each query with the items `ids` `(R, K)`; see `api.mixture_of_logits_each`."""
    problem = widened(problem)
    scores = problem.item_gate.new_full(ids.shape, -torch.inf)
    for row, own in enumerate(ids):
        real = (own >= 0) & (own < len(problem.item_gate))
        scores[row, real] = _of_query(problem, row, problem.item_components[own[real]], problem.item_gate[own[real]])
    return scores


def mixture_of_logits_top_k(problem: Problem, k: int, filters: Filters) -> tuple[Tensor, Tensor]:
    """Sort the scores of all items; see `api.mixture_of_logits_top_k`."""
    scores = mixture_of_logits(problem)
    if filters.allowed is not None:
        scores[:, ~permitted(filters.allowed, scores.shape[1])] = -torch.inf
    if filters.exclude is not None:
        offsets, ids = filters.exclude
        for row in range(len(scores)):
            scores[row, ids[offsets[row]:offsets[row + 1]].long()] = -torch.inf
    scores[scores.isnan()] = -torch.inf
    found = torch.full((len(scores), k), -torch.inf, dtype=scores.dtype, device=scores.device)
    ids = torch.full_like(found, -1, dtype=torch.int64)
    values, order = scores.sort(dim=1, descending=True, stable=True)  # equal scores by id ascending
    kept = min(k, scores.shape[1])
    found[:, :kept] = values[:, :kept]
    ids[:, :kept] = order[:, :kept].masked_fill(values[:, :kept] == -torch.inf, -1)
    return found, ids


def mixture_of_logits_logsumexp(problem: Problem, terms: Terms) -> Tensor:
    """Sum over the items, one query after the other; see `api.mixture_of_logits_logsumexp`."""
    problem, sums = widened(problem), []
    mixed, count = problem.item_gate.shape[1], len(problem.item_gate)
    every = torch.arange(count, device=problem.item_gate.device)
    for row in range(len(problem.query_gate)):
        stay = None
        if terms.seed is not None:
            stay = kept(terms.seed, terms.dropout, mixed, every.new_full((1,), row), every)[:, 0].T
        logs = _of_query(problem, row, problem.item_components, problem.item_gate, stay) * terms.scale
        if terms.shifts is not None:
            logs = logs + terms.shifts
        if terms.excluded is not None:
            items, queries = terms.excluded
            logs = logs[items != queries[row]]
        sums.append(logs.logsumexp(0))
    return torch.stack(sums) if sums else problem.query_gate.sum(1)


def mix(logits: Tensor, product: Tensor, gate: Gate, stay: Tensor | None = None) -> Tensor:
    """Mix logits `(…, P)` by the gate, of which `product` `(…, P)` is what each side gives: `(…,)`.

    Of weights only those that `stay` `(…, P)` bool count, as dropout leaves them: 0 where none does.
    """
    first_weight, first_bias, second_weight, second_bias = gate
    hidden = logits @ first_weight.T + first_bias
    z = product + (hidden * hidden.sigmoid()) @ second_weight.T + second_bias
    weights = (z * z.sigmoid()).softmax(-1)
    if stay is not None:
        weights = weights * stay
        weights = weights / weights.sum(-1, keepdim=True).masked_fill(~stay.any(-1, keepdim=True), 1)
    return (weights * logits).sum(-1)


def widened(problem: Problem) -> Problem:
    """Return the problem in the dtype of sums: float64 for float64 items, else float32."""
    dtype = torch.promote_types(problem.item_components.dtype, torch.float32)
    queries, query_gates, items, item_gates = (x.to(dtype) for x in problem[:4])
    return Problem(queries, query_gates, items, item_gates, Gate(*(x.to(dtype) for x in problem.gate)),
                   problem.temperature)


def permitted(allowed: Tensor, count: int) -> Tensor:
    """Return `(count,)` bool of `allowed`, which may be bits of it in uint8, the lowest first."""
    if allowed.dtype == torch.bool:
        return allowed
    places = torch.arange(8, device=allowed.device, dtype=torch.uint8)
    return (allowed[:, None] >> places & 1).flatten()[:count].bool()


def _of_query(problem: Problem, row: int, components: Tensor, gates: Tensor, stay: Tensor | None = None) -> Tensor:
    """Return the scores `(V,)` of one query with items `(V, P_X, d)` and their gates `(V, P)`; see `mix`."""
    logits = torch.einsum("nd,vmd->vnm", problem.query_components[row], components).flatten(1) / problem.temperature
    return mix(logits, problem.query_gate[row] * gates, problem.gate, stay)

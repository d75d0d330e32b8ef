"""Mixture of logits on the CPU: products of a few items with some queries at a time, all of which a cache holds."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Call, Filters, Gate, Problem
from .operators import Operators, registered
from .reference import permitted
from .stream import best

_ROWS = 32  # queries at a time
_NUMBERS = 2**18  # of the logits and hidden numbers of the pairs at a time, which the cache of a core holds
_SCORES = 2**20  # that top-k looks at together


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def _scores(problem: Problem) -> Tensor:
    """Score every query with every item, `(R, V)`."""
    problem = _ready(problem)
    out = problem.query_gate.new_empty(len(problem.query_gate), len(problem.item_gate))
    _fill(problem, 0, out)
    return out


def _each(problem: Problem, ids: Tensor) -> Tensor:
    """Score each query with the items `ids` `(R, K)`."""
    problem = _ready(problem)
    out = problem.query_gate.new_full(ids.shape, -torch.inf)
    if not len(problem.item_gate):
        return out
    for row, own in enumerate(ids.clamp(min=0).long()):
        query = problem.query_components[row:row + 1], problem.query_gate[row:row + 1]
        for some in _parts(ids.shape[1], _items_at_a_time(problem, 1)):
            out[row, some] = _of_some(*query, problem.item_components[own[some]], problem.item_gate[own[some]],
                                      problem.gate)[0]
    return out.masked_fill_(ids < 0, -torch.inf)


def _top_k(problem: Problem, k: int, filters: Filters) -> tuple[Tensor, Tensor]:
    """Return scores and ids of the best items, `(R, k)`."""
    problem, count = _ready(problem), len(problem.item_gate)
    allowed = None if filters.allowed is None else permitted(filters.allowed, count)

    def fill(first: int, last: int, out: Tensor) -> None:
        if allowed is not None and not bool(allowed[first:last].any()):
            out.fill_(-torch.inf)
            return
        _fill(problem, first, out)
        if allowed is not None:
            out.masked_fill_(~allowed[first:last], -torch.inf)
        out.nan_to_num_(-torch.inf, torch.inf, -torch.inf)  # NaN is no candidate

    return best(problem, k, filters, _SCORES // max(1, len(problem.query_gate)), fill, _keep)


def _ready(problem: Problem) -> Problem:
    """Return the problem with all but the items in the dtype of sums, and the temperature in the queries."""
    dtype = torch.promote_types(problem.item_gate.dtype, torch.float32)
    queries = problem.query_components.to(dtype) / problem.temperature
    return Problem(queries, problem.query_gate.to(dtype), problem.item_components, problem.item_gate,
                   Gate(*(x.to(dtype) for x in problem.gate)), 1.0)


def _fill(problem: Problem, first: int, out: Tensor) -> None:
    """Write the scores of every query with the items from `first` on, `(R, C)`."""
    rows, count = out.shape
    for some in _parts(count, _items_at_a_time(problem, min(rows, _ROWS))):
        items = slice(first + some.start, first + some.stop)
        components, gates = (x[items].to(out.dtype) for x in (problem.item_components, problem.item_gate))
        for each in _parts(rows, _ROWS):
            out[each, some] = _of_some(problem.query_components[each], problem.query_gate[each], components, gates,
                                       problem.gate)


def _of_some(queries: Tensor, query_gates: Tensor, items: Tensor, item_gates: Tensor, gate: Gate) -> Tensor:
    """Score queries `(R, P_Q, d)`, over the temperature, with items `(C, P_X, d)`: `(R, C)`."""
    rows, count = len(queries), len(items)
    items, item_gates = items.to(queries.dtype), item_gates.to(queries.dtype)
    logits = (queries.flatten(0, 1) @ items.flatten(0, 1).T).view(rows, queries.shape[1], count, items.shape[1])
    logits = logits.transpose(1, 2).reshape(rows * count, -1)
    hidden = F.silu(torch.addmm(gate.first_bias, logits, gate.first_weight.T), inplace=True)
    z = torch.addmm(gate.second_bias, hidden, gate.second_weight.T).view(rows, count, -1)
    z.addcmul_(query_gates[:, None], item_gates)
    weights = F.silu(z, inplace=True).softmax(-1)
    return weights.mul_(logits.view_as(weights)).sum(-1)


def _keep(scores: Tensor, k: int) -> Tensor:
    """Return the places `(R, k)` of the best, ascending: of those equal to the last one the first."""
    last = scores.topk(k, sorted=False).values.amin(1, keepdim=True)
    above, level = scores > last, scores == last
    places = k - above.view(torch.uint8).sum(1, keepdim=True, dtype=torch.int32)  # bool.sum is slow
    kept = above | (level & (level.cumsum(1, dtype=torch.int32) <= places))
    return kept.nonzero()[:, 1].view(len(scores), k)


def _items_at_a_time(problem: Problem, rows: int) -> int:
    mixed, hidden = problem.gate.second_weight.shape
    return max(16, _NUMBERS // (max(1, rows) * (3 * mixed + hidden)))


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


mixture_of_logits, mixture_of_logits_each, mixture_of_logits_top_k = registered(
    "cpu", Operators(_scores, _each, _top_k), "cpu")

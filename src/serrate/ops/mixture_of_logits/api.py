"""The contract of mixture of logits: shapes, numerics, ties, filters, sums, errors, choice of an implementation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select
from ..dropout import seed_tensor, threshold


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve; P_Q, P_X, d and G."""

    device: torch.device
    dtype: torch.dtype
    query_components: int
    item_components: int
    width: int
    hidden: int

    @property
    def components(self) -> int:
        """P, the pairs of components."""
        return self.query_components * self.item_components


class Gate(NamedTuple):
    """The part of the gate that sees both sides: P logits → G hidden → P, on the device of the items.

    first_weight `(G, P)`, first_bias `(G,)`, second_weight `(P, G)` and second_bias `(P,)`, as of two linear layers, of
    float32 or another floating-point dtype.
    """

    first_weight: Tensor
    first_bias: Tensor
    second_weight: Tensor
    second_bias: Tensor


class Problem(NamedTuple):
    """What is scored: query sides `(R, P_Q, d)` and `(R, P)`, item sides `(V, P_X, d)` and `(V, P)`.

    All of a floating-point dtype, float32 or another, both item sides of one.
    """

    query_components: Tensor
    query_gate: Tensor
    item_components: Tensor
    item_gate: Tensor
    gate: Gate
    temperature: float


class Filters(NamedTuple):
    """Which items are no candidates.

    `exclude` are offsets `(R + 1,)` int32 or int64 and item ids, of each query; `allowed` is `(V,)` bool, or bits of it
    `(⌈V / 8⌉,)` uint8, the lowest first.
    """

    exclude: tuple[Tensor, Tensor] | None
    allowed: Tensor | None


class Terms(NamedTuple):
    """What makes of scores `(R, V)` the terms of a sum: `exp(scale · score + shift)`, of what is not excluded.

    `shifts` are `(V,)` float32 or None. Of `excluded`, labels of items `(V,)` and of queries `(R,)` int64, an item that
    has the label of a query is no term of it. `dropout` is of the weights of the mixture, by a seed `()` int64, None
    where nothing is dropped.
    """

    scale: float
    shifts: Tensor | None
    excluded: tuple[Tensor, Tensor] | None
    dropout: float
    seed: Tensor | None

    @property
    def dropped(self) -> tuple[Tensor, int] | None:
        """The seed, and the number below which a hash means that a weight is dropped; None where none is."""
        return None if self.seed is None else (self.seed, threshold(self.dropout))


def mixture_of_logits(
    query_components: Tensor,
    query_gate: Tensor,
    item_components: Tensor,
    item_gate: Tensor,
    gate: Gate,
    *,
    temperature: float,
    implementation: str | None = None,
) -> Tensor:
    """Score every query with every item: logits of all pairs of components, mixed by a gate that sees them.

    With `l` the products of the P = P_Q · P_X pairs of components over the temperature, pair `n · P_X + m` that of
    row n of the query and row m of the item, `a` the gate of the query and `b` that of the item, a score is `Σ π l` for
    `π = softmax(z · sigmoid(z))` and `z = a · b + W2 silu(W1 l + b1) + b2`. No tensor of all logits is made. Products
    are of the dtype of the items with sums in float32, whatever dtype queries and gate are of. There is no backward
    pass but by the oracle: training scores few items, and keeps what it needs (`serrate.nn.similarity`).

    Args:
        query_components: `(R, P_Q, d)` floating, as a rule rows of length 1.
        query_gate: `(R, P)` floating.
        item_components: `(V, P_X, d)` float64, float32, bfloat16 or float16, as a rule rows of length 1.
        item_gate: `(V, P)`, dtype of `item_components`.
        gate: what sees both sides.
        temperature: above 0.
        implementation: a name from `implementations("mixture_of_logits")`, or None for the automatic choice.

    Returns:
        `(R, V)` float32 (float64 for float64 items). A NaN gives NaN where it goes in.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: Jiaqi Zhai et al., "Revisiting Neural Retrieval on Accelerators", KDD 2023 (arXiv 2306.04039).
    """
    problem = Problem(query_components, query_gate, item_components, item_gate, gate, float(temperature))
    return _chosen("mixture_of_logits", problem, implementation)(problem)


def mixture_of_logits_each(
    query_components: Tensor,
    query_gate: Tensor,
    item_components: Tensor,
    item_gate: Tensor,
    gate: Gate,
    *,
    temperature: float,
    ids: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Score each query with candidates of its own; see `mixture_of_logits`.

    Args:
        query_components: `(R, P_Q, d)` floating.
        query_gate: `(R, P)` floating.
        item_components: `(V, P_X, d)` floating, of all items; without `ids` `(R, K, P_X, d)`, those of the candidates.
        item_gate: `(V, P)` or `(R, K, P)`, dtype of `item_components`.
        gate: what sees both sides.
        temperature: above 0.
        ids: `(R, K)` int32 or int64, which items are candidates; one below 0 stands for none and scores `-inf`. Ids of
            `V` and above are refused on the CPU; a GPU, which does not wait to look, scores them `-inf`.
        implementation: a name from `implementations("mixture_of_logits_each")`, or None for the automatic choice.

    Returns:
        `(R, K)` float32 (float64 for float64 items).

    Raises:
        InvalidArgument, NotUsable: as `mixture_of_logits`; ids that do not fit.
    """
    if ids is None:
        if item_components.dim() != 4 or item_components.shape[0] != len(query_components):
            expected = f"shape ({len(query_components)}, K, P_X, d) where there are no ids"
            raise InvalidArgument("item_components", expected, tuple(item_components.shape))
        if item_gate.dim() != 3 or item_gate.shape[:2] != item_components.shape[:2]:
            expected = "shape ({}, {}, P), as item_components".format(*item_components.shape[:2])
            raise InvalidArgument("item_gate", expected, tuple(item_gate.shape))
        rows, candidates = item_components.shape[:2]
        ids = torch.arange(rows * candidates, device=item_components.device).view(rows, candidates)
        item_components, item_gate = item_components.flatten(0, 1), item_gate.flatten(0, 1)
    problem = Problem(query_components, query_gate, item_components, item_gate, gate, float(temperature))
    compute = _chosen("mixture_of_logits_each", problem, implementation)
    _check_ids("ids", ids, problem)
    if ids.dim() != 2 or len(ids) != len(query_components):
        raise InvalidArgument("ids", f"shape ({len(query_components)}, K)", tuple(ids.shape))
    return compute(problem, ids)


def mixture_of_logits_top_k(
    query_components: Tensor,
    query_gate: Tensor,
    item_components: Tensor,
    item_gate: Tensor,
    gate: Gate,
    k: int,
    *,
    temperature: float,
    exclude: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best `k` items of each query, exactly: score descending, equal scores by id ascending.

    One pass over the items: scores of a chunk of them are made and what is among the best so far is kept. A query with
    fewer than `k` candidates ends in score `-inf` and id `-1`. An item whose score is NaN is no candidate. Nothing
    waits for the device, so what is odd in the values is refused on the CPU alone: on a GPU a NaN query has no
    candidates, and excluded ids that are no items say nothing.

    Args:
        query_components: `(R, P_Q, d)` floating.
        query_gate: `(R, P)` floating.
        item_components: `(V, P_X, d)`, see `mixture_of_logits`.
        item_gate: `(V, P)`, dtype of `item_components`.
        gate: what sees both sides.
        k: 0 or more; may exceed `V`.
        temperature: above 0.
        exclude: offsets `(R + 1,)` and ids `(offsets[-1],)`, int32 or int64: items that a query must not get.
        allowed: `(V,)` bool: items that any query may get; or bits of it, `(⌈V / 8⌉,)` uint8, the lowest first.
        implementation: a name from `implementations("mixture_of_logits_top_k")`, or None for the automatic choice.

    Returns:
        `(scores, ids)`, both `(R, k)`, float32 (float64 for float64 items) and int64.

    Raises:
        InvalidArgument: as `mixture_of_logits`; `k` below 0; filters that do not fit; on the CPU a NaN query.
        NotUsable: the implementation asked for cannot serve this call.
    """
    problem = Problem(query_components, query_gate, item_components, item_gate, gate, float(temperature))
    compute = _chosen("mixture_of_logits_top_k", problem, implementation)
    if k < 0:
        raise InvalidArgument("k", "0 or more", k)
    _check_filters(problem, Filters(exclude, allowed))
    if query_components.device.type == "cpu":
        _check_no_nan("query_components", query_components)
        _check_no_nan("query_gate", query_gate)
    return compute(problem, k, Filters(exclude, allowed))


def mixture_of_logits_logsumexp(
    query_components: Tensor,
    query_gate: Tensor,
    item_components: Tensor,
    item_gate: Tensor,
    gate: Gate,
    *,
    temperature: float,
    scale: float = 1.0,
    shifts: Tensor | None = None,
    excluded: tuple[Tensor, Tensor] | None = None,
    dropout: float = 0.0,
    seed: int | Tensor = 0,
    implementation: str | None = None,
) -> Tensor:
    """Return `log Σ exp(scale · score + shift)` of each query over the items: the normaliser of a softmax, to train by.

    Scores are those of `mixture_of_logits`; neither they nor logits of all pairs are kept for the backward pass, which
    computes them again. Gradients are of the dtypes of their inputs, with sums in float32.

    Args:
        query_components: `(R, P_Q, d)` floating.
        query_gate: `(R, P)` floating.
        item_components: `(V, P_X, d)`, see `mixture_of_logits`.
        item_gate: `(V, P)`, dtype of `item_components`.
        gate: what sees both sides.
        temperature: above 0.
        scale: of the scores, finite.
        shifts: `(V,)` floating, added to the scores of each item; a constant, without a gradient.
        excluded: labels of the items `(V,)` and of the queries `(R,)` int64: an item does not count for a query that
            has its label.
        dropout: share of the weights `π` of a mixture that is dropped, 0 to below 1; the others then add up to 1 again,
            and a mixture of which nothing stays scores 0.
        seed: `()` int64 on the device of the items, or an int. The draw follows from it and the places of query, item
            and pair of components, so it is the same in every implementation, and in the backward pass.
        implementation: a name from `implementations("mixture_of_logits_logsumexp")`, or None for the automatic choice.

    Returns:
        `(R,)` float32 (float64 for float64 items), `-inf` of no item, differentiable in both sides and the gate.

    Raises:
        InvalidArgument: as `mixture_of_logits`; terms that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: dropout of the gate: Zhai et al., KDD 2023.
    """
    problem = Problem(query_components, query_gate, item_components, item_gate, gate, float(temperature))
    compute = _chosen("mixture_of_logits_logsumexp", problem, implementation)
    if not math.isfinite(scale):
        raise InvalidArgument("scale", "a finite number", scale)
    if not 0 <= dropout < 1:
        raise InvalidArgument("dropout", "a number from 0 to below 1", dropout)
    rows, count, device = len(query_gate), len(item_gate), item_gate.device
    for x, size in zip(excluded or (), (count, rows), strict=bool(excluded)):
        if x.shape != (size,) or x.dtype != torch.int64 or x.device != device:
            expected = f"labels of items ({count},) and of queries ({rows},), int64 on {device}"
            raise InvalidArgument("excluded", expected, f"{tuple(x.shape)} {x.dtype} on {x.device}")
    if shifts is not None:
        if shifts.shape != (count,) or not shifts.dtype.is_floating_point or shifts.device != device:
            got = f"{tuple(shifts.shape)} {shifts.dtype} on {shifts.device}"
            raise InvalidArgument("shifts", f"shape ({count},), floating on {device}", got)
        shifts = shifts.detach().to(torch.promote_types(item_gate.dtype, torch.float32))
    drawn = seed_tensor("seed", seed, device) if dropout else None
    return compute(problem, Terms(float(scale), shifts, excluded, float(dropout), drawn))


def _chosen(operation: str, problem: Problem, implementation: str | None):
    """Return what computes an operation, with every tensor of the problem checked."""
    components = problem.query_components, problem.item_components
    for name, x in zip(("query_components", "item_components"), components, strict=True):
        if x.dim() != 3 or 0 in x.shape[1:]:
            raise InvalidArgument(name, "three axes, the last two not empty", tuple(x.shape))
    (rows, p_q, width), (count, p_x, item_width) = (x.shape for x in components)
    if width != item_width:
        raise InvalidArgument("item_components", f"width {width}, as query_components", item_width)
    mixed, hidden = p_q * p_x, len(problem.gate.first_weight)
    shapes = {"query_gate": (problem.query_gate, (rows, mixed)), "item_gate": (problem.item_gate, (count, mixed)),
              "first_weight": (problem.gate.first_weight, (hidden, mixed)),
              "first_bias": (problem.gate.first_bias, (hidden,)),
              "second_weight": (problem.gate.second_weight, (mixed, hidden)),
              "second_bias": (problem.gate.second_bias, (mixed,))}
    for name, (x, shape) in shapes.items():
        if x.shape != shape:
            raise InvalidArgument(name, f"shape {shape}", tuple(x.shape))
    items = problem.item_components
    shapes |= {"query_components": (problem.query_components, ()), "item_components": (items, ())}
    for name, (x, _) in shapes.items():
        if not x.dtype.is_floating_point:
            raise InvalidArgument(name, "a floating-point dtype", x.dtype)
        if x.device != items.device:
            raise InvalidArgument(name, f"a tensor on {items.device}, as item_components", x.device)
    if problem.item_gate.dtype != items.dtype:
        raise InvalidArgument("item_gate", f"{items.dtype}, as item_components", problem.item_gate.dtype)
    if not 0 < problem.temperature < math.inf:
        raise InvalidArgument("temperature", "a finite number above 0", problem.temperature)
    call = Call(items.device, items.dtype, p_q, p_x, width, hidden)
    return select.choose(operation, call, implementation).implementation.compute


def _check_ids(name: str, ids: Tensor, problem: Problem, *, least: float = -math.inf) -> None:
    if ids.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument(name, "int32 or int64", ids.dtype)
    if ids.device != problem.item_gate.device:
        raise InvalidArgument(name, f"a tensor on {problem.item_gate.device}, as item_components", ids.device)
    count = len(problem.item_gate)
    outside = (ids >= count) | (ids < least) if ids.device.type == "cpu" else None
    if outside is not None and bool(outside.any()):
        raise InvalidArgument(name, f"item ids up to {count - 1}", int(ids[outside][0]))


def _check_filters(problem: Problem, filters: Filters) -> None:
    rows, count = len(problem.query_gate), len(problem.item_gate)
    if filters.exclude is not None:
        offsets, ids = filters.exclude
        _check_ids("exclude", ids, problem, least=0)
        if offsets.shape != (rows + 1,) or ids.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
            got = f"{tuple(offsets.shape)} {offsets.dtype}, {tuple(ids.shape)}"
            raise InvalidArgument("exclude", f"integer offsets ({rows + 1},) and ids of one axis", got)
        if offsets.device != ids.device:
            raise InvalidArgument("exclude", f"offsets on {ids.device}, as the ids", offsets.device)
        if offsets.device.type == "cpu" and not (
                offsets[0] == 0 and offsets[-1] == len(ids) and bool((offsets.diff() >= 0).all())):
            raise InvalidArgument("exclude", f"offsets that rise from 0 to {len(ids)}", offsets.tolist())
    allowed = filters.allowed
    if allowed is None:
        return
    if allowed.device != problem.item_gate.device:
        raise InvalidArgument("allowed", f"a tensor on {problem.item_gate.device}, as item_components", allowed.device)
    if (allowed.dtype, allowed.shape) not in ((torch.bool, (count,)), (torch.uint8, (-(-count // 8),))):
        expected = f"({count},) bool or ({-(-count // 8)},) uint8"
        raise InvalidArgument("allowed", expected, f"{tuple(allowed.shape)} {allowed.dtype}")


def _check_no_nan(name: str, x: Tensor) -> None:
    wrong = x.flatten(1).isnan().any(1)
    if bool(wrong.any()):
        raise InvalidArgument(name, "no NaN", f"NaN in row {int(wrong.nonzero()[0])}")

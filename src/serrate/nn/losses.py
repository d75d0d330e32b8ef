"""Losses of next-item prediction. All return the weighted *sum* over events, so that batches and processes add up.

Shapes throughout: `hidden` `(T, E)`, `table` `(V, E)` item vectors, `targets` `(T,)` int64 dense item ids, `weights`
`(T,)` float or None (all ones). The logit of item `i` after event `t` is what `similarity` scores, over `temperature`:
the product `hidden[t] · table[i]` unless another one is given. `users` `(T,)` int64 go to the similarity, see there.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..errors import InvalidArgument
from .precision import product_dtype
from .similarity import DotProduct, Sides, Similarity, take
from .similarity.base import count

_CHUNK_LOGITS = {"cpu": 2**20}
_CHUNK_PAIRS = {"cpu": 2**16}  # of a similarity that is no product: many numbers a pair


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue, in chunks of events: the `(T, V)` logits never exist at once.

    Of a similarity that is no dot product a chunk is scored again in the backward pass: what it keeps of each pair
    would not fit. One that has a `log_sum` needs no chunks.

    Args:
        temperature: divides the logits.
        chunk_logits: how many logits exist at a time; None: as many as a cache holds on the CPU, 2^27 elsewhere; of a
            similarity that is no dot product 2^16 and 2^21.
    """

    def __init__(self, *, temperature: float = 1.0, chunk_logits: int | None = None):
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        self.chunk_logits = chunk_logits

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None, *,
                similarity: Similarity | None = None, users: Tensor | None = None) -> Tensor:
        """Return the scalar `-Σ weights · log softmax(logits)[target]`, float32 (float64 for float64)."""
        if similarity is None:
            return self._of_products(hidden, table, targets, weights)
        queries, items = similarity.queries(hidden, users), similarity.items(table)
        if isinstance(similarity, DotProduct):  # one stage, and no penalty that its targets need be gathered for
            return self._of_products(queries[similarity.part], items[similarity.part], targets, weights)
        own = take(items, targets)
        excluded = torch.arange(count(items), device=targets.device), targets
        losses = []
        for stage in similarity.stages():
            if isinstance(stage, DotProduct):
                losses.append(self._of_products(queries[stage.part], items[stage.part], targets, weights))
                continue
            found = _by_sum(stage, queries, items, own, 1 / self.temperature, None, excluded)
            losses.append(self._by_pairs(stage, queries, items, targets, weights) if found is None
                          else _weighted_sum(found, weights))
        return torch.stack(losses).sum() + _penalty(similarity, queries, own, users, weights)

    def _of_products(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        most = self.chunk_logits or _CHUNK_LOGITS.get(hidden.device.type, 2**27)
        chunk = max(1, most // max(1, table.shape[0]))
        hidden, table = (x.to(product_dtype(x)) for x in (hidden, table))
        loss, _, _ = torch.ops.serrate.full_softmax(
            hidden, table, targets, weights, 1 / self.temperature, chunk, torch.is_grad_enabled())
        return loss

    def _by_pairs(self, similarity: Similarity, queries: Sides, items: Sides, targets: Tensor,
                  weights: Tensor | None) -> Tensor:
        def of(part: slice) -> Tensor:
            logits = similarity.score({name: side[part] for name, side in queries.items()}, items) / self.temperature
            losses = logits.logsumexp(1) - logits.gather(1, targets[part, None])[:, 0]
            return _weighted_sum(losses, None if weights is None else weights[part])

        most = self.chunk_logits or _CHUNK_PAIRS.get(targets.device.type, 2**21)
        step = max(1, most // max(1, count(items)))
        parts = [slice(start, start + step) for start in range(0, max(1, len(targets)), step)]
        return torch.stack([checkpoint(of, part, use_reentrant=False) for part in parts]).sum()


class SampledSoftmax(nn.Module):
    """Cross-entropy against sampled negatives, with the log-q correction that makes it estimate the full softmax.

    Negatives are drawn with replacement from `q`, proportional to `counts ** smoothing` (uniform at 0). Their logits
    are lowered by `log(K q)`, so that the partition function is estimated without bias; a negative that equals the
    target of its event (an accidental hit) is masked.

    Args:
        counts: `(V,)` how often each item occurs in training.
        negatives: `K`, how many are drawn.
        smoothing: exponent on the counts.
        temperature: divides the logits.
        shared: one draw for the whole batch (a matrix product), or one per event.
    """

    probabilities: Tensor

    def __init__(self, counts: Tensor, negatives: int, *, smoothing: float = 0.0, temperature: float = 1.0,
                 shared: bool = True):
        super().__init__()
        if negatives < 1:
            raise InvalidArgument("negatives", "at least 1", negatives)
        self.negatives = negatives
        self.shared = shared
        self.temperature = _positive("temperature", temperature)
        weights = counts.clamp(min=1).double() ** smoothing
        self.register_buffer("probabilities", (weights / weights.sum()).float(), persistent=False)

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None, *,
                similarity: Similarity | None = None, users: Tensor | None = None) -> Tensor:
        """Return the scalar weighted sum; draws from torch's global generator."""
        ids, correction = self._draw(targets)
        def losses(positive: Tensor, negative: Tensor) -> Tensor:
            logits = torch.cat([positive[:, None], negative - correction], 1)
            return logits.logsumexp(1) - positive

        pairs = _Pairs(similarity, hidden, users, table, (targets, ids))
        return pairs.total(losses, self.temperature, weights, -correction if self.shared else None)

    def _draw(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids `(K,)` (or `(T, K)` per event) and their `log(K q)`, same shape."""
        count = self.negatives if self.shared else self.negatives * targets.shape[0]
        ids = _sample(self.probabilities, count)
        correction = (self.probabilities[ids] * self.negatives).log()
        return (ids, correction) if self.shared else (ids.view(-1, self.negatives), correction.view(-1, self.negatives))


class BinaryCrossEntropy(nn.Module):
    """SASRec's loss: the target against `negatives` uniform draws per event, each a binary decision.

    Args:
        num_items: `V`.
        negatives: `K` per event; a draw that equals the target is masked.
        temperature: divides the logits.
    """

    def __init__(self, num_items: int, negatives: int = 1, *, temperature: float = 1.0):
        super().__init__()
        if negatives < 1:
            raise InvalidArgument("negatives", "at least 1", negatives)
        self.num_items = num_items
        self.negatives = negatives
        self.temperature = _positive("temperature", temperature)

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None, *,
                similarity: Similarity | None = None, users: Tensor | None = None) -> Tensor:
        """Return the scalar weighted sum over the `(T,)` events; draws from torch's global generator."""
        ids = torch.randint(self.num_items, (targets.shape[0], self.negatives), device=targets.device)
        def losses(positive: Tensor, negative: Tensor) -> Tensor:
            return F.softplus(-positive) + F.softplus(negative).sum(1)

        return _Pairs(similarity, hidden, users, table, (targets, ids)).total(losses, self.temperature, weights)


class _Pairs:
    """`T` events with their targets and with negatives, the side of an item computed once for all of them.

    Args:
        similarity: whose sides are made and whose stages are taught; None: the dot product.
        hidden: outputs of the encoder `(T, E)`.
        users: whose events these are, `(T,)`, or None.
        table: item vectors `(V, E)`.
        ids: of the targets `(T,)`, of the negatives `(K,)` for all events or `(T, K)` for each.
    """

    def __init__(self, similarity: Similarity | None, hidden: Tensor, users: Tensor | None, table: Tensor,
                 ids: tuple[Tensor, Tensor]):
        self._similarity = similarity = similarity or DotProduct()
        self._users = users
        self._queries = similarity.queries(hidden, users)
        self._targets, self._drawn = _sides(similarity, table, *ids)
        self._ids = ids
        self._together = ids[1].dim() == 1
        self._hits = ids[1] == ids[0][:, None]

    def total(self, losses: Callable[[Tensor, Tensor], Tensor], temperature: float, weights: Tensor | None,
              shifts: Tensor | None = None) -> Tensor:
        """Return the weighted sum of `losses` of each stage, and what the similarity adds; `weights` `(T,)`.

        `losses` makes `(T,)` of logits of targets `(T,)` and of negatives `(T, K)`, `-inf` of one that is the target.
        Where that is a softmax, with `shifts` `(K,)` added to logits of negatives, a similarity may sum these up.
        """
        total = torch.zeros((), device=self._hits.device)
        for stage in self._similarity.stages():
            found = None if shifts is None else _by_sum(
                stage, self._queries, self._drawn, self._targets, 1 / temperature, shifts, (self._ids[1], self._ids[0]))
            if found is None:
                positive, negative = self._scores(stage)
                negative = (negative / temperature).masked_fill(self._hits, float("-inf"))
                found = losses(positive / temperature, negative)
            total = total + _weighted_sum(found, weights)
        return total + _penalty(self._similarity, self._queries, self._targets, self._users, weights)

    def _scores(self, stage: Similarity) -> tuple[Tensor, Tensor]:
        targets = {name: side[:, None] for name, side in self._targets.items()}
        score = stage.score if self._together else stage.score_each
        return stage.score_each(self._queries, targets)[:, 0], score(self._queries, self._drawn)


def _by_sum(similarity: Similarity, queries: Sides, items: Sides, targets: Sides, scale: float, shifts: Tensor | None,
            excluded: tuple[Tensor, Tensor]) -> Tensor | None:
    """Return the losses `(T,)` of a softmax over `items` and the targets; None: not by a `log_sum` of the similarity.

    Of the items those do not count that are the target of their event, by ids of both; see `Similarity.log_sum`.
    """
    others = similarity.log_sum(queries, items, scale=scale, shifts=shifts, excluded=excluded)
    if others is None:
        return None
    each = {name: side[:, None] for name, side in targets.items()}
    return F.softplus(others - similarity.score_each(queries, each)[:, 0] * scale)


def _penalty(similarity: Similarity, queries: Sides, targets: Sides, users: Tensor | None,
             weights: Tensor | None) -> Tensor:
    """Return what the similarity adds to the loss of all events together; sides `(T, …)` of both."""
    each = similarity.penalty(queries, targets, users=users, weights=weights)
    return each * (count(queries) if weights is None else weights.sum())


def _sides(similarity: Similarity, table: Tensor, *ids: Tensor) -> list[Sides]:
    """Return the sides of the items of each of `ids` `(…)`, every part `(…, *)`; computed once for a distinct item.

    Where the ids outnumber the items, that is once for each item there is, and nothing has to be sorted out.
    """
    flat = torch.cat([part.flatten() for part in ids])
    if flat.shape[0] < table.shape[0]:
        distinct, flat = flat.unique(return_inverse=True)
        table = table[distinct]
    sides = similarity.items(table)
    places = flat.split([part.numel() for part in ids])
    return [take(sides, at.view(part.shape)) for at, part in zip(places, ids, strict=True)]


@torch.library.custom_op("serrate::full_softmax", mutates_args=())
def _full_softmax(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None, inverse_temperature: float,
                  chunk: int, with_grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and, when asked, its gradients in `hidden` and `table`, computed while the logits are there."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.empty_like(hidden) if with_grads else hidden.new_empty(0)
    d_table = torch.zeros_like(table, dtype=wide) if with_grads else hidden.new_empty(0)
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = (hidden[part] @ table.T).to(wide).mul_(inverse_temperature)
        target = targets[part, None]
        normaliser = logits.logsumexp(1, keepdim=True)
        losses = normaliser - logits.gather(1, target)
        weight = None if weights is None else weights[part, None].to(wide)
        total += losses.sum() if weight is None else (losses * weight).sum()
        if with_grads:
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=wide))
            gradient.mul_(inverse_temperature if weight is None else weight * inverse_temperature)
            low = gradient.to(hidden.dtype)
            torch.mm(low, table, out=d_hidden[part])
            d_table += low.T @ hidden[part]
    return total, d_hidden, d_table.to(table.dtype)


@_full_softmax.register_fake
def _(hidden, table, targets, weights, inverse_temperature, chunk, with_grads):
    total = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    if not with_grads:
        return total, hidden.new_empty(0), table.new_empty(0)
    return total, torch.empty_like(hidden), torch.empty_like(table)


def _full_softmax_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


@once_differentiable  # the saved gradients are constants to autograd: a second derivative would be wrong
def _full_softmax_backward(ctx: Any, grad: Tensor | None, *_: Tensor | None):
    if grad is None:
        return (None,) * 7
    d_hidden, d_table = ctx.saved_tensors
    return d_hidden * grad, d_table * grad, None, None, None, None, None


_full_softmax.register_autograd(_full_softmax_backward, setup_context=_full_softmax_setup)


def _sample(probabilities: Tensor, count: int) -> Tensor:
    """`(count,)` ids drawn with replacement; by inversion, as `torch.multinomial` stops at 2^24 categories."""
    cumulative = probabilities.double().cumsum(0)
    draws = torch.rand(count, dtype=torch.float64, device=probabilities.device) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_(max=probabilities.shape[0] - 1)


def _weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.sum() if weights is None else (losses * weights).sum()


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise InvalidArgument(name, "a number above 0", value)
    return value

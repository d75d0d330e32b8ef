"""Losses of next-item prediction. All return the weighted *sum* over events, so that batches and processes add up.

Shapes throughout: `hidden` `(T, E)`, `table` `(V, E)` item vectors, `targets` `(T,)` int64 dense item ids, `weights`
`(T,)` float or None (all ones). The logit of item `i` after event `t` is `hidden[t] · table[i] / temperature`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InvalidArgument

_CHUNK_LOGITS = {"cpu": 2**20}


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue, in chunks of events: the `(T, V)` logits never exist at once.

    Args:
        temperature: divides the logits.
        chunk_logits: how many logits exist at a time; None: as many as a cache holds on the CPU, 2^27 elsewhere.
    """

    def __init__(self, *, temperature: float = 1.0, chunk_logits: int | None = None):
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        self.chunk_logits = chunk_logits

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the scalar `-Σ weights · log softmax(logits)[target]`, float32 (float64 for float64)."""
        most = self.chunk_logits or _CHUNK_LOGITS.get(hidden.device.type, 2**27)
        chunk = max(1, most // max(1, table.shape[0]))
        if torch.is_autocast_enabled(hidden.device.type):
            low = torch.get_autocast_dtype(hidden.device.type)
            hidden, table = hidden.to(low), table.to(low)
        loss, _, _ = torch.ops.serrate.full_softmax(
            hidden, table, targets, weights, 1 / self.temperature, chunk, torch.is_grad_enabled())
        return loss


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

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the scalar weighted sum; draws from torch's global generator."""
        ids, correction = self._draw(targets)
        positive = (hidden * table[targets]).sum(-1).float() / self.temperature
        if self.shared:
            negative = (hidden @ table[ids].T).float()
            hits = ids[None, :] == targets[:, None]
        else:
            negative = torch.einsum("te,tke->tk", hidden, table[ids]).float()
            hits = ids == targets[:, None]
        negative = (negative / self.temperature - correction).masked_fill(hits, float("-inf"))
        logits = torch.cat([positive[:, None], negative], 1)
        return _weighted_sum(logits.logsumexp(1) - positive, weights)

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

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the scalar weighted sum over the `(T,)` events; draws from torch's global generator."""
        ids = torch.randint(self.num_items, (targets.shape[0], self.negatives), device=targets.device)
        positive = (hidden * table[targets]).sum(-1).float() / self.temperature
        negative = torch.einsum("te,tke->tk", hidden, table[ids]).float() / self.temperature
        negative = negative.masked_fill(ids == targets[:, None], float("-inf"))
        return _weighted_sum(F.softplus(-positive) + F.softplus(negative).sum(1), weights)


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

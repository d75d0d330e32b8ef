"""Mixture of logits: Zhai et al., "Revisiting Neural Retrieval on Accelerators", KDD 2023 (arXiv 2306.04039).

Read top to bottom: components of both sides → their products → a gate that weighs these pair by pair → the mixture. The
load-balancing loss is that of Ding and Zhai, "Retrieval with Learned Similarities", WWW 2025 (arXiv 2407.15462).

Departures: what is dropped of an item in training is dropped for the whole step, since its side is computed once; the
unknown user has a component of its own, which learns; the balance of the gate is taken over a draw of dropout of its
own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...ops.dropout import drawn_seed
from ...ops.mixture_of_logits import (
    Call,
    Gate,
    mixture_of_logits,
    mixture_of_logits_each,
    mixture_of_logits_logsumexp,
    mixture_of_logits_top_k,
)
from ...ops.select import choose
from ..precision import product_dtype
from .base import Sides, Similarity
from .dot import DotProduct

_EPS = 1e-6  # of norms, of a gate that dropout emptied, of logarithms
_SPREAD = 0.02  # standard deviation of new embeddings, and of what makes a new gate


@dataclass(frozen=True)
class MixtureOptions:
    """What a mixture of logits is made of; the defaults are the published ones of MovieLens-1M without its users.

    Attributes:
        query_components: `P_Q`, vectors of a query, that of its user counted.
        item_components: `P_X`, vectors of an item. Every pair of the two is a logit: `P = P_Q · P_X` of them.
        component_width: `d`, of each vector.
        gate_hidden: `G`, the width of the hidden layer of each of the three parts of the gate.
        query_hidden: of the gated layer that makes a query's vectors.
        temperature: divides the logits, which are cosines.
        gate_dropout: share of a pair's weights that training drops; the others then add up to 1 again.
        item_dropout: share of an item's vector that training drops before its components are made.
        user_buckets: rows of the table of users beside that of the unknown; 0: queries know nothing of their user.
        user_dropout: how often training takes the unknown in place of a query's user, so that it is learnt too.
        load_balancing: weight of the penalty on a gate that leaves logits unused, see `balance`.
        user_penalty: weight of the squared length of the vectors of users.
        stage_one_width: of one more vector of each side, whose cosines are to find candidates for the mixture and are
            learnt with it; 0: none.
    """

    query_components: int = 8
    item_components: int = 4
    component_width: int = 64
    gate_hidden: int = 128
    query_hidden: int = 512
    temperature: float = 0.05
    gate_dropout: float = 0.2
    item_dropout: float = 0.1
    user_buckets: int = 0
    user_dropout: float = 0.5
    load_balancing: float = 0.001
    user_penalty: float = 0.1
    stage_one_width: int = 0

    @property
    def logits(self) -> int:
        """`P`, the logits of a pair."""
        return self.query_components * self.item_components


class MixtureOfLogits(Similarity):
    """The cosines of several vectors of a query with several of an item, weighed by a gate that sees the pair.

    With components `f` and `g` of length 1, their logits `l = <f_n, g_m> / τ` and `z = a(query) · b(item) + c(l)`:

        score = Σ softmax(z · sigmoid(z)) · l

    so a score is never above the largest of its logits, and these are within ±1/τ. The sides of queries are
    `components` `(R, P_Q, d)` and `gate` `(R, P)`, which is `a`; those of items `components` `(V, P_X, d)` and `gate`
    `(V, P)`, which is `b`. Logit `n · P_X + m` is that of components n and m. Only `c`, `cross` below, runs for every
    pair. With a stage one both have `stage_one` `(·, d₁)` too, whose product is a cosine over the temperature.

    A user is known by a key, any whole number from 0 on: it reads row `1 + key % user_buckets` of the table of users,
    so keys below `user_buckets` have a row each. Row 0 is the unknown user's: it stands for negative keys, for queries
    without users, and in training in place of the user's own as often as `user_dropout` says.

    Args:
        width: `E`, of the encoder's outputs and of the item vectors.
        options: see `MixtureOptions`.

    Raises:
        InvalidArgument: sizes below 1, a temperature that is not above 0, users and no component besides theirs.
    """

    def __init__(self, width: int, options: MixtureOptions | None = None):
        super().__init__()
        self.options = options = options or MixtureOptions()
        _check(options)
        hidden, component = options.query_hidden, options.component_width
        projected = options.query_components - (options.user_buckets > 0)
        self.query = nn.Sequential(nn.Linear(width, 2 * hidden), _SwiGLU(), nn.Linear(hidden, projected * component))
        self.item = nn.Sequential(nn.Dropout(options.item_dropout),
                                  nn.Linear(width, options.item_components * component))
        self.query_gate, self.item_gate, self.cross = (
            nn.Sequential(nn.Linear(inputs, options.gate_hidden), nn.SiLU(),
                          nn.Linear(options.gate_hidden, options.logits, bias=biased))
            for inputs, biased in ((width, False), (width, False), (options.logits, True)))
        first = options.stage_one_width
        self.first_stage = DotProduct(part="stage_one") if first else None
        self.query_first, self.item_first = (nn.Linear(width, first) if first else None for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("query_gate.2", "cross.2"):  # logits weigh nearly alike: a sharp choice at random delays learning
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=_SPREAD)
        self.user = nn.Embedding(1 + options.user_buckets, component) if options.user_buckets else None
        if self.user is not None:
            nn.init.normal_(self.user.weight, std=_SPREAD)

    @property
    def temperature(self) -> float:
        """By what the products of components are divided."""
        return self.options.temperature

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Let `torch.compile` fuse the gate and the mixture, in place; its arguments."""
        setattr(self, "_mixture", torch.compile(self._mixture, *arguments, **options))  # noqa: B010 - a method's place

    def queries(self, x: Tensor, users: Tensor | None = None) -> Sides:
        """Return the components `(R, P_Q, d)` and the gate `(R, P)` of outputs `x` `(R, E)`.

        `users` `(R,)` int64 are keys, negative for unknown ones; None: all are.
        """
        components = self.query(x).unflatten(-1, (-1, self.options.component_width))
        if self.user is not None:
            rows = self._rows(users, x)
            if self.training:
                rows = rows.masked_fill(torch.rand(rows.shape, device=rows.device) < self.options.user_dropout, 0)
            components = torch.cat([components, self.user(rows)[:, None].to(components.dtype)], 1)
        sides = {"components": _normalised(components), "gate": self.query_gate(x)}
        if self.query_first is not None:
            sides["stage_one"] = _normalised(self.query_first(x)) / self.temperature
        return sides

    def items(self, table: Tensor) -> Sides:
        """Return the components `(V, P_X, d)` and the gate `(V, P)` of item vectors `table` `(V, E)`."""
        components = self.item(table).unflatten(-1, (-1, self.options.component_width))
        sides = {"components": _normalised(components), "gate": self.item_gate(table)}
        if self.item_first is not None:
            sides["stage_one"] = _normalised(self.item_first(table))
        return sides

    def stages(self) -> Sequence[Similarity]:
        """Return the mixture, and what finds candidates for it, where there is such a thing."""
        return (self,) if self.first_stage is None else (self, self.first_stage)

    def score(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, V)`, every query with every item, float32 (float64 of float64).

        Without gradients `ops.mixture_of_logits` does it, which makes no tensor of all logits.
        """
        if self._learns:
            logits = self._logits(queries, items, "rnd,vmd->rvnm")
            return self._mixture(logits, queries["gate"][:, None], items["gate"])
        return mixture_of_logits(*self._operands(queries, items), temperature=self.options.temperature)

    def score_each(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, K)`, each query with items of its own, sides `(R, K, …)`, float32 (float64 of float64)."""
        if self._learns:
            logits = self._logits(queries, items, "rnd,rkmd->rknm")
            return self._mixture(logits, queries["gate"][:, None], items["gate"])
        return mixture_of_logits_each(*self._operands(queries, items), temperature=self.options.temperature)

    @torch.no_grad()
    def score_rows(self, queries: Sides, items: Sides, rows: Tensor) -> Tensor:
        """Return `(R, K)`, each query with items at `rows` `(R, K)`, where they lie; see `Similarity.score_rows`."""
        return mixture_of_logits_each(*self._operands(queries, items), temperature=self.options.temperature, ids=rows)

    @torch.no_grad()
    def top_k(self, queries: Sides, items: Sides, k: int, *, exclude: tuple[Tensor, Tensor] | None = None,
              allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores and rows `(R, k)` of the best, in one pass over the items; see `Similarity.top_k`."""
        return mixture_of_logits_top_k(*self._operands(queries, items), k, temperature=self.options.temperature,
                                       exclude=exclude, allowed=allowed)

    def log_sum(self, queries: Sides, items: Sides, *, scale: float = 1.0, shifts: Tensor | None = None,
                excluded: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        """Return the logarithm of a sum over the items `(R,)`, see `Similarity.log_sum`; where kernels make it.

        These are of half precision, as under autocast. The draw of dropout is another one than `score` has.
        """
        f, a, components, b, gate = self._operands(queries, items)
        low = product_dtype(components)
        (_, p_x, width), of_gate = components.shape, self.options.gate_hidden
        call = Call(components.device, low, f.shape[1], p_x, width, of_gate)
        if low.itemsize > 2 or choose("mixture_of_logits_logsumexp", call).implementation.name == "reference":
            return None
        dropout = self.options.gate_dropout if self.training else 0.0
        return mixture_of_logits_logsumexp(
            f, a, components.to(low), b.to(low), gate, temperature=self.temperature, scale=scale, shifts=shifts,
            excluded=excluded, dropout=dropout, seed=drawn_seed(components.device) if dropout else 0)

    def penalty(self, queries: Sides, items: Sides, *, users: Tensor | None = None,
                weights: Tensor | None = None) -> Tensor:
        """Return the balance of the gate over pairs, sides `(R, …)` both, and the mean squared length of their users.

        Each by its weight of the options; a scalar. `users` and `weights` are `(R,)` or None.
        """
        logits = self._logits(queries, items, "rnd,rmd->rnm")
        total = self.options.load_balancing * balance(self._shares(logits, queries["gate"], items["gate"]), weights)
        if self.user is None or users is None:
            return total
        lengths = self.user(self._rows(users, users)).square().sum(-1)
        return total + self.options.user_penalty * _mean(lengths, weights)

    def _operands(self, queries: Sides, items: Sides) -> tuple[Tensor, Tensor, Tensor, Tensor, Gate]:
        """Return both sides and the gate as `ops.mixture_of_logits` takes them: sides of items are of one dtype."""
        components, (first, _, second) = items["components"], self.cross
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        gate = Gate(first.weight, first.bias, second.weight, second.bias)
        return queries["components"], queries["gate"], components, items["gate"].to(components.dtype), gate

    @property
    def _learns(self) -> bool:
        """Whether scores are for training: with gradients, or with dropout."""
        return self.training or torch.is_grad_enabled()

    def _rows(self, users: Tensor | None, like: Tensor) -> Tensor:
        """Return the row `(R,)` of the table of users of each key."""
        if users is None:
            return torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
        return (1 + users % self.options.user_buckets).masked_fill(users < 0, 0)

    def _logits(self, queries: Sides, items: Sides, product: str) -> Tensor:
        """Return `(…, P)`. Not under autocast: bfloat16 would round a logit of 20 by up to 0.06."""
        f, g = queries["components"], items["components"]
        wide = torch.promote_types(torch.promote_types(f.dtype, g.dtype), torch.float32)
        with torch.autocast(f.device.type, enabled=False):
            return torch.einsum(product, f.to(wide), g.to(wide)).flatten(-2) / self.options.temperature

    def _mixture(self, logits: Tensor, query_gate: Tensor, item_gate: Tensor) -> Tensor:
        """Return the scores `(…)` of pairs by their logits `(…, P)`."""
        return (self._shares(logits, query_gate, item_gate) * logits).sum(-1)

    def _shares(self, logits: Tensor, query_gate: Tensor, item_gate: Tensor) -> Tensor:
        """Return the weight `(…, P)` of each logit in the mixture; they add up to 1."""
        z = query_gate * item_gate + self.cross(logits)
        shares = F.silu(z.to(logits.dtype)).softmax(-1)
        if self.training and self.options.gate_dropout:
            shares = F.dropout(shares, self.options.gate_dropout)
            shares = shares / shares.sum(-1, keepdim=True).clamp(min=_EPS)
        return shares


def balance(shares: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the negative mutual information of pair and logit: mean of `H(shares of a pair)` less `H(mean shares)`.

    A scalar in nats, from `-ln P`, where each pair relies on one logit and all are relied on alike, to 0, where all
    pairs weigh them alike. As a penalty it keeps logits from going unused: Ding and Zhai, section 4.

    Args:
        shares: `(R, P)` floating, not negative; each row adds up to 1.
        weights: `(R,)` floating, how much each pair counts; None: alike.
    """
    mean = _mean(shares, weights)
    return _mean(_entropy(shares), weights) - _entropy(mean)


def _entropy(shares: Tensor) -> Tensor:
    """Return `-Σ p ln p` over the last axis; its gradient is finite at 0 too."""
    return -(shares * shares.clamp(min=_EPS).log()).sum(-1)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted mean over the first axis of `values` `(R, …)`; 0 of no row."""
    if weights is None:
        return values.sum(0) / max(1, values.shape[0])
    return torch.tensordot(weights.to(values.dtype), values, 1) / weights.sum().clamp(min=_EPS)


def _normalised(components: Tensor) -> Tensor:
    return F.normalize(components, dim=-1, eps=_EPS)


class _SwiGLU(nn.Module):
    """Half of the inputs, by the SiLU of the other half."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return F.silu(gate) * value


def _check(options: MixtureOptions) -> None:
    for name in ("query_components", "item_components", "component_width", "gate_hidden", "query_hidden"):
        if getattr(options, name) < 1:
            raise InvalidArgument(name, "at least 1", getattr(options, name))
    if not options.temperature > 0:
        raise InvalidArgument("temperature", "a number above 0", options.temperature)
    for name in ("user_buckets", "stage_one_width"):
        if getattr(options, name) < 0:
            raise InvalidArgument(name, "0 or more", getattr(options, name))
    if options.user_buckets and options.query_components < 2:
        raise InvalidArgument("query_components", "2 or more with users, one of which is theirs", 1)

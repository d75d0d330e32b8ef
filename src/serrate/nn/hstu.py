"""The HSTU layer: pointwise attention with relative bias, gated, in place of attention and feed-forward block."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..ops.attention import Bias, Mask, Weights, attention
from ..ops.attention.weights import Activation

EPS = 1e-6  # of both norms
_SPREAD = 0.02  # standard deviation of new projections and tables


@dataclass(frozen=True)
class HSTUOptions:
    """What an HSTU layer can be told beyond its width and heads; the defaults are those of the paper without bias.

    Attributes:
        key_width: `D`, of a head's queries and keys; None: `width // heads`.
        value_width: `Dv`, of a head's values and gates; None: `width // heads`.
        dropout: share of the gated outputs dropped in training.
        activation: what makes a weight of a score, see `Weights`; "softmax" too.
        normaliser: what pointwise weights are divided by, see `Weights`: the paper's is the longest history that the
            model takes. The norm that follows takes it out again, but for `EPS`, so it says how small sums may be.
        scale: factor on the products of queries and keys.
        position_reach: `R`: distances up to `R - 1` have an entry of their own in a table of bias; 0: no such table.
        time_buckets: `N`, entries of the table of bias by the time between query and key; 0: no such table.
        bias_per_head: whether each head has tables of its own.
        attention_dropout: share of the attention weights dropped in training.
        recompute: keep the events alone for the backward pass, which computes the layer once more.
    """

    key_width: int | None = None
    value_width: int | None = None
    dropout: float = 0.2
    activation: Activation = "silu"
    normaliser: float | Literal["length"] | None = None
    scale: float = 1.0
    position_reach: int = 0
    time_buckets: int = 0
    bias_per_head: bool = False
    attention_dropout: float = 0.0
    recompute: bool = False


class HSTULayer(nn.Module):
    """One layer: `x + project_out(dropout(norm(attention(q, k, v)) · u))`, `u, v, q, k = silu(project_in(norm(x)))`.

    Weights of attention are pointwise, `silu(scale · q kᵀ + bias) / normaliser`, and not a softmax, so that how much
    speaks for something is kept beside what does. Norms have no learned scale.

    Args:
        width: `E`, the width of an event.
        heads: `H`.
        options: the rest, see there.

    Raises:
        InvalidArgument: widths, heads or options that are no layer.

    Source: Jiaqi Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).
    """

    def __init__(self, width: int, heads: int, options: HSTUOptions = HSTUOptions()):
        super().__init__()
        _check(width, heads, options)
        key_width = width // heads if options.key_width is None else options.key_width
        value_width = width // heads if options.value_width is None else options.value_width
        self.heads = heads
        self.options = options
        self.widths = [heads * value_width, heads * value_width, heads * key_width, heads * key_width]
        self.project_in = nn.Linear(width, sum(self.widths), bias=False)
        self.project_out = nn.Linear(heads * value_width, width)
        nn.init.normal_(self.project_in.weight, std=_SPREAD)
        nn.init.xavier_uniform_(self.project_out.weight)
        of_heads = (heads,) if options.bias_per_head else ()
        reach, buckets = options.position_reach, options.time_buckets
        self.position_bias = _table(*of_heads, 2 * reach - 1) if reach else None
        self.time_bias = _table(*of_heads, buckets) if buckets else None

    def forward(self, x: JaggedTensor, *, query_times: Tensor | None = None, key_times: Tensor | None = None,
                mask: Mask | None = None) -> JaggedTensor:
        """Values `(T, E)` → values `(T, E)`, the same rows.

        Args:
            x: the events.
            query_times: `(T,)` int32 or int64: when each event's prediction is asked for; None: when it happened. Only
                a table of times reads it and the next.
            key_times: `(T,)`, dtype of `query_times`: when each event happened.
            mask: which events an event may see; None: itself and those before it.

        Raises:
            InvalidArgument: a table of times and no `key_times`.
        """
        weights, bias = self.weights(x.device), self.bias(query_times, key_times)

        def layer(values: Tensor) -> Tensor:
            gate, v, q, k = self.project(values)
            attended = attention(q, k, v, x.offsets, mask=Mask(causal=True) if mask is None else mask,
                                 weights=weights, bias=bias, scale=self.options.scale, longest=x.longest)
            return self.finish(values, attended, gate)

        if self.options.recompute and torch.is_grad_enabled():
            return x.with_values(checkpoint(layer, x.values, use_reentrant=False))
        return x.with_values(layer(x.values))

    def project(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of events `(T, E)` gates `(T, H · Dv)`, values `(T, H, Dv)`, queries and keys `(T, H, D)`."""
        projected = F.silu(self.project_in(F.layer_norm(values, values.shape[-1:], eps=EPS)))
        gate, v, q, k = projected.split(self.widths, -1)
        v, q, k = (part.unflatten(-1, (self.heads, -1)) for part in (v, q, k))
        return gate, v, q, k

    def weights(self, device: torch.device) -> Weights:
        """Return the weights of attention; in training with a seed drawn from torch's generator of the device."""
        options = self.options
        rate = options.attention_dropout if self.training else 0.0
        return Weights(options.activation, options.normaliser, rate).drawn(device)

    def bias(self, query_times: Tensor | None, key_times: Tensor | None) -> Bias | None:
        """Return the bias of attention; times of queries `(T,)` and keys `(S,)` as in `Bias`. None: there is none."""
        if self.time_bias is None:
            return None if self.position_bias is None else Bias(self.position_bias)
        if key_times is None:
            raise InvalidArgument("key_times", "times of the events, as the layer has a table of times", None)
        return Bias(self.position_bias, self.time_bias, query_times, key_times)

    def finish(self, values: Tensor, attended: Tensor, gate: Tensor) -> Tensor:
        """Return the result `(T, E)` of events `(T, E)`, what they attended to `(T, H, Dv)` and gates `(T, H · Dv)`."""
        attended = attended.flatten(-2)
        gated = F.layer_norm(attended, attended.shape[-1:], eps=EPS) * gate
        return values + self.project_out(F.dropout(gated, self.options.dropout, self.training))


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * _SPREAD)


def _check(width: int, heads: int, options: HSTUOptions) -> None:
    """Refuse what is no layer."""
    Weights(options.activation, options.normaliser, options.attention_dropout)
    if width < 1:
        raise InvalidArgument("width", "1 or more", width)
    open_width = options.key_width is None or options.value_width is None
    if heads < 1 or (open_width and width % heads):
        raise InvalidArgument("heads", f"a divisor of width {width}" if open_width else "1 or more", heads)
    for name, least in (("key_width", 1), ("value_width", 1), ("position_reach", 0), ("time_buckets", 0)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise InvalidArgument(name, f"{least} or more", number)
    if not 0 <= options.dropout < 1:
        raise InvalidArgument("dropout", "a number from 0 to below 1", options.dropout)

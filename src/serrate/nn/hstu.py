"""The HSTU layer: pointwise attention with relative bias, gated, in place of attention and feed-forward block."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..ops.attention import Bias, Mask, Weights, attention
from ..ops.attention.weights import Activation
from ..ops.dropout import drawn_seed
from ..ops.norm_gate import norm_gate
from .recompute import Recompute

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
        norm_per_head: whether what a head attended to is normalised apart from the other heads, as in DLRM-v3.
        recompute: whether the backward pass repeats the product of the projection in, and keeps less: see `HSTULayer`.
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
    norm_per_head: bool = False
    recompute: bool = False


def _at_once(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


class HSTULayer(nn.Module):
    """One layer: `x + project_out(dropout(norm(attention(q, k, v)) · u))`, `u, v, q, k = silu(project_in(norm(x)))`.

    Weights of attention are pointwise, `silu(scale · q kᵀ + bias) / normaliser`, and not a softmax, so that how much
    speaks for something is kept beside what does. Norms have no learned scale.

    What the backward pass keeps of an event, in numbers where `H · D = H · Dv = E`: `x` (E), the projection before its
    SiLU (4 E) and what was attended to (E). Norms, SiLU, gate and dropout are computed again from these, each once.
    That is 12 E bytes in half precision, where the paper counts 14 E; under autocast `x` is float32 and it is 14 E.
    With `recompute` the projection is computed again as well and 2 E numbers are kept: 4 E bytes, under autocast 6 E. A
    softmax adds a float32 for each head. Under `torch.compile` the compiler decides what is kept.

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
        with Recompute(x.values, *self.parameters()) as again:
            gate, v, q, k = self.project(x.values, again)
            attended = attention(q, k, v, x.offsets, mask=Mask(causal=True) if mask is None else mask,
                                 weights=self.weights(x.device), bias=self.bias(query_times, key_times),
                                 scale=self.options.scale, longest=x.longest)
            return x.with_values(self.finish(x.values, attended, gate, again))

    def project(self, values: Tensor, again: Callable[..., Tensor] = _at_once) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of events `(T, E)` gates `(T, H · Dv)`, values `(T, H, Dv)`, queries and keys `(T, H, D)`.

        `again` calls what the backward pass may repeat: a `Recompute`, or nothing of the kind.
        """
        device = values.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        normed = again(partial(norm_gate, gate=None, eps=EPS, dtype=low), values)
        projected = again(self.project_in, normed) if self.options.recompute else self.project_in(normed)
        gate, v, q, k = again(F.silu, projected).split(self.widths, -1)
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

    def finish(self, values: Tensor, attended: Tensor, gate: Tensor, again: Callable[..., Tensor] = _at_once) -> Tensor:
        """Return the result `(T, E)` of events `(T, E)`, what they attended to `(T, H, Dv)` and gates `(T, H · Dv)`.

        Dropout draws from torch's generator of the device, in training only. For `again` see `project`.
        """
        options, rate = self.options, self.options.dropout if self.training else 0.0
        seed = drawn_seed(values.device) if rate else 0
        exit_gate = partial(norm_gate, groups=self.heads if options.norm_per_head else 1, eps=EPS, dropout=rate,
                            seed=seed)
        return values + self.project_out(again(exit_gate, attended.flatten(-2), gate))


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

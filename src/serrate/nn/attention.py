"""Attention modules on `JaggedTensor`: self-attention, the pre-norm transformer block, pooling, target attention."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..ops.attention import Mask, Weights, attention, candidate_attention, pooling_attention, target_attention
from ..ops.transformer import Layer, feed_forward, norm_linear
from .precision import product_dtype


class JaggedMultiheadAttention(nn.Module):
    """Multi-head self-attention within each row, one packed projection to queries, keys and values.

    Args:
        width: `E`, the width of an event; a multiple of `heads`.
        heads: `H`, of queries.
        kv_heads: `G`, of keys and values, a divisor of `heads`: `H / G` heads of queries share one. None: `heads`.
        mask: which events an event may see.
        dropout: share of the attention weights dropped in training.

    Raises:
        InvalidArgument: heads that do not divide as said, a dropout that is no share.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; grouped heads: Ainslie et al., "GQA", EMNLP 2023.
    """

    def __init__(self, width: int, heads: int, *, kv_heads: int | None = None,
                 mask: Mask = Mask(causal=True), dropout: float = 0.0):  # noqa: B008 - frozen
        super().__init__()
        head_width = _head_width(width, heads)
        shared = heads if kv_heads is None else kv_heads
        if shared < 1 or heads % shared:
            raise InvalidArgument("kv_heads", f"a divisor of heads {heads}", kv_heads)
        if not 0 <= dropout < 1:
            raise InvalidArgument("dropout", "a number from 0 to below 1", dropout)
        self.heads = heads
        self.kv_heads = shared
        self.mask = mask
        self.dropout = dropout
        self.project_in = nn.Linear(width, (heads + 2 * shared) * head_width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: JaggedTensor, *, mask: Mask | None = None) -> JaggedTensor:
        """Attend within each row: values `(T, E)` → values `(T, E)`, the same rows.

        `mask` stands in for the module's own in this call, where its context or targets differ from batch to batch.
        Dropout draws from torch's default generator of the device, in training only.
        """
        return x.with_values(self.project_out(self.attend(x.with_values(self.project_in(x.values)), mask)))

    def attend(self, projected: JaggedTensor, mask: Mask | None = None) -> Tensor:
        """Return what events find, `(T, E)`, by queries, keys and values side by side, as `project_in` gives them."""
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = projected.values.unflatten(-1, (sum(heads), -1)).split(heads, 1)
        weights = Weights(dropout=self.dropout if self.training else 0.0).drawn(projected.device)
        return attention(q, k, v, projected.offsets, mask=self.mask if mask is None else mask,
                         longest=projected.longest, weights=weights).flatten(1)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + feedforward(norm(x))`.

    Args:
        width: `E`, the width of an event.
        heads: attention heads, a divisor of `width`.
        hidden: width of the feed-forward layer.
        dropout: share of each branch's outputs dropped in training.
        kv_heads: heads of keys and values, see `JaggedMultiheadAttention`.
        mask: which events an event may see.
        attention_dropout: share of the attention weights dropped in training.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, *, kv_heads: int | None = None,
                 mask: Mask = Mask(causal=True), attention_dropout: float = 0.0):  # noqa: B008 - frozen
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = JaggedMultiheadAttention(width, heads, kv_heads=kv_heads, mask=mask,
                                                  dropout=attention_dropout)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: JaggedTensor, *, mask: Mask | None = None) -> JaggedTensor:
        """Values `(T, E)` → values `(T, E)`, the same rows; `mask` stands in for the block's own in this call."""
        values, attention, norm = x.values, self.attention, self.feedforward_norm
        projected = norm_linear(values, _layer(self.attention_norm), linear=_layer(attention.project_in),
                                eps=self.attention_norm.eps, dtype=product_dtype(attention.project_in.weight))
        attended = attention.attend(x.with_values(projected), mask)
        if self.training and self.dropout.p:  # torch draws
            values = values + self.dropout(attention.project_out(attended))
            return x.with_values(values + self.dropout(self.feedforward(norm(values))))
        layers = [_layer(each) for each in (attention.project_out, norm, self.feedforward[0], self.feedforward[-1])]
        return x.with_values(feed_forward(values, attended, layers, eps=norm.eps))


class AttentionPooling(nn.Module):
    """Summarise each row by K learned queries: as many vectors for a row of one event as for one of thousands.

    Each query attends to all events of the row with `heads` heads. A row without events gives the bias of the output
    projection, the same for every empty row.

    Args:
        width: `E`, the width of an event; a multiple of `heads`.
        heads: `H`.
        queries: `K`, the vectors a row is summarised by.

    Raises:
        InvalidArgument: `heads` that do not divide `width`, `queries` below 1.

    Source: the pooling by multi-head attention of Lee et al., "Set Transformer", ICML 2019, without its residual and
    feed-forward layer.
    """

    def __init__(self, width: int, heads: int, queries: int = 1):
        super().__init__()
        _head_width(width, heads)
        if queries < 1:
            raise InvalidArgument("queries", "1 or more", queries)
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.project_in = nn.Linear(width, 2 * width)
        self.project_out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.queries)

    def forward(self, x: JaggedTensor) -> Tensor:
        """Values `(T, E)` of B rows → `(B, K, E)`."""
        k, v = _keys_and_values(self.project_in, x, self.heads)
        q = self.queries.unflatten(-1, (self.heads, -1)).to(k.dtype)  # autocast leaves parameters as they are
        return self.project_out(pooling_attention(q, k, v, x.offsets).flatten(-2))


class TargetAttention(nn.Module):
    """Let targets, such as the items to be ranked, each see the history of its row: what in it speaks for this one?

    Targets do not see each other. One whose history is empty gives the bias of the output projection.

    Args:
        width: `E`, the width of targets and events; a multiple of `heads`.
        heads: `H`.

    Raises:
        InvalidArgument: `heads` that do not divide `width`.

    Source: Zhou et al., "Deep Interest Network", KDD 2018, with the softmax over scaled products of Vaswani et al.,
    NeurIPS 2017, in place of its activation unit.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        _head_width(width, heads)
        self.heads = heads
        self.project_targets = nn.Linear(width, width)
        self.project_in = nn.Linear(width, 2 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, targets: Tensor, history: JaggedTensor, rows: Tensor | None = None,
                ends: Tensor | None = None) -> Tensor:
        """Return what each target finds in its history, the shape of `targets`.

        Args:
            targets: `(B, K, E)`, K for each row; with `rows` `(M, E)`.
            history: values `(T, E)` in B rows.
            rows: `(M,)` int32 or int64, in any order: the row of each target, from 0 to `B - 1`. Its contents are not
                read on the host, and no history is copied.
            ends: `(B + 1,)` int32 or int64, where the targets lie together by row, in the order of the rows: those of
                row `b` are `targets[ends[b]:ends[b + 1]]`. Then they are not sorted.
        """
        k, v = _keys_and_values(self.project_in, history, self.heads)
        q, offsets = self.project_targets(targets).unflatten(-1, (self.heads, -1)), history.offsets
        if ends is not None:
            found = attention(q, k, v, ends.to(offsets.dtype), kv_offsets=offsets)
        elif rows is not None:
            found = candidate_attention(q, k, v, offsets, rows)
        else:
            found = target_attention(q, k, v, offsets)
        return self.project_out(found.flatten(-2))


def _layer(module: Any) -> Layer:
    return Layer(module.weight, module.bias)


def _head_width(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise InvalidArgument("heads", f"a divisor of width {width}", heads)
    return width // heads


def _keys_and_values(projection: nn.Linear, x: JaggedTensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the keys and the values `(T, H, D)` of the events."""
    k, v = projection(x.values).unflatten(-1, (2, heads, -1)).unbind(1)
    return k, v

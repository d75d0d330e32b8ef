"""What `hstu.py` measures: batches of histories, the HSTU layer in plain PyTorch, stacks of it and of Transformers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from serrate.data.stochastic_length import StochasticLength
from serrate.jagged import JaggedTensor, offsets_from_lengths, to_padded
from serrate.nn import HSTULayer, HSTUOptions, JaggedMultiheadAttention, TransformerBlock
from serrate.nn.hstu import EPS
from serrate.ops.attention import Mask, attention
from serrate.ops.attention.bias import BUCKET
from serrate.ops.attention.peers import BUCKETS, growing_times
from serrate.ops.measure import asking

MEDIAN, SPREAD = 2800, 0.5  # of the log-normal lengths of histories; the spread is of the logarithm
DROPOUT = 0.1
_DRAWS = 64


# --- batches ---


def histories(rows: int, longest: int) -> Tensor:
    """Return lengths `(B,)` int64: log-normal around `MEDIAN` events, cut at the longest.

    They fill 99.6, 94, 69 and 38 % of the cells of 1,024, 2,048, 4,096 and 8,192 events, near the 97, 93, 71 and 36 %
    of the production histories on which the paper has its table of sparsity (its line for alpha 2, where nothing is
    thinned, so all that is missing is padding).
    """
    drawn = torch.randn(rows, generator=torch.Generator().manual_seed(0)) * SPREAD + math.log(MEDIAN)
    return drawn.exp().long().clamp(1, longest)


def thinned(lengths: Tensor, longest: int, alpha: float) -> Tensor:
    """Return the lengths `(B,)` that stochastic length leaves in a step of about the expected cost.

    Few rows are drawn, so one draw may say anything: of 64 this is the one whose sum of squares is nearest their mean.
    """
    draw = StochasticLength(lengths.numpy(), longest, alpha, seed=0)
    drawn = np.stack([draw.lengths(epoch) for epoch in range(_DRAWS)])
    costs = (drawn.astype(np.float64) ** 2).sum(1)
    return torch.from_numpy(drawn[np.abs(costs - costs.mean()).argmin()])


@dataclass(frozen=True, eq=False)
class Batch:
    """Events on a device: `x` values `(T, E)` float32 that ask for their gradient, and when each event's prediction is
    asked for and when it happened, `(T,)` int64 seconds each.
    """

    x: JaggedTensor
    asked: Tensor
    happened: Tensor

    def first(self, rows: int) -> "Batch":
        """Return a batch of the first rows only, a leaf of its own."""
        x = self.x[:rows]
        events = x.num_events
        return Batch(x.with_values(asking(x.values.clone())), self.asked[:events], self.happened[:events])

    def padded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `x` `(B, N, E)` as a leaf, both times `(B, N)`, and which cells are events `(B, N)`."""
        x, asked, happened = (to_padded(self.x.with_values(values), 0)[0]
                              for values in (self.x.values.detach(), self.asked, self.happened))
        real = torch.arange(x.shape[1], device=x.device) < self.x.lengths[:, None]
        return asking(x), asked, happened, real


def make(lengths: Tensor, width: int, device: str) -> Batch:
    """Return random events in rows of these lengths, the same each time."""
    offsets, generator = offsets_from_lengths(lengths).to(device), torch.Generator(device).manual_seed(0)
    events = int(lengths.sum())
    values = asking(torch.randn(events, width, device=device, generator=generator))
    return Batch(JaggedTensor.trusted(values, offsets, int(lengths.max())),
                 *growing_times(offsets, events, generator))


# --- the layer ---


def options(longest: int, biased: bool) -> HSTUOptions:
    """Return the layer that is measured: SiLU over the longest history; biased: by positions as far apart as any two
    events of it, and by time.
    """
    return HSTUOptions(dropout=DROPOUT, normaliser=float(longest), position_reach=longest if biased else 0,
                       time_buckets=BUCKETS if biased else 0)


def plain_bucket(difference: Tensor) -> Tensor:
    """Return buckets of differences in time, int64, as one writes them: next to a border perhaps the other one."""
    return (difference.abs().clamp(min=1).float().log() / BUCKET).long()


def dense_layer(layer: HSTULayer, x: Tensor, asked: Tensor, happened: Tensor,
                bucket: Callable[[Tensor], Tensor] = plain_bucket) -> Tensor:
    """`(B, N, E)` → `(B, N, E)`: the layer with SiLU and shared tables, as one writes it in PyTorch over padded rows.

    Padding stands after the events, so that the causal mask hides it; times are `(B, N)`.
    """
    of, n = layer.options, x.shape[1]
    projected = F.silu(layer.project_in(F.layer_norm(x, x.shape[-1:], eps=EPS)))
    gate, *others = projected.split(layer.widths, -1)
    v, q, k = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in others)
    scores = q @ k.transpose(-1, -2) * of.scale
    place = torch.arange(n, device=x.device)
    distance = place[:, None] - place
    if layer.position_bias is not None:
        reach = of.position_reach - 1
        scores = scores + layer.position_bias[distance.clamp(-reach, reach) + reach].to(scores.dtype)
    if layer.time_bias is not None:
        apart = bucket(asked[:, :, None] - happened[:, None, :]).clamp(max=of.time_buckets - 1)
        scores = scores + layer.time_bias[apart][:, None].to(scores.dtype)
    assert isinstance(of.normaliser, float)
    weights = (F.silu(scores) / of.normaliser).masked_fill(distance < 0, 0.0)
    attended = (weights @ v).transpose(1, 2).flatten(2)
    gated = F.layer_norm(attended, attended.shape[-1:], eps=EPS) * gate
    return x + layer.project_out(F.dropout(gated, of.dropout, layer.training))


# --- stacks ---


class FlashAttention(JaggedMultiheadAttention):
    """Causal self-attention by one named implementation: `varlen` is torch's FlashAttention-2 of jagged rows."""

    def __init__(self, width: int, heads: int, implementation: str = "varlen"):
        super().__init__(width, heads)
        self.implementation = implementation

    def attend(self, projected: JaggedTensor, mask: Mask | None = None) -> Tensor:
        """Queries, keys and values side by side `(T, 3 E)` → what events find `(T, E)`."""
        q, k, v = projected.values.unflatten(-1, (3, self.heads, -1)).unbind(1)
        return attention(q, k, v, projected.offsets, mask=mask or self.mask, longest=projected.longest,
                         implementation=self.implementation).flatten(1)


def hstu(depth: int, width: int, heads: int, longest: int, biased: bool) -> nn.ModuleList:
    """Return HSTU layers."""
    return nn.ModuleList(HSTULayer(width, heads, options(longest, biased)) for _ in range(depth))


def transformer(depth: int, width: int, heads: int, implementation: str = "varlen") -> nn.ModuleList:
    """Return pre-norm Transformer blocks with a feed-forward layer of four times the width."""
    blocks = [TransformerBlock(width, heads, 4 * width, DROPOUT) for _ in range(depth)]
    for block in blocks:
        block.attention = FlashAttention(width, heads, implementation)
    return nn.ModuleList(blocks)


def through_hstu(layers: nn.ModuleList, batch: Batch, mask: Mask | None = None) -> Tensor:
    """`(T, E)`: the events after these layers; `mask` as theirs."""
    x = batch.x
    for layer in layers:
        x = layer(x, query_times=batch.asked, key_times=batch.happened, mask=mask)
    return x.values


def through_transformer(blocks: nn.ModuleList, batch: Batch) -> Tensor:
    """`(T, E)`: the events after these blocks."""
    x = batch.x
    for block in blocks:
        x = block(x)
    return x.values


def through_padded_transformer(blocks: Iterable[Any], x: Tensor) -> Tensor:
    """`(B, N, E)` → `(B, N, E)`: cells after these blocks, padding at the end of rows computed like events."""
    for block in blocks:
        qkv = block.attention.project_in(block.attention_norm(x)).unflatten(-1, (3, block.attention.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + block.dropout(block.attention.project_out(attended))
        x = x + block.dropout(block.feedforward(block.feedforward_norm(x)))
    return x


def training_step(stack: nn.Module, x: Tensor, forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Return one step: forward, backward of the mean square of the outputs as far as the leaf `x`, AdamW."""
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-4, fused=x.is_cuda)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        forward().float().square().mean().backward()
        optimizer.step()

    return step

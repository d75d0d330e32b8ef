"""What the benchmark measures: inputs of a workload, and each way of computing attention over them.

A peer gets what it needs in its own layout beforehand: dense ones padded and transposed inputs, FlexAttention its mask
(except where the making of it is measured). Dense peers of self-attention do not mask the padding they compute.
Peers know no bias, and all but the dense ones with pointwise weights compute a softmax whatever the workload asks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...jagged import offsets_from_lengths
from ..measure import Peer, asking
from .api import attention
from .bias import Bias
from .mask import Mask
from .weights import POINTWISE, Activation, Weights
from .workloads import Workload

BUCKETS = 128  # of a table of times
_BLOCK = 128  # of FlexAttention's mask


@dataclass(frozen=True, eq=False)
class Inputs:
    """One workload on a device.

    `qkv`: keys and values `(T, H, D)`; queries alike, or dense `(B, K, H, D)`, or shared ones `(K, H, D)`.
    `grad`: a gradient of the output, `(T, H, D)` or `(B, K, H, D)`. `offsets`: `(B + 1,)` int64.
    `tables`: of a biased workload, float32 at least, shared by heads: of positions `(2 N - 1,)`, of times `(BUCKETS,)`.
    `times`: when its queries are asked and when its events happened, `(T,)` int64 each, in seconds.
    """

    workload: Workload
    qkv: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    offsets: Tensor
    tables: tuple[Tensor, ...] = ()
    times: tuple[Tensor, ...] = ()

    def variant(self, activation: Activation, biased: bool) -> "Inputs":
        """Return the same tensors with other weights, with or without the bias."""
        return replace(self, workload=replace(self.workload, activation=activation, biased=biased))

    def options(self, tables: Sequence[Tensor], events: Tensor | None = None) -> dict[str, Any]:
        """Return mask, weights and bias for `attention`, of all events or of those where `events` `(T,)` is true."""
        workload = self.workload
        given: dict[str, Any] = {"mask": Mask(causal=workload.causal)}
        if workload.activation != "softmax":
            given["weights"] = Weights(workload.activation, float(workload.longest))
        if workload.biased:
            given["bias"] = Bias(*tables, *(x if events is None else x[events] for x in self.times))
        return given

    def own_tables(self) -> list[Tensor]:
        """Return the tables of bias, asking for gradients; none where the workload is not biased."""
        return [asking(x.clone()) for x in self.tables] if self.workload.biased else []

    def leaves(self, change: Callable[[Tensor], Tensor] = torch.clone) -> list[Tensor]:
        """Return q, k and v after `change`, asking for gradients."""
        return [asking(change(x.detach())) for x in self.qkv]

    def of_every_row(self, q: Tensor) -> Tensor:
        """Return dense queries `(B, K, H, D)`, shared ones expanded."""
        return q.expand(self.workload.rows, *q.shape) if self.workload.shared else q


def make(workload: Workload, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Return the inputs of a workload, the same each time."""
    lengths = workload.lengths()
    offsets = offsets_from_lengths(lengths).to(device)
    generator = torch.Generator(device).manual_seed(0)
    keys = (int(lengths.sum()), workload.heads, workload.width)
    asked = (workload.queries, *keys[1:])
    outputs = (workload.rows, *asked) if workload.queries else keys
    queries = asked if workload.shared else outputs
    q, k, v, grad = (torch.randn(shape, device=device, generator=generator).to(dtype)
                     for shape in (queries, keys, keys, outputs))
    if not workload.biased:
        return Inputs(workload, (q, k, v), grad, offsets)
    tables = tuple(torch.randn(size, device=device, generator=generator).to(torch.promote_types(dtype, torch.float32))
                   for size in (2 * workload.longest - 1, BUCKETS))
    return Inputs(workload, (q, k, v), grad, offsets, tables,
                  growing_times(offsets, int(lengths.sum()), generator))


def growing_times(offsets: Tensor, events: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return when queries are asked and when events happened, `(T,)` int64 seconds each, growing within each row.

    Gaps are from nothing to five days, evenly spread over magnitudes, so 16,384 of them stay under 2³⁰ seconds. A query
    is asked when the next event happens: that is known when a recommendation is asked for.
    """
    gaps = (13 * torch.rand(events + 1, device=offsets.device, generator=generator)).exp().long() - 1
    since = gaps.cumsum(0)
    begins = 1_200_000_000 + torch.randint(2**28, offsets[:-1].shape, device=offsets.device, generator=generator)
    shift = torch.repeat_interleave(begins - since[offsets[:-1]], offsets.diff(), output_size=events)
    return since[1:] + shift, since[:-1] + shift


def ours(inputs: Inputs, implementation: str = "triton") -> Peer:
    """Return an implementation of ours, all that it prepares in each call."""
    q, k, v, *tables = leaves = [*inputs.leaves(), *inputs.own_tables()]
    workload, options = inputs.workload, inputs.options(tables)
    longest = (workload.queries, workload.longest) if workload.queries else workload.longest

    def run() -> Tensor:
        queries = inputs.of_every_row(q) if workload.queries else q
        return attention(queries, k, v, inputs.offsets, longest=longest, implementation=implementation, **options)

    return Peer(run, leaves)


def varlen(inputs: Inputs) -> Peer:
    """Return torch's variable-length FlashAttention-2, its int32 offsets made beforehand."""
    from torch.nn.attention.varlen import varlen_attn  # here, because it loads the compiler: two seconds

    q, k, v = leaves = inputs.leaves()
    workload = inputs.workload
    offsets, longest = inputs.offsets.int(), workload.longest
    asked, most = offsets, longest
    if workload.queries:
        most = workload.queries
        asked = torch.arange(workload.rows + 1, device=offsets.device, dtype=torch.int32) * most
    window = (-1, 0) if workload.causal else (-1, -1)

    def run() -> Tensor:
        queries = inputs.of_every_row(q).flatten(0, 1) if workload.queries else q
        out = varlen_attn(queries, k, v, asked, offsets, most, longest, window_size=window)
        assert isinstance(out, Tensor)
        return out

    return Peer(run, leaves)


def padded(inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v as leaves `(B, H, N, D)` (queries `(B, H, K, D)`, shared ones `(H, K, D)`) and where there are
    events, `(B, N)`."""
    n, lengths = inputs.workload.longest, inputs.offsets.diff()
    there = torch.arange(n, device=lengths.device) < lengths[:, None]

    def pad(x: Tensor) -> Tensor:
        full = x.new_zeros(*there.shape, *x.shape[1:])
        full[there] = x
        return full.transpose(1, 2).contiguous()

    q, k, v = (x.detach() for x in inputs.qkv)
    query = q.transpose(-3, -2).contiguous() if inputs.workload.queries else pad(q)
    return [asking(query), asking(pad(k)), asking(pad(v))], there


def dense(inputs: Inputs) -> Peer:
    """Return eager attention over padded rows, padding masked."""
    (q, k, v), there = padded(inputs)
    n = inputs.workload.longest
    bias = torch.zeros(there.shape, device=q.device, dtype=q.dtype).masked_fill_(~there, float("-inf"))[:, None, None]
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1) if inputs.workload.causal else None

    def run() -> Tensor:
        scores = q @ k.transpose(-1, -2) * inputs.workload.width**-0.5 + bias
        return (scores if later is None else scores.masked_fill(later, float("-inf"))).softmax(-1) @ v

    return Peer(run, [q, k, v])


def dense_pointwise(inputs: Inputs, compiled: bool = False) -> Peer:
    """Return pointwise attention over padded rows, eager or compiled. Keys of zeros have weights of 0: no mask."""
    (q, k, v), _ = padded(inputs)
    workload = inputs.workload
    n, factor, activation = workload.longest, workload.width**-0.5, POINTWISE[workload.activation]
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1) if workload.causal else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = activation(q @ k.transpose(-1, -2) * factor) / n
        return (weights if later is None else weights.masked_fill(later, 0.0)) @ v

    compute: Callable[..., Tensor] = torch.compile(attend) if compiled else attend
    return Peer(lambda: compute(q, k, v), [q, k, v])


def scaled_dot_product(inputs: Inputs, backend: SDPBackend) -> Peer:
    """Return torch's fused attention over padded rows; padding is computed too, and masked from dense queries."""
    (q, k, v), there = padded(inputs)
    count, causal = inputs.workload.queries, inputs.workload.causal
    mask = there[:, None, None].expand(-1, 1, count, -1) if count else None

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(inputs.of_every_row(q), k, v, attn_mask=mask, is_causal=causal)

    return Peer(run, [q, k, v])


def nested(inputs: Inputs) -> Peer:
    """Return torch's nested tensors."""
    leaves, lengths = inputs.leaves(), inputs.offsets.diff()
    low, high = int(lengths.min()), int(lengths.max())

    def run() -> Tensor:
        q, k, v = (torch.nested.nested_tensor_from_jagged(
            x, inputs.offsets, min_seqlen=low, max_seqlen=high).transpose(1, 2) for x in leaves)
        return F.scaled_dot_product_attention(q, k, v, is_causal=inputs.workload.causal).transpose(1, 2).values()

    return Peer(run, leaves)


def split(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool) -> Tensor:
    """Return self-attention `(T, H, D)` by one call of torch's a row; waits for the device to know the lengths."""
    lengths = offsets.diff().tolist()
    rows = zip(*(x.transpose(0, 1).split(lengths, 1) for x in (q, k, v)), strict=True)
    outs = [F.scaled_dot_product_attention(*(x[None] for x in row), is_causal=causal)[0] for row in rows]
    return torch.cat(outs, 1).transpose(0, 1)


def row_by_row(inputs: Inputs) -> Peer:
    """Return a call of torch's attention a row."""
    q, k, v = leaves = inputs.leaves()
    return Peer(lambda: split(q, k, v, inputs.offsets, causal=inputs.workload.causal), leaves)


@lru_cache(maxsize=1)
def _flex(inputs: Inputs) -> tuple[Peer, Callable[[], Tensor]]:
    """Return compiled FlexAttention over all rows end to end, with its mask made and with the making of it.

    Once for both, because compiling takes longer than measuring.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    causal, queries, shared = inputs.workload.causal, inputs.workload.queries, inputs.workload.shared
    events = inputs.qkv[1].shape[0]
    whole = -(-events // _BLOCK) * _BLOCK
    rows = torch.full((whole,), inputs.offsets.shape[0], device=inputs.offsets.device)

    def own(_batch, _head, i, j):
        same = rows[i] == rows[j]
        return same & (i >= j) if causal else same

    def of_dense(_batch, _head, i, j):
        return i // queries == rows[j]

    compiled_mask: Callable[..., Any] = torch.compile(create_block_mask)
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    asked = inputs.workload.rows * queries if queries else whole

    def make_mask() -> Any:
        rows[:events] = torch.repeat_interleave(inputs.offsets.diff(), output_size=events)
        return compiled_mask(of_dense if queries else own, None, None, asked, whole, device=rows.device.type)

    def fill_up(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, whole - events)).transpose(0, 1)[None].contiguous()

    q, k, v = (x.detach() for x in inputs.qkv)
    query = fill_up(q) if not queries else q if shared else q.flatten(0, 1).transpose(0, 1)[None].contiguous()
    q, k, v = leaves = [asking(query), asking(fill_up(k)), asking(fill_up(v))]
    mask = make_mask()

    def run(block_mask: Any) -> Tensor:
        packed = inputs.of_every_row(q).flatten(0, 1).transpose(0, 1)[None] if shared else q
        return compiled(packed, k, v, block_mask=block_mask)

    return Peer(lambda: run(mask), leaves), lambda: run(make_mask())


def flex(inputs: Inputs) -> Peer:
    """Return compiled FlexAttention, its mask made beforehand."""
    return _flex(inputs)[0]


def flex_with_mask(inputs: Inputs) -> Peer:
    """Return compiled FlexAttention, the making of its mask in each call."""
    peer, run = _flex(inputs)
    return Peer(run, peer.leaves)


def forget() -> None:
    """Let go of what peers keep between calls: compiled code and tensors."""
    _flex.cache_clear()
    torch.compiler.reset()


PEERS: dict[str, Callable[[Inputs], Peer]] = {
    "varlen": varlen,
    "dense": dense,
    "dense pointwise": dense_pointwise,
    "compiled pointwise": partial(dense_pointwise, compiled=True),
    "padded flash": partial(scaled_dot_product, backend=SDPBackend.FLASH_ATTENTION),
    "padded cudnn": partial(scaled_dot_product, backend=SDPBackend.CUDNN_ATTENTION),
    "padded efficient": partial(scaled_dot_product, backend=SDPBackend.EFFICIENT_ATTENTION),
    "nested": nested,
    "flex": flex,
    "flex with mask": flex_with_mask,
    "row by row": row_by_row,
}
OF_EVENTS = ("varlen", "dense", "padded flash", "padded cudnn", "padded efficient", "nested", "flex", "flex with mask")
OF_DENSE_QUERIES = ("varlen", "padded efficient", "padded cudnn", "flex", "flex with mask")
OF_MANY_ROWS = ("varlen", "flex", "flex with mask")
OF_POINTWISE = ("varlen", "flex", "dense pointwise", "compiled pointwise")
OF_LONG_ROWS = ("varlen",)
ON_CURVES = ("dense", "padded flash")
ON_CPU = ("row by row", "padded flash")

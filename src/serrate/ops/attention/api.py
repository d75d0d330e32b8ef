"""The contract of jagged attention: shapes, numerics, errors and the choice of an implementation."""

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ...errors import InvalidArgument
from .. import select
from ..direct import watched
from ..dropout import seed_tensor
from .bias import Bias
from .mask import Mask
from .weights import Weights


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve.

    cross: queries have rows of their own, or are dense; grouped: several heads of queries share one of keys.
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    value_width: int
    mask: Mask
    cross: bool = False
    grouped: bool = False
    dropout: bool = False
    with_lse: bool = False
    pointwise: bool = False
    biased: bool = False

    def beyond_plain(self) -> str | None:
        """Say what this asks for beyond self-attention, causal or not, with heads of their own; None: nothing."""
        asked = {"cross-attention": self.cross, "grouped heads": self.grouped, "dropout": self.dropout,
                 "the log-sum-exp": self.with_lse, "this mask": not self.mask.plain,
                 "pointwise weights": self.pointwise, "a bias": self.biased}
        return next((f"does not serve {name}" for name, wanted in asked.items() if wanted), None)


class Rows(NamedTuple):
    """Where the rows of queries and of keys are, int32 or int64: row `b` of the one sees row `b` of the other.

    queries: `(B + 1,)` offsets, the same object as `keys` in self-attention, None for dense queries `(B, K, H, D)`;
    keys: `(B + 1,)`, both contiguous; longest: upper bounds on the lengths of rows of queries and of keys.
    """

    queries: Tensor | None
    keys: Tensor
    longest: tuple[int, int]

    def pack(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries `(T, H, D)`, dtype kept, and their offsets; of dense ones a view where strides allow it."""
        if self.queries is not None:
            return q, self.queries
        rows, count = q.shape[:2]
        return q.flatten(0, 1), torch.arange(rows + 1, device=q.device, dtype=self.keys.dtype) * count


class Settings(NamedTuple):
    """The rest of a call: `mask` (its counts as tensors `(B,)`), factor on scores, weights, bias, whether to give lse.

    The seed of `weights` is `()` int64 on the device where there is dropout. `bias` is None, or has contiguous tables
    `(H, …)` or `(1, …)`, float32 (float64 for float64), and where it has a table of times those of all queries `(T,)`
    and keys `(S,)`, int64 and contiguous. `memory` is what an implementation keeps of a call for others of the same
    shapes, strides, dtypes, device and numbers, never tensors; None where nothing is kept.
    """

    mask: Mask
    scale: float
    weights: Weights = Weights()
    bias: Bias | None = None
    with_lse: bool = False
    memory: dict[Hashable, Any] | None = None

    @property
    def seed(self) -> Tensor | None:
        """The seed of dropout, None where nothing is dropped."""
        return self.weights.seed if self.weights.dropout and isinstance(self.weights.seed, Tensor) else None


_LEAST_SCALE = 1e-30  # below, a factor on scores is 0: what kernels divide by it leaves the range of float32
_LARGEST_COUNT = 2**31 - 1
_MOST = 4096  # calls that are remembered, and as many that were met once


class _Known(NamedTuple):
    """What was found out about a call: who computes it, the factor on scores, and the `memory` of its settings."""

    compute: Callable[..., Any] | None
    factor: float
    memory: dict[Hashable, Any] | None


_known: dict[tuple, _Known] = {}  # by what `_told` returns
_met: set[int] = set()  # hashes of that


@overload
def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, return_lse: Literal[True],
              **options: Any) -> tuple[Tensor, Tensor]: ...
@overload
def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, return_lse: Literal[False] = False,
              **options: Any) -> Tensor: ...
def attention(  # pyright: ignore[reportInconsistentOverload] - the options are the parameters below
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    kv_offsets: Tensor | None = None,
    mask: Mask = Mask(),  # noqa: B008 - frozen
    weights: Weights = Weights(),  # noqa: B008 - frozen
    bias: Bias | None = None,
    scale: float | None = None,
    longest: int | tuple[int, int] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
):
    """Attention of every query over the keys of its own row: `softmax(scale · q kᵀ + bias + mask) v`.

    Other `weights` put a pointwise activation in the place of the softmax: `silu(scale · q kᵀ + bias) / normaliser`.

    Row `b` is `[offsets[b], offsets[b + 1])` of the packed axis; rows never see each other and nothing is padded.
    Empty rows cost nothing. Sums and log-sum-exp are float32 (float64 for float64 inputs) whatever the dtype.

    Three shapes of call:

    - *self-attention*: `q`, `k` and `v` have the same events, in the rows of `offsets`;
    - *cross-attention*: queries are in the rows of `offsets`, keys in those of `kv_offsets`;
    - *target attention*: `q` is `(B, K, H, D)`, K dense queries for every row of keys, which `offsets` gives. A `q`
      that is expanded over rows is not copied: `pooling_attention`. See also `candidate_attention`.

    Args:
        q: `(T, H, D)` or `(B, K, H, D)` queries; float64, float32, bfloat16 or float16; any strides.
        k: `(S, G, D)` keys, dtype and device of `q`; `G` divides `H`, and `H / G` heads of queries share one of keys.
        v: `(S, G, Dv)` values, dtype and device of `q`.
        offsets: `(B + 1,)` int32 or int64, starts at 0, non-decreasing, ends at `T`; its contents are not read here.
        kv_offsets: `(B + 1,)`, ends at `S`; None where queries and keys have the same rows.
        mask: which keys a query sees.
        weights: softmax or a pointwise activation, and dropout.
        bias: what is added to scores for the distance of query and key, and for the time between them.
        scale: factor on the scores; `1 / sqrt(D)` when None.
        longest: length of the longest row, when the caller knows it, of queries and keys or a pair for the two; an
            upper bound is right too.
        return_lse: return the log-sum-exp of each query's scores too; of softmax only.
        implementation: a name from `implementations("attention")`, or None for the automatic choice.

    Returns:
        `(T, H, Dv)`, or `(B, K, H, Dv)` for dense queries, dtype of `q`; with `return_lse` also the natural log-sum-exp
        `(T, H)` or `(B, K, H)`, float32 (float64 for float64). Both differentiable in `q`, `k`, `v` and tables of bias.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, a scale that is not finite.
        NotUsable: the implementation asked for cannot serve this call.

    Source: Rengan Xu et al., "Enhancing Performance and Scalability of Large-Scale Recommendation Systems with Jagged
    Flash Attention", RecSys 2024 (arXiv 2409.15373).
    """
    told = _told(q, k, v, offsets, kv_offsets, mask, weights, bias, scale, return_lse, implementation)
    known = None if told is None else _known.get(told)
    if known is None:
        _check(q, k, v)
        _check_rows(q, k, offsets, kv_offsets)
        q, factor = _scaled(q, scale)
        if return_lse and weights.pointwise:
            raise InvalidArgument("return_lse", f"False with {weights.activation} weights, which have none", True)
        known = _Known(None, factor, _memory(told))
    rows = _rows(q, k, offsets, kv_offsets, longest)
    if bias is not None and known.compute is None:
        _check_bias(bias, q, k, rows)
    settings = Settings(_on_device(mask, rows.keys), known.factor, _seeded(weights, q), _prepared(bias, q), return_lse,
                        known.memory)
    compute = known.compute
    if compute is None:
        call = Call(q.device, q.dtype, q.shape[-1], v.shape[2], mask, rows.keys is not rows.queries,
                    q.shape[-2] != k.shape[1], weights.dropout > 0, return_lse, weights.pointwise,
                    settings.bias is not None)
        compute = select.choose("attention", call, implementation).implementation.compute
        if told is not None and known.memory is not None:
            _known[told] = known._replace(compute=compute)
    out, lse = compute(q, k, v, rows, settings)
    return (out, lse) if return_lse else out


def target_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float | None = None,
                     implementation: str | None = None) -> Tensor:
    """Let K dense queries of each row see its history: `(B, K, H, D)` → `(B, K, H, Dv)`, dtype of `q`.

    Queries do not see each other. The same as `attention` with these queries; see there for arguments and errors.
    """
    if q.dim() != 4:
        raise InvalidArgument("q", "shape (B, K, H, D)", tuple(q.shape))
    return attention(q, k, v, offsets, scale=scale, implementation=implementation)


def pooling_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float | None = None,
                      implementation: str | None = None) -> Tensor:
    """Summarise each row by K queries that the batch shares: `(K, H, D)` → `(B, K, H, Dv)`; an empty row gives 0.

    The dtype is kept. The gradient of `q` is the sum over rows. See `attention` for the other arguments and errors.

    Source: pooling by multi-head attention of Juho Lee et al., "Set Transformer", ICML 2019 (arXiv 1810.00825).
    """
    if q.dim() != 3:
        raise InvalidArgument("q", "shape (K, H, D)", tuple(q.shape))
    shared = q.expand(max(offsets.shape[0] - 1, 0), *q.shape)
    return attention(shared, k, v, offsets, scale=scale, implementation=implementation)


def candidate_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, rows: Tensor, *, scale: float | None = None,
                        implementation: str | None = None) -> Tensor:
    """Let each candidate see the history it points at, without a copy of that: `(M, H, D)` → `(M, H, Dv)`.

    Candidates are brought together by row and attend as one jagged batch of queries, so a history is read once for all
    that share it, and its gradient is their sum.

    Args:
        q: `(M, H, D)` candidates; they do not see each other.
        k: `(S, G, D)` keys of the histories, as in `attention`.
        v: `(S, G, Dv)` their values.
        offsets: `(B + 1,)` int32 or int64, the rows of the histories.
        rows: `(M,)` int32 or int64, in any order, each from 0 to `B - 1`; its contents are not read here.
        scale: factor on the scores; `1 / sqrt(D)` when None.
        implementation: as in `attention`.
    """
    if q.dim() != 3:
        raise InvalidArgument("q", "shape (M, H, D)", tuple(q.shape))
    if rows.shape != q.shape[:1] or rows.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(rows.shape)} {rows.dtype}"
        raise InvalidArgument("rows", f"shape ({q.shape[0]},), dtype int32 or int64", got)
    if rows.device != q.device:
        raise InvalidArgument("rows", f"a tensor on {q.device}, as q", rows.device)
    together, order = rows.sort(stable=True)
    every = torch.arange(offsets.shape[0], device=rows.device, dtype=rows.dtype)
    own = torch.searchsorted(together, every).to(offsets.dtype)
    out = attention(q[order], k, v, own, kv_offsets=offsets, scale=scale, implementation=implementation)
    return out[order.argsort()]


def _told(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kv_offsets: Tensor | None, mask: Mask, weights: Weights,
          bias: Bias | None, scale: float | None, return_lse: bool, implementation: str | None) -> tuple | None:
    """Return what tells a call from others, the contents of its tensors and their addresses apart.

    Counts and seed are looked at in every call: of those it is told what kernels need to know. None where nothing is
    remembered: under tracers and modes, which look on at every call.
    """
    if watched(q, k, v, offsets, kv_offsets):
        return None
    if scale is not None and (type(scale) is not float or scale < _LEAST_SCALE):
        return None
    beside = None
    if bias is not None or mask.per_row or weights.dropout:
        counts = mask.context, mask.targets
        of_bias = () if bias is None else (bias.position, bias.time, bias.query_times, bias.key_times)
        if watched(*of_bias, *[x for x in (*counts, weights.seed) if isinstance(x, Tensor)]):
            return None
        beside = (weights.dropout, *[type(x) if x is None or isinstance(x, int) else x.dtype for x in counts],
                  *[None if x is None else (x.shape, x.dtype, x.device) for x in of_bias])
    return (q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype, q.device,
            k.device, v.device, offsets.shape, offsets.dtype, offsets.device,
            kv_offsets is not None and (kv_offsets.shape, kv_offsets.dtype, kv_offsets.device, kv_offsets is offsets),
            mask.causal, *mask.window, mask.block, weights.activation, weights.normaliser, beside, scale, return_lse,
            implementation)


def _memory(told: tuple | None) -> dict[Hashable, Any] | None:
    """Return room for what is to be kept of a call, None where its like has not been met: most shapes never come again.
    """
    if told is None:
        return None
    place = hash(told)
    met = place in _met
    kept = _known if met else _met
    if len(kept) >= _MOST:
        kept.clear()
    _met.add(place)
    return {} if met else None


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() not in (3, 4) or q.shape[-1] < 1 or q.shape[-2] < 1:
        raise InvalidArgument("q", "shape (T, H, D) or (B, K, H, D) with H, D >= 1", tuple(q.shape))
    (*_, heads, width), of_k, of_v = q.shape, k.shape, v.shape
    if len(of_k) != 3 or of_k[2] != width or of_k[1] < 1 or heads % of_k[1]:
        raise InvalidArgument("k", f"shape (S, G, {width}) where G divides {heads}", tuple(of_k))
    if len(of_v) != 3 or of_v[0] != of_k[0] or of_v[1] != of_k[1] or of_v[2] < 1:
        raise InvalidArgument("v", f"shape ({of_k[0]}, {of_k[1]}, Dv)", tuple(of_v))
    dtype, device = q.dtype, q.device
    if not dtype.is_floating_point:
        raise InvalidArgument("q", "a floating-point dtype", dtype)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != dtype:
            raise InvalidArgument(name, f"{dtype}, as q", tensor.dtype)
        if tensor.device != device:
            raise InvalidArgument(name, f"a tensor on {device}, as q", tensor.device)


def _check_rows(q: Tensor, k: Tensor, offsets: Tensor, kv_offsets: Tensor | None) -> None:
    given = [("offsets", offsets)] if kv_offsets is None else [("offsets", offsets), ("kv_offsets", kv_offsets)]
    for name, tensor in given:
        if tensor.dim() != 1 or tensor.shape[0] < 1 or tensor.dtype not in (torch.int32, torch.int64):
            got = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise InvalidArgument(name, "shape (B + 1,), dtype int32 or int64", got)
        if tensor.device != q.device:
            raise InvalidArgument(name, f"a tensor on {q.device}, as q", tensor.device)
    rows = offsets.shape[0] - 1
    if q.dim() == 4:
        if kv_offsets is not None:
            raise InvalidArgument("kv_offsets", "None with dense queries: offsets are those of the keys", "a tensor")
        if q.shape[0] != rows:
            raise InvalidArgument("q", f"{rows} rows of queries, as offsets has", q.shape[0])
    elif kv_offsets is None:
        if q.shape[0] != k.shape[0]:
            raise InvalidArgument("k", f"{q.shape[0]} events, as q, or kv_offsets", k.shape[0])
    elif kv_offsets.shape != offsets.shape or kv_offsets.dtype != offsets.dtype:
        got = f"{tuple(kv_offsets.shape)} {kv_offsets.dtype}"
        raise InvalidArgument("kv_offsets", f"{tuple(offsets.shape)} {offsets.dtype}, as offsets", got)


def _scaled(q: Tensor, scale: float | None) -> tuple[Tensor, float]:
    """Return queries and the factor on their scores, which kernels take to be above 0: so does the largest score."""
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    if not -math.inf < factor < math.inf:
        raise InvalidArgument("scale", "a finite number", scale)
    if factor >= _LEAST_SCALE:
        return q, factor
    return (q * 0.0, 1.0) if factor > -_LEAST_SCALE else (-q, -factor)


def _rows(q: Tensor, k: Tensor, offsets: Tensor, kv_offsets: Tensor | None,
          longest: int | tuple[int, int] | None) -> Rows:
    dense = q.dim() == 4
    bounds = (q.shape[1] if dense else q.shape[0], k.shape[0]) if longest is None else \
        longest if isinstance(longest, tuple) else (q.shape[1] if dense else longest, longest)
    own = offsets.contiguous()
    keys = own if kv_offsets is None or kv_offsets is offsets else kv_offsets.contiguous()
    return Rows(None if dense else own, keys, bounds)


def _on_device(mask: Mask, offsets: Tensor) -> Mask:
    """Return the mask with its counts as tensors `(B,)` on the device of the offsets, none below 0."""
    if not mask.per_row:
        return mask
    return replace(mask, context=_counts("mask.context", mask.context, offsets),
                   targets=_counts("mask.targets", mask.targets, offsets))


def _counts(name: str, counts: Tensor | int | None, offsets: Tensor) -> Tensor | None:
    rows = offsets.shape[0] - 1
    if counts is None:
        return None
    if isinstance(counts, int):
        return offsets.new_full((rows,), min(counts, _LARGEST_COUNT))
    if counts.shape != (rows,) or counts.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument(name, f"shape ({rows},), dtype int32 or int64", f"{tuple(counts.shape)} {counts.dtype}")
    if counts.device != offsets.device:
        raise InvalidArgument(name, f"a tensor on {offsets.device}, as offsets", counts.device)
    return counts.clamp(0, _LARGEST_COUNT)


def _seeded(weights: Weights, q: Tensor) -> Weights:
    """Return the weights with the seed as a tensor, where they need one."""
    if not weights.dropout:
        return weights
    return replace(weights, seed=seed_tensor("weights.seed", weights.seed, q.device))


def _check_bias(bias: Bias, q: Tensor, k: Tensor, rows: Rows) -> None:
    for name, table in (("bias.position", bias.position), ("bias.time", bias.time)):
        if table is not None:
            _check_table(name, table, q)
    if bias.position is not None and bias.position.shape[-1] % 2 == 0:
        raise InvalidArgument("bias.position", "an odd number of entries: as many distances before as after",
                              bias.position.shape[-1])
    if bias.time is None:
        return
    if bias.key_times is None:
        raise InvalidArgument("bias.key_times", "times of the keys with a table of times", None)
    if bias.query_times is None and rows.queries is not rows.keys:
        raise InvalidArgument("bias.query_times", "times of the queries, which are not the keys", None)
    asked = bias.key_times if bias.query_times is None else bias.query_times
    for name, times, shape in (("query_times", asked, q.shape[:-2]), ("key_times", bias.key_times, k.shape[:1])):
        if times.shape != shape or times.dtype not in (torch.int32, torch.int64) or times.device != q.device:
            raise InvalidArgument(f"bias.{name}", f"shape {tuple(shape)}, dtype int32 or int64, on {q.device}",
                                  f"{tuple(times.shape)} {times.dtype} on {times.device}")


def _check_table(name: str, table: Tensor, q: Tensor) -> None:
    heads = q.shape[-2]
    if table.dim() not in (1, 2) or table.shape[-1] < 1 or (table.dim() == 2 and table.shape[0] not in (1, heads)):
        raise InvalidArgument(name, f"shape (N,) or ({heads}, N) with N >= 1", tuple(table.shape))
    if not table.dtype.is_floating_point or table.device != q.device:
        raise InvalidArgument(name, f"a floating-point tensor on {q.device}", f"{table.dtype} on {table.device}")


def _prepared(bias: Bias | None, q: Tensor) -> Bias | None:
    """Return the bias with what it needs only, as `Settings` has it; None where it adds nothing."""
    if bias is None or (bias.position is None and bias.time is None):
        return None
    dtype = torch.promote_types(q.dtype, torch.float32)
    position = None if bias.position is None else _table(bias.position, dtype)
    if bias.time is None or bias.key_times is None:
        return Bias(position)
    happened = _times(bias.key_times)
    return Bias(position, _table(bias.time, dtype), happened if bias.query_times is None else _times(bias.query_times),
                happened)


def _table(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a table of bias as `(H, N)` or `(1, N)` in the dtype of scores; what it is already takes no time."""
    table = table.unsqueeze(0) if table.dim() == 1 else table
    table = table if table.dtype == dtype else table.to(dtype)
    return table if table.is_contiguous() else table.contiguous()


def _times(times: Tensor) -> Tensor:
    """Return times as `(T,)` int64, contiguous."""
    if times.dtype == torch.int64 and times.dim() == 1 and times.is_contiguous():
        return times
    return times.long().flatten().contiguous()

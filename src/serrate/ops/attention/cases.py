"""Named calls of jagged attention: one table for all tests. Batches to measure are in `workloads.py`."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .bias import Bias
from .mask import Mask
from .weights import Activation, Weights

CAUSAL = Mask(causal=True)


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        lengths: of the rows of `offsets`: of queries, or of keys where queries are dense.
        heads: H, of the queries.
        width: D, of queries and keys.
        mask: counts of its rows are tensors on the CPU.
        kv_lengths: of the rows of keys, where they have rows of their own: cross-attention.
        dense: K, where every row has so many dense queries: target attention.
        shared: the dense queries are one block `(K, H, D)`, expanded over the rows: pooling attention.
        kv_heads: G, where it is not H.
        value_width: Dv, where it is not D.
        dropout: share of the weights that is dropped.
        activation, normaliser: of the weights.
        reach: R, how far a table of positions tells distances apart; 0: there is none.
        buckets: entries of a table of times; 0: there is none.
        apart: whether the heads have tables of their own.
    """

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 8
    mask: Mask = CAUSAL
    kv_lengths: tuple[int, ...] | None = None
    dense: int | None = None
    shared: bool = False
    kv_heads: int | None = None
    value_width: int | None = None
    dropout: float = 0.0
    activation: Activation = "softmax"
    normaliser: float | Literal["length"] | None = None
    reach: int = 0
    buckets: int = 0
    apart: bool = False

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0,
                offsets_dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return random `q` `(T, H, D)` or `(B, K, H, D)`, `k`, `v` and `offsets`; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        rows, events = len(self.lengths), sum(self.lengths if self.kv_lengths is None else self.kv_lengths)
        block = (self.heads, self.width) if self.dense is None else (self.dense, self.heads, self.width)
        first = () if self.shared else (sum(self.lengths) if self.dense is None else rows,)
        keys = (events, self.kv_heads or self.heads)
        q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in (
            (*first, *block), (*keys, self.width), (*keys, self.value_width or self.width)))
        offsets = offsets_from_lengths(torch.tensor(self.lengths, dtype=offsets_dtype)).to(device)
        return q.expand(rows, *block) if self.shared else q, k, v, offsets

    def tables(self, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
        """Return random float32 tables of bias, of positions and of times, those that there are."""
        generator = torch.Generator().manual_seed(seed + 1)
        heads = (self.heads,) if self.apart else ()
        sizes = [2 * self.reach - 1] * (self.reach > 0) + [self.buckets] * (self.buckets > 0)
        return tuple(torch.randn((*heads, size), generator=generator).to(device) for size in sizes)

    def bias(self, tables: tuple[Tensor, ...]) -> Bias | None:
        """Return the bias with these tables, on their device; times grow within a row, by seconds to weeks."""
        if not tables:
            return None
        position, time = tables[0] if self.reach else None, tables[-1] if self.buckets else None
        if time is None:
            return Bias(position)
        happened, asked = (_times(lengths).to(time.device) for lengths in (self._keys, self._queries))
        if self.dense is not None:
            return Bias(position, time, asked.reshape(len(self.lengths), self.dense), happened)
        return Bias(position, time, None if self.kv_lengths is None else asked, happened)

    @property
    def _keys(self) -> tuple[int, ...]:
        return self.lengths if self.kv_lengths is None else self.kv_lengths

    @property
    def _queries(self) -> tuple[int, ...]:
        return self.lengths if self.dense is None else (self.dense,) * len(self.lengths)

    def arguments(self, device: str = "cpu", offsets_dtype: torch.dtype = torch.int64,
                  tables: tuple[Tensor, ...] | None = None) -> dict[str, Any]:
        """Return what `attention` takes besides these tensors: `kv_offsets`, mask, weights and bias."""
        context, targets = (counts.to(device) if isinstance(counts, Tensor) else counts
                            for counts in (self.mask.context, self.mask.targets))
        given: dict[str, Any] = {"mask": replace(self.mask, context=context, targets=targets)}
        if self.kv_lengths is not None:
            lengths = torch.tensor(self.kv_lengths, dtype=offsets_dtype)
            given["kv_offsets"] = offsets_from_lengths(lengths).to(device)
        if self.dropout or self.activation != "softmax":
            given["weights"] = Weights(self.activation, self.normaliser, self.dropout, 2**40 + 7)
        bias = self.bias(self.tables(device) if tables is None else tables)
        return given if bias is None else given | {"bias": bias}


def _times(lengths: tuple[int, ...]) -> Tensor:
    """Return times of events in seconds, `(T,)` int64: growing within each row, from a start of its own."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for length in lengths:
        gaps = (torch.rand(length, generator=generator) * 13).exp().long() - 1  # from 0 seconds to five days
        rows.append(int(torch.randint(2**30, (), generator=generator)) + 1_200_000_000 + gaps.cumsum(0))
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


_ODD_LENGTHS = {
    "no_rows": (),
    "all_empty": (0, 0, 0),
    "one_event": (1,),
    "first_and_last_empty": (0, 5, 3, 0),
    "fewer_events_than_rows": (0, 0, 1, 0, 0, 1, 0),
    "equal_lengths": (4, 4, 4),
    "mixed": (7, 1, 0, 33, 7, 2, 64, 5),
    "one_long_among_short": (1, 1, 150, 1, 2),
}

_SELF = [Case(name, lengths) for name, lengths in _ODD_LENGTHS.items()]
_SELF += [Case(f"{case.name}_full", case.lengths, mask=Mask()) for case in _SELF]
_SELF += [Case(f"width_{width}", (3, 17, 0, 6), heads=1, width=width) for width in (1, 20, 25, 32, 50, 80, 96, 256)]

# queries without keys, keys without queries, more queries than keys, as many, fewer
_QUERIES, _KEYS = (3, 0, 9, 6, 5, 1, 70), (0, 5, 4, 6, 65, 33, 70)
_SHAPES = [
    Case("cross", _QUERIES, kv_lengths=_KEYS, mask=Mask()),
    Case("cross_causal", _QUERIES, kv_lengths=_KEYS),
    Case("cross_no_rows", (), kv_lengths=(), mask=Mask()),
    Case("cross_no_keys", (2, 0, 3), kv_lengths=(0, 0, 0), mask=Mask()),
    Case("cross_no_queries", (0, 0), kv_lengths=(4, 0)),
    Case("candidates", (3, 0, 20, 1, 0), kv_lengths=(5, 9, 0, 40, 0), mask=Mask()),
    *(Case(f"target_{queries}", (7, 0, 33, 1, 64), dense=queries, mask=Mask()) for queries in (1, 3, 70)),
    Case("target_causal", (7, 0, 33, 1, 64), dense=3),
    Case("target_no_rows", (), dense=2, mask=Mask()),
    Case("target_no_queries", (3, 4), dense=0, mask=Mask()),
    Case("pooling", (7, 0, 33, 1, 64), dense=4, shared=True, mask=Mask()),
    Case("two_heads_share", (7, 1, 0, 33), heads=4, kv_heads=2),
    Case("all_heads_share", (7, 1, 0, 33), heads=3, kv_heads=1, mask=Mask()),
    Case("heads_share_cross", _QUERIES, kv_lengths=_KEYS, heads=4, kv_heads=2),
    Case("heads_share_target", (7, 0, 33, 1, 64), dense=3, heads=4, kv_heads=1, mask=Mask()),
    Case("narrow_values", (7, 1, 0, 33), value_width=5),
    Case("wide_values_cross", _QUERIES, kv_lengths=_KEYS, value_width=20, mask=Mask()),
]

_ROWS, _LONG = (7, 1, 0, 33, 12), (300, 70, 129)
_CONTEXT, _TARGETS = torch.tensor([2, 3, 5, 0, 40]), torch.tensor([1, 4, 0, 40, 3])  # some larger than their rows
_MASKS = {
    "window_left": Mask(window=(2, None)),
    "window_right": Mask(window=(None, 3)),
    "window": Mask(window=(4, 1)),
    "window_of_itself": Mask(window=(0, 0)),
    "causal_window": Mask(causal=True, window=(5, 2)),
    "block": Mask(block=4),
    "causal_block": Mask(causal=True, block=3),
    "context": Mask(causal=True, context=2),
    "context_by_row": Mask(causal=True, context=_CONTEXT),
    "targets": Mask(targets=2),
    "targets_by_row": Mask(causal=True, targets=_TARGETS),
    "block_and_targets": Mask(block=4, targets=_TARGETS),
    "context_and_targets": Mask(causal=True, context=_CONTEXT, targets=_TARGETS.int()),
    "everything": Mask(causal=True, window=(3, 1), block=5, context=_CONTEXT, targets=_TARGETS),
    "everything_not_causal": Mask(window=(2, 3), block=6, context=1, targets=_TARGETS),
}
_BEYOND = [Case(name, _ROWS, mask=mask) for name, mask in _MASKS.items()]
_BEYOND += [Case(f"{name}_cross", (9, 4, 3, 5, 12), kv_lengths=_ROWS, mask=mask) for name, mask in _MASKS.items()]
_BEYOND += [
    Case("window_target", _ROWS, dense=3, mask=Mask(window=(3, None))),
    Case("everything_target", _ROWS, dense=4, mask=_MASKS["everything"]),
    Case("everything_heads_share", _ROWS, heads=4, kv_heads=2, mask=_MASKS["everything"]),
    Case("long_causal_window", _LONG, mask=Mask(causal=True, window=(70, None))),
    Case("long_window", _LONG, mask=Mask(window=(3, 100))),
    Case("long_block", _LONG, mask=Mask(block=64)),
    Case("long_everything", _LONG, mask=Mask(causal=True, window=(40, None), block=150, context=5, targets=9)),
    Case("long_everything_cross", (70, 170, 128), kv_lengths=_LONG, mask=Mask(causal=True, window=(90, 3), context=70)),
]

_NAMED = {case.name: case for case in _SELF + _SHAPES + _BEYOND}
_RATES = {"mixed": 0.3, "mixed_full": 0.9, "cross": 0.5, "target_70": 0.1, "two_heads_share": 0.2, "everything": 0.4}

CASES = list(_NAMED.values())
CASES += [replace(_NAMED[name], name=f"{name}_dropout", dropout=rate) for name, rate in _RATES.items()]

_WEIGHTS = {
    "silu": ("silu", None), "silu_constant": ("silu", 20.0), "silu_length": ("silu", "length"), "gelu": ("gelu", 8.0),
    "relu_squared": ("relu_squared", "length"), "identity": ("identity", 50.0),
}
_POINTWISE = [replace(_NAMED["mixed"], name=name, activation=activation, normaliser=normaliser)
              for name, (activation, normaliser) in _WEIGHTS.items()]
_POINTWISE += [replace(_NAMED[name], name=f"{name}_silu", activation="silu", normaliser="length") for name in (
    "no_rows", "all_empty", "mixed_full", "one_long_among_short", "width_20", "width_96", "cross", "cross_causal",
    "target_70", "pooling", "heads_share_cross", "narrow_values", "everything", "everything_cross", "long_everything",
    "everything_target")]
_POINTWISE += [replace(_NAMED["mixed"], name="silu_dropout", activation="silu", normaliser=5.0, dropout=0.3)]
_TABLES = {"position": (9, 0), "far_position": (200, 0), "time": (0, 60), "few_times": (0, 5), "both": (40, 60)}
_BIASED = [replace(_NAMED["mixed"], name=f"{name}_{activation}", activation=activation, normaliser=normaliser,
                   reach=reach, buckets=buckets, apart=name == "both" and activation == "silu")
           for name, (reach, buckets) in _TABLES.items()
           for activation, normaliser in (("softmax", None), ("silu", 20.0))]
_BIASED += [replace(_NAMED[name], name=f"{name}_both", activation="silu", normaliser=30.0, reach=20, buckets=50)
            for name in ("no_rows", "all_empty", "mixed_full", "one_long_among_short", "cross", "cross_causal",
                         "target_70", "pooling", "heads_share_cross", "everything", "everything_cross", "long_window",
                         "long_everything", "width_96", "width_256")]
_BIASED += [replace(_NAMED[name], name=f"{name}_both_softmax", reach=20, buckets=50, apart=True)
            for name in ("one_long_among_short", "cross", "two_heads_share", "everything", "everything_target")]
_BIASED += [replace(_NAMED[name], name=f"{name}_both_relu_squared", activation="relu_squared", normaliser="length",
                    reach=20, buckets=50) for name in ("width_20", "everything")]
_SHORT_ROWS = Case("short_rows_both", (9, 0, 30, 1, 17, 2, 20), reach=12, buckets=72)
_BIASED += [replace(_SHORT_ROWS, name=f"short_rows_both_{heads}_{activation}", heads=heads, mask=mask,
                    activation=activation, normaliser=normaliser)
            for heads, mask, activation, normaliser in (
                (1, Mask(), "silu", 20.0), (4, CAUSAL, "silu", "length"), (4, Mask(), "softmax", None),
                (6, CAUSAL, "gelu", 8.0), (3, Mask(), "relu_squared", "length"), (4, CAUSAL, "identity", 50.0))]
_BIASED += [replace(_NAMED["mixed"], name="both_dropout", reach=20, buckets=50, dropout=0.3)]
CASES += _POINTWISE + _BIASED

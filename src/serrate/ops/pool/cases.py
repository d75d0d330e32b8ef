"""Named calls of pooling and of softmax over rows: one table for tests, and the batches to measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .api import HOWS, How, pool, softmax


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        lengths: of the rows.
        shape: of an event.
        how: as in `api.pool`, or "softmax": not a pooling, but that over the events of a row.
        weights: None for none, or the shape of those of an event, `()` or `(H,)`.
        activation: of the weights.
        packed: whether events and weights are contiguous; else they are every other column.
        index: dtype of the offsets.
        spread: standard deviation of events and weights; 0: all alike.
        dtype: of the events to measure.
    """

    name: str
    lengths: tuple[int, ...]
    shape: tuple[int, ...] = (24,)
    how: str = "sum"
    weights: tuple[int, ...] | None = None
    activation: Literal["softmax"] | None = None
    packed: bool = True
    index: torch.dtype = torch.int64
    spread: float = 1.0
    dtype: torch.dtype = torch.float32

    @property
    def events(self) -> int:
        """T."""
        return sum(self.lengths)

    def offsets(self, device: str = "cpu") -> Tensor:
        """Return the offsets `(B + 1,)`."""
        return offsets_from_lengths(torch.tensor(self.lengths, dtype=self.index)).to(device)

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
        """Return random events `(T, *)` and, where there are some, weights; the same for a seed and device."""
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [self.shape, *([] if self.weights is None else [self.weights])]
        step = 1 if self.packed else 2
        return tuple((torch.randn(self.events, *shape, step, generator=generator, device=device)
                      * self.spread).to(dtype)[..., 0] for shape in shapes)


_ORDINARY = (5, 0, 17, 1, 32, 8, 0)
_LONG = (3, 2500, 0, 40)  # of several chunks
_WEIGHTED: tuple[tuple[str, Literal["softmax"] | None], ...] = (("weighted sum", None), ("attention", "softmax"))

CASES = [
    *(Case(f"{how}: {name}", lengths, shape, how, packed=packed, index=index, spread=spread)
      for how in (*HOWS, "softmax")
      for name, lengths, shape, packed, index, spread in (
          ("no rows", (), (3,), True, torch.int64, 1.0),
          ("empty rows", (0, 0, 0), (3,), True, torch.int32, 1.0),
          ("ordinary", _ORDINARY, (24,), True, torch.int64, 1.0),
          ("fewer events than rows", (0, 1, 0, 0, 2, 0, 0, 0), (16,), True, torch.int32, 1.0),
          ("flat", 4 * _ORDINARY, (), True, torch.int64, 1.0),
          ("heads", _ORDINARY, (2, 25), False, torch.int32, 1.0),
          ("wide", (4, 0, 9), (300,), True, torch.int64, 1.0),
          ("long rows", _LONG, (64,), True, torch.int64, 1.0),
          ("all alike", _LONG, (16,), True, torch.int64, 0.0),
          ("large", _ORDINARY, (8,), True, torch.int64, 60.0))),
    *(Case(f"{kind}: {name}", lengths, shape, "sum", weights, activation, packed, spread=spread)
      for kind, activation in _WEIGHTED
      for name, lengths, shape, weights, packed, spread in (
          ("no rows", (), (3,), (), True, 1.0),
          ("empty rows", (0, 0), (3,), (), True, 1.0),
          ("ordinary", _ORDINARY, (24,), (), True, 1.0),
          ("flat", 4 * _ORDINARY, (), (), False, 1.0),
          ("heads", _ORDINARY, (2, 25), (2,), False, 1.0),
          ("a head a column", _ORDINARY, (6,), (6,), True, 1.0),
          ("one weight for all heads", _ORDINARY, (2, 8), (), True, 1.0),
          ("wide", (4, 0, 9), (300,), (), True, 1.0),
          ("long rows", _LONG, (64,), (), True, 1.0),
          ("long rows, heads", _LONG, (2, 40), (2,), True, 1.0),
          ("large", _ORDINARY, (8,), (), True, 60.0))),
]


def run(case: Case, tensors: Sequence[Tensor], offsets: Tensor, implementation: str | None = None) -> Tensor:
    """Return what the call gives for events `(T, *)` and, where there are some, weights."""
    x, weights = tensors[0], tensors[1] if len(tensors) > 1 else None
    if case.how == "softmax":
        return softmax(x, offsets, implementation=implementation)
    return pool(x, offsets, how=cast(How, case.how), weights=weights, activation=case.activation,
                implementation=implementation)


def lengths_of(rows: int, longest: int, fill: float, seed: int = 0) -> tuple[int, ...]:
    """Return lengths of a batch: uniform about `fill` of the longest, one row as long as that."""
    generator = torch.Generator().manual_seed(seed)
    low, high = max(0.0, 2 * fill - 1), min(1.0, 2 * fill)
    drawn = (low + (high - low) * torch.rand(rows, generator=generator)) * longest
    return longest, *drawn.round().int().tolist()[1:]


def workload(kind: str, longest: int, width: int, fill: int, dtype: torch.dtype) -> Case:
    """Return a batch of 1,024 rows to measure: `kind` is a `how`, or that of a weighted sum; `fill` in percent."""
    how, weights = (kind, None) if kind not in dict(_WEIGHTED) else ("sum", ())
    name = f"{kind}, {longest} × {width}, {fill} %, {str(dtype).removeprefix('torch.')}"
    return Case(name, lengths_of(1024, longest, fill / 100), (width,), how, weights, dict(_WEIGHTED).get(kind),
                dtype=dtype)


HEADS = 8  # columns of what a softmax is taken of
HALF, SINGLE = torch.bfloat16, torch.float32

EVERY = [workload(kind, longest, width, fill, dtype)
         for kind in (*HOWS, "softmax", *dict(_WEIGHTED)) for longest in (4096, 512)
         for width in ((HEADS,) if kind == "softmax" else (64, 128)) for fill in (10, 30, 50, 100)
         for dtype in (HALF, SINGLE)]
# each kind once, and one of them at all fills
WORKLOADS = [workload(kind, 4096, HEADS if kind == "softmax" else 64, 50, HALF)
             for kind in (*HOWS, "softmax", *dict(_WEIGHTED))]
WORKLOADS += [workload("attention", 4096, 64, fill, HALF) for fill in (10, 30, 100)]

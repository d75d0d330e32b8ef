"""Named calls of selection by a threshold: one table for tests, and the corpora to measure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .api import Problem
from .quantised import quantise
from .sampling import over_provisioned, r_for, sample_threshold

_ROWS = 2**22  # made at a time


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        items: V.
        queries: R.
        width: d.
        keep: how many items should pass; the threshold is the score of the last of them.
        capacity: places for ids of a query.
        allowed: share of the items that are allowed; None: no filter.
        packed: whether rows are contiguous; else every second row of a tensor.
        coarse: whether vectors are -1, 0 or 1, so that many scores are equal.
        empty: whether every third item and the first query are zeros.
        sample: items that the threshold is estimated from; 0: all.
    """

    name: str
    items: int
    queries: int
    width: int = 64
    keep: int = 20
    capacity: int = 40
    allowed: float | None = None
    packed: bool = True
    coarse: bool = False
    empty: bool = False
    sample: int = 0

    def problem(self, device: torch.device | str = "cpu", seed: int = 0) -> Problem:
        """Return random queries, items, thresholds and filter; the same for a seed and device."""
        generator = torch.Generator(device).manual_seed(seed)
        queries = quantise(self._rows(self.queries, generator))
        items = self._items(generator)
        allowed = None
        if self.allowed is not None:
            allowed = torch.rand(self.items, generator=generator, device=generator.device) < self.allowed
        return Problem(*queries, *items, self.threshold(queries, items, allowed), allowed)

    def _rows(self, count: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(count, self.width, generator=generator, device=generator.device)
        if self.coarse:
            x = x.sign() * (x.abs() > 1)
        if self.empty:
            x[::3] = 0
        return x

    def _items(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        stride = 1 if self.packed else 2
        device = generator.device
        values = torch.empty(self.items * stride, self.width, dtype=torch.int8, device=device)[::stride]
        scales = torch.empty(self.items * stride, device=device)[::stride]
        for first in range(0, self.items, _ROWS):
            part = slice(first, min(first + _ROWS, self.items))
            values[part], scales[part] = quantise(self._rows(part.stop - first, generator))
        return values, scales

    def threshold(self, queries: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor],
                  allowed: Tensor | None) -> Tensor:
        """Return the thresholds `(R,)` of quantised queries and items."""
        if not self.items or not self.keep:
            return torch.full_like(queries[1], float("inf" if not self.keep else "-inf"))
        sample = self.sample or self.items
        wanted = over_provisioned(self.keep, r_for(self.keep, sample, self.items)) if self.sample else self.keep
        return sample_threshold(*queries, *items, wanted, sample=sample, allowed=allowed)


CASES = [
    Case("no items", 0, 3),
    Case("no queries", 50, 0),
    Case("one item, one query", 1, 1, keep=1),
    Case("31 items", 31, 2, keep=5),
    Case("32 items", 32, 2, keep=5),
    Case("some of each", 1000, 5),
    Case("a block and one", 4097, 3, width=32),
    Case("more blocks", 9001, 2, width=16, keep=300, capacity=350),
    Case("17 queries", 700, 17),
    Case("more queries than a tile", 100, 130, width=8, keep=5, capacity=8),
    Case("width 1", 200, 2, width=1, keep=7),
    Case("width 25", 500, 3, width=25),
    Case("width 100", 500, 3, width=100),
    Case("width 200", 300, 2, width=200),
    Case("widest", 150, 2, width=1024),
    Case("wider than the widest", 40, 2, width=2100, keep=9),
    Case("everything", 100, 2, keep=10**6, capacity=100),
    Case("everything, little place", 400, 2, keep=10**6, capacity=10),
    Case("nothing", 300, 2, keep=0),
    Case("no place", 300, 2, capacity=0),
    Case("more than there is place for", 2000, 2, keep=200, capacity=33),
    Case("equal scores", 900, 4, width=16, coarse=True, capacity=400),
    Case("zeros among them", 200, 4, empty=True, capacity=200),
    Case("some allowed", 2500, 3, allowed=0.3),
    Case("none allowed", 300, 2, allowed=0.0),
    Case("every second row", 700, 3, packed=False, allowed=0.5),
]

CHECKED = [  # on a device before anything is measured
    Case("checked", 1_000_003, 5, keep=1000, capacity=1100),
    Case("checked, one query", 1_000_000, 1, keep=1000, capacity=1100),
    Case("checked, filtered", 777_777, 32, keep=500, capacity=500, allowed=0.7),
    Case("checked, many queries", 300_001, 200, width=48, keep=300, capacity=200, coarse=True),
]

WORKLOADS = [  # the paper's corpus of 100 million items
    Case(f"100M, {queries}", 100_000_000, queries, keep=100_000, capacity=150_000, sample=400_000)
    for queries in (1, 8, 32, 128)
]

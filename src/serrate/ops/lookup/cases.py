"""Named calls of lookups: one table for tests, and the batches to measure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .api import How


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        size, width: V and E of the table.
        lines: R, or of bags N.
        each: n, rows of a line.
        how: what is made of them.
        bags: how many, None without offsets.
        often: share of the places that read one row, as an action that many events have.
    """

    name: str
    size: int
    width: int
    lines: int
    each: int = 1
    how: How = "each"
    bags: int | None = None
    often: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu",
                seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a random table `(V, E)` of a dtype, rows int64, and offsets int64 `(B + 1,)`; the same for a seed."""
        generator = torch.Generator(device).manual_seed(seed)
        table = torch.randn(self.size, self.width, generator=generator, device=device).to(dtype)
        shape = (self.lines, self.each) if self.bags is None else (self.lines,)
        rows = torch.randint(0, self.size, shape, generator=generator, device=device)
        rows[torch.rand(shape, generator=generator, device=device) < self.often] = self.size // 2
        if self.bags is None:
            return table, rows, None
        ends = torch.randint(0, self.lines + 1, (self.bags + 1,), generator=generator, device=device).sort()[0]
        ends[0], ends[-1] = 0, self.lines
        return table, rows, ends


CASES = [
    Case("nothing read", 4, 8, 0, 2),
    Case("one place", 4, 8, 1),
    Case("one row", 1, 16, 600, 2),
    Case("several", 50, 64, 150, 3),
    Case("a row that half read", 1000, 64, 300, 2, often=0.5),
    Case("a chunk and its neighbour", 3, 5, 257),
    Case("a whole chunk", 2, 5, 1024, often=0.9),
    Case("narrow", 30, 1, 40, 2),
    Case("wide", 30, 150, 40),
    Case("sums", 50, 64, 100, 4, how="sum", often=0.3),
    Case("sums of bags", 50, 24, 500, how="sum", bags=40),
    Case("means of bags", 50, 24, 500, how="mean", bags=40, often=0.3),
    Case("bags without rows", 9, 24, 0, how="mean", bags=3),
]

WORKLOADS = [  # of the recipe `ranking-production`: a history's events, candidates' features, their tags
    Case("events", 106000, 64, 131072, 4, how="sum", often=0.25),
    Case("features", 106000, 64, 51200, 4),
    Case("tags", 106000, 64, 128000, how="mean", bags=51200),
]

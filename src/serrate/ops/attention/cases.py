"""Named workloads of jagged attention: one table for tests, tuning and benchmarks."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .mask import Mask

CAUSAL = Mask(causal=True)


@dataclass(frozen=True)
class Case:
    """A shape worth naming: lengths of the rows, heads, widths, mask."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 8
    mask: Mask = CAUSAL

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0,
                offsets_dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return random `q`, `k`, `v` `(T, H, D)` and `offsets` `(B + 1,)`; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        shape = (sum(self.lengths), self.heads, self.width)
        q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
        lengths = torch.tensor(self.lengths, dtype=offsets_dtype)
        return q, k, v, offsets_from_lengths(lengths).to(device)


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

CASES = [Case(name, lengths) for name, lengths in _ODD_LENGTHS.items()]
CASES += [Case(f"{case.name}_full", case.lengths, mask=Mask()) for case in CASES]
CASES += [Case(f"width_{width}", (3, 17, 0, 6), heads=1, width=width) for width in (1, 20, 25, 32, 50, 80, 96, 256)]


@dataclass(frozen=True)
class Workload:
    """A batch to measure: how many rows, how their lengths are spread up to the longest, heads, width, mask."""

    name: str
    spread: Literal["uniform", "lognormal", "equal"]
    rows: int
    longest: int
    heads: int
    width: int
    causal: bool

    def lengths(self) -> Tensor:
        """Return the lengths `(B,)` of the rows; half of log-normal ones are under an eighth of the longest."""
        generator = torch.Generator().manual_seed(0)
        if self.spread == "uniform":
            return torch.randint(1, self.longest + 1, (self.rows,), generator=generator)
        if self.spread == "lognormal":
            drawn = torch.randn(self.rows, generator=generator) + math.log(self.longest * 0.12)
            return drawn.exp().long().clamp(1, self.longest)
        return torch.full((self.rows,), self.longest)


WORKLOADS = [
    Workload("short", "lognormal", 4096, 128, 4, 32, False),
    Workload("paper", "uniform", 1024, 512, 4, 64, False),
    Workload("mid", "lognormal", 512, 2048, 4, 64, True),
    Workload("long", "lognormal", 64, 16384, 8, 128, True),
    Workload("full", "equal", 16, 4096, 16, 128, True),
]

"""The batches on which attention is measured: one table for tuning and benchmarks."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .weights import Activation

Spread = Literal["uniform", "lognormal", "equal"]


@dataclass(frozen=True)
class Workload:
    """A batch to measure: how many rows, how their lengths are spread up to the longest, heads, width, mask.

    Attributes:
        queries: dense queries a row over its history (target attention); 0: the events themselves ask.
        shared: whether the rows of the batch share these queries (pooling attention).
        fill: of uniform lengths, their mean over the longest; see `lengths`.
        given: the lengths themselves, in place of a spread.
        activation: of the weights; pointwise ones are divided by the longest.
        biased: whether scores get a bias of positions and one of times; of events that ask themselves.
    """

    name: str
    spread: Spread
    rows: int
    longest: int
    heads: int
    width: int
    causal: bool
    queries: int = 0
    shared: bool = False
    fill: float = 0.5
    given: tuple[int, ...] = ()
    activation: Activation = "softmax"
    biased: bool = False

    def lengths(self) -> Tensor:
        """Return the lengths `(B,)` of the rows, int64, at least 1 each unless given.

        Uniform ones lie between 1 and twice the mean, or between as far below the longest as the mean allows and the
        longest. Of log-normal ones, half are under an eighth of the longest.
        """
        if self.given:
            return torch.tensor(self.given)
        generator = torch.Generator().manual_seed(0)
        if self.spread == "uniform":
            low = max(1, round((2 * self.fill - 1) * self.longest))
            high = max(1, round(min(2 * self.fill, 1.0) * self.longest))
            return torch.randint(low, high + 1, (self.rows,), generator=generator)
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

CROWD = Workload("crowd", "uniform", 65536, 15, 4, 64, True)  # mean length 8
SMALLEST = Workload("smallest", "equal", 1, 64, 4, 64, True)

TARGETS = [
    Workload("target 64", "uniform", 2048, 1024, 4, 64, False, queries=64),
    Workload("target 1", "uniform", 2048, 1024, 4, 64, False, queries=1),
    Workload("pooling 32", "uniform", 2048, 1024, 4, 64, False, queries=32, shared=True),
]

CURVES = {512: 1024, 2048: 256}  # longest: rows, as many cells each
FILLS = (5, 10, 20, 30, 50, 75, 100)  # per cent


def on_curve(longest: int, fill: int) -> Workload:
    """Return the batch of uniform lengths that fills `fill` per cent of its cells."""
    name = f"longest {longest}, fill {fill} %"
    return Workload(name, "uniform", CURVES[longest], longest, 4, 64, False, fill=fill / 100)


POINTWISE_NAME = "pointwise "  # before the names of these, whose figures stand beside those of plain attention
POINTWISE = [replace(each, name=POINTWISE_NAME + each.name, activation="silu", biased=True) for each in WORKLOADS]

LONGEST = (256, 512, 1024, 2048, 4096)
# Mean length over the longest, per cent. Public HSTU code has a `sparsity` of 0.95 for rows that are 95 % full; where
# it is the share that is missing, it is one of 5 %: both are here.
SHARES = (5, 50, 95)


def of_length(longest: int, share: int) -> Workload:
    """Return 512 rows of uniform lengths, `share` per cent of the longest on average: HSTU's public benchmark."""
    return Workload(f"{POINTWISE_NAME}{longest}, fill {share} %", "uniform", 512, longest, 4, 128, True,
                    fill=share / 100, activation="silu", biased=True)


LENGTHS = [of_length(longest, share) for longest in LONGEST for share in SHARES]

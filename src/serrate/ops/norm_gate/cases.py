"""Named calls of norm, gate and dropout: one table for tests, and the batches to measure."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        events: T.
        width: E.
        groups: G.
        gated: whether there is a gate.
        dropout: share that is dropped.
        narrow: whether the result is half precision whatever the events are.
        packed: whether events and gates are contiguous; else they are columns of a tensor four times as wide, as a
            layer's projection gives them.
        eps: added to variances.
        centre, spread: mean of the events and their standard deviation about it.
        dtype: of the events to measure.
    """

    name: str
    events: int
    width: int
    groups: int = 1
    gated: bool = True
    dropout: float = 0.0
    narrow: bool = False
    packed: bool = True
    eps: float = 1e-6
    centre: float = 0.0
    spread: float = 1.0
    dtype: torch.dtype = torch.float32

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
        """Return random events `(T, E)` and, where there is one, the gate; the same for a seed and device."""
        generator = torch.Generator(device).manual_seed(seed)
        columns = (2 if self.packed else 4) * self.width
        wide = torch.randn(self.events, columns, generator=generator, device=device)
        wide[:, :self.width] = wide[:, :self.width] * self.spread + self.centre
        wide = wide.to(dtype)
        found = wide[:, :self.width], wide[:, -self.width:]
        return tuple(x.contiguous() if self.packed else x for x in found[:1 + self.gated])

    def result(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the result of events of a dtype."""
        return torch.float16 if self.narrow else dtype


CASES = [
    Case("no events", 0, 24),
    Case("one event", 1, 24),
    Case("width 1", 7, 1),
    Case("width 2", 9, 2),
    Case("width 25", 33, 25),
    Case("width 50", 70, 50, dropout=0.2),
    Case("width 64", 65, 64),
    Case("width 200", 19, 200, dropout=0.5),
    Case("width 512", 13, 512),
    Case("width 1000", 5, 1000, packed=False),
    Case("widest", 3, 8192, dropout=0.1),
    Case("no gate", 21, 48, gated=False),
    Case("no gate, dropped", 21, 48, gated=False, dropout=0.4),
    Case("no gate, to half precision", 21, 48, gated=False, narrow=True),
    Case("to half precision", 21, 48, narrow=True, dropout=0.3),
    Case("groups", 40, 48, groups=4),
    Case("groups of 25", 40, 50, groups=2, dropout=0.2, packed=False),
    Case("groups of 1", 6, 5, groups=5),
    Case("wider than the widest", 2, 16384, groups=2),
    Case("columns", 37, 96, packed=False, dropout=0.2),
    Case("columns, groups", 37, 96, groups=3, packed=False),
    Case("large eps", 17, 32, eps=0.5),
    Case("far from 0", 17, 64, centre=150.0),
    Case("small", 17, 64, spread=1e-3),
    Case("all alike", 17, 64, centre=3.0, spread=0.0),
    Case("nearly all dropped", 50, 64, dropout=0.999),
]

WORKLOADS = [  # of a layer of width 512 and others, gates as they come; the last is what a layer begins with
    Case("256", 262144, 256, dropout=0.2, packed=False, dtype=torch.bfloat16),
    Case("512", 262144, 512, dropout=0.2, packed=False, dtype=torch.bfloat16),
    Case("512, 8 groups", 262144, 512, groups=8, dropout=0.2, packed=False, dtype=torch.bfloat16),
    Case("512, nothing dropped", 262144, 512, packed=False, dtype=torch.bfloat16),
    Case("2048", 65536, 2048, dropout=0.2, packed=False, dtype=torch.bfloat16),
    Case("50", 16384, 50, dropout=0.2, packed=False, dtype=torch.bfloat16),
    Case("512, norm alone", 262144, 512, gated=False, narrow=True),
]

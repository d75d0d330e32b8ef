"""Named calls of a transformer block's operations: one table for tests, and the batches to measure."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .api import Layer, feed_forward, norm_linear

Operation = Literal["norm", "norm_linear", "feed_forward"]


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        operation: which; "norm" is `norm_linear` without a layer.
        events: T.
        width: E.
        hidden: F, of the layer or of the hidden one.
        wide: whether events and weights are float32 whatever is multiplied, as under autocast.
        packed: whether events are contiguous; else they are columns of a tensor twice as wide.
        eps: added to variances.
        centre, spread: mean of the events and their standard deviation about it.
    """

    name: str
    operation: Operation
    events: int
    width: int
    hidden: int = 0
    wide: bool = True
    packed: bool = True
    eps: float = 1e-5
    centre: float = 0.0
    spread: float = 1.0

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> list[Tensor]:
        """Return random events `(T, E)`, where there is one what attention found, then the weights.

        Same for a seed and device; `dtype` is that of what is multiplied.
        """
        generator = torch.Generator(device).manual_seed(seed)
        stored = torch.float32 if self.wide and dtype != torch.float64 else dtype

        def drawn(*shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device) * spread + centre

        width, hidden = self.width, self.hidden
        x = drawn(self.events, width if self.packed else 2 * width, spread=self.spread, centre=self.centre)[:, :width]
        norm = [drawn(width, spread=0.2, centre=1.0), drawn(width, spread=0.2)]
        layers = {"norm": [], "norm_linear": [(hidden, width)],
                  "feed_forward": [(width, width), (hidden, width), (width, hidden)]}[self.operation]
        linear = [part for rows, columns in layers
                  for part in (drawn(rows, columns, spread=columns**-0.5), drawn(rows, spread=0.2))]
        if self.operation != "feed_forward":
            return [each.to(stored) for each in (x, *norm, *linear)]
        attended = drawn(self.events, width).to(dtype)
        return [x.to(stored), attended, *(each.to(stored) for each in (*linear[:2], *norm, *linear[2:]))]

    def run(self, tensors: list[Tensor], dtype: torch.dtype, implementation: str | None = None) -> Tensor:
        """Return the result `(T, …)` of `tensors` as above."""
        if self.operation == "feed_forward":
            x, attended, *weights = tensors
            layers = [Layer(*weights[at:at + 2]) for at in range(0, 8, 2)]
            return feed_forward(x, attended, layers, eps=self.eps, implementation=implementation)
        x, *weights = tensors
        linear = Layer(*weights[2:]) if weights[2:] else None
        return norm_linear(x, Layer(*weights[:2]), linear=linear, eps=self.eps, dtype=dtype,
                           implementation=implementation)

    def result(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the result, where what is multiplied is of a dtype."""
        return torch.float32 if self.wide and self.operation == "feed_forward" and dtype != torch.float64 else dtype


CASES = [
    Case("no events", "norm_linear", 0, 24, 40),
    Case("one event", "norm_linear", 1, 24, 40),
    Case("projection", "norm_linear", 150, 64, 192),
    Case("projection of columns", "norm_linear", 70, 50, 72, packed=False),
    Case("narrow projection", "norm_linear", 33, 3, 1),
    Case("widest projection", "norm_linear", 65, 64, 256, wide=False),
    Case("norm", "norm", 130, 64),
    Case("norm of columns", "norm", 31, 25, packed=False, wide=False),
    Case("norm of one column", "norm", 9, 1),
    Case("far from 0", "norm", 17, 64, centre=150.0),
    Case("all alike", "norm_linear", 17, 64, 64, centre=3.0, spread=0.0),
    Case("large eps", "norm_linear", 17, 32, 16, eps=0.5),
    Case("feed forward", "feed_forward", 150, 64, 256),
    Case("feed forward, half", "feed_forward", 65, 64, 100, wide=False),
    Case("feed forward of columns", "feed_forward", 70, 50, 72, packed=False),
    Case("narrow feed forward", "feed_forward", 20, 5, 3),
    Case("feed forward of nothing", "feed_forward", 0, 16, 16),
    Case("wider than kernels take", "feed_forward", 10, 80, 320),
]

WORKLOADS = [  # of a history of the recipe `ranking-production`, at half fill
    Case("norm", "norm", 131072, 64),
    Case("projection", "norm_linear", 131072, 64, 192),
    Case("feed forward", "feed_forward", 131072, 64, 256),
]

"""How scores become the weights of values: one value for every implementation, and its meaning in plain torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidArgument
from ..dropout import drawn_seed

Activation = Literal["softmax", "silu", "gelu", "relu_squared", "identity"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)  # kernels know them by their place here

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu_squared": lambda scores: F.relu(scores).square(),
    "identity": lambda scores: scores,
}


@dataclass(frozen=True, eq=False)
class Weights:
    """How the scores of a query become weights; `Weights()` is the softmax over the keys that it sees.

    A pointwise activation gives each key a weight of its own, whatever else the query sees: HSTU's attention, whose
    sum grows with the history. The normaliser never depends on other rows of the batch.

    Attributes:
        activation: "softmax", or pointwise "silu" `x / (1 + exp(-x))`, "gelu" (the exact one), "relu_squared"
            `max(x, 0)²` or "identity".
        normaliser: what pointwise weights are divided by: a number, "length" (events of the row's history: its keys
            that are no targets, at least 1), or None: nothing.
        dropout: share of the weights that is dropped, 0 to below 1; the others are divided by `1 - dropout`.
        seed: `()` int64 on the device of the queries, or an int. The draw follows from it and the places of query and
            key, so it is the same in every implementation; with a tensor a captured graph can be given another one.
    """

    activation: Activation = "softmax"
    normaliser: float | Literal["length"] | None = None
    dropout: float = 0.0
    seed: int | Tensor = 0

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise InvalidArgument("weights.activation", " or ".join(ACTIVATIONS), repr(self.activation))
        if self.normaliser is not None:
            if self.activation == "softmax":
                raise InvalidArgument("weights.normaliser", "None under a softmax, which normalises", self.normaliser)
            number = isinstance(self.normaliser, (int, float)) and 0 < self.normaliser < math.inf
            if not number and self.normaliser != "length":
                expected = 'a finite number above 0, "length" or None'
                raise InvalidArgument("weights.normaliser", expected, repr(self.normaliser))
        if not 0 <= self.dropout < 1:
            raise InvalidArgument("weights.dropout", "a number from 0 to below 1", self.dropout)

    @property
    def pointwise(self) -> bool:
        """Whether each weight follows from its own score."""
        return self.activation != "softmax"

    def drawn(self, device: torch.device) -> "Weights":
        """Return the same with a seed drawn on the device, where they drop: nothing waits for it."""
        return replace(self, seed=drawn_seed(device)) if self.dropout else self

    @property
    def numbers(self) -> tuple[int, float]:
        """The same without dropout as operators take it: the place in `ACTIVATIONS`, the normaliser (0.0: "length")."""
        normaliser = 0.0 if self.normaliser == "length" else float(self.normaliser or 1.0)
        return ACTIVATIONS.index(self.activation), normaliser

    def divisor(self, history: int) -> float:
        """Return what the pointwise weights of a row with so many events of history are divided by."""
        return max(history, 1) if self.normaliser == "length" else float(self.normaliser or 1.0)

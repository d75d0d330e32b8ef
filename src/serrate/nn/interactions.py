"""How features meet: products of pairs, cross layers, and a candidate's own weight on each event of a history."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument, suggest
from ..jagged import JaggedTensor, offsets_from_lengths
from ..jagged.tensor import readable
from ..ops.pool import softmax
from ..ops.target_unit import target_unit
from .precision import product_dtype

UnitActivation = Literal["dice", "silu", "relu"]
UnitWeights = Literal["none", "sigmoid", "softmax"]


class DotInteraction(nn.Module):
    """The products of all pairs of `n` feature vectors: `(B, n, E)` → `(B, n (n − 1) / 2)`.

    Pairs are ordered as in the lower triangle of the matrix of products, row by row: (1, 0), (2, 0), (2, 1), (3, 0), …

    Args:
        vectors: `n`, at least 2.

    Raises:
        InvalidArgument: fewer vectors.

    Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019
    (arXiv 1906.00091).
    """

    pairs: Tensor

    def __init__(self, vectors: int):
        super().__init__()
        if vectors < 2:
            raise InvalidArgument("vectors", "2 or more", vectors)
        row, column = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", row * vectors + column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors `(B, n, E)` → products `(B, n (n − 1) / 2)`."""
        return (x @ x.transpose(1, 2)).flatten(1)[:, self.pairs]


class CrossNetwork(nn.Module):
    """Explicit products of features of growing degree: `x_{l + 1} = x_0 ⊙ (W x_l + b) + x_l`.

    Args:
        width: of the features side by side.
        layers: how often; after `l` of them there are products of up to `l + 1` features.
        rank: of `W = U Vᵀ`, for wide inputs; None: `W` is whole.

    Raises:
        InvalidArgument: numbers below 1.

    Source: Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021 (arXiv 2008.13535).
    """

    def __init__(self, width: int, layers: int = 3, *, rank: int | None = None):
        super().__init__()
        for name, number in (("width", width), ("layers", layers), ("rank", 1 if rank is None else rank)):
            if number < 1:
                raise InvalidArgument(name, "1 or more", number)
        self.layers = nn.ModuleList(
            nn.Linear(width, width) if rank is None else
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, W)` → `(B, W)`."""
        crossed = x
        for layer in self.layers:
            crossed = x * layer(crossed) + crossed
        return crossed


class Dice(nn.Module):
    """An activation that bends where the data lie: `p x + (1 − p) α x`, `p = sigmoid((x − mean) / deviation)`.

    Mean and deviation are those of the batch in training and running ones otherwise, as in batch normalisation; a batch
    of fewer than two rows, which has no deviation, takes the running ones in training too.

    Args:
        width: `E`; each channel has its own statistics and its own `α`, which starts at 0.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (arXiv 1706.06978), § 5.3.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.slope = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Values `(T, E)` → `(T, E)`."""
        norm: Any = self.norm
        if self.training and x.shape[0] > 1:
            share = norm(x).sigmoid()
        else:  # written out: batch_norm wants to know whether there are rows, which torch.export may not
            share = ((x - norm.running_mean) * (norm.running_var + norm.eps).rsqrt()).sigmoid().to(x.dtype)
        return (share + (1 - share) * self.slope.to(x.dtype)) * x


class DINAttention(nn.Module):
    """Let a small network say how much each event of a history speaks for a target: `Σ a(q, e) e`.

    `a` is an MLP on `[q, e, q − e, q ⊙ e]` with one output. These four are not made: `W [q, e, q − e, q ⊙ e]` is
    `(W₁ + W₃) q + (W₂ − W₃) e + W₄ (q ⊙ e)`, of which the first is computed once a target and the second once an event,
    however many targets read it. A target whose history is empty gets zeros.

    Args:
        width: `E`, of targets and events.
        hidden: widths of the hidden layers, at least one.
        activation: of the hidden layers.
        weights: what the network's output becomes: "none", as the paper has it, keeps how much there is of an interest
            beside what it is; "sigmoid" does so with weights from 0 to 1; "softmax" makes them a share of the history.

    Raises:
        InvalidArgument: widths below 1, no hidden layer, or a word that is none of these.

    Source: as `Dice`; its inputs are those of the authors' code.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (36,), *, activation: UnitActivation = "dice",
                 weights: UnitWeights = "none"):
        super().__init__()
        if not hidden or min(width, *hidden) < 1:
            raise InvalidArgument("hidden", "widths of 1 or more, at least one", tuple(hidden))
        for name, word, known in (("activation", activation, get_args(UnitActivation)),
                                  ("weights", weights, get_args(UnitWeights))):
            if word not in known:
                raise InvalidArgument(name, f"one of {', '.join(known)}{suggest(str(word), known)}", repr(word))
        self.weights = weights
        self.enter = nn.Linear(4 * width, hidden[0])
        make = {"dice": Dice, "silu": lambda _: nn.SiLU(), "relu": lambda _: nn.ReLU()}[activation]
        layers: list[nn.Module] = [make(hidden[0])]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), make(after)]
        self.unit = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, targets: Tensor, history: JaggedTensor, rows: Tensor | None = None,
                num_events: int | None = None) -> Tensor:
        """Return what each target `(M, E)` finds in its history, `(M, E)`.

        Args:
            targets: `(M, E)`; without `rows` M is B.
            history: values `(T, E)` in B rows.
            rows: `(M,)` int32 or int64, in any order: the row of each target. None: target `b` reads row `b`.
            num_events: how many events the targets read together, the sum of the lengths of `rows`, if known. None
                reads it from `rows`, which waits for the device if there is one.

        Raises:
            InvalidArgument: targets and rows that do not fit, a wrong `num_events`.
        """
        ends, events = _read(history.offsets, rows, num_events)
        if targets.dim() != 2 or targets.shape[0] != ends.shape[0] - 1:
            raise InvalidArgument("targets", f"shape ({ends.shape[0] - 1}, E)", tuple(targets.shape))
        scores = self.unit(self._enter(targets, history, rows, events.shape[0]))[:, 0]
        if self.weights != "none":
            scores = scores.sigmoid() if self.weights == "sigmoid" else softmax(scores, ends)
        return F.embedding_bag(events, history.values, ends, mode="sum", include_last_offset=True,
                               per_sample_weights=scores.to(history.dtype))  # events are weighed where they lie

    def _enter(self, targets: Tensor, history: JaggedTensor, rows: Tensor | None, num_events: int) -> Tensor:
        """Return the first layer's outputs `(T', F)`, of each target and each event that it reads."""
        layer = self.enter
        dtype = product_dtype(layer.weight)
        q, k, weight, bias = (x.to(dtype) for x in (targets, history.values, layer.weight.T, layer.bias))
        return target_unit(q, k, weight, bias, history.offsets, rows=rows, num_events=num_events)


def _read(offsets: Tensor, rows: Tensor | None, num_events: int | None) -> tuple[Tensor, Tensor]:
    """Return which events targets read of histories with `offsets` `(B + 1,)`; see `DINAttention.forward`.

    Those of target `m` are `events[ends[m]:ends[m + 1]]`, `(T',)` of ends `(M + 1,)`, both int64.
    """
    starts, lengths = offsets[:-1].long(), offsets.diff().long()
    if rows is not None:
        starts, lengths = starts[rows], lengths[rows]
    total: Any = num_events
    if total is None or readable(lengths):
        total = lengths.sum().item()  # in torch.export a number that stays open, which int() would not
        if num_events not in (None, total):
            raise InvalidArgument("num_events", f"{total}, the events that the targets read", num_events)
    ends = offsets_from_lengths(lengths)
    shift = torch.repeat_interleave(starts - ends[:-1], lengths, output_size=total)
    return ends, torch.arange(total, device=offsets.device) + shift

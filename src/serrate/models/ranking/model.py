"""A ranking model: what will somebody do with each item that they are shown, given all that is known of both?

Read top to bottom: features and histories → vectors → interactions → a network → an output for each task. What concerns
the state of a user is computed once for each state, and every candidate of it reads that.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument, suggest
from ...jagged import RankingBatch
from ...nn import CrossNetwork, DotInteraction, EmbeddingTables
from ...ops.broadcast import add
from ..tasks import predictions, weighted_losses
from .config import HistoryConfig, RankingConfig
from .features import Side, perceptron
from .history import AGES, History, age_column


class RankingModel(nn.Module):
    """Model of `K` tasks over the candidates of a `RankingBatch`.

    Candidates do not see each other: outside of training a score depends neither on how many there are nor on their
    order.

    Args:
        config: see `RankingConfig`.
        sizes: name of a table → its rows, that of the unknown counted. Tables that no feature reads are left alone.

    Raises:
        InvalidArgument: a table without a size.
    """

    histories: Any  # of History, which a ModuleList does not tell

    def __init__(self, config: RankingConfig, sizes: Mapping[str, int]):
        super().__init__()
        self.config = config
        self.tables = EmbeddingTables(_shapes(config, sizes), sparse=config.sparse)
        self.context, self.candidates = (
            Side(side, [feature for feature in config.features if feature.of == side], self.tables, config.bottom,
                 config.width) for side in ("context", "candidates"))
        self.histories = nn.ModuleList(History(history, self.tables, config.width) for history in config.histories)
        self.targets_of = [self._target(history) for history in config.histories]
        vectors = (len(self.context.names) + len(self.candidates.names)
                   + sum(history.shared + history.own for history in self.histories))
        wide = vectors * config.width
        crossed, dotted = config.interactions in ("cross", "both"), config.interactions in ("dot", "both")
        self.cross = CrossNetwork(wide, config.cross_layers, rank=config.cross_rank) if crossed else nn.Identity()
        self.dot = DotInteraction(vectors) if dotted else None
        inputs = wide + (vectors * (vectors - 1) // 2 if dotted else 0)
        widths = [inputs, *config.top]
        self.top = perceptron(widths, config.dropout)
        self.head = nn.Linear(widths[-1], len(config.tasks))

    def forward(self, batch: RankingBatch) -> Tensor:
        """Return what the model says of each candidate, `(M, K)` float32.

        These are outputs, of which `predictions` makes probabilities and values.

        Raises:
            InvalidArgument: a history, field or feature that is missing or of another kind, ids or numbers refused.
        """
        return self.outputs(self.interact(self.vectors(batch)))

    def loss(self, batch: RankingBatch, weights: Tensor | None = None) -> Tensor:
        """Return the scalar sum over all candidates of `batch` and all tasks, by the weights of these, float32.

        `weights` `(M,)` are those of the candidates, None: all ones.
        """
        losses = weighted_losses(self.config.tasks, self(batch), self.targets(batch))
        return losses.sum() if weights is None else (losses * weights).sum()

    def predict(self, batch: RankingBatch) -> Tensor:
        """Return the probability (of a binary task) or the value of each task, `(M, K)` float32."""
        return self.predictions(self(batch))

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the probability (of a binary task) or the value that each output `(M, K)` stands for, `(M, K)`."""
        return predictions(self.config.tasks, outputs)

    def targets(self, batch: RankingBatch) -> Tensor:
        """Return what the labels say of each task, `(M, K)`: 1 or 0, or spreads from the centre."""
        for task in self.config.tasks:
            if task.field not in batch.labels:
                raise InvalidArgument("labels", f"a label {task.field!r}, which task {task.name!r} reads",
                                      ", ".join(batch.labels) or "none")
        told = [task.target(batch.labels[task.field]) for task in self.config.tasks]
        return torch.stack(told, 1).to(self.head.weight.dtype)

    def vectors(self, batch: RankingBatch) -> Tensor:
        """Return the vectors of each candidate, `(M, n, E)`: context and states of histories, then its own."""
        shared = self.context(self.tables, batch.context)
        own = self.candidates(self.tables, batch.candidates)
        features = torch.cat(own, 1) if own else None
        ends = batch.candidate_offsets if batch.grouped else None
        for history, places in zip(self.histories, self.targets_of, strict=True):
            name = history.config.name
            if name not in batch.histories:
                raise InvalidArgument("histories", f"a history {name!r}{suggest(name, batch.histories)}",
                                      ", ".join(batch.histories) or "none")
            asked = batch.context.get("asked")
            events = history.encode(self.tables, batch.histories[name], asked if isinstance(asked, Tensor) else None)
            targets = None if features is None else _sum_of(features, places)
            of_states, of_candidates = history.read(events, targets, (batch.owner, ends), batch.pairs.get(name))
            shared += of_states
            own += of_candidates
        return torch.cat([_of_owners(torch.cat(shared, 1), batch.owner, ends), *own] if shared else own, 1)

    def interact(self, vectors: Tensor) -> Tensor:
        """Return what the network makes of vectors `(M, n, E)` and their interactions, `(M, W)`."""
        crossed = self.cross(vectors.flatten(1))
        return self.top(crossed if self.dot is None else torch.cat([crossed, self.dot(vectors)], 1))

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return `(M, K)` float32, an output for each task, of `(M, W)`.

        Computed in the dtype of the weights also under autocast: probabilities of half precision would tie.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))

    def _target(self, history: HistoryConfig) -> list[int]:
        """Return where among the candidates' vectors those stand whose sum asks a history."""
        return [self.candidates.names.index(name) for name in self.config.target(history)]


def _sum_of(vectors: Tensor, places: list[int]) -> Tensor | None:
    """Return the sum `(M, E)` of the vectors `(M, n, E)` at `places`; None: of none."""
    return reduce(torch.add, [vectors[:, place] for place in places]) if places else None


def _of_owners(shared: Tensor, owner: Tensor, ends: Tensor | None) -> Tensor:
    """Return the vectors `(M, n, E)` of the candidates' states, of those of all states `(U, n, E)`.

    With `ends`, by which candidates lie together, gradients are sums over rows; else they are sorted for it.
    """
    if ends is None:
        return shared[owner]
    flat = shared.flatten(1)
    nothing = flat.new_zeros(1, flat.shape[1]).expand(owner.shape[0], -1)
    return add(nothing, flat, ends, along="rows").unflatten(1, shared.shape[1:])


def _shapes(config: RankingConfig, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return rows and width of each table that is read."""
    shapes = {}
    for column in config.columns():
        if column.table not in sizes:
            raise InvalidArgument("sizes", f"rows of table {column.table!r}, which {column.name!r} reads"
                                  f"{suggest(column.table, sizes)}", ", ".join(sizes) or "none")
        shapes[column.table] = (sizes[column.table], config.widths.get(column.table, config.width))
    for history in config.histories:
        if history.age:
            shapes[age_column(history).table] = (AGES, config.width)
    return shapes

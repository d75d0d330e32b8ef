"""From a history to what candidates read in it: events, layers over them, reads."""

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...jagged import EventBatch, JaggedTensor
from ...nn import (
    AttentionPooling,
    Column,
    DINAttention,
    EmbeddingTables,
    HSTULayer,
    HSTUOptions,
    TargetAttention,
    TransformerBlock,
    ages,
)
from ...ops.attention import Mask
from ...ops.lookup import lookup
from ...ops.pool import pool
from ...ops.transformer import Layer, norm_linear
from ..hstu.config import TIME_BUCKETS
from .config import DIN, PMA, HistoryConfig, HSTULayers, Pooling, Target, TransformerLayers
from .features import Embedded

AGES = 34  # rows of a table of ages: less than a second, then one for each power of two, the last from 136 years on
_SPREAD = 0.02  # standard deviation of new positions, as of tables


class History(nn.Module):
    """One history: encoded once for each state, however many candidates read it.

    Args:
        config: see `HistoryConfig`.
        tables: those of its fields, and that of `age_column(config)` where it has `age`.
        width: `E`.

    Attributes:
        shared: how many vectors it gives for all candidates of a state together.
        own: how many it gives for each candidate.
    """

    boundaries: Tensor

    def __init__(self, config: HistoryConfig, tables: EmbeddingTables, width: int):
        super().__init__()
        self.config = config
        columns = [field.column for field in config.fields]
        self.embedded = Embedded(tables, columns + ([age_column(config)] if config.age else []), width)
        self.register_buffer("boundaries", 2 ** torch.arange(AGES - 1), persistent=False)
        learned = isinstance(config.layers, TransformerLayers)
        self.positions = nn.Embedding(config.max_length, width) if learned else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=_SPREAD)
        self.layers = nn.ModuleList(_layers(config, width))
        self.norm = nn.LayerNorm(width) if self.layers else None
        self.reads = nn.ModuleList(_module(read, width) for read in config.reads)
        self.shared = sum(read.queries if isinstance(read, PMA) else isinstance(read, Pooling) for read in config.reads)
        self.own = sum(isinstance(read, Target | DIN) for read in config.reads)

    def encode(self, tables: EmbeddingTables, history: EventBatch, asked: Tensor | None) -> JaggedTensor:
        """Return the events of U states after the layers, values `(T, E)`.

        `asked` `(U,)` int64 in seconds is when candidates are shown; read where the history has `age`.

        Raises:
            InvalidArgument: a field that is missing, ids that are refused, no `asked`.
        """
        fields = {field.name: self._field(history, field.name) for field in self.config.fields}
        if self.config.age:
            fields[age_column(self.config).name] = self._ages(history, asked)
        x = JaggedTensor.trusted(self.embedded.summed(tables, fields), history.offsets, history.longest)
        if self.positions is not None:
            place = ages(x).clamp(max=self.config.max_length - 1)
            x = x.with_values(x.values + lookup(self.positions.weight, place[:, None], how="sum"))
        timed = isinstance(self.config.layers, HSTULayers) and self.config.layers.time
        options = {"key_times": self._field(history, "time")} if timed else {}
        for layer in self.layers:
            x = layer(x, **options)
        if self.norm is None:
            return x
        return x.with_values(norm_linear(x.values, Layer(self.norm.weight, self.norm.bias), eps=self.norm.eps))

    def read(self, x: JaggedTensor, targets: Tensor | None, rows: tuple[Tensor, Tensor | None],
             pairs: int | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return vectors of states, each `(U, k, E)`, and of candidates, each `(M, 1, E)`, from events `(T, E)`.

        Args:
            x: the events, as `encode` gave them.
            targets: `(M, E)`, what candidates ask with; None where none of the reads is theirs.
            rows: `(M,)` int64, the state of each candidate; `(U + 1,)` int64, where those of each state begin, if they
                lie together.
            pairs: how many events the candidates read together, if known.
        """
        (owner, ends), shared, own = rows, [], []
        for read, module in zip(self.config.reads, self.reads, strict=True):
            if isinstance(read, Pooling):
                shared.append(pool(x.values, x.offsets, how=read.how)[:, None])
            elif isinstance(read, PMA):
                shared.append(module(x))
            elif isinstance(read, Target):
                own.append(module(targets, x, owner, ends)[:, None])
            else:
                own.append(module(targets, x, owner, pairs)[:, None])
        return shared, own

    def _field(self, history: EventBatch, name: str) -> Tensor:
        if name not in history.events:
            raise InvalidArgument(f"histories[{self.config.name!r}]", f"a field {name!r}", ", ".join(history))
        return history[name].values

    def _ages(self, history: EventBatch, asked: Tensor | None) -> Tensor:
        """Return the age of each event as a row of the table of ages, `(T,)` int64."""
        happened = self._field(history, "time")
        if asked is None or asked.dim() != 1 or asked.dtype.is_floating_point:
            got = "none" if asked is None else f"{tuple(asked.shape)} {asked.dtype}"
            raise InvalidArgument("context['asked']", f"int64 (U,), as history {self.config.name!r} reads ages", got)
        return torch.bucketize(asked[history["time"].row_index()] - happened, self.boundaries, right=True)


def age_column(history: HistoryConfig) -> Column:
    """Return what reads the ages of a history's events, from a table of its own."""
    return Column(f"age in {history.name}", f"age in {history.name}")


def _layers(history: HistoryConfig, width: int) -> list[nn.Module]:
    config = history.layers
    if isinstance(config, HSTULayers):
        options = HSTUOptions(dropout=config.dropout, normaliser=float(history.max_length),
                              position_reach=history.max_length, time_buckets=TIME_BUCKETS if config.time else 0)
        return [HSTULayer(width, config.heads, options) for _ in range(config.blocks)]
    if config is None:
        return []
    return [TransformerBlock(width, config.heads, config.feedforward or 4 * width, config.dropout,
                             mask=Mask(causal=config.causal)) for _ in range(config.blocks)]


def _module(read: Pooling | PMA | Target | DIN, width: int) -> nn.Module:
    if isinstance(read, PMA):
        return AttentionPooling(width, read.heads, read.queries)
    if isinstance(read, Target):
        return TargetAttention(width, read.heads)
    if isinstance(read, DIN):
        return DINAttention(width, read.hidden, activation=read.activation, weights=read.weights)
    return nn.Identity()

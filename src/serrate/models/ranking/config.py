"""What a ranking model is made of: features, histories and what reads them, interactions, tasks."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ...config import Config
from ...errors import suggest
from ...nn import Column
from ...nn.interactions import UnitActivation, UnitWeights
from ..tasks import Tasks

_Name = Annotated[str, StringConstraints(min_length=1)]
_Width = Annotated[int, Field(ge=1)]


class FieldConfig(Config):
    """Ids, each a row of a table; row 0 is the unknown."""

    name: _Name
    table: _Name | None = Field(default=None, description="whose rows the ids are; null: a table of this name")
    unknown: Literal["refuse", "fallback"] = Field(
        default="refuse", description="ids that the table has no row for: an error (on the CPU), or row 0")

    @property
    def column(self) -> Column:
        """What reads it."""
        return Column(self.name, self.table or self.name, self.unknown)


class CategoricalFeature(FieldConfig):
    """One id."""

    kind: Literal["categorical"] = "categorical"
    of: Literal["context", "candidates"] = "candidates"


class MultiFeature(FieldConfig):
    """Any number of ids, whose embeddings are pooled."""

    kind: Literal["multi"] = "multi"
    of: Literal["context", "candidates"] = "candidates"
    pooling: Literal["mean", "sum"] = "mean"


class DenseFeature(Config):
    """A number, read as `(transform(x) − centre) / spread`."""

    kind: Literal["dense"] = "dense"
    name: _Name
    of: Literal["context", "candidates"] = "candidates"
    transform: Literal["none", "log1p"] = Field(default="none", description="log1p: of its size, the sign kept")
    centre: float | None = Field(
        default=None, description="a usual value, after the transform; null: as a run measures it in training, or 0")
    spread: float | None = Field(
        default=None, gt=0, description="how far values are from it, after the transform; null: as measured, or 1")
    missing: float | None = Field(
        default=0.0, description="read in place of NaN and infinity, in spreads from the centre; null: an error (CPU)")


FeatureConfig = Annotated[DenseFeature | CategoricalFeature | MultiFeature, Field(discriminator="kind")]


class TransformerLayers(Config):
    """Events attend to each other, with learned positions that count from the newest; see `nn.TransformerBlock`."""

    kind: Literal["transformer"] = "transformer"
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    feedforward: int | None = Field(default=None, ge=1, description="width of the feed-forward layer; null: 4 · width")
    causal: bool = Field(default=False, description="events see those before them alone")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class HSTULayers(Config):
    """HSTU layers, causal, which know distances in position and, with `time`, in time; see `nn.HSTULayer`."""

    kind: Literal["hstu"] = "hstu"
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    time: bool = Field(default=False, description="a bias by the time between events, of the field `time`")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Pooling(Config):
    """The mean, sum or maximum of the events: one vector for all candidates of a state."""

    kind: Literal["pooling"] = "pooling"
    how: Literal["mean", "sum", "max"] = "mean"


class PMA(Config):
    """Learned queries attend to the events: `queries` vectors for all candidates of a state; `nn.AttentionPooling`."""

    kind: Literal["pma"] = "pma"
    heads: int = Field(default=2, ge=1)
    queries: int = Field(default=1, ge=1)


class Target(Config):
    """Each candidate attends to the events, by a softmax of products; see `nn.TargetAttention`."""

    kind: Literal["target"] = "target"
    heads: int = Field(default=2, ge=1)


class DIN(Config):
    """A small network says how much each event speaks for each candidate; see `nn.DINAttention`."""

    kind: Literal["din"] = "din"
    hidden: tuple[_Width, ...] = Field(default=(36,), min_length=1)
    activation: UnitActivation = "dice"
    weights: UnitWeights = "none"


LayersConfig = Annotated[TransformerLayers | HSTULayers, Field(discriminator="kind")]
ReadConfig = Annotated[Pooling | PMA | Target | DIN, Field(discriminator="kind")]


class HistoryConfig(Config):
    """A history of the user: an event is the sum of its fields' embeddings, layers may mix events, reads make vectors.

    Rows may be at most `max_length` events long; older events are the caller's to cut.
    """

    name: _Name
    fields: tuple[FieldConfig, ...] = Field(min_length=1, description="of an event: item, category, action, …")
    age: bool = Field(default=False, description="also how long before `asked` its `time` is, in powers of two seconds")
    max_length: int = Field(default=200, ge=1, description="newest events of a history that the model reads")
    layers: LayersConfig | None = None
    reads: tuple[ReadConfig, ...] = Field(default=(Target(),), min_length=1)
    target: tuple[_Name, ...] = Field(
        default=(), description="candidates' categorical features whose sum asks; empty: those whose table it reads")

    @property
    def reads_time(self) -> bool:
        """Whether it needs to know when events happened."""
        return self.age or (isinstance(self.layers, HSTULayers) and self.layers.time)

    @property
    def reads_targets(self) -> bool:
        """Whether candidates ask this history."""
        return any(isinstance(read, Target | DIN) for read in self.reads)


class RankingConfig(Config):
    """A ranking model: vectors of features and histories, their interactions, a network and an output for each task."""

    kind: Literal["ranking"] = "ranking"
    width: int = Field(default=64, ge=1, description="E, of the vector of a feature, an event or a history")
    widths: dict[str, _Width] = Field(
        default={}, description="table → its own width, where another; its embeddings are projected to width")
    sparse: bool = Field(default=False, description="gradients of tables hold the rows read alone, for RowwiseAdagrad")
    features: tuple[FeatureConfig, ...] = ()
    histories: tuple[HistoryConfig, ...] = ()
    bottom: tuple[_Width, ...] = Field(default=(64,), description="hidden layers between dense features and vector")
    interactions: Literal["dot", "cross", "both"] = "cross"
    cross_layers: int = Field(default=3, ge=1)
    cross_rank: int | None = Field(default=None, ge=1, description="of the cross layers' matrices; null: whole")
    top: tuple[_Width, ...] = Field(default=(256, 128), description="hidden layers between interactions and tasks")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the top's hidden numbers dropped in training")
    tasks: Tasks = Field(description="what is predicted of a candidate, each told by a label")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for kind, names in (("features", [f"{feature.name} of {feature.of}" for feature in self.features]),
                            ("histories", [history.name for history in self.histories])):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{kind}: {name!r} is given twice")
        if not any(self.columns()):
            raise ValueError("features: at least one of ids, or a history")
        for history in self.histories:
            self._check(history)
        tables = {column.table for column in self.columns()}
        for table in self.widths:
            if table not in tables:
                raise ValueError(f"widths: no table {table!r}{suggest(table, tables)}")
        return self

    def _check(self, history: HistoryConfig) -> None:
        for part in (history.layers, *history.reads):
            if isinstance(part, TransformerLayers | HSTULayers | PMA | Target) and self.width % part.heads:
                raise ValueError(f"history {history.name!r}: heads must divide width {self.width}, got {part.heads}")
        known = [feature.name for feature in self.features
                 if isinstance(feature, CategoricalFeature) and feature.of == "candidates"]
        for name in history.target:
            if name not in known:
                raise ValueError(f"history {history.name!r}: target {name!r} is no categorical feature of candidates"
                                 f"{suggest(name, known)}")
        if history.reads_targets and not self.target(history):
            raise ValueError(f"history {history.name!r}: no categorical feature of candidates reads a table of its "
                             "fields; say which ask in target")

    def target(self, history: HistoryConfig) -> tuple[str, ...]:
        """Return the names of the candidates' features whose sum asks a history."""
        tables = {field.column.table for field in history.fields}
        return history.target or tuple(
            feature.name for feature in self.features if isinstance(feature, CategoricalFeature)
            and feature.of == "candidates" and feature.column.table in tables)

    def columns(self) -> Iterator[Column]:
        """Yield what reads tables: features, then the fields of histories."""
        yield from (feature.column for feature in self.features if not isinstance(feature, DenseFeature))
        yield from (field.column for history in self.histories for field in history.fields)

"""How a log is read (`DataConfig`), how its histories are divided (`SplitConfig`), what is ranked (`SamplesConfig`)."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from ..config import Config

ColumnName = Annotated[str, StringConstraints(min_length=1)]
RESERVED_FIELDS = frozenset({"user", "item", "time", "asked", "position", "weight", "target", "offsets", "truth"})


class ColumnMapping(Config):
    """Which column of the log is what.

    One order column at most: `time` (integer, kept as it is; float, seconds; date or timestamp) or `position`
    (any number, used for the order and not kept). With neither, the order of the file counts.
    `weight` is how much an event counts as a training target (0: input only). `features` are numeric columns
    that become jagged fields of the same name.
    """

    user: ColumnName = "user"
    item: ColumnName = "item"
    time: ColumnName | None = None
    position: ColumnName | None = None
    weight: ColumnName | None = None
    features: tuple[ColumnName, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user == self.item:
            raise ValueError(f"user and item are the same column {self.user!r}")
        if self.time is not None and self.position is not None:
            raise ValueError("time and position are both given; exactly one column can give the order")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features names a column twice")
        for name in self.features:
            if name in RESERVED_FIELDS:
                raise ValueError(f"features: {name!r} is the name of a field of its own; rename the column")
        return self


class ItemTable(Config):
    """A side table: `key` matches the log's item column, `id` replaces it, `title` is for reports.

    `path` is a file as it stands, or one beside the log. With `unseen` the items of the table that have no event are
    items too: candidates of every ranking, after all others in dense order.
    """

    path: str
    key: ColumnName
    id: ColumnName | None = None
    title: ColumnName | None = None
    unseen: bool = False


class DataConfig(Config):
    """How a log becomes histories. Order of work: filter, repeats, minimum counts."""

    columns: ColumnMapping = ColumnMapping()
    format: Literal["auto", "parquet", "csv", "json", "inter", "movielens"] = "auto"
    filter: str | None = None  # an SQL condition over the columns of the log, such as rating >= 4
    items: ItemTable | None = None
    min_user_events: int = Field(default=1, ge=1)
    min_item_events: int = Field(default=1, ge=1)
    repeats: Literal["keep", "first", "last", "collapse"] = "keep"
    memory_limit: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$")] = "2GB"
    threads: int | None = Field(default=None, ge=1)


def _time(value: float | int | str) -> float | int | str:
    """Return `value`, where a split may begin; a text must be an ISO date."""
    if isinstance(value, str):
        datetime.fromisoformat(value)
    return value


class SplitConfig(Config):
    """How histories are divided into training, validation and test.

    `validation_from` and `test_from` serve two of the kinds. Held-out users: a share of the users. Temporal split: a
    number between 0 and 1 is a quantile of the events' times, any other number a time in the log's unit, a text an ISO
    date (for times in microseconds). `target` serves the temporal split.
    """

    kind: Literal["leave-last-two-out", "held-out-users", "temporal"] = "leave-last-two-out"
    validation_from: float | int | str = 0.8
    test_from: float | int | str = 0.9
    target: Literal["each", "first", "all"] = "each"

    @field_validator("validation_from", "test_from")
    @classmethod
    def _readable(cls, value: float | int | str) -> float | int | str:
        return _time(value)


class NegativesConfig(Config):
    """Items that a user did not take, drawn beside each one that they took.

    Never an item of the user's own history, past or to come. `popularity`: in proportion to one more than the events
    that an item has in training.
    """

    count: int = Field(default=1, ge=1, description="negatives of each positive")
    by: Literal["uniform", "popularity"] = "uniform"
    label: ColumnName = Field(default="positive", description="the label that tells them apart: 1, of a negative 0")
    seed: int = Field(default=0, ge=0)


class SamplesConfig(Config):
    """Which events of a log are to be predicted, what of them, and when training ends.

    `labels` are SQL expressions over the time and the features of an event, such as `rating >= 4` or `rating`; with
    `negatives` there may be none, for that an event happened is a label of its own. `validation_from` and `test_from`
    are those of a temporal split; of a log without times, shares of each user's events.
    """

    labels: dict[ColumnName, str] = Field(default={})
    min_history: int = Field(default=1, ge=0, description="events before a sample, at least")
    negatives: NegativesConfig | None = None
    validation_from: float | int | str = 0.8
    test_from: float | int | str = 0.9

    @field_validator("validation_from", "test_from")
    @classmethod
    def _readable(cls, value: float | int | str) -> float | int | str:
        return _time(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.labels and self.negatives is None:
            raise ValueError("labels: there is nothing to predict; give a label, or negatives")
        if self.negatives is not None and self.labels:
            raise ValueError("labels: a negative has none; give labels or negatives")
        return self

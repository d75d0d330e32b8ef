"""A saved run of a ranking model, loaded: requests in, a probability or a value of each task out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..config import Config
from ..data import DataConfig, Features, Histories, RankingData, data_of, select
from ..data.times import read_seconds, seconds
from ..errors import InvalidArgument, InvalidData, InvalidRun, suggest
from ..jagged import EventBatch, JaggedTensor, RankingBatch, newest
from ..models import RankingConfig, RankingModel
from ..models.ranking.config import HistoryConfig
from ..run_folder import RunFolder
from .loading import device_named, load_weights, settings_of

ASKED, REQUEST = "asked", "request"


class _Settings(Config):
    """What scoring reads of config.json."""

    model: RankingConfig
    data: DataConfig


class Scorer:
    """The model, the features and, to look up users, the data set of a saved run.

    Attributes:
        config: content of config.json.
        model: the trained model, in evaluation mode.
        features: what is known of items, users and events.
        data_config: how the training log was read, whose names of columns requests have too.
    """

    def __init__(self, config: dict[str, Any], model: RankingModel, features: Features, data_config: DataConfig,
                 place: Path):
        self.config = config
        self.model = model
        self.features = features
        self.data_config = data_config
        self._place = place
        self._known: RankingData | None = None

    @classmethod
    def open(cls, path: Path | str, *, device: str = "auto") -> Self:
        """Load a saved run of a ranking model; `device` is `auto`, `cpu` or `cuda`.

        Raises:
            InvalidRun: not a saved run, not finished, damaged, of another kind or of a format that cannot be read.
            InvalidArgument: a device that is not there.
        """
        place, folder = device_named(device), RunFolder(path)
        config = folder.read_config()
        kind = config.get("model", {}).get("kind")
        if kind != "ranking":
            raise InvalidRun(f"run: {folder.path} has a model of the next item ({kind}), which recommends: "
                             "use serrate recommend")
        settings = settings_of(_Settings, config, folder)
        try:
            features = Features.open(folder.features_path)
            model = RankingModel(settings.model, features.sizes)
        except (InvalidData, InvalidArgument) as error:
            raise InvalidRun(f"run: {error}") from None
        load_weights(model, folder)
        return cls(config, model.eval().to(place), features, settings.data, folder.path)

    @property
    def tasks(self) -> list[str]:
        """The names of what is predicted."""
        return [task.name for task in self.model.config.tasks]

    def score(self, requests: pa.Table, name: str = "requests") -> Tensor:
        """Return what the model says of each request, `(M, K)` float32: a probability or a value of each task.

        A row is a candidate, in columns of the training log's names: its item, and what is known when it is shown.
        Columns of the tables of items and users are read where a request has them, and looked up where not. Whom it is
        shown to is told

        - by the user, whose events are those of the run's data set, before `asked` where that is given; or
        - by the events themselves: a list column `HISTORY.COLUMN` for each history and what the model reads of its
          events, such as `all.item_id`, `all.timestamp`, oldest event first. Rows that have the same value in a column
          `request` are of one user at one moment, told by the first of them.

        `asked` is a time, as in the training log; without it requests are asked when the newest event happened. What
        is unknown (users, items, categories, numbers) is read as the model's features say.

        Raises:
            InvalidData: a column that is missing or of a wrong type, lists of one history that differ in length,
                values that a feature refuses; users where the run's data set is not there.
        """
        try:
            batch = self._batch(requests, name)
        except InvalidArgument as error:
            raise InvalidData(f"{name}: {error}") from None
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            return self.model.predict(batch.to(device)).cpu()

    def _batch(self, table: pa.Table, name: str) -> RankingBatch:
        user, item = self.data_config.columns.user, self.data_config.columns.item
        _require(table, item, name)
        inline = any(column.startswith(f"{history.name}.") for history in self.model.config.histories
                     for column in table.column_names)
        if not inline and self.model.config.histories:
            _require(table, user, name, f", or columns of histories, such as "
                                        f"'{self.model.config.histories[0].name}.{item}'")
        users = self.features.users.ids(table[user]) if user in table.column_names else torch.zeros(
            len(table), dtype=torch.int64)
        asked = read_seconds(ASKED, table[ASKED].combine_chunks()) if ASKED in table.column_names else None
        first, owner = _states(table, users, asked, inline)
        of_states = table.take(pa.array(first.numpy()))
        users, asked = users[first], None if asked is None else asked[first]
        histories = (self._told if inline else self._looked_up)(of_states, users, asked, name)
        context = {"user": users, **self._columns("users", of_states, users)}
        context["asked"] = asked if asked is not None else _newest_times(histories.values(), len(first))
        items = self.features.items.ids(table[item])
        shown = {column.name: self._encoded(column.name, column.source, table, name)
                 for column in self.features.config.events if column.name in self.features.config.shown}
        candidates = {"item": items, **self._columns("items", table, items), **shown}
        return RankingBatch(owner, histories, context, candidates)

    def _columns(self, role: str, table: pa.Table, ids: Tensor) -> dict[str, Tensor | JaggedTensor]:
        """Return the columns of items or users: of the requests where these have them, else of the tables."""
        side, entities = getattr(self.features.config, role), getattr(self.features, role)
        there = [] if side is None else [column for column in side.columns if column.source in table.column_names]
        return {**entities.of(ids), **{column.name: self.features.encoders[column.name].encode(table[column.source])
                                       for column in there}}

    def _encoded(self, name: str, source: str, table: pa.Table, where: str) -> Tensor | JaggedTensor:
        _require(table, source, where)
        return self.features.encoders[name].encode(table[source])

    def _looked_up(self, table: pa.Table, users: Tensor, asked: Tensor | None, name: str) -> dict[str, EventBatch]:
        """Return the histories of users of the data set, as they were when asked; a new user has none."""
        data = self._data()
        log = data.histories
        known = users > 0
        rows = (users - 1).clamp(min=0)
        ends = torch.where(known, log.lengths[rows], 0)
        if asked is not None and log.has_time:
            ends = _before(log, rows, ends, asked)
        return {history.name: data.history(history.name, rows, ends, history.max_length)
                for history in self.model.config.histories}

    def _told(self, table: pa.Table, users: Tensor, asked: Tensor | None, name: str) -> dict[str, EventBatch]:
        """Return the histories that requests hold."""
        return {history.name: newest(self._listed(history, table, name), history.max_length)
                for history in self.model.config.histories}

    def _listed(self, history: HistoryConfig, table: pa.Table, name: str) -> EventBatch:
        columns, features = self.data_config.columns, self.features
        wanted = [field.name for field in history.fields]
        sources = {column.name: column.source for column in features.config.events if column.name in wanted}
        if history.reads_time:
            sources["time"] = columns.time or "time"
        if len(wanted) > len(sources) - history.reads_time:  # what is no column of events is the item, or told by it
            sources["item"] = columns.item
        lists = {field: _lists(table, f"{history.name}.{source}", name) for field, source in sources.items()}
        (first, (_, lengths)), *others = lists.items()
        for field, (_, own) in others:
            if not np.array_equal(own, lengths):
                row = int(np.flatnonzero(own != lengths)[0])
                raise InvalidData(f"{name}: expected as many values in '{history.name}.{sources[field]}' as in "
                                  f"'{history.name}.{sources[first]}', got {own[row]} and {lengths[row]} in row "
                                  f"{row + 1}")
        fields: dict[str, Tensor] = {}
        for field, (values, _) in lists.items():
            if field == "item":
                fields["item"] = features.items.ids(values)
                fields |= {column: found for column, found in features.items.of(fields["item"], features.single).items()
                           if isinstance(found, Tensor)}
            elif field == "time":
                fields["time"] = read_seconds(f"{history.name}.{sources[field]}", values)
            elif isinstance(found := features.encoders[field].encode(values), Tensor):
                fields[field] = found
        return EventBatch({field: JaggedTensor.from_lengths(values, torch.from_numpy(lengths))
                           for field, values in fields.items()})

    def _data(self) -> RankingData:
        """Open the run's data set, once."""
        if self._known is None:
            log = data_of(self._place)
            if len(log.users) != len(self.features.users.vocabulary):
                raise InvalidData(f"{log.path}: its users are not those that {self._place} was trained on")
            self._known = RankingData(log, self.features, select(log, self.features.config.histories))
        return self._known


def _require(table: pa.Table, column: str, name: str, otherwise: str = "") -> None:
    if column not in table.column_names:
        raise InvalidData(f"{name}: expected a column {column!r}{otherwise}, got {', '.join(table.column_names)}"
                          f"{suggest(column, table.column_names)}")


def _states(table: pa.Table, users: Tensor, asked: Tensor | None, inline: bool) -> tuple[Tensor, Tensor]:
    """Return the first request `(U,)` of each state, in ascending order, and the state `(M,)` of each request."""
    if REQUEST in table.column_names:
        keys = pa.array(table[REQUEST].combine_chunks()).dictionary_encode(null_encoding="encode")
        parts = [np.asarray(keys.indices.to_numpy(zero_copy_only=False), dtype=np.int64)]
    elif inline:
        parts = [np.arange(len(table))]
    else:  # unknown users have no history, but may differ in what a request tells of them
        parts = [np.where(users.numpy() > 0, users.numpy(), -1 - np.arange(len(table)))]
        parts += [] if asked is None else [asked.numpy()]
    _, first, owner = np.unique(np.stack(parts, 1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(place[owner.reshape(-1)])


def _before(log: Histories, rows: Tensor, ends: Tensor, asked: Tensor) -> Tensor:
    """Return how many of the first `ends` events of `rows` happened before `asked`, each `(U,)` int64."""
    times, starts = log.fields["time"], log.offsets[rows]
    low, high = torch.zeros_like(ends), ends.clone()
    while bool((low < high).any()):  # a search in all rows at once
        middle = (low + high) // 2
        at = (starts + middle).clamp(max=max(len(times) - 1, 0))
        earlier = seconds(times[at], log.ticks_per_second) < asked
        open_ = low < high
        low = torch.where(open_ & earlier, middle + 1, low)
        high = torch.where(open_ & ~earlier, middle, high)
    return low


def _lists(table: pa.Table, column: str, name: str) -> tuple[pa.Array, np.ndarray]:
    """Return the values of a list column end to end, and how many each row has `(U,)` int64."""
    _require(table, column, name)
    lists = table[column].combine_chunks()
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise InvalidData(f"{name}: expected lists in column {column!r}, got {lists.type}")
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten(), lengths


def _newest_times(histories: Iterable[EventBatch], states: int) -> Tensor:
    """Return when the newest event of each state happened, `(U,)` int64, 0 for one without events or times."""
    found = torch.zeros(states, dtype=torch.int64)
    for history in histories:
        if "time" in history.events:
            time = history["time"]
            filled = time.lengths > 0
            found[filled] = found[filled].maximum(time.values[time.offsets[1:][filled] - 1])
    return found

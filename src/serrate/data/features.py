"""What a ranking model reads of items, users and events: side tables encoded once, a row an id; saved with a run.

A folder of features, readable without us:

    features.json     format version, the `FeaturesConfig`, the known values of each column in the order of their ids
    items.parquet     a row an id, the first for items that are unknown: raw id, then each column as a model reads it
    users.parquet     the same of users
"""

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import Config
from ..errors import InvalidData, suggest
from ..files import write_aside, write_folder_aside, write_json
from ..jagged import JaggedTensor, gather_rows
from .config import RESERVED_FIELDS, ColumnName
from .encoding import Column, Encoder, MultiColumn, places_of
from .engine import open_engine, quoted, reading
from .events import check_column, id_column
from .histories import Histories
from .sources import ROW, Wanted, beside, open_source
from .vocabulary import Vocabulary

FORMAT_VERSION = 1


class SideTable(Config):
    """A table about items or users: `key` matches the log's id; `path` is a file as it stands, or beside the log."""

    path: str
    key: ColumnName
    columns: tuple[Column, ...] = Field(min_length=1)


class FeaturesConfig(Config):
    """What a model may read beside ids and times.

    `histories` are the histories of a user: SQL conditions over an event's time and features, such as `rating >= 4`;
    null is all events. `events` are columns of the log (its features) that tell of the events of every history; those
    that `shown` names are known of a candidate too, when it is shown. `items` tell of events and candidates, those that
    hold several values of candidates alone; `users` tell of users.
    """

    histories: dict[ColumnName, str | None] = Field(default={"all": None})
    events: tuple[Column, ...] = ()
    shown: tuple[ColumnName, ...] = ()
    items: SideTable | None = None
    users: SideTable | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [column.name for column in self.columns]
        for name in names:
            if name in RESERVED_FIELDS:
                raise ValueError(f"{name!r} is the name of a field of its own; name the column otherwise")
            if names.count(name) > 1:
                raise ValueError(f"two columns are called {name!r}")
        for column in self.events:
            if isinstance(column, MultiColumn):
                raise ValueError(f"events: {column.name!r} is multi, and a field of the log holds one number an event")
        for name in self.shown:
            if name not in [column.name for column in self.events]:
                raise ValueError(f"shown: {name!r} is not among events")
        return self

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of events, items and users together."""
        sides = [side.columns for side in (self.items, self.users) if side is not None]
        return (*self.events, *(column for columns in sides for column in columns))


@dataclass(frozen=True, eq=False)
class Entities:
    """Items, or users: which raw id has which id, and what is known of each, row 0 standing for the unknown.

    Attributes:
        vocabulary: the raw ids of ids 1 … n, in this order.
        columns: name → `(n + 1,)`, or a `JaggedTensor` of `n + 1` rows: ids int64, numbers float32.
    """

    vocabulary: Vocabulary
    columns: dict[str, Tensor | JaggedTensor]

    def ids(self, raw: Any) -> Tensor:
        """Return the ids `(M,)` int64 of raw ones, 0 for one that is unknown."""
        return torch.from_numpy(self.vocabulary.encode(raw) + 1)

    def of(self, ids: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor | JaggedTensor]:
        """Return what is known of `ids` `(M,)`, a column each; those of `names` alone, if given."""
        return {name: values[ids] if isinstance(values, Tensor) else gather_rows(values, ids)
                for name, values in self.columns.items() if names is None or name in names}


class Features:
    """The encoders of all columns, and the encoded side tables.

    Attributes:
        config: what they were made from.
        encoders: name of a column → what encodes it.
        items, users: what is known of each.
    """

    def __init__(self, config: FeaturesConfig, encoders: dict[str, Encoder], items: Entities, users: Entities):
        self.config = config
        self.encoders = encoders
        self.items = items
        self.users = users

    @classmethod
    def read(cls, histories: Histories, config: FeaturesConfig) -> Self:
        """Read the side tables of a log and make ids of what they and its fields hold.

        Ids say which values there are, in the tables and the log as a whole; they say nothing of what became of an
        event, so nothing of the test is learnt from them. An item or user that its table does not name has nulls.

        Raises:
            InvalidData: a column that is missing or of a wrong type, a key twice, a value that its column refuses.
        """
        encoders: dict[str, Encoder] = {}
        for column in config.events:
            if column.source not in histories.fields:
                known = ", ".join(histories.fields)
                raise InvalidData(f"events: the log has no field {column.source!r}; there are {known}"
                                  f"{suggest(column.source, histories.fields)} (data.columns.features)")
            encoders[column.name] = Encoder.fitted(column, pa.array(histories.fields[column.source].numpy()))
        made = []
        source = histories.summary().get("source")
        for role, side, vocabulary in (("items", config.items, histories.items),
                                       ("users", config.users, histories.users)):
            tables = _read(role, side, vocabulary, source) if side is not None else {}
            columns = {}
            for column in side.columns if side is not None else ():
                whole, rows = tables[column.source]
                encoders[column.name] = encoder = Encoder.fitted(column, whole)
                columns[column.name] = _with_unknown(encoder, encoder.encode(rows))
            made.append(Entities(vocabulary, columns))
        return cls(config, encoders, *made)

    @property
    def sizes(self) -> dict[str, int]:
        """Name of an id → rows of its embedding table, that of the unknown counted: `item`, `user`, and each column."""
        return {"item": len(self.items.vocabulary) + 1, "user": len(self.users.vocabulary) + 1,
                **{name: encoder.size for name, encoder in self.encoders.items() if encoder.size is not None}}

    @property
    def single(self) -> set[str]:
        """The columns of items that hold one value, which events have too."""
        return {name for name in self.items.columns if not isinstance(self.encoders[name].column, MultiColumn)}

    def event_fields(self, fields: Mapping[str, Tensor], places: Tensor,
                     names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return columns of events at `places` `(T,)` of the flat `fields` of a log, each `(T,)`; None: all."""
        found = {column.name: self.encoders[column.name].encode(pa.array(fields[column.source][places].numpy()))
                 for column in self.config.events if names is None or column.name in names}
        return {name: values for name, values in found.items() if isinstance(values, Tensor)}

    def encode(self, role: str, table: pa.Table, name: str = "table") -> dict[str, Tensor | JaggedTensor]:
        """Return the columns of `"items"`, `"users"` or `"events"` as a model reads them, of a table that gives them.

        So that a request can tell of an item or a user that no table knew. `name` is how an error calls the table.

        Raises:
            InvalidData: a column is missing; values that the column refuses.
        """
        side = getattr(self.config, role)
        columns = () if side is None else side.columns if isinstance(side, SideTable) else side
        missing = [column.source for column in columns if column.source not in table.column_names]
        if missing:
            there = ", ".join(table.column_names)
            raise InvalidData(f"{name}: no column {missing[0]!r} ({role}); there are {there}"
                              f"{suggest(missing[0], table.column_names)}")
        return {column.name: self.encoders[column.name].encode(table[column.source]) for column in columns}

    def save(self, folder: Path | str) -> None:
        """Write the features as a folder, whole or not at all, in place of one that is there."""
        with write_folder_aside(Path(folder), replace=True) as partial:
            known = {name: encoder.known.to_pylist() for name, encoder in self.encoders.items()
                     if encoder.known is not None}
            write_json(partial / "features.json",
                       {"format_version": FORMAT_VERSION, "config": self.config.plain(), "known": known})
            for role, entities in (("items", self.items), ("users", self.users)):
                raw = entities.vocabulary.decode(range(len(entities.vocabulary)))
                columns = {"id": pa.array([None, *raw]),
                           **{f"column_{name}": _to_arrow(values) for name, values in entities.columns.items()}}
                with write_aside(partial / f"{role}.parquet") as path:
                    pq.write_table(pa.table(columns), path)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a folder of features; raise `InvalidData` when it is not one, or damaged."""
        folder = Path(folder)
        try:
            told = json.loads((folder / "features.json").read_text(encoding="utf-8"))
            if told["format_version"] != FORMAT_VERSION:
                raise InvalidData(f"{folder}: expected features of format {FORMAT_VERSION}, got "
                                  f"{told['format_version']}")
            config = FeaturesConfig.parse(told["config"])
            encoders = {column.name: Encoder(column, _known(told["known"].get(column.name)))
                        for column in config.columns}
            items, users = (_open_entities(folder / f"{role}.parquet") for role in ("items", "users"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            if isinstance(error, InvalidData):
                raise
            raise InvalidData(f"{folder}: not a folder of features, or a damaged one ({error})") from None
        return cls(config, encoders, items, users)


def _read(role: str, side: SideTable, vocabulary: Vocabulary,
          source: str | None) -> dict[str, tuple[pa.ChunkedArray, pa.ChunkedArray]]:
    """Return column of a side table → its values as they stand, and those of the raw ids in order, null where none."""
    path = beside(side.path, source)
    columns = tuple(dict.fromkeys(column.source for column in side.columns))
    with tempfile.TemporaryDirectory(prefix="serrate-") as folder, open_engine(Path(folder), "2GB", None) as engine:
        table = open_source(engine, str(path), "auto", Wanted("side", (side.key,), (side.key, *columns)))
        check_column(table, f"{role}.key", side.key)
        for column in columns:
            check_column(table, f"{role}.columns", column)
        with reading(table.name):
            chosen = ", ".join(map(quoted, columns))
            found = engine.sql(f"SELECT {id_column(table, f'{role}.key', side.key)} AS __key, {chosen} FROM side "
                               f"WHERE __key IS NOT NULL ORDER BY {ROW}").to_arrow_table()
    keys = found["__key"].combine_chunks()
    if len(keys.unique()) < len(keys):
        twice = next(entry["values"] for entry in keys.value_counts().to_pylist() if entry["counts"] > 1)
        raise InvalidData(f"{table.name}: expected one row for each of the {role}, got several for key {twice!r}")
    raw = pa.array(vocabulary.decode(range(len(vocabulary))))
    rows = places_of(raw, keys)
    taken = found.take(pa.array(rows, mask=rows < 0))
    return {column: (found[column], taken[column]) for column in columns}


def _with_unknown(encoder: Encoder, values: Tensor | JaggedTensor) -> Tensor | JaggedTensor:
    """Return `values` with a row before the others for what is unknown: id 0, no values, NaN."""
    if isinstance(values, JaggedTensor):
        return JaggedTensor.trusted(values.values, torch.cat([values.offsets[:1], values.offsets]), values.longest)
    return torch.cat([values.new_full((1,), 0 if encoder.size is not None else float("nan")), values])


def _to_arrow(values: Tensor | JaggedTensor) -> pa.Array:
    if isinstance(values, Tensor):
        return pa.array(values.numpy())
    return pa.LargeListArray.from_arrays(pa.array(values.offsets.numpy()), pa.array(values.values.numpy()))


def _known(values: list | None) -> pa.Array | None:
    return None if values is None else pa.array(values)


def _open_entities(path: Path) -> Entities:
    table = pq.read_table(path).combine_chunks()
    columns: dict[str, Tensor | JaggedTensor] = {}
    for name in table.column_names[1:]:
        array = table[name].combine_chunks()
        if pa.types.is_large_list(array.type):
            values, offsets = (torch.from_numpy(part.to_numpy().copy()) for part in (array.values, array.offsets))
            columns[name.removeprefix("column_")] = JaggedTensor(values, offsets)
        else:
            columns[name.removeprefix("column_")] = torch.from_numpy(array.to_numpy().copy())
    return Entities(Vocabulary(table["id"].combine_chunks()[1:]), columns)

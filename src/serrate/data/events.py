"""From the columns of a log to the view `events` (user, item, moment, row, weight, features), checked."""

from dataclasses import dataclass

import duckdb

from ..errors import InvalidData, suggest
from .config import ColumnMapping, DataConfig
from .engine import DATES, FRACTIONS, INTEGERS, TEXTS, Engine, family, number, quoted, reason
from .sources import ROW, Source

_LARGEST_SECONDS = 9_000_000_000_000  # in microseconds this still fits 64 bits


@dataclass(frozen=True)
class Field:
    """A column of the view `events` that becomes an array: field name, column, NumPy type."""

    name: str
    column: str
    dtype: str


@dataclass(frozen=True)
class EventView:
    """What the view `events` holds: fields besides `item`, what orders a user's events, the time unit."""

    fields: tuple[Field, ...]
    order: str  # "moment, row" or "row"
    time_unit: str | None  # "integer" (as in the log), "microseconds" since 1970 UTC, None without times
    num_read: int
    num_chosen: int  # after the filter


@dataclass(frozen=True)
class _Column:
    """A column of the log, on its way into the view: SQL expressions and what must not be."""

    role: str  # as the configuration calls it
    name: str
    expression: str
    alias: str
    refused: tuple[tuple[str, str], ...]  # (SQL condition over the log, what it means)


def select_events(engine: Engine, source: Source, config: DataConfig) -> EventView:
    """Create the view `events` over the view `log`, filtered and typed.

    Raises:
        InvalidData: a column is missing or of a wrong type, holds nulls or values that cannot be used; the
            filter is not a condition over the columns; nothing is left.
    """
    mapping = config.columns
    _check_present(source, mapping)
    total = number(engine, "SELECT count(*) FROM log")
    if not total:
        raise InvalidData(f"{source.name}: the log holds no events")
    columns, fields = _typed(source, mapping)
    chosen = total if config.filter is None else _filter(engine, config.filter, total)
    table = "log" if config.filter is None else "chosen"
    _check_values(engine, source, columns, table)
    parts = [f"{column.expression} AS {column.alias}" for column in columns]
    engine.execute(f"CREATE VIEW events AS SELECT {', '.join(parts)}, {ROW} AS row FROM {table}")
    order = "moment, row" if mapping.time or mapping.position else "row"
    unit = None
    if mapping.time:
        unit = "integer" if family(source.columns[mapping.time]) in INTEGERS else "microseconds"
    return EventView(tuple(fields), order, unit, total, chosen)


def used_columns(mapping: ColumnMapping) -> tuple[str, ...]:
    """Return the columns of the log that `mapping` names, each once."""
    order = [name for name in (mapping.time, mapping.position, mapping.weight) if name is not None]
    return tuple(dict.fromkeys([mapping.user, mapping.item, *order, *mapping.features]))


def id_column(source: Source, role: str, name: str) -> str:
    """Return the SQL expression of raw ids, 64-bit integers or text; raise `InvalidData` for another type."""
    kind = source.columns[name]
    if family(kind) in INTEGERS:
        return f"TRY_CAST({quoted(name)} AS BIGINT)"
    if family(kind) in TEXTS:
        return f"{quoted(name)}::VARCHAR"
    raise _wrong_type(source, role, name, "integers or strings")


def check_column(source: Source, role: str, name: str) -> None:
    """Raise `InvalidData` when `source` has no column `name`: the close name, and what is there."""
    there = list(source.columns)
    if name in there:
        return
    same = next((other for other in there if other.lower() == name.lower()), None)
    hint = f" (did you mean {same!r}?)" if same else suggest(name, there)
    if there and all(_looks_like_data(other) for other in there):
        hint = ", which looks like data: is the header line missing?"
    raise InvalidData(f"{source.name}: no column {name!r} ({role}); there are {_listed(there)}{hint}")


def _check_present(source: Source, mapping: ColumnMapping) -> None:
    named = [("user", mapping.user), ("item", mapping.item), ("time", mapping.time),
             ("position", mapping.position), ("weight", mapping.weight),
             *(("features", name) for name in mapping.features)]
    for role, name in named:
        if name is not None:
            check_column(source, role, name)


def _typed(source: Source, mapping: ColumnMapping) -> tuple[list[_Column], list[Field]]:
    columns, fields = [], []
    for role, name in (("user", mapping.user), ("item", mapping.item)):
        expression = id_column(source, role, name)
        columns.append(_Column(role, name, expression, role, (_null(name), _too_large(expression))))
    if mapping.time or mapping.position:
        columns.append(_moment(source, mapping))
    if mapping.time:
        fields.append(Field("time", "moment", "int64"))
    if mapping.weight:
        name = mapping.weight
        refused = (_null(name), _not_finite(name), (f"{quoted(name)} < 0", "negative weights"))
        _numeric(source, "weight", name)
        columns.append(_Column("weight", name, f"{quoted(name)}::FLOAT", "weight", refused))
        fields.append(Field("weight", "weight", "float32"))
    for index, name in enumerate(mapping.features):
        whole = _numeric(source, "features", name)
        expression = f"TRY_CAST({quoted(name)} AS BIGINT)" if whole else f"{quoted(name)}::FLOAT"
        unusable = _too_large(expression) if whole else _not_finite(name)
        columns.append(_Column("features", name, expression, f"feature_{index}", (_null(name), unusable)))
        fields.append(Field(name, f"feature_{index}", "int64" if whole else "float32"))
    return columns, fields


def _moment(source: Source, mapping: ColumnMapping) -> _Column:
    role, name = ("time", mapping.time) if mapping.time else ("position", mapping.position)
    assert name is not None
    kind = family(source.columns[name])
    column = quoted(name)
    if kind in INTEGERS:
        expression = f"TRY_CAST({column} AS BIGINT)"
        return _Column(role, name, expression, "moment", (_null(name), _too_large(expression)))
    if kind in FRACTIONS and role == "position":
        return _Column(role, name, f"{column}::DOUBLE", "moment", (_null(name), _not_finite(name)))
    if kind in FRACTIONS:
        refused = (_null(name), _not_finite(name),
                   (f"abs({column}) > {_LARGEST_SECONDS}", f"seconds beyond ±{_LARGEST_SECONDS:.0e}"))
        return _Column(role, name, f"round({column}::DOUBLE * 1000000)::BIGINT", "moment", refused)
    if kind in DATES and role == "time":
        return _Column(role, name, f"epoch_us({column})", "moment",
                       (_null(name), (f"NOT isfinite({column})", "infinite dates")))
    expected = "integers, seconds, dates or timestamps" if role == "time" else "numbers"
    raise _wrong_type(source, role, name, expected)


def _numeric(source: Source, role: str, name: str) -> bool:
    """Return whether the column holds whole numbers; raise when it holds no numbers."""
    kind = family(source.columns[name])
    if kind in INTEGERS or kind == "BOOLEAN":
        return True
    if kind in FRACTIONS:
        return False
    raise _wrong_type(source, role, name, "numbers")


def _filter(engine: Engine, condition: str, total: int) -> int:
    """Create the view `chosen`, the rows of `log` that satisfy the condition; return their number.

    `filter` of a relation takes one expression and nothing else, so that no other statement can be run.
    """
    try:
        engine.table("log").filter(condition).create_view("chosen")
    except duckdb.Error as error:
        raise InvalidData(f"filter: cannot apply {condition!r} ({reason(error)})") from None
    try:
        chosen = number(engine, "SELECT count(*) FROM chosen")
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:  # a value that it cannot be applied to
        raise InvalidData(f"filter: cannot apply {condition!r} ({reason(error)})") from None
    if not chosen:
        raise InvalidData(f"filter: no event of {total} satisfies {condition!r}")
    return chosen


def _check_values(engine: Engine, source: Source, columns: list[_Column], table: str) -> None:
    """Raise `InvalidData` for the first column with a value that cannot be used."""
    conditions = [(column, condition, meaning) for column in columns for condition, meaning in column.refused]
    # a null makes the later conditions of its column null or true, but the null is reported first
    counts = ", ".join(f"count(*) FILTER ({condition}), min({ROW}) FILTER ({condition})"
                       for _, condition, _ in conditions)
    found = engine.sql(f"SELECT {counts} FROM {table}").fetchall()[0]
    for (column, _, meaning), count, row in zip(conditions, found[::2], found[1::2], strict=True):
        if count:
            raise InvalidData(f"{source.name}: column {column.name!r} ({column.role}) holds {count} "
                              f"{meaning}, the first in {source.place(row)}")


def _null(name: str) -> tuple[str, str]:
    return f"{quoted(name)} IS NULL", "nulls"


def _too_large(expression: str) -> tuple[str, str]:
    return f"{expression} IS NULL", "integers beyond 64 bits"


def _not_finite(name: str) -> tuple[str, str]:
    return f"NOT isfinite({quoted(name)}::DOUBLE)", "NaN or infinite values"


def _wrong_type(source: Source, role: str, name: str, expected: str) -> InvalidData:
    got = source.columns[name]
    return InvalidData(f"{source.name}: column {name!r} ({role}): expected {expected}, got {got}")


def _listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown or "none"


def _looks_like_data(name: str) -> bool:
    return name[:1].isdigit() or name[:1] == "-"

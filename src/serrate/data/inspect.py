"""A first look at a log, before anything is decided about it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import number, open_engine, quoted, reading
from .sources import ROW, Wanted, open_source

_USUAL = {
    "user": ("user", "user_id", "userid", "uid", "customer", "customer_id", "visitor_id", "reviewerid", "session_id"),
    "item": ("item", "item_id", "itemid", "iid", "product_id", "movie_id", "movieid", "asin", "sku", "article_id"),
    "time": ("time", "timestamp", "ts", "datetime", "date", "unixreviewtime", "event_time", "created_at"),
    "position": ("position", "order", "seq", "sequence"),
}


@dataclass(frozen=True)
class Column:
    """A column of a log: its SQL type, about how many distinct values it has, how many nulls, its extremes as text."""

    name: str
    kind: str
    distinct: int
    nulls: int
    smallest: str | None
    largest: str | None


@dataclass(frozen=True)
class Inspection:
    """What is in a log.

    Attributes:
        rows: number of events.
        columns: in the order of the log.
        mapping: `user`, `item` and `time` or `position` → the column that goes by a usual name for it.
    """

    rows: int
    columns: tuple[Column, ...]
    mapping: dict[str, str]


def inspect(source: Any, kind: str = "auto") -> Inspection:
    """Read a log once and describe its columns; `kind` is a format of `DataConfig`, or `auto` by the file's name.

    Raises:
        InvalidData: the log cannot be read; one line that says why.
    """
    with tempfile.TemporaryDirectory(prefix="serrate-") as folder, open_engine(Path(folder), "2GB", None) as engine:
        opened = open_source(engine, source, kind, Wanted("log", ()))
        with reading(opened.name):
            rows = number(engine, "SELECT count(*) FROM log")
            summary = engine.sql(f"SUMMARIZE SELECT * EXCLUDE ({quoted(ROW)}) FROM log")
            found = summary.project("column_name, column_type, approx_unique, null_percentage, min, max").fetchall()
    columns = tuple(Column(name, sql_type, int(distinct), round(rows * float(nulls) / 100), smallest, largest)
                    for name, sql_type, distinct, nulls, smallest, largest in found)
    return Inspection(rows, columns, _guess([column.name for column in columns]))


def _guess(names: list[str]) -> dict[str, str]:
    by_lower = {name.lower(): name for name in names}
    guessed = {role: next((by_lower[usual] for usual in usuals if usual in by_lower), None)
               for role, usuals in _USUAL.items()}
    if guessed["time"] is not None:
        guessed["position"] = None  # a time orders the events and says more
    return {role: name for role, name in guessed.items() if name is not None}

"""The embedded DuckDB: opened under a memory limit, spoken to in quoted SQL, its errors told in one line."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import InvalidData, NotWritable

Engine = duckdb.DuckDBPyConnection

INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT",
                      "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"})
FRACTIONS = frozenset({"FLOAT", "DOUBLE", "DECIMAL"})
DATES = frozenset({"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS",
                   "TIMESTAMP WITH TIME ZONE"})
NUMBERS = INTEGERS | FRACTIONS | {"BOOLEAN"}  # a condition counts as 1 or 0
TEXTS = frozenset({"VARCHAR", "ENUM", "UUID"})


@contextmanager
def open_engine(beside: Path, memory_limit: str, threads: int | None) -> Iterator[Engine]:
    """Yield a DuckDB in memory that spills into a folder under `beside`, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="spill-", dir=beside) as spill:
        settings: dict[str, Any] = {"memory_limit": memory_limit, "threads": threads or os.cpu_count() or 1,
                                    "temp_directory": spill, "autoinstall_known_extensions": "false"}
        engine = duckdb.connect(":memory:", config=settings)
        try:
            engine.execute("SET python_enable_replacements = false")  # no Python variables in a filter
            yield engine
        finally:
            engine.close()


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what the engine and Arrow raise while they read `name` into one line: `InvalidData`, `NotWritable`."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        if "max_temp_directory_size" in str(error):  # by default, what is free on the disk
            raise NotWritable(f"out: no space left on the disk to sort {name}") from None
        raise InvalidData(f"memory_limit: too small to prepare {name}; raise it, or lower threads") from None
    except (duckdb.Error, pa.ArrowException) as error:
        if "No space left on device" in str(error):
            raise NotWritable(f"out: no space left on the disk while preparing {name}") from None
        raise InvalidData(f"{name}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return an engine's message as one line: its first, and for a line of CSV what is wrong there."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    head, colon, rest = first.partition("Error: ")
    first = rest if colon and len(head) < 25 else first
    if first.startswith("Error when sniffing file"):
        return "not a table of text: lines with different numbers of columns, or another separator or quote"
    return f"{first}: {lines[2]}" if first.startswith("CSV Error on Line") and len(lines) > 2 else first


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def family(kind: str) -> str:
    """Return an SQL type without its parameters: `DECIMAL(5,2)` is `DECIMAL`."""
    return kind.partition("(")[0].strip()


def number(engine: Engine, query: str) -> int:
    """Return the one integer that `query` gives."""
    return engine.sql(query).fetchall()[0][0]


def first_row(engine: Engine, query: str) -> tuple | None:
    """Return the first row that `query` gives, or None."""
    rows = engine.sql(query).fetchall()
    return rows[0] if rows else None

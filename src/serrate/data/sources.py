"""Where a log comes from: files of several formats or a table in memory, opened as the view `log` of an engine.

The view has the columns of the source and `ROW`, the place of each row in the source, by which ties are broken.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ..errors import InvalidData
from .config import DataConfig

ROW = "__serrate_row"
_FILE_STRIDE = 1 << 40  # rows of one file; row number = file number × stride + row in the file
_COMPRESSED = (".gz", ".zst")
_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".parq": "parquet",
             ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json",
             ".inter": "inter", ".dat": "movielens", ".data": "movielens"}


@dataclass(frozen=True)
class Source:
    """An opened log: how messages name it, its columns (name → DuckDB type), its format and its files.

    `text_ids` says that ids came as text only because the format has no types (CSV).
    """

    name: str
    columns: dict[str, str]
    files: tuple[Path, ...] = ()
    text_ids: bool = False

    def place(self, row: int) -> str:
        """Say where row number `row` is, counted from 1."""
        if len(self.files) > 1 and row >= 0:
            return f"row {row % _FILE_STRIDE + 1} of {self.files[row // _FILE_STRIDE].name}"
        return f"row {row + 1}"


def quoted(name: str) -> str:
    """Return `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what the engine and Arrow raise about source `name` into one `InvalidData` line."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise InvalidData(f"memory_limit: too small to prepare {name}; raise it or lower threads") from None
    except (duckdb.Error, pa.ArrowException) as error:
        if "No space left on device" in str(error):
            raise InvalidData(f"out: no space left on the disk while preparing {name}") from None
        raise InvalidData(f"{name}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return the first line of an engine's message, without its class."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    head, colon, rest = line.partition("Error: ")
    return rest if colon and len(head) < 25 else line


def open_source(engine: duckdb.DuckDBPyConnection, source: Any, config: DataConfig) -> Source:
    """Open `source` (a path, a glob, or a table in memory) as the view `log`; raise `InvalidData` when it cannot be."""
    if not isinstance(source, (str, Path)):
        return _open_table(engine, source)
    files = _files(source, config.format)
    kind = _format(files[0], config.format)
    name = str(source)
    if kind == "parquet":
        return _open_parquet(engine, name, files)
    raise InvalidData(f"{name}: format {kind} is not supported yet")


def _open_parquet(engine: duckdb.DuckDBPyConnection, name: str, files: tuple[Path, ...]) -> Source:
    paths = "[" + ", ".join(literal(glob.escape(str(file))) for file in files) + "]"
    row = "file_row_number" if len(files) == 1 else f"(file_index * {_FILE_STRIDE} + file_row_number)::BIGINT"
    with reading(name):
        engine.execute(f"CREATE VIEW log AS SELECT *, {row} AS {ROW} FROM read_parquet({paths})")
    return Source(name, _columns(engine), files)


def _open_table(engine: duckdb.DuckDBPyConnection, table: Any) -> Source:
    name = "table"
    with reading(name):
        arrow = pa.table(table)
        arrow = arrow.append_column(ROW, pa.array(np.arange(len(arrow))))
        engine.register("log", arrow)
    return Source(name, _columns(engine))


def _columns(engine: duckdb.DuckDBPyConnection) -> dict[str, str]:
    found = engine.sql("SELECT column_name, column_type FROM (DESCRIBE log)").fetchall()
    return {name: kind for name, kind in found if name != ROW}


def _files(source: str | Path, kind: str) -> tuple[Path, ...]:
    return (Path(source),)


def _format(file: Path, kind: str) -> str:
    return "parquet"

"""Where a table comes from: files of several formats, or a table in memory, opened as a view of the engine.

A view has the columns of the source and `ROW`, the place of each row in the source, by which ties are broken.
"""

import csv
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import InvalidArgument, InvalidData
from .engine import Engine, literal, number, quoted, reading

ROW = "__serrate_row"
_FILE_STRIDE = 1 << 40  # row number = number of the file × stride + row in the file
_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".parq": "parquet", ".csv": "csv", ".tsv": "csv",
            ".json": "json", ".jsonl": "json", ".ndjson": "json", ".inter": "inter",
            ".dat": "movielens", ".data": "movielens"}
_MOVIELENS = {"user": "VARCHAR", "item": "VARCHAR", "rating": "DOUBLE", "time": "BIGINT"}


@dataclass(frozen=True)
class Source:
    """An opened table: how messages name it, its columns (name → SQL type), and the files that rows count in."""

    name: str
    columns: dict[str, str]
    files: tuple[Path, ...] = ()

    def place(self, row: int) -> str:
        """Say where row number `row` is, counted from 1."""
        if len(self.files) > 1:
            return f"row {row % _FILE_STRIDE + 1} of {self.files[row // _FILE_STRIDE].name}"
        return f"row {row + 1}"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a table: the view's name, the id columns, all columns used (None: any may be)."""

    view: str
    ids: tuple[str, ...]
    columns: tuple[str, ...] | None = None

    def of(self, there: list[str]) -> list[str]:
        """Return the columns to keep: the wanted if all are `there`, else all, for the message to list them."""
        if self.columns is None or not set(self.columns) <= set(there):
            return there
        return list(self.columns)


def open_source(engine: Engine, source: Any, kind: str, wanted: Wanted) -> Source:
    """Open `source`, a path, folder, glob or table in memory, as the view `wanted.view`.

    `kind` is a format or `"auto"`, by the name of the file. Ids of formats without types (CSV and its
    relatives) are integers when every one of them is written as one (`7`, not `007`), else strings.

    Raises:
        InvalidData: nothing there, unreadable, of an unknown or mixed format, or damaged.
        InvalidArgument: neither a path nor a table.
    """
    if not isinstance(source, (str, Path)):
        return _open_memory(engine, source, wanted)
    files = _find_files(str(source))
    formats = {_format_of(file) for file in files} if kind == "auto" else {kind}
    if len(formats) > 1:
        found = ", ".join(sorted(str(name) for name in formats))
        raise InvalidData(f"{source}: expected files of one format, got {found}; set format or a glob")
    (found,) = formats
    if found is None:
        known = ", ".join(_FORMATS)
        raise InvalidData(f"{files[0]}: not a known kind of log by its name ({known}); set format")
    for file in files:
        _check_readable(file)
    name = str(source)
    with reading(name):
        if found == "parquet":
            return _open_parquet(engine, name, files, wanted)
        return _open_text(engine, name, _SCANS[found](files, wanted), wanted)


def beside(path: str, source: Any) -> Path:
    """Return the whole path of a side table: as given, or else beside the log `source`, where that is a path."""
    found = Path(path)
    if not found.exists() and isinstance(source, (str, Path)):
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        found = folder / found if (folder / found).exists() else found
    return found.absolute()


def _open_parquet(engine: Engine, name: str, files: tuple[Path, ...], wanted: Wanted) -> Source:
    """A view straight over the files: they are read again for each pass, nothing is copied."""
    _check_same_types(engine, name, files, wanted)
    row = "file_row_number"
    if len(files) > 1:
        row = f"(file_index * {_FILE_STRIDE} + file_row_number)::BIGINT"
    engine.execute(f"CREATE VIEW {wanted.view} AS SELECT *, {row} AS {ROW} "
                   f"FROM read_parquet({_paths(files)})")
    return Source(name, _columns(engine, wanted.view), files)


def _open_text(engine: Engine, name: str, scan: str, wanted: Wanted) -> Source:
    """A copy in the engine: text is parsed once."""
    table = f"{wanted.view}_text"
    engine.execute(f"CREATE TABLE {table} AS {scan}")
    columns = _columns(engine, table)
    integers = [quoted(column) for column in wanted.ids
                if columns.get(column) == "VARCHAR" and _all_integers(engine, table, quoted(column))]
    casts = ", ".join(f"{column}::BIGINT AS {column}" for column in integers)
    replaced = f" REPLACE ({casts})" if casts else ""
    engine.execute(f"CREATE VIEW {wanted.view} AS SELECT *{replaced}, rowid AS {ROW} FROM {table}")
    return Source(name, _columns(engine, wanted.view))


def _open_memory(engine: Engine, table: Any, wanted: Wanted) -> Source:
    if not hasattr(table, "__arrow_c_stream__"):
        expected = "a path, or a table of pyarrow, pandas or polars"
        raise InvalidArgument("source", expected, type(table).__name__)
    name = "table"
    if isinstance(table, pa.RecordBatchReader):  # can be read once: keep a copy in the engine
        with reading(name):
            engine.register(f"{wanted.view}_stream", table)
            engine.execute(f"CREATE TABLE {wanted.view}_copy AS FROM {wanted.view}_stream")
            engine.execute(f"CREATE VIEW {wanted.view} AS SELECT *, rowid AS {ROW} FROM {wanted.view}_copy")
            return Source(name, _columns(engine, wanted.view))
    if not isinstance(table, pa.Table | pa.RecordBatch) and hasattr(table, "columns"):
        table = table[wanted.of(list(table.columns))]  # a frame, whose unused columns may be odd
    try:
        arrow = pa.table(table)
    except pa.ArrowException as error:
        what = "; ".join(str(part) for part in reversed(error.args))
        raise InvalidData(f"{name}: a column holds values of more than one type ({what})") from None
    with reading(name):
        arrow = arrow.select(wanted.of(arrow.column_names))
        engine.register(wanted.view, arrow.append_column(ROW, pa.array(np.arange(len(arrow)))))
        return Source(name, _columns(engine, wanted.view))


def _csv_scan(files: tuple[Path, ...], wanted: Wanted) -> str:
    lines = [_first_line(file) for file in files]
    separator = max(",\t;|", key=lines[0].count)
    headers = [next(csv.reader([line], delimiter=separator), []) for line in lines]
    _check_same_header(files, headers)
    types = {name: "VARCHAR" for name in wanted.ids if name in headers[0]}
    kept = wanted.of(headers[0])
    select = "*" if kept is headers[0] else ", ".join(quoted(name) for name in kept)
    return (f"SELECT {select} FROM read_csv({_paths(files)}, header = true, "
            f"delim = {literal(separator)}, quote = '\"', escape = '\"', types = {_struct(types)})")


def _inter_scan(files: tuple[Path, ...], wanted: Wanted) -> str:
    """RecBole: tabs, and a header of `name:type`; `token` is text, `float` a number."""
    headers = [_first_line(file).split("\t") for file in files]
    _check_same_header(files, headers)
    if not all(":" in column for column in headers[0]):
        raise InvalidData(f"{files[0]}: expected a header of name:type columns between tabs, as RecBole "
                          f"writes it, got {'|'.join(headers[0])[:80]!r}")
    types = {column: "DOUBLE" if column.endswith(":float") else "VARCHAR" for column in headers[0]}
    renamed = ", ".join(f"{quoted(column)} AS {quoted(column.rpartition(':')[0])}" for column in headers[0])
    return (f"SELECT {renamed} FROM read_csv({_paths(files)}, header = true, delim = '\t', quote = '', "
            f"auto_detect = false, columns = {_struct(types)})")


def _movielens_scan(files: tuple[Path, ...], _: Wanted) -> str:
    """`ratings.dat` (`user::item::rating::time`) or `u.data` (tabs), without a header."""
    line = _first_line(files[0])
    separator = "::" if "::" in line else "\t"
    if len(line.split(separator)) != len(_MOVIELENS):
        raise InvalidData(f"{files[0]}: expected lines of user, item, rating, time between '::' or tabs, as "
                          f"MovieLens writes them, got {line[:80]!r}")
    return (f"FROM read_csv({_paths(files)}, header = false, delim = {literal(separator)}, quote = '', "
            f"auto_detect = false, columns = {_struct(_MOVIELENS)})")


def _json_scan(files: tuple[Path, ...], _: Wanted) -> str:
    return f"FROM read_json({_paths(files)}, format = 'newline_delimited')"


_SCANS = {"csv": _csv_scan, "inter": _inter_scan, "movielens": _movielens_scan, "json": _json_scan}


def _find_files(source: str) -> tuple[Path, ...]:
    path = Path(source)
    if path.is_file():
        return (path,)
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.is_file())
        found = [file for file in inside if not file.name.startswith((".", "_")) and _format_of(file)]
        if not found:
            raise InvalidData(f"{source}: the folder holds no log ({', '.join(_FORMATS)})")
        return tuple(found)
    found = [Path(file) for file in sorted(glob.glob(source, recursive=True)) if Path(file).is_file()]
    if not found:
        what = "no file matches" if glob.has_magic(source) else "no such file or folder"
        raise InvalidData(f"{source}: {what}")
    return tuple(found)


def _format_of(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz").removesuffix(".zst")
    return _FORMATS.get(Path(name).suffix)


def _check_readable(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            empty = not opened.read(1)
    except OSError as error:
        raise InvalidData(f"{file}: cannot be read ({error.strerror or error})") from None
    if empty:
        raise InvalidData(f"{file}: the file is empty")


def _check_same_types(engine: Engine, name: str, files: tuple[Path, ...], wanted: Wanted) -> None:
    """The engine would read every file with the types of the first; refuse a column of two types."""
    if len(files) == 1:
        return
    mixed = engine.sql(
        f"SELECT name, list_sort(list(DISTINCT coalesce(logical_type, type))) AS kinds "
        f"FROM parquet_schema({_paths(files)}) WHERE type IS NOT NULL GROUP BY name "
        f"HAVING len(kinds) > 1 ORDER BY name").fetchall()
    for column, kinds in mixed:
        if wanted.columns is None or column in wanted.columns:
            raise InvalidData(f"{name}: column {column!r} has several types in its files: {', '.join(kinds)}")


def _check_same_header(files: tuple[Path, ...], headers: list[list[str]]) -> None:
    for file, header in zip(files, headers, strict=True):
        if header != headers[0]:
            raise InvalidData(f"{file}: expected the columns of {files[0].name}, {', '.join(headers[0])}, "
                              f"got {', '.join(header)}")


def _all_integers(engine: Engine, table: str, column: str) -> bool:
    other = f"TRY_CAST({column} AS BIGINT)::VARCHAR IS DISTINCT FROM {column}"
    return not number(engine, f"SELECT count(*) FROM {table} WHERE {column} IS NOT NULL AND {other}")


def _first_line(file: Path) -> str:
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            line = stream.read(1 << 16).split(b"\n")[0].rstrip(b"\r")
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidData(f"{file}: expected UTF-8 text, got other bytes in the first line") from None
    except OSError as error:
        raise InvalidData(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None


def _columns(engine: Engine, view: str) -> dict[str, str]:
    found = engine.sql(f"SELECT column_name, column_type FROM (DESCRIBE {view})").fetchall()
    return {name: kind for name, kind in found if name != ROW}


def _paths(files: tuple[Path, ...]) -> str:
    return "[" + ", ".join(literal(glob.escape(str(file))) for file in files) + "]"


def _struct(types: dict[str, str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items()) + "}"

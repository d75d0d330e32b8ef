"""`prepare`: a log becomes a folder of flat arrays, sorted and grouped by DuckDB within a memory limit."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ..errors import InvalidData
from ..files import write_folder_aside
from .config import DataConfig
from .events import EventView, select_events
from .histories import FORMAT_VERSION, Histories
from .sources import Source, literal, open_source, reading

_CHUNK = 1 << 20  # events handed over at once


def prepare(source: Any, config: DataConfig, out: Path | str | None = None) -> Histories:
    """Read, check, sort and group a log; write the prepared folder `out` whole or not at all.

    Args:
        source: a file, folder or glob, or a table in memory (pyarrow, pandas, polars, a record batch reader).
        config: how to read it.
        out: where the folder goes, a path that does not exist or an empty folder; None: a temporary folder that is
            removed when the returned `Histories` is.

    Raises:
        InvalidData: the log cannot be used, or `out` cannot be written; one line that says why.
        InvalidArgument: `out` exists and is not empty.
    """
    if out is None:
        holder = tempfile.TemporaryDirectory(prefix="serrate-")
        histories = prepare(source, config, Path(holder.name) / "data")
        histories._holder = holder
        return histories
    out = Path(out)
    with write_folder_aside(out) as partial:
        with _engine(config, partial) as engine:
            _write(engine, source, config, partial)
    return Histories.open(out)


@contextmanager
def _engine(config: DataConfig, beside: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a DuckDB in memory that spills into a folder under `beside`, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="spill-", dir=beside) as spill:
        settings: dict[str, Any] = {"memory_limit": config.memory_limit, "temp_directory": spill,
                                    "autoinstall_known_extensions": "false",
                                    "threads": config.threads or os.cpu_count() or 1}
        engine = duckdb.connect(":memory:", config=settings)
        try:
            engine.execute("SET python_enable_replacements = false")
            yield engine
        finally:
            engine.close()


def _write(engine: duckdb.DuckDBPyConnection, source: Any, config: DataConfig, folder: Path) -> None:
    opened = open_source(engine, source, config)
    view = select_events(engine, opened, config)
    with reading(opened.name):
        engine.execute("CREATE TABLE users AS SELECT user AS id, count(*) AS count FROM events GROUP BY user ORDER BY id")
        engine.execute("CREATE TABLE items AS SELECT item AS id, count(*) AS count, "
                       "(row_number() OVER (ORDER BY count(*) DESC, item) - 1)::INTEGER AS dense "
                       "FROM events GROUP BY item")
        for part, order in (("users", "id"), ("items", "dense")):
            columns = "id, count"
            engine.execute(f"COPY (SELECT {columns} FROM {part} ORDER BY {order}) "
                           f"TO {literal(str(folder / part) + '.parquet')} (FORMAT parquet)")
        lengths = engine.sql("SELECT count FROM users ORDER BY id").fetchnumpy()["count"]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        np.save(folder / "offsets.npy", offsets)
        fields = _write_fields(engine, view, folder, int(offsets[-1]))
        num_items = engine.sql("SELECT count(*) FROM items").fetchall()[0][0]
    description = {"format_version": FORMAT_VERSION, "num_users": len(lengths), "num_items": num_items,
                   "num_events": int(offsets[-1]), "time_unit": view.time_unit, "config": config.plain(),
                   "fields": fields}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _write_fields(engine: duckdb.DuckDBPyConnection, view: EventView, folder: Path, events: int) -> dict[str, Any]:
    """Stream the sorted events into one array file a field; return the fields as `dataset.json` describes them."""
    columns = {"item": ("items.dense", "int32")}
    if view.time_unit:
        columns["time"] = ("events.moment", "int64")
    select = ", ".join(f"{expression} AS {quoted_name}" for quoted_name, (expression, _) in columns.items())
    order = "events.user, events.moment, events.row" if view.moment else "events.user, events.row"
    stream = engine.sql(f"SELECT {select} FROM events JOIN items ON events.item = items.id ORDER BY {order}")
    write_arrays(stream.to_arrow_reader(_CHUNK), [folder / f"{name}.npy" for name in columns],
                 [dtype for _, dtype in columns.values()], events)
    return {name: {"file": f"{name}.npy", "dtype": dtype} for name, (_, dtype) in columns.items()}


def write_arrays(batches: Iterable[pa.RecordBatch], paths: list[Path], dtypes: list[str], size: int) -> None:
    """Write each column of `batches` as a `.npy` file of `(size,)`.

    Plain writes and no memory map: a full disk is an error here and would kill the process there, and the pages do
    not count as memory of the process.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for file, dtype in zip(files, dtypes, strict=True):
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for batch in batches:
            for file, dtype, column in zip(files, dtypes, batch.columns, strict=True):
                file.write(np.ascontiguousarray(column.to_numpy(zero_copy_only=False), dtype=dtype))
            written += batch.num_rows
    if written != size:
        raise InvalidData(f"the log changed while it was read: expected {size} events, got {written}")

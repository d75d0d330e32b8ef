"""`prepare`: a log becomes a folder of flat arrays, sorted and grouped by DuckDB within a memory limit."""

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import InvalidData, NotWritable
from ..files import write_folder_aside
from .config import DataConfig
from .engine import Engine, literal, number, open_engine, reading
from .events import EventView, Field, select_events, used_columns
from .histories import FORMAT_VERSION, Histories
from .item_table import join_item_table
from .sources import Source, Wanted, beside, open_source

_CHUNK = 1 << 20  # events handed over at once


def prepare(source: Any, config: DataConfig, out: Path | str | None = None) -> Histories:
    """Read, check, sort and group a log; write the prepared folder `out` whole or not at all.

    A user's events stand in the order (time, row of the log). Times: integers are kept as they are; floats
    are seconds, and like dates and timestamps become microseconds since 1970 (UTC). Dense item ids go by
    frequency, ties by raw id; users stand in raw-id order.

    Args:
        source: a file, folder or glob, or a table in memory (pyarrow, pandas, polars, a record batch reader).
        config: how to read it.
        out: where the folder goes, a path that does not exist or an empty folder; None: a temporary folder
            that is removed when the returned `Histories` is.

    Raises:
        InvalidData: the log cannot be used; one line that says why.
        NotWritable: the disk is full or refuses.
        InvalidArgument: `out` exists and is not empty, or `source` is no path and no table.
    """
    if out is None:
        holder = tempfile.TemporaryDirectory(prefix="serrate-")
        histories = prepare(source, config, Path(holder.name) / "data")
        histories.keep(holder)
        return histories
    out = Path(out)
    config = _with_items_found(config, source)
    try:
        with (write_folder_aside(out) as partial,
              open_engine(partial, config.memory_limit, config.threads) as engine):
            _write(engine, source, config, partial)
    except NotWritable:
        raise
    except OSError as error:  # the log is read behind errors of its own, so this is about writing
        raise NotWritable(f"{out}: cannot be written ({error.strerror or error})") from None
    return Histories.open(out)


def _with_items_found(config: DataConfig, source: Any) -> DataConfig:
    """Return `config` with the whole path of its item table: as given, or else beside the log."""
    if config.items is None:
        return config
    path = str(beside(config.items.path, source))
    return config.model_copy(update={"items": config.items.model_copy(update={"path": path})})


def _write(engine: Engine, source: Any, config: DataConfig, folder: Path) -> None:
    mapping = config.columns
    used = used_columns(mapping) if config.filter is None else None
    log = open_source(engine, source, config.format, Wanted("log", (mapping.user, mapping.item), used))
    with reading(log.name):
        view = select_events(engine, log, config)
        _apply_repeats(engine, view, config.repeats)
        _count(engine, log, config)
        if config.items is not None:
            join_item_table(engine, config.items)
        _number_items(engine, config)
        for part, query in (("users", "SELECT id, count FROM users ORDER BY id"),
                            ("items", "SELECT * EXCLUDE (key, dense) FROM dense_items ORDER BY dense")):
            target = literal(str(folder / f"{part}.parquet"))
            engine.execute(f"COPY ({query}) TO {target} (FORMAT parquet)")
        lengths = engine.sql("SELECT count FROM users ORDER BY id").fetchnumpy()["count"]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        np.save(folder / "offsets.npy", offsets)
        fields = [Field("item", "dense", "int32"), *view.fields]
        _write_fields(engine, view, fields, folder, int(offsets[-1]))
        num_items = number(engine, "SELECT count(*) FROM dense_items")
    description = {
        "format_version": FORMAT_VERSION, "source": log.name,
        "num_users": len(lengths), "num_items": num_items, "num_events": int(offsets[-1]),
        "events_read": view.num_read, "events_filtered_out": view.num_read - view.num_chosen,
        "events_dropped": view.num_chosen - int(offsets[-1]),  # by repeats and minimum counts
        "mean_length": round(float(lengths.mean()), 3), "median_length": float(np.median(lengths)),
        "longest": int(lengths.max()), "time_unit": view.time_unit,
        "config": config.plain(),
        "fields": {field.name: {"file": f"{_stem(field)}.npy", "dtype": field.dtype} for field in fields}}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _apply_repeats(engine: Engine, view: EventView, policy: str) -> None:
    """Create `events_kept`: all events, the first or last of each (user, item), or no item twice in a row."""
    ascending = view.order
    descending = ", ".join(f"{part} DESC" for part in view.order.split(", "))
    conditions = {
        "first": f"row_number() OVER (PARTITION BY user, item ORDER BY {ascending}) = 1",
        "last": f"row_number() OVER (PARTITION BY user, item ORDER BY {descending}) = 1",
        "collapse": f"item IS DISTINCT FROM lag(item) OVER (PARTITION BY user ORDER BY {ascending})"}
    if policy == "keep":
        engine.execute("CREATE VIEW events_kept AS FROM events")
    else:  # a table: the windows are computed once, not for each pass
        engine.execute(f"CREATE TABLE events_kept AS FROM events QUALIFY {conditions[policy]}")


def _count(engine: Engine, log: Source, config: DataConfig) -> None:
    """Create `users` and `items` (id, count) of what stays; minimum counts repeat until both hold."""
    counted = "CREATE OR REPLACE TABLE {0}s AS SELECT {0} AS id, count(*) AS count FROM events_kept"
    for part in ("user", "item"):
        engine.execute(f"{counted.format(part)} GROUP BY {part}")
    minimum = {"user": config.min_user_events, "item": config.min_item_events}
    if max(minimum.values()) == 1:
        return
    before = -1
    while before != (now := number(engine, "SELECT count(*) FROM users")):
        before = now
        for part, other in (("item", "user"), ("user", "item")):
            engine.execute(f"{counted.format(part)} WHERE {other} IN (SELECT id FROM {other}s) "
                           f"GROUP BY {part} HAVING count(*) >= {minimum[part]}")
    if not now:
        raise InvalidData(f"{log.name}: no event is left under min_user_events {config.min_user_events} and "
                          f"min_item_events {config.min_item_events}")


def _number_items(engine: Engine, config: DataConfig) -> None:
    """Create `dense_items` (id, count, title if any, key = id in the log, dense)."""
    joined = config.items is not None
    title = ", title" if config.items is not None and config.items.title else ""
    table, key = ("named_items", "key") if joined else ("items", "id")
    engine.execute(f"CREATE TABLE dense_items AS SELECT id, count{title}, {key} AS key, "
                   f"(row_number() OVER (ORDER BY count DESC, id) - 1)::INTEGER AS dense FROM {table}")


def _write_fields(engine: Engine, view: EventView, fields: list[Field], folder: Path, events: int) -> None:
    """Stream the sorted events into one array file a field."""
    select = ", ".join(field.column for field in fields)
    order = ", ".join(["user", *view.order.split(", ")])
    stream = engine.sql(f"SELECT {select} FROM events_kept JOIN dense_items ON item = key "
                        f"WHERE user IN (SELECT id FROM users) ORDER BY {order}")
    paths = [folder / f"{_stem(field)}.npy" for field in fields]
    write_arrays(stream.to_arrow_reader(_CHUNK), paths, [field.dtype for field in fields], events)


def _stem(field: Field) -> str:
    return field.column if field.column.startswith("feature_") else field.name


def write_arrays(batches: Iterable[pa.RecordBatch], paths: list[Path], dtypes: list[str], size: int) -> None:
    """Write each column of `batches` as a `.npy` file of `(size,)`.

    Plain writes and no memory map: a full disk is an error here and would kill the process there, and the
    pages do not count as memory of the process.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for file, dtype in zip(files, dtypes, strict=True):
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for batch in batches:
            for file, dtype, column in zip(files, dtypes, batch.columns, strict=True):
                array = np.ascontiguousarray(column.to_numpy(zero_copy_only=False), dtype=dtype)
                file.write(array.data)
            written += batch.num_rows
    if written != size:
        raise InvalidData(f"the log changed while it was read: expected {size} events, got {written}")

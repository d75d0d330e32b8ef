"""Recommendations for a whole file: Parquet in, Parquet out, streaming."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow.dataset import dataset
from torch import Tensor

from ..data import DataConfig, Histories, is_prepared, prepare
from ..data.times import read_seconds, seconds
from ..errors import InvalidArgument, InvalidData
from ..files import write_aside
from ..jagged import JaggedTensor
from .item_ids import model_ids
from .predictor import Predictor
from .times import Times, checked, read_asked

_ROWS_AT_A_TIME = 4096
_HISTORY, _TIMES, _ASKED = "history", "times", "asked"


@dataclass(frozen=True)
class Served:
    """What a batch job did: rows answered, events read, events whose item the model does not know."""

    users: int
    events: int
    unknown: int


@dataclass(frozen=True)
class _Block:
    """Some users: their raw ids as an Arrow array, their histories as dense ids (-1 for unknown), and when that was.

    Without user ids in the source, `numbered` says, `users` are the numbers of its rows.
    """

    users: pa.Array
    histories: JaggedTensor
    times: Times | None
    numbered: bool = False


def recommend_file(predictor: Predictor, source: Path | str, out: Path | str, k: int = 10, *,
                   exclude_seen: bool = True, config: DataConfig | None = None, asked: Any = None) -> Served:
    """Answer every user of a log and write `out`, whole or not at all.

    Args:
        predictor: the loaded run.
        source: one of
            - a Parquet file, or a folder of them, with one row a user and a list column `history` of raw item ids,
              oldest first; the user id in the run's user column, or the row number without one. For a model that reads
              times also a list column `times`, as many as the history has items, and, if each user asks at another
              time, a column `asked`, both in the forms that `Predictor.recommend` takes;
            - a prepared data set;
            - any log of single events that `data.prepare` reads. It is taken to look like the training log: same
              filter, same repeat policy, items given as there (see `item_ids.model_ids`). Minimum counts do not apply.
        out: a Parquet file with columns `user`, `items` (list of raw ids, best first), `scores` (list of float32)
            and `unknown` (how many events of the history were left out).
        k: how many items a user.
        exclude_seen: leave out the items of the history itself.
        config: how the log is read, where it differs from the run's `data_config`.
        asked: one time at which all answers are asked for, where no column says it. None: when the newest event of a
            history happened. Read where the model reads times.

    Raises:
        InvalidData: the source cannot be used.
        InvalidArgument: `out` is the source, `asked` is no time or before the newest event of a history.
        NotWritable: the disk is full or refuses.
    """
    config = predictor.data_config if config is None else config
    source, out = Path(source), Path(out)
    if source.resolve() == out.resolve():
        raise InvalidArgument("out", "another file than the histories", str(out))
    files = _list_files(source)
    at = None if asked is None or not predictor.reads_time else read_asked(asked, 1)
    blocks = _lists(predictor, files, config.columns.user, at) if files else _events(predictor, source, config, at)
    users = events = unknown = 0
    with write_aside(out) as partial:
        writer = None
        try:
            for block in blocks:
                table, left_out = _answer(predictor, block, k, exclude_seen)
                writer = writer or pq.ParquetWriter(partial, table.schema)
                writer.write_table(table)
                users, events = users + len(block.users), events + block.histories.num_events
                unknown += left_out
        finally:
            if writer is not None:
                writer.close()
    return Served(users, events, unknown)


def _answer(predictor: Predictor, block: _Block, k: int, exclude_seen: bool) -> tuple[pa.Table, int]:
    histories = block.histories
    known = histories.values >= 0
    left_out = torch.zeros(len(histories), dtype=torch.int64).index_add(0, histories.row_index(), (~known).long())
    kept = JaggedTensor.from_lengths(histories.values[known], histories.lengths - left_out)
    times = None if block.times is None else block.times.kept(known)
    keys = None if block.numbered else predictor.keys_of(block.users, len(block.users))
    scores, ids = predictor.recommend_dense(kept, k, exclude_seen=exclude_seen, times=times, user_keys=keys)
    found = ids >= 0
    offsets = np.concatenate([[0], found.sum(1).cumsum(0).numpy()]).astype(np.int32)
    items = pa.array(predictor.items.decode(ids[found].numpy()),
                     type=pa.int64() if predictor.items.kind == "integer" else pa.large_string())
    table = pa.table({
        "user": block.users,
        "items": pa.ListArray.from_arrays(offsets, items),
        "scores": pa.ListArray.from_arrays(offsets, scores[found].float().numpy()),
        "unknown": left_out.numpy(),
    })
    return table, int(left_out.sum())


def _list_files(source: Path) -> list[Path]:
    """Return the Parquet files of `source` when they have a list column `history`, none when it is another log."""
    inside = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    files = [file for file in inside if file.is_file() and file.suffix in (".parquet", ".parq", ".pq")]
    if not files or _HISTORY not in _schema(files[0]).names:
        return []
    for file in files:
        schema = _schema(file)
        kind = schema.field(_HISTORY).type if _HISTORY in schema.names else None
        if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not _is_id(kind.value_type):
            got = kind or "no such column"
            raise InvalidData(f"{file}: expected lists of item ids in column {_HISTORY!r}, got {got}")
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None


def _is_id(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_null(kind) or kind in (
        pa.string(), pa.large_string(), pa.string_view())


def _lists(predictor: Predictor, files: list[Path], user: str, asked: Tensor | None) -> Iterator[_Block]:
    """Blocks of Parquet files with a list column `history`; one without rows when the files have none."""
    row, name = 0, files[0] if len(files) == 1 else files[0].parent
    try:
        opened = dataset(files, format="parquet")
        columns = [_HISTORY, *(column for column in (user, *_columns_of_times(predictor, opened.schema, name))
                               if column in opened.schema.names)]
        for batch in opened.to_batches(columns=columns, batch_size=_ROWS_AT_A_TIME, batch_readahead=1,
                                       fragment_readahead=1):
            lists = batch.column(_HISTORY)
            lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            dense = torch.from_numpy(predictor.items.encode(lists.flatten()))
            users = batch.column(user) if user in columns else pa.array(np.arange(row, row + len(lists)))
            times = _listed_times(batch, lengths, asked, name, row + 1) if _TIMES in columns else None
            yield _Block(users, JaggedTensor.from_lengths(dense, torch.from_numpy(lengths)), times,
                         numbered=user not in columns)
            row += len(lists)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from None


def _columns_of_times(predictor: Predictor, schema: pa.Schema, name: Path) -> tuple[str, ...]:
    """Return the columns that say when, none for a model that does not read them."""
    if not predictor.reads_time:
        return ()
    kind = schema.field(_TIMES).type if _TIMES in schema.names else None
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        got = kind or "no such column"
        raise InvalidData(f"{name}: the model reads times: expected a list of them a history in column {_TIMES!r}, "
                          f"got {got}")
    return _TIMES, _ASKED


def _listed_times(batch: pa.RecordBatch, lengths: np.ndarray, asked: Tensor | None, name: Path, first: int) -> Times:
    """Return the times of a batch whose first row is number `first` of the file."""
    lists = batch.column(_TIMES)
    others = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if (others != lengths).any():
        row = int(np.flatnonzero(others != lengths)[0])
        raise InvalidData(f"{name}: expected {lengths[row]} times in row {first + row}, one an item, got {others[row]}")
    try:
        if _ASKED in batch.schema.names:
            asked = read_seconds(_ASKED, batch.column(_ASKED))
        every = None if asked is None else asked.expand(len(lengths))
        return checked(read_seconds(_TIMES, lists.flatten()), lengths, every, first)
    except InvalidArgument as error:
        raise InvalidData(f"{name}: {error}") from None


def _events(predictor: Predictor, source: Path, config: DataConfig, asked: Tensor | None) -> Iterator[_Block]:
    """Blocks of a log of single events, sorted and grouped by the data floor, or of a prepared data set."""
    if is_prepared(source):
        histories = Histories.open(source)
        to_model = predictor.items.encode(histories.items.decode(range(histories.num_items)))
    else:
        columns = config.columns.model_copy(update={"weight": None, "features": ()})
        histories = prepare(str(source), config.model_copy(
            update={"columns": columns, "items": None, "min_user_events": 1, "min_item_events": 1}))
        to_model = model_ids(predictor.items, histories.items, config)
    if predictor.reads_time and not histories.has_time:
        raise InvalidData(f"{source}: the model reads times, and this log has none (columns.time)")
    field, to_model = histories.field("item"), torch.from_numpy(to_model)
    for start in range(0, histories.num_users, _ROWS_AT_A_TIME):
        rows = field[start : start + _ROWS_AT_A_TIME]
        assert isinstance(rows, JaggedTensor)  # a slice of rows
        users = pa.array(histories.users.decode(range(start, start + len(rows))))
        times = None
        if predictor.reads_time:
            happened = histories.field("time")[start : start + len(rows)]
            assert isinstance(happened, JaggedTensor)
            happened = happened.with_values(seconds(happened.values, histories.ticks_per_second))
            times = Times.of(happened, None if asked is None else asked.expand(len(rows)), start + 1)
        yield _Block(users, rows.with_values(to_model[rows.values.long()]), times)


def _unreadable(file: Path, error: Exception) -> InvalidData:
    reason = getattr(error, "strerror", None) or str(error)
    return InvalidData(f"{file}: cannot be read as Parquet ({reason.splitlines()[0]})")

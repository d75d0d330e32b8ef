"""Recommendations for a whole file: Parquet in, Parquet out, streaming."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data import DataConfig, Histories, prepare
from ..errors import InvalidData
from ..files import write_aside
from ..jagged import JaggedTensor
from .predictor import Predictor

_ROWS_AT_A_TIME = 4096
_HISTORY = "history"


@dataclass(frozen=True)
class Served:
    """What a batch job did: rows answered, events read, events whose item the model does not know."""

    users: int
    events: int
    unknown: int


@dataclass(frozen=True)
class _Block:
    """Some users: their raw ids as an Arrow array, and their histories as dense ids (-1 for unknown)."""

    users: pa.Array
    histories: JaggedTensor


def recommend_file(predictor: Predictor, source: Path | str, out: Path | str, k: int = 10, *,
                   exclude_seen: bool = True, columns: dict[str, Any] | None = None) -> Served:
    """Answer every user of a log and write `out`, whole or not at all.

    Args:
        predictor: the loaded run.
        source: a Parquet file with one row a user and a list column `history` (raw item ids, oldest first; the user
            id in the run's user column, or the row number without one), or any log of single events that
            `serrate data prepare` reads.
        out: a Parquet file with columns `user`, `items` (list of raw ids, best first), `scores` (list of float32)
            and `unknown` (how many events of the history were left out).
        k: how many items a user.
        exclude_seen: leave out the items of the history itself.
        columns: changes to the run's column mapping, for a log with other names.

    Raises:
        InvalidData: the source cannot be used.
    """
    config = DataConfig.parse(predictor.config.get("data", {}))
    mapping = config.columns.plain() | {"weight": None, "features": ()} | (columns or {})
    config = DataConfig.parse(config.plain() | {"columns": mapping, "min_user_events": 1, "min_item_events": 1})
    blocks = _lists(predictor, Path(source), config.columns.user) or _events(predictor, source, config)
    users = events = unknown = 0
    with write_aside(Path(out)) as partial:
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
        if writer is None:
            raise InvalidData(f"{source}: no user to recommend to")
    return Served(users, events, unknown)


def _answer(predictor: Predictor, block: _Block, k: int, exclude_seen: bool) -> tuple[pa.Table, int]:
    histories = block.histories
    known = histories.values >= 0
    left_out = torch.zeros(len(histories), dtype=torch.int64).index_add(0, histories.row_index(), (~known).long())
    kept = JaggedTensor.from_lengths(histories.values[known], histories.lengths - left_out)
    scores, ids = predictor.recommend_dense(kept, k, exclude_seen=exclude_seen)
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


def _lists(predictor: Predictor, source: Path, user: str) -> Iterator[_Block] | None:
    """Blocks of a Parquet file with a list column `history`, or None when it is not one."""
    if not source.is_file() or source.suffix != ".parquet":
        return None
    try:
        file = pq.ParquetFile(source)
        schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{source}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    if _HISTORY not in schema.names:
        return None
    kind = schema.field(_HISTORY).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise InvalidData(f"{source}: expected a list of item ids in column {_HISTORY!r}, got {kind}")
    return _read_lists(predictor, source, file, user)


def _read_lists(predictor: Predictor, source: Path, file: pq.ParquetFile, user: str) -> Iterator[_Block]:
    named = user in file.schema_arrow.names
    row = 0
    try:
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=[_HISTORY, *([user] if named else [])]):
            lists = batch.column(_HISTORY)
            lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            dense = torch.from_numpy(predictor.items.encode(lists.flatten()))
            users = batch.column(user) if named else pa.array(np.arange(row, row + len(lists)))
            yield _Block(users, JaggedTensor.from_lengths(dense, torch.from_numpy(lengths)))
            row += len(lists)
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{source}: cannot be read to its end ({str(error).splitlines()[0]})") from None


def _events(predictor: Predictor, source: Path | str, config: DataConfig) -> Iterator[_Block]:
    """Blocks of a log of single events, sorted and grouped by the data floor."""
    histories: Histories = prepare(source, config)
    to_model = torch.from_numpy(predictor.items.encode(histories.items.decode(np.arange(histories.num_items))))
    field = histories.field("item")
    for start in range(0, histories.num_users, _ROWS_AT_A_TIME):
        rows = field[start : start + _ROWS_AT_A_TIME]
        assert isinstance(rows, JaggedTensor)  # a slice of rows
        users = pa.array(histories.users.decode(np.arange(start, start + len(rows))))
        yield _Block(users, rows.with_values(to_model[rows.values.long()]))

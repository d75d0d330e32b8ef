"""How a new log names its items, told in dense ids of the model."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data import DataConfig, Vocabulary
from ..data.engine import open_engine, quoted, reading
from ..data.events import check_column, id_column
from ..data.sources import Wanted, open_source
from ..errors import InvalidData


def model_ids(model_items: Vocabulary, log_items: Vocabulary, config: DataConfig) -> np.ndarray:
    """Return the model's dense id `(n,)` int64 of each item of a log, -1 for one that the model does not know.

    Where the training log had an item table with ids, its item column holds keys of that table, while the model
    knows the ids. A new log is taken to hold keys, too, if one of its items is a key; else its items are ids
    already. The two are never mixed: a new key is not taken for an id that happens to look like it.

    Raises:
        InvalidData: the item table is not where the run says, or lacks a column.
    """
    raw = log_items.decode(range(len(log_items)))
    if config.items is None or config.items.id is None:
        return model_items.encode(raw)
    keys, ids = _item_table(config)
    as_text = pa.array([str(item) for item in raw], pa.large_string())
    found = pc.call_function("index_in", [as_text], pc.SetLookupOptions(value_set=keys))
    return model_items.encode(raw if found.null_count == len(found) else ids.take(found))


def _item_table(config: DataConfig) -> tuple[pa.Array, pa.Array]:
    """Return the keys of the item table as text, and the id of each."""
    table = config.items
    assert table is not None
    assert table.id is not None
    with (tempfile.TemporaryDirectory(prefix="serrate-") as folder,
          open_engine(Path(folder), config.memory_limit, config.threads) as engine):
        try:
            side = open_source(engine, table.path, "auto", Wanted("side", (table.key, table.id), (table.key, table.id)))
            for role, column in (("items.key", table.key), ("items.id", table.id)):
                check_column(side, role, column)
        except InvalidData as error:
            raise InvalidData(f"item table of the training log: {error}; name it with items.path, or set items to "
                              f"null for a log of ids") from None
        key, new_id = quoted(table.key), id_column(side, "items.id", table.id)
        with reading(side.name):
            found = engine.sql(f"SELECT {key}::VARCHAR AS key, {new_id} AS id FROM side "
                               f"WHERE {key} IS NOT NULL").to_arrow_table()
    return found["key"].combine_chunks().cast(pa.large_string()), found["id"].combine_chunks()

"""How many events each user of a log has, without preparing it: counted by the engine, nothing sorted."""

import tempfile
from pathlib import Path

import numpy as np

from .config import DataConfig
from .engine import open_engine, reading
from .events import select_events, used_columns
from .histories import Histories, is_prepared
from .sources import Wanted, open_source


def history_lengths(source: str, config: DataConfig) -> np.ndarray:
    """Return the lengths of the histories of a log `(users,)` int64, in no order; a prepared data set has its own.

    Of a log, columns, format and filter count; repeats and minimum numbers of events do not.

    Raises:
        InvalidData: as `prepare`.
    """
    if is_prepared(source):
        return Histories.open(source).lengths.numpy()
    mapping = config.columns
    used = used_columns(mapping) if config.filter is None else None
    with (tempfile.TemporaryDirectory(prefix="serrate-") as folder,
          open_engine(Path(folder), config.memory_limit, config.threads) as engine):
        log = open_source(engine, source, config.format, Wanted("log", (mapping.user, mapping.item), used))
        with reading(log.name):
            select_events(engine, log, config)
            counts = engine.sql("SELECT count(*) AS events FROM events GROUP BY user").fetchnumpy()
    return np.asarray(counts["events"], dtype=np.int64)

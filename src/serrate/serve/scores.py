"""Scores of a whole file of requests: Parquet in, Parquet out, streaming."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidArgument, InvalidData
from ..files import write_aside
from .scorer import ASKED, REQUEST, Scorer

_ROWS_AT_A_TIME = 2**14


def score_file(scorer: Scorer, source: Path | str, out: Path | str) -> int:
    """Score every request of a Parquet file and write `out`, whole or not at all; return how many there were.

    Args:
        scorer: the loaded run.
        source: requests, a candidate a row, as `Scorer.score` takes them.
        out: a Parquet file with a row a request, in their order: `request`, the user, the item and `asked`, as far as
            the requests have them, and a column for each task, float32.

    Raises:
        InvalidData: the source cannot be read, or as `Scorer.score`.
        InvalidArgument: `out` is the source, or a task is called as a column of the requests.
        NotWritable: the disk is full or refuses.
    """
    source, out = Path(source), Path(out)
    if source.resolve() == out.resolve():
        raise InvalidArgument("out", "another file than the requests", str(out))
    columns, rows = scorer.data_config.columns, 0
    try:
        file = pq.ParquetFile(source)
        kept = [name for name in (REQUEST, columns.user, columns.item, ASKED) if name in file.schema_arrow.names]
        for task in scorer.tasks:
            if task in kept:
                raise InvalidArgument("out", "columns that differ", f"a task and a column of requests, both {task!r}")
        schema = pa.schema([*(file.schema_arrow.field(name) for name in kept),
                            *((task, pa.float32()) for task in scorer.tasks)])
        with write_aside(out) as partial, pq.ParquetWriter(partial, schema) as writer:
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                requests = pa.Table.from_batches([batch])
                scores = scorer.score(requests, str(source)).numpy()
                found = [requests[name] for name in kept] + [pa.array(scores[:, k]) for k in range(scores.shape[1])]
                writer.write_table(pa.Table.from_arrays(found, schema=schema))
                rows += len(requests)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | IsADirectoryError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidData(f"{source}: cannot be read as Parquet ({reason.splitlines()[0]})") from None
    return rows

"""`serrate score`: what a ranking model says of items that are shown."""

from pathlib import Path
from typing import Annotated

import typer

from ..serve import Scorer, score_file
from .show import err, say


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a saved run", show_default=False)],
    requests: Annotated[Path, typer.Argument(
        metavar="REQUESTS", help="a Parquet file, a candidate a row, see above", show_default=False)],
    result: Annotated[Path, typer.Option(
        "--out", metavar="FILE", help="the Parquet file to write", show_default=False)],
) -> None:
    """Score items that are shown, by a ranking model.

    REQUESTS has the training log's names of columns: the item, what is known when it is shown, and the user, whose
    events are those of the run's data set, before a time in a column `asked` if there is one. Users that are not there
    bring their events: a list column HISTORY.COLUMN for each history and what the model reads of it, such as
    `all.item_id`, oldest first; rows with the same `request` then share those of the first. Columns of the tables of
    items and users are read where REQUESTS has them, and looked up where not. FILE gets a row a request, in order.

    \b
    Example:
      serrate score runs/ranking requests.parquet --out scores.parquet
    """
    rows = score_file(Scorer.open(run), requests, result)
    say(f"{rows:,} requests → {result}", err)

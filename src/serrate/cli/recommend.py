"""`serrate recommend`: what a saved run gives to people it may never have seen."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import DataConfig
from ..errors import InvalidArgument
from ..serve import Predictor, recommend_file
from .groups import flat
from .run import Run
from .show import err, say

History = Annotated[str | None, typer.Option(
    metavar="ID,ID,…", help="one history instead: raw item ids, oldest first; ID@TIME for a model that reads times",
    show_default=False)]


@dataclass(frozen=True)
class RecommendOptions:
    """What `serrate recommend` is asked."""

    run: Run
    histories: Annotated[Path | None, typer.Option(
        "--histories", metavar="LOG", help="the events of many users, see above", show_default=False)] = None
    result: Annotated[Path | None, typer.Option(
        "--out", metavar="FILE", help="the Parquet file to write", show_default=False)] = None
    history: History = None
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", help="how many items")] = 10
    index: Annotated[Path | None, typer.Option(
        metavar="DIR", help="search this saved index (see `serrate index`) instead of scoring every item",
        show_default=False)] = None
    exclude_seen: Annotated[bool, typer.Option(help="leave out the items of the history itself")] = True
    columns: Annotated[list[str] | None, typer.Option(
        "--column", metavar="ROLE=COLUMN", help="where the log's names differ from the training log's")] = None
    changes: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="another change to how the log is read, a key under `data`")] = None


@flat(RecommendOptions)
def recommend(options: RecommendOptions) -> None:
    """Recommend items, also to users never seen in training.

    LOG is a log like the one the run was trained on (same columns, filter and item table), a prepared data set, or
    Parquet with a user a row and a list column `history` of raw item ids, oldest first. FILE gets a row a user:
    user, items (best first), scores, and how many events the model does not know; they are left out.

    A model trained with model.time=true reads when events happened: in a column `times` of lists beside `history`. It
    reads when the answer is asked for, too: in a column `asked`, or as @TIME after the last event of --history; where
    that is not said, when the newest event happened. TIME is a number, as in the training log, or an ISO date.

    \b
    Examples:
      serrate recommend runs/first --history 1193,661,914
      serrate recommend runs/timed --history 1193@978300760,661@978302109,@978400000
      serrate recommend runs/first --histories new-users.parquet --out recommended.parquet -k 20
      serrate recommend runs/first --histories today.csv --out recommended.parquet --column user=visitor
      serrate recommend runs/first --histories today.csv --out recommended.parquet --set filter=null
      serrate recommend runs/first --history 1193,661,914 --index runs/first-index
    """
    histories, history, result = options.histories, options.history, options.result
    if (histories is None) == (history is None):
        raise InvalidArgument("recommend", "either --history ID,ID,… or --histories LOG",
                              "neither" if history is None else "both")
    if (histories is None) != (result is None):
        raise InvalidArgument("recommend", "--histories LOG and --out FILE together", "one of them")
    predictor = Predictor.open(options.run, index=options.index)
    if histories is None or result is None:
        show_recommended(predictor, history or "", options.k, options.exclude_seen)
        return
    assignments = [f"columns.{column}" for column in options.columns or []] + (options.changes or [])
    config = DataConfig.parse(override(predictor.data_config.plain(), assignments))
    served = recommend_file(predictor, str(histories), result, options.k, exclude_seen=options.exclude_seen,
                            config=config)
    say(f"{served.users:,} users, {served.events:,} events → {result}", err)
    if served.unknown:
        say(f"note: {served.unknown:,} events have items that the model does not know; they were left out", err)


def show_recommended(predictor: Predictor, history: str, k: int, exclude_seen: bool) -> None:
    """Print what one history gets: `ID,ID,…`, or `ID@TIME,…` and perhaps `@TIME` for a model that reads times."""
    items: list[Any] = [part.strip() for part in history.split(",") if part.strip()]
    items, times, asked = _with_times(items) if predictor.reads_time else (items, None, None)
    (answer,) = predictor.recommend([items], k, exclude_seen=exclude_seen, times=None if times is None else [times],
                                    asked=asked)
    for place, (item, score, title) in enumerate(zip(answer.ids, answer.scores, answer.titles, strict=True), start=1):
        say(f"{place:3d}  {item}  {score:.3f}" + (f"  {title}" if title else ""))
    if answer.unknown:
        say(f"note: not known to the model: {', '.join(map(str, answer.unknown))}", err)


def _with_times(parts: list[str]) -> tuple[list[Any], list[Any], Any]:
    """Return the items and the times of `ID@TIME` parts, and the time of an `@TIME` at their end, or None."""
    split = [part.rpartition("@") for part in parts]
    asked = _time(split.pop()[2]) if parts and parts[-1].startswith("@") else None
    for (item, _, _), part in zip(split, parts, strict=False):
        if not item:
            raise InvalidArgument("--history", "ID@TIME,ID@TIME,… and @TIME last, as the model reads times", repr(part))
    return [item for item, _, _ in split], [_time(time) for _, _, time in split], asked


def _time(text: str) -> Any:
    for kind in (int, float, datetime.fromisoformat):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidArgument("--history", "a number or an ISO date as TIME", repr(text))

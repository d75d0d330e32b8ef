"""`serrate quickstart`: the whole way on a synthetic log, in minutes."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..data import prepare, synthesize
from ..errors import InvalidArgument
from ..report import write_report
from ..serve import Predictor
from ..train import DATA, RunConfig, read_recipe
from ..train import train as train_run
from .recommend import show_recommended
from .run import show_results
from .show import TrainingProgress, err, say

_HISTORY, _SHOWN = 5, 5


def quickstart(
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="where everything goes")] = Path(
        "serrate-quickstart"),
    events: Annotated[int, typer.Option(metavar="NUMBER", help="size of the synthetic log")] = 250_000,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="of the synthetic log")] = 0,
) -> None:
    """Go the whole way on a synthetic log, in under five minutes.

    Makes a log, trains on it, compares the model with baselines, recommends, and writes a report.

    \b
    Examples:
      serrate quickstart
      serrate quickstart --out try-it --events 50000
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidArgument("--out", "a path that does not exist or an empty folder", str(folder))
    log, run = folder / "log", folder / "run"
    say(f"1/3  a synthetic log of {events:,} events", err)
    synthesize(log / "events.parquet", events, seed=seed, titles=log / "items.parquet")
    plain = read_recipe("quickstart").plain()
    plain["data"]["items"]["path"] = str(log / plain["data"]["items"]["path"])
    config = RunConfig.parse(plain)
    say("2/3  prepare: sort and group into jagged histories", err)
    histories = prepare(str(log / "events.parquet"), config.data, run / DATA)
    say(f"     {histories!r}", err)
    say("3/3  train, evaluate, report", err)
    with TrainingProgress() as progress:
        train_run(config, histories, run, listeners=[progress])
    write_report(run)
    show_results(run)
    predictor = Predictor.open(run)
    newest = ",".join(map(str, histories.items.decode(histories.field("item")[0][-_HISTORY:])))
    command = ["serrate", "recommend", str(run), "-k", str(_SHOWN), "--history", newest]
    say(f"\n{shlex.join(command)}")
    show_recommended(predictor, newest, _SHOWN, exclude_seen=True)

"""`serrate train` and `report`: how a run comes about, and what it says of itself."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..data import Histories
from ..errors import InvalidArgument
from ..report import write_report
from ..run_folder import RunFolder
from ..train import read_recipe, train_log
from ..train import resume as resume_run
from .show import TrainingProgress, comparison_lines, metric_table, out, say

Run = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a saved run", show_default=False)]

_DEFAULT = "default"


def train(
    recipe: Annotated[str, typer.Argument(
        metavar="RECIPE", help="a recipe (see `serrate config ls`), or a YAML file")] = _DEFAULT,
    changes: Annotated[list[str] | None, typer.Argument(
        metavar="KEY=VALUE", help="changes to the recipe, such as train.epochs=5", show_default=False)] = None,
    log: Annotated[Path | None, typer.Option(
        "--data", metavar="DATA", help="a prepared data set, or a log to prepare first", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option(
        "--out", metavar="RUN", help="where the saved run goes", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(
        metavar="RUN", help="go on with this stopped run", show_default=False)] = None,
) -> None:
    """Train a model, test it, write a report.

    Validation chooses the epoch, the test split is read once. A run that was stopped or killed goes on with
    --resume, to the same result. `serrate config show RECIPE` prints every key that can be changed.

    \b
    Examples:
      serrate train --data prepared --out runs/first
      serrate train default train.epochs=5 model.width=128 --data prepared --out runs/wide
      serrate train default data.columns.time=ts --data events.parquet --out runs/from-log
      serrate train mine.yaml --data prepared --out runs/mine
      serrate train --resume runs/first
      torchrun --nproc_per_node 2 -m serrate.cli train default --data prepared --out runs/two
    """
    with TrainingProgress() as progress:
        if resume is not None:
            if recipe != _DEFAULT or changes or run is not None:
                raise InvalidArgument("--resume", "no recipe, changes or --out: the run knows its own", "some")
            folder = resume_run(resume, Histories.open(log) if log else None, listeners=[progress])
        elif log is None or run is None:
            raise InvalidArgument("train", "--data DATA and --out RUN, or --resume RUN",
                                  "no --data" if log is None else "no --out")
        else:
            folder = train_log(read_recipe(recipe, changes), log, run, listeners=[progress])
    if os.environ.get("RANK", "0") == "0":
        write_report(folder.path)
        show_results(folder.path)


def report(run: Run) -> None:
    """Write the report of a saved run again.

    The report is one HTML file that needs no network: RUN/report.html.

    \b
    Example:
      serrate report runs/first
    """
    say(str(write_report(run)))


def show_results(run: Path) -> None:
    """Print a run's metric table, its paired differences and its warnings."""
    metrics = RunFolder(run).read_metrics()
    out.print(metric_table(metrics))
    for line in comparison_lines(metrics["comparisons"]):
        say(line)
    for warning in metrics["warnings"]:
        say(f"note: {warning}")
    say(f"saved run: {run}   report: {RunFolder(run).report_path}")

"""`serrate train`, `evaluate`, `report`: how a run comes about."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import Histories, split
from ..errors import InvalidArgument, InvalidData
from ..evaluate import EvaluateConfig, evaluate_baselines, table
from ..evaluate import evaluate as rank
from ..report import write_report
from ..run_folder import RunFolder
from ..serve import Predictor
from ..train import data_of, next_item_run, read_recipe, read_run_config, train_log
from ..train import resume as resume_run
from .show import TrainingProgress, comparison_lines, err, metric_table, out, say

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


def evaluate(
    run: Run,
    log: Annotated[Path | None, typer.Option(
        "--data", metavar="DATA", help="the prepared data set; by default where it was")] = None,
    part: Annotated[str, typer.Option("--split", metavar="SPLIT", help="test or validation")] = "test",
    baselines: Annotated[bool, typer.Option(help="evaluate the baselines too")] = True,
    changes: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="a change, such as evaluate.exclude_seen=false")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Evaluate a saved run again.

    \b
    Examples:
      serrate evaluate runs/first
      serrate evaluate runs/first --split validation --set evaluate.exclude_seen=false
      serrate evaluate runs/first --data prepared --no-baselines --json
    """
    if part not in ("test", "validation"):
        raise InvalidArgument("--split", "test or validation", repr(part))
    for change in changes or []:
        if not change.startswith("evaluate."):
            raise InvalidArgument("--set", "a change to a key under `evaluate`, such as evaluate.resamples=100", change)
    predictor = Predictor.open(run)
    config = next_item_run(read_run_config(predictor.config))
    settings = EvaluateConfig.parse(override({"evaluate": config.evaluate.plain()}, changes or [])["evaluate"])
    histories = Histories.open(log) if log else data_of(run)
    if len(histories.items) != len(predictor.items) or histories.items.decode(range(len(histories.items))) != \
            predictor.items.decode(range(len(predictor.items))):
        raise InvalidData(f"{histories.path}: its items are not those that {run} was trained on")
    if predictor.reads_time and not histories.has_time:
        raise InvalidData(f"{histories.path}: the model reads times, and this data set has none (columns.time)")
    parts = split(histories, config.split)
    examples = parts.test if part == "test" else parts.validation
    device = next(predictor.model.parameters()).device
    evaluations = {config.model.kind: rank(predictor.model, histories, examples, settings,
                                           max_length=config.model.max_length, device=device)}
    refusals: list[str] = []
    if baselines:
        others, refusals = evaluate_baselines(histories, parts.train, examples, settings)
        evaluations |= others
    metrics: dict[str, Any] = {"examples": {part: len(evaluations[config.model.kind])},
                               "rows": table(evaluations, part), "warnings": [*parts.warnings, *refusals]}
    if as_json:
        out.print_json(json.dumps(metrics))
        return
    out.print(metric_table(metrics))
    for warning in metrics["warnings"]:
        say(f"note: {warning}", err)


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

"""`serrate train`, `evaluate`, `recommend`, `report`: a run's life."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import DataConfig, Histories, prepare, split
from ..errors import InvalidArgument, InvalidData
from ..evaluate import evaluate as rank
from ..evaluate import evaluate_baselines, table
from ..report import write_report
from ..run_folder import RunFolder
from ..serve import Predictor, recommend_file
from ..train import DATA, RunConfig, read_recipe, read_run_config
from ..train import resume as resume_run
from ..train import train as train_run
from .show import TrainingProgress, comparison_lines, err, metric_table, out, say

Run = Annotated[Path, typer.Argument(help="the folder of a saved run", show_default=False)]


def train(
    recipe: Annotated[str, typer.Argument(help="a recipe (see `serrate config ls`) or a YAML file")] = "default",
    changes: Annotated[list[str] | None, typer.Argument(help="key.path=value …", show_default=False)] = None,
    log: Annotated[Path | None, typer.Option("--data", help="a prepared data set, or a log to prepare first",
                                             show_default=False)] = None,
    run: Annotated[Path | None, typer.Option("--out", help="where the saved run goes", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with this stopped run", show_default=False)] = None,
) -> None:
    """Train a model: choose the epoch on validation, test once, write a report.

    Examples:

        serrate train sasrec-ml-1m --data ml-1m.prepared --out runs/first

        serrate train default train.epochs=5 model.width=128 --data events.parquet --out runs/second

        serrate train --resume runs/first

        torchrun --nproc_per_node 2 -m serrate.cli train default --data prepared --out runs/two
    """
    with TrainingProgress() as progress:
        if resume is not None:
            histories = Histories.open(log) if log else None
            folder = resume_run(resume, histories, listeners=[progress])
        else:
            if log is None or run is None:
                raise InvalidArgument("train", "--data and --out (or --resume RUN)", "one missing")
            config = read_recipe(recipe, changes)
            folder = train_run(config, _open_or_prepare(log, config.data, run / DATA), run, listeners=[progress])
    if os.environ.get("RANK", "0") == "0":
        write_report(folder.path)
        show_results(folder.path)


def evaluate(
    run: Run,
    log: Annotated[Path | None, typer.Option("--data", help="the prepared data set; by default where it was")] = None,
    part: Annotated[str, typer.Option("--split", help="test or validation")] = "test",
    baselines: Annotated[bool, typer.Option(help="evaluate the baselines too")] = True,
    changes: Annotated[list[str] | None, typer.Option("--set", help="evaluate.key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Evaluate a saved run again, on the split it was tested on.

    Examples:

        serrate evaluate runs/first

        serrate evaluate runs/first --split validation --set evaluate.exclude_seen=false --json
    """
    if part not in ("test", "validation"):
        raise InvalidArgument("--split", "test or validation", repr(part))
    predictor = Predictor.open(run)
    plain = read_run_config(predictor.config).plain()
    config = RunConfig.parse(override(plain, changes or []))
    histories = Histories.open(log or predictor.config["dataset"]["path"])
    if len(histories.items) != len(predictor.items) or histories.items.decode(range(len(histories.items))) != \
            predictor.items.decode(range(len(predictor.items))):
        raise InvalidData(f"{histories.path}: its items are not those that {run} was trained on")
    parts = split(histories, config.split)
    examples = parts.test if part == "test" else parts.validation
    device = next(predictor.model.parameters()).device
    evaluations = {config.model.kind: rank(predictor.model, histories, examples, config.evaluate,
                                           max_length=config.model.max_length, device=device)}
    refusals: list[str] = []
    if baselines:
        others, refusals = evaluate_baselines(histories, parts.train, examples, config.evaluate)
        evaluations |= others
    metrics: dict[str, Any] = {"examples": {part: len(evaluations[config.model.kind])},
                               "rows": table(evaluations, part), "warnings": [*parts.warnings, *refusals]}
    if as_json:
        out.print_json(json.dumps(metrics))
        return
    out.print(metric_table(metrics))
    for warning in metrics["warnings"]:
        say(f"note: {warning}", err)


def recommend(
    run: Run,
    histories: Annotated[Path | None, typer.Option(
        "--histories", help="a log of events, or Parquet with a list column `history`", show_default=False)] = None,
    result: Annotated[Path | None, typer.Option("--out", help="the Parquet file to write", show_default=False)] = None,
    history: Annotated[str | None, typer.Option(
        help="one history instead of a file: item ids, oldest first, separated by commas", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", help="how many items")] = 10,
    exclude_seen: Annotated[bool, typer.Option(help="leave out items of the history")] = True,
    columns: Annotated[list[str] | None, typer.Option(
        "--column", help="user=…, item=…, time=… where the file's names differ from the training log's")] = None,
) -> None:
    """Recommend items to users, also to users never seen in training.

    Examples:

        serrate recommend runs/first --history 1193,661,914

        serrate recommend runs/first --histories new-users.parquet --out recommended.parquet -k 20
    """
    if (histories is None) == (history is None):
        raise InvalidArgument("recommend", "either --histories FILE or --history ID,ID,…",
                              "both" if history else "neither")
    predictor = Predictor.open(run)
    if history is not None:
        show_recommended(predictor, [part.strip() for part in history.split(",") if part.strip()], k, exclude_seen)
        return
    if result is None:
        raise InvalidArgument("recommend", "--out FILE beside --histories", "none")
    served = recommend_file(predictor, str(histories), result, k, exclude_seen=exclude_seen,
                            columns=override({}, columns or []))
    say(f"{served.users:,} users, {served.events:,} events → {result}", err)
    if served.unknown:
        say(f"note: {served.unknown:,} events have items that the model does not know; they were left out", err)


def report(run: Run) -> None:
    """Write the report of a saved run again: one HTML file, no network needed.

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


def show_recommended(predictor: Predictor, history: list[Any], k: int, exclude_seen: bool) -> None:
    """Print what one history gets."""
    (answer,) = predictor.recommend([history], k, exclude_seen=exclude_seen)
    for place, (item, score, title) in enumerate(zip(answer.ids, answer.scores, answer.titles, strict=True), start=1):
        say(f"{place:3d}  {item}  {score:.3f}" + (f"  {title}" if title else ""))
    if answer.unknown:
        say(f"note: not known to the model: {', '.join(map(str, answer.unknown))}", err)


def _open_or_prepare(log: Path, config: DataConfig, folder: Path) -> Histories:
    """Open a prepared data set, or prepare a log into `folder`."""
    if (log / "dataset.json").exists():
        return Histories.open(log)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidArgument("--data", "a prepared data set when several processes train", str(log))
    if (folder / "dataset.json").exists() and Histories.open(folder).config == config.plain():
        return Histories.open(folder)  # a run that was killed before its first checkpoint begins again
    return prepare(str(log), config, folder)

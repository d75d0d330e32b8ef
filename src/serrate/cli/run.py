"""`serrate train`, `evaluate`, `recommend`, `report`: a run's life."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import DataConfig, Histories, split
from ..errors import InvalidArgument, InvalidData
from ..evaluate import EvaluateConfig, evaluate_baselines, table
from ..evaluate import evaluate as rank
from ..report import write_report
from ..run_folder import RunFolder
from ..serve import Predictor, recommend_file
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


def recommend(
    run: Run,
    histories: Annotated[Path | None, typer.Option(
        "--histories", metavar="LOG", help="the events of many users, see above", show_default=False)] = None,
    result: Annotated[Path | None, typer.Option(
        "--out", metavar="FILE", help="the Parquet file to write", show_default=False)] = None,
    history: Annotated[str | None, typer.Option(
        metavar="ID,ID,…", help="one history instead: raw item ids, oldest first; ID@TIME for a model that reads times",
        show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", help="how many items")] = 10,
    exclude_seen: Annotated[bool, typer.Option(help="leave out the items of the history itself")] = True,
    columns: Annotated[list[str] | None, typer.Option(
        "--column", metavar="ROLE=COLUMN", help="where the log's names differ from the training log's")] = None,
    changes: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="another change to how the log is read, a key under `data`")] = None,
) -> None:
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
    """
    if (histories is None) == (history is None):
        raise InvalidArgument("recommend", "either --history ID,ID,… or --histories LOG",
                              "neither" if history is None else "both")
    if (histories is None) != (result is None):
        raise InvalidArgument("recommend", "--histories LOG and --out FILE together", "one of them")
    predictor = Predictor.open(run)
    if histories is None or result is None:
        items: list[Any] = [part.strip() for part in (history or "").split(",") if part.strip()]
        items, times, asked = _with_times(items) if predictor.reads_time else (items, None, None)
        show_recommended(predictor, items, k, exclude_seen, times, asked)
        return
    assignments = [f"columns.{column}" for column in columns or []] + (changes or [])
    config = DataConfig.parse(override(predictor.data_config.plain(), assignments))
    served = recommend_file(predictor, str(histories), result, k, exclude_seen=exclude_seen, config=config)
    say(f"{served.users:,} users, {served.events:,} events → {result}", err)
    if served.unknown:
        say(f"note: {served.unknown:,} events have items that the model does not know; they were left out", err)


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


def show_recommended(predictor: Predictor, history: list[Any], k: int, exclude_seen: bool,
                     times: list[Any] | None = None, asked: Any = None) -> None:
    """Print what one history gets; `times` and `asked` as in `Predictor.recommend`, for a model that reads times."""
    (answer,) = predictor.recommend([history], k, exclude_seen=exclude_seen, times=None if times is None else [times],
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

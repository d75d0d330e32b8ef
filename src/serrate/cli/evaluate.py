"""`serrate evaluate`: a saved run measured again, on another part of its data or with other settings."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import Histories, Vocabulary, split
from ..errors import InvalidArgument, InvalidData
from ..evaluate import evaluate as rank
from ..evaluate import evaluate_baselines, table
from ..run_folder import RunFolder
from ..serve import Predictor, Scorer
from ..train import RankingRunConfig, RunConfig, data_of, read_run_config
from ..train.ranking import Ranking
from .run import Run
from .show import err, metric_table, out, say

PARTS = ("test", "validation")


def evaluate(
    run: Run,
    log: Annotated[Path | None, typer.Option(
        "--data", metavar="DATA", help="the prepared data set; by default where it was")] = None,
    part: Annotated[str, typer.Option("--split", metavar="SPLIT", help="test or validation")] = "test",
    baselines: Annotated[bool, typer.Option(help="evaluate the baselines too")] = True,
    changes: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="a change, such as evaluate.resamples=100")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Evaluate a saved run again.

    \b
    Examples:
      serrate evaluate runs/first
      serrate evaluate runs/first --split validation --set evaluate.exclude_seen=false
      serrate evaluate runs/first --data prepared --no-baselines --json
      serrate evaluate runs/ads --set evaluate.confidence=0.9
    """
    if part not in PARTS:
        raise InvalidArgument("--split", " or ".join(PARTS), repr(part))
    for change in changes or []:
        if not change.startswith("evaluate."):
            raise InvalidArgument("--set", "a change to a key under `evaluate`, such as evaluate.resamples=100", change)
    saved = read_run_config(RunFolder(run).read_config())
    settings = override({"evaluate": saved.evaluate.plain()}, changes or [])["evaluate"]
    if isinstance(saved, RankingRunConfig):
        settings["baselines"] = settings["baselines"] and baselines
    config = saved.model_copy(update={"evaluate": type(saved.evaluate).parse(settings)})
    histories = Histories.open(log) if log else data_of(run)
    if isinstance(config, RankingRunConfig):
        metrics = _of_ranking(run, config, histories, part)
    else:
        metrics = _of_next_item(run, config, histories, part, baselines)
    if as_json:
        out.print_json(json.dumps(metrics))
        return
    out.print(metric_table(metrics))
    for warning in metrics["warnings"]:
        say(f"note: {warning}", err)


def _of_next_item(run: Path, config: RunConfig, histories: Histories, part: str, baselines: bool) -> dict[str, Any]:
    """Return what metrics.json would say of one part, ranked by the model and, where asked, the baselines."""
    predictor = Predictor.open(run)
    _require_items(run, histories, predictor.items)
    if predictor.reads_time and not histories.has_time:
        raise InvalidData(f"{histories.path}: the model reads times, and this data set has none (columns.time)")
    parts = split(histories, config.split)
    examples, kind = getattr(parts, part), config.model.kind
    device = next(predictor.model.parameters()).device
    evaluations = {kind: rank(predictor.model, histories, examples, config.evaluate,
                              max_length=config.model.max_length, device=device,
                              user_keys=predictor.keys_in(histories.users))}
    refusals: list[str] = []
    if baselines:
        others, refusals = evaluate_baselines(histories, parts.train, examples, config.evaluate)
        evaluations |= others
    return {"examples": {part: len(evaluations[kind])}, "rows": table(evaluations, part),
            "warnings": [*parts.warnings, *refusals]}


def _of_ranking(run: Path, config: RankingRunConfig, histories: Histories, part: str) -> dict[str, Any]:
    """Return what metrics.json would say of the samples of one part, by the model and the rates."""
    scorer = Scorer.open(run)
    _require_items(run, histories, scorer.features.items.vocabulary)
    objective = Ranking(config, histories, next(scorer.model.parameters()).device)
    if objective.data.features.sizes != scorer.features.sizes:
        raise InvalidData(f"{histories.path}: its features have other values than those that {run} was trained on")
    samples = getattr(objective.parts, part)
    predicted = {config.model.kind: objective.predictions(scorer.model, samples), **objective.baselines(samples)}
    return {"examples": {part: len(samples)}, "rows": table(predicted, part),
            "warnings": list(objective.parts.warnings)}


def _require_items(run: Path, histories: Histories, items: Vocabulary) -> None:
    every = range(len(histories.items))
    if len(histories.items) != len(items) or histories.items.decode(every) != items.decode(every):
        raise InvalidData(f"{histories.path}: its items are not those that {run} was trained on")

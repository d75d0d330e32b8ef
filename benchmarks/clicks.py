"""Quality of ranking recipes on what people were shown: what asks a history beside its mean, in pairs of runs.

    python benchmarks/clicks.py ranking-ml-100k ml-100k/events.parquet --name ml-100k --seeds 42 43 44 --out runs/clicks

Each seed trains the recipe, and the recipe with a mean in place of whatever reads its histories; both are tested on
the same samples. A difference is paired by user, seed by seed and on the mean over seeds. Rows go to
`benchmarks/clicks.json`; a finished run that stands in `--out` is read and not trained again.
"""

import argparse
from pathlib import Path

import ledger
import torch

from serrate.data import Histories, prepare
from serrate.evaluate import Predictions, TaskPredictions, mean_difference
from serrate.run_folder import RunFolder
from serrate.serve import Scorer
from serrate.train import RankingRunConfig, read_recipe, train
from serrate.train.ranking import Ranking

LEDGER = Path(__file__).parent / "clicks.json"
METRICS = {"auc": "share", "grouped_auc": "share", "log_loss": "nats", "ne": "share", "calibration": "ratio"}
COMPARED = ("auc", "grouped_auc", "log_loss")
MEAN = "mean pooling"


def config_of(recipe: str, mean: bool, changes: list[str], seed: int) -> RankingRunConfig:
    """Return the recipe, or the same with histories that are pooled by their mean and nothing else."""
    config = read_recipe(recipe, [*changes, f"seed={seed}"])
    if not isinstance(config, RankingRunConfig):
        raise SystemExit(f"{recipe} is no recipe of a ranking model")
    if not mean:
        return config
    plain = config.plain()
    for history in plain["model"]["histories"]:
        history["reads"] = [{"kind": "pooling", "how": "mean"}]
    return RankingRunConfig.parse(plain)


def tested(config: RankingRunConfig, histories: Histories, out: Path) -> tuple[TaskPredictions, dict]:
    """Train a run or find it done; return its predictions of the test samples and its metrics.json."""
    folder = RunFolder(out)
    if not folder.metrics_path.exists():
        train(config, histories, out, listeners=[show])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = Ranking(config, histories, device)
    model = Scorer.open(out, device=device.type).model
    return objective.predictions(model, objective.parts.test), folder.read_metrics()


def show(record: dict) -> None:
    """Print validations as they come."""
    if record["event"] == "validation":
        values = {name: round(value, 4) for name, value in record["metrics"].items()}
        print(f"  epoch {record['epoch']}: {values}{' *' if record['best'] else ''}", flush=True)


def rows_of(metrics: dict, subject: str, called: str, seed: int, baselines: bool) -> list[dict]:
    """Return the ledger rows of a run's test samples: its metrics and, where asked, those of the baselines."""
    rows = []
    for entry in metrics["rows"]:
        own = entry["model"] == "ranking"
        if entry["split"] != "test" or not (own or baselines):
            continue
        for metric, unit in METRICS.items():
            estimate = entry["metrics"][metric]
            row = ledger.row(subject, f"by {metrics['split_by']}, test", called if own else entry["model"], metric,
                             round(estimate["value"], 5), unit, seed if own else 0)
            ends = {end: round(estimate[end], 5) for end in ("low", "high") if estimate.get(end) is not None}
            rows.append(row | ends)
    return rows


def difference_rows(pairs: list[tuple[Predictions, Predictions]], subject: str, split_by: str, called: str,
                    seed: int) -> list[dict]:
    """Return the ledger rows of the mean difference over pairs, one a seed."""
    found = [(metric, mean_difference(pairs, metric)) for metric in COMPARED]
    return [ledger.row(subject, f"by {split_by}, test", called, metric, round(each.value, 5), "difference", seed)
            | {"low": round(each.low or 0.0, 5), "high": round(each.high or 0.0, 5)} for metric, each in found]


def main() -> None:
    """Train, test, pair, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("log", type=Path)
    parser.add_argument("--name", required=True, help="how the log is called in the ledger")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="key.path=value …, for both")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    recipe, subject = Path(arguments.recipe).stem, f"clicks {arguments.name}"
    prepared = arguments.out / f"{arguments.name}.prepared"
    data = read_recipe(arguments.recipe, arguments.changes).data
    histories = Histories.open(prepared) if prepared.exists() else prepare(arguments.log, data, prepared)
    pairs = []
    for seed in arguments.seeds:
        found, rows = {}, []
        for called in (recipe, MEAN):
            print(f"{called} on {arguments.name}, seed {seed}", flush=True)
            config = config_of(arguments.recipe, called == MEAN, arguments.changes, seed)
            name = f"{arguments.name}-{recipe}-{called.replace(' ', '-')}-{seed}"
            found[called], metrics = tested(config, histories, arguments.out / name)
            rows += rows_of(metrics, subject, called, seed, called == recipe)
        [pair] = zip(*(each.of_task.values() for each in (found[recipe], found[MEAN])), strict=True)  # of one task
        pairs.append(pair)
        rows += difference_rows(pairs[-1:], subject, metrics["split_by"], f"{recipe} − {MEAN}", seed)
        if 1 < len(pairs) == len(arguments.seeds):
            rows += difference_rows(pairs, subject, metrics["split_by"], f"{recipe} − {MEAN}, {len(pairs)} seeds",
                                    arguments.seeds[0])
        for row in rows:
            ends = f" [{row['low']:+.4f}, {row['high']:+.4f}]" if "low" in row else ""
            print(f"  {row['implementation']:36} {row['metric']:12} {row['value']:+.4f}{ends}", flush=True)
        ledger.write(arguments.ledger, rows)


if __name__ == "__main__":
    main()

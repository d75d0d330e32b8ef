"""Quality of a recipe on a log: trains it with several seeds, tests each run once, beside the baselines.

    python benchmarks/quality.py sasrec-ml-1m ml-1m/events.parquet --name ml-1m --seeds 42 43 44 --out runs/quality
    python benchmarks/quality.py temporal-ml-100k ml-100k/events.parquet --name ml-100k --out runs/quality
    python benchmarks/quality.py hstu-ml-1m ml-1m/events.parquet --name ml-1m --seeds 42 43 44 --out runs/quality \
        --as hstu-ml-1m-without-bias --set model.position=false --against hstu-ml-1m sasrec-ml-1m

Rows go to `benchmarks/quality.json`; a finished run that stands in `--out` is read and not trained again. `--against`
compares with runs of the same seeds that stand there, seed by seed: the difference of each user, bootstrapped by user.
"""

import argparse
import os
from pathlib import Path
from statistics import mean

import ledger
import torch

from serrate.data import Histories, prepare, split
from serrate.evaluate import Evaluation, bootstrap_by_user, evaluate
from serrate.run_folder import RunFolder
from serrate.serve import Predictor
from serrate.train import next_item_run, read_recipe, read_run_config, train
from serrate.train.device import autocast

LEDGER = Path(__file__).parent / "quality.json"
METRICS = ("hr@10", "ndcg@10")


def run(recipe: str, histories: Histories, out: Path, seed: int, changes: list[str]) -> RunFolder:
    """Train one seed, or find it done."""
    folder = RunFolder(out)
    if not folder.metrics_path.exists():
        config = read_recipe(recipe, [*changes, f"seed={seed}"])
        train(config, histories, out, listeners=[show])
    return folder


def show(record: dict) -> None:
    """Print validations as they come."""
    if record["event"] == "validation":
        values = {name: round(record["metrics"][name], 4) for name in METRICS}
        print(f"  epoch {record['epoch']}: {values}{' *' if record['best'] else ''}", flush=True)


def rows_of(folder: RunFolder, name: str, recipe: str, seed: int) -> list[dict]:
    """Return the ledger rows of one finished run: its metrics, its time, and (once) the baselines'."""
    metrics, split = folder.read_metrics(), folder.read_config()["split"]["kind"]
    rows = []
    for entry in metrics["rows"]:
        own = entry["model"] == folder.read_config()["model"]["kind"]
        for metric in METRICS:
            estimate = entry["metrics"][metric]
            rows.append(ledger.row(f"quality {name}", f"{split}, {entry['split']}", recipe if own else entry["model"],
                                   metric, round(estimate["value"], 5), "share", seed if own else 0)
                        | {"low": round(estimate["low"], 5), "high": round(estimate["high"], 5)})
    for entry in metrics["comparisons"]:
        rows.append(ledger.row(f"quality {name}", f"{split}, test", f"{recipe} − {entry['baseline']}",
                               entry["metric"], round(entry["value"], 5), "difference", seed)
                    | {"low": round(entry["low"], 5), "high": round(entry["high"], 5)})
    rows.append(ledger.row(f"quality {name}", f"{split}, test", recipe, "run_s", metrics["seconds"], "s", seed))
    return rows


def tested(folder: RunFolder, histories: Histories) -> Evaluation:
    """Rank the test examples once more with the model of a finished run."""
    predictor = Predictor.open(folder.path)
    config = next_item_run(read_run_config(predictor.config))
    device = next(predictor.model.parameters()).device
    with autocast(config.train, device):
        return evaluate(predictor.model, histories, split(histories, config.split).test, config.evaluate,
                        max_length=config.model.max_length, device=device,
                        user_keys=predictor.keys_in(histories.users))


def difference_rows(folders: dict[int, RunFolder], others: dict[int, RunFolder], histories: Histories, name: str,
                    implementation: str) -> list[dict]:
    """Return the ledger rows of a paired difference over all seeds: a user stands for the same user in every seed.

    Args:
        folders: seed → finished run.
        others: seed → the run it is compared with.
        histories: what both were trained on.
        name: of the log.
        implementation: how the rows call the difference.
    """
    pairs = [(tested(folders[seed], histories), tested(others[seed], histories)) for seed in folders]
    users = torch.cat([ours.users for ours, _ in pairs])
    differences = torch.stack([torch.cat([ours.per_example(metric) - theirs.per_example(metric)
                                          for ours, theirs in pairs]) for metric in METRICS], dim=1)
    kind = next(iter(folders.values())).read_config()["split"]["kind"]
    return [ledger.row(f"quality {name}", f"{kind}, test", implementation, metric, round(found.value, 5), "difference",
                       min(folders)) | {"low": round(found.low, 5), "high": round(found.high, 5)}
            for metric, found in zip(METRICS, bootstrap_by_user(differences, users), strict=True)]


def main() -> None:
    """Train, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("log", type=Path)
    parser.add_argument("--name", required=True, help="how the log is called in the ledger")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="key.path=value …")
    parser.add_argument("--as", dest="called", help="how it is called where --set makes it another than the recipe")
    parser.add_argument("--against", nargs="*", default=[], help="recipes, or what --as called them, that are finished")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    recipe = arguments.called or Path(arguments.recipe).stem
    prepared = arguments.out / f"{arguments.name}.prepared"
    config = read_recipe(arguments.recipe, arguments.changes).data
    histories = Histories.open(prepared) if prepared.exists() else prepare(arguments.log, config, prepared)
    rows, means, folders = [], {}, {}
    for seed in arguments.seeds:
        print(f"{recipe} on {arguments.name}, seed {seed}, process {os.getpid()}", flush=True)
        folders[seed] = run(arguments.recipe, histories, arguments.out / f"{arguments.name}-{recipe}-{seed}", seed,
                            arguments.changes)
        found = rows_of(folders[seed], arguments.name, recipe, seed)
        rows += found
        for row in found:
            part = row["workload"].rpartition(", ")[2]
            if part == "test" and row["unit"] in ("share", "s"):
                print(f"  {row['implementation']:24} {row['metric']:8} {row['value']:.4f}", flush=True)
            if row["implementation"] == recipe and row["metric"] in METRICS:
                means.setdefault((part, row["metric"]), []).append(row["value"])
        ledger.write(arguments.ledger, rows)
    for other in arguments.against:
        others = {seed: RunFolder(arguments.out / f"{arguments.name}-{other}-{seed}") for seed in arguments.seeds}
        rows += difference_rows(folders, others, histories, arguments.name,
                                f"{recipe} − {other}, {len(folders)} seed{'s' * (len(folders) > 1)}")
        for row in rows[-len(METRICS):]:
            print(f"{row['implementation']}: {row['metric']} {row['value']:+.4f} [{row['low']:+.4f}, "
                  f"{row['high']:+.4f}]", flush=True)
        ledger.write(arguments.ledger, rows)
    for (part, metric), values in means.items():
        print(f"{recipe} on {arguments.name}: mean {part} {metric} {mean(values):.4f} over {len(values)} seeds")


if __name__ == "__main__":
    main()

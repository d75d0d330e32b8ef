"""Quality of a recipe on a log: trains it with several seeds, tests each run once, beside the baselines.

    python benchmarks/quality.py sasrec-ml-1m ml-1m/events.parquet --name ml-1m --seeds 42 43 44 --out runs/quality
    python benchmarks/quality.py temporal-ml-100k ml-100k/events.parquet --name ml-100k --out runs/quality

Rows go to `benchmarks/quality.json`; a finished run that stands in `--out` is read and not trained again.
"""

import argparse
import os
from pathlib import Path
from statistics import mean

import ledger

from serrate.data import Histories, prepare
from serrate.run_folder import RunFolder
from serrate.train import read_recipe, train

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


def main() -> None:
    """Train, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("log", type=Path)
    parser.add_argument("--name", required=True, help="how the log is called in the ledger")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="key.path=value …")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    recipe = Path(arguments.recipe).stem
    prepared = arguments.out / f"{arguments.name}.prepared"
    config = read_recipe(arguments.recipe, arguments.changes).data
    histories = Histories.open(prepared) if prepared.exists() else prepare(arguments.log, config, prepared)
    rows, tested = [], {metric: [] for metric in METRICS}
    for seed in arguments.seeds:
        print(f"{recipe} on {arguments.name}, seed {seed}, process {os.getpid()}", flush=True)
        folder = run(arguments.recipe, histories, arguments.out / f"{arguments.name}-{recipe}-{seed}", seed,
                     arguments.changes)
        found = rows_of(folder, arguments.name, recipe, seed)
        rows += found
        for row in found:
            if row["workload"].endswith("test") and row["unit"] in ("share", "s"):
                print(f"  {row['implementation']:24} {row['metric']:8} {row['value']:.4f}", flush=True)
            if row["implementation"] == recipe and row["workload"].endswith("test") and row["metric"] in tested:
                tested[row["metric"]].append(row["value"])
        ledger.write(arguments.ledger, rows)
    for metric, values in tested.items():
        print(f"{recipe} on {arguments.name}: mean test {metric} {mean(values):.4f} over {len(values)} seeds")


if __name__ == "__main__":
    main()

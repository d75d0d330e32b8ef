"""One pass over a stream whose catalogue grows: pointwise HSTU, the same with a softmax, and a transformer.

    python benchmarks/streaming.py --records 50000 --out runs/streaming
    python benchmarks/streaming.py --records 1000000 --again item --seeds 42 43 44 --out runs/streaming

The three read the same records in the same order, once, with one recipe but for the model: no bias of position or of
time, the same width, depth and heads. The last event of each of the newest 9 % of the records is predicted. Beside
them stands what can be hit by one who knows categories, releases and the process, and learns the taste of a record and
its concentration from the record alone.

Rows go to `benchmarks/streaming.json`; a finished run that stands in `--out` is read and not trained again.
"""

import argparse
from pathlib import Path

import ledger
import numpy as np
import torch
from torch import Tensor

from serrate.data import Histories, prepare, split, synthesize_stream
from serrate.data.streaming import Again, released
from serrate.evaluate import evaluate
from serrate.files import write_folder_aside
from serrate.jagged import EventBatch
from serrate.run_folder import RunFolder
from serrate.train import RunConfig, next_item_run, read_recipe, train

LEDGER = Path(__file__).parent / "streaming.json"
METRICS = ("hr@10", "hr@50")
MODELS = {  # recipe, changes
    "transformer": ("streaming-transformer", []),
    "HSTU, softmax": ("streaming-hstu", ["model.activation=softmax"]),
    "HSTU, pointwise": ("streaming-hstu", []),
}
BEST = "who knows the law"


class Law:
    """Scores items by how likely the process takes them next.

    Where items are repeated, the weight of one is how often it came plus `alpha · taste / items out` of its category:
    the taste is the category's share of the different items, and alpha its mean given how many of these there are.
    Where categories are repeated, it is how often the category came, by its items that are out.

    Args:
        histories: with titles that begin with `category 07`.
        again: what the stream repeats.
        catalogue: how many items the stream has in all.
    """

    def __init__(self, histories: Histories, again: Again, catalogue: int):
        self.again, self.catalogue = again, catalogue
        self.num_items, self.num_users = histories.num_items, histories.num_users
        titles, ids = histories.items.titles or [], histories.items.decode(range(histories.num_items))
        self.category = np.array([int(str(title).split()[1]) for title in titles])
        self.place = np.array(ids, dtype=np.int64)
        self.noise = np.random.default_rng(0).random(self.num_items) * 1e-6  # equally likely ones stand in any order

    def score(self, batch: EventBatch) -> Tensor:
        """Return `(B, num_items)` float64."""
        return torch.from_numpy(np.stack([self._weights(row.numpy(), int(user)) for row, user in
                                          zip(batch["item"], batch.context["user"].tolist(), strict=True)]))

    def _weights(self, items: np.ndarray, user: int) -> np.ndarray:
        categories = int(self.category.max()) + 1
        out = self.place <= released(np.array(user / self.num_users), self.catalogue)
        available = np.bincount(self.category[out], minlength=categories).clip(min=1)
        came = np.bincount(items, minlength=self.num_items)
        if self.again == "category":
            weights = (np.bincount(self.category[items], minlength=categories) / available)[self.category]
        else:
            different = np.flatnonzero(came)
            taste = np.bincount(self.category[different], minlength=categories) / max(len(different), 1)
            weights = came + _concentration(len(different), len(items)) * (taste / available)[self.category]
        return np.where(out, weights + self.noise, -1.0)


def _concentration(different: int, events: int) -> float:
    """Mean of alpha, even over 1 … 500 before, of a Chinese restaurant with so many tables after so many guests."""
    alpha = np.arange(1.0, 501.0)
    likelihood = different * np.log(alpha) - np.log(alpha[:, None] + np.arange(events)).sum(1)
    posterior = np.exp(likelihood - likelihood.max())
    return float((alpha * posterior).sum() / posterior.sum())


def log_of(arguments: argparse.Namespace) -> Path:
    """Return the folder of the stream, made where it is not there."""
    folder = arguments.out / f"{arguments.records}-{arguments.items}-{arguments.again}"
    if not folder.exists():
        arguments.out.mkdir(parents=True, exist_ok=True)
        with write_folder_aside(folder) as partial:
            synthesize_stream(partial / "events.parquet", arguments.records, items=arguments.items,
                              categories=arguments.categories, again=arguments.again,
                              titles=partial / "items.parquet")
    return folder


def run(name: str, seed: int, histories: Histories, arguments: argparse.Namespace) -> RunFolder:
    """Train one model with one seed, or find it done."""
    folder = RunFolder(log_of(arguments) / f"{name.replace(', ', '-')}-{seed}")
    if not folder.metrics_path.exists():
        train(config_of(name, arguments.changes, seed), histories, folder.path, listeners=[show])
    return folder


def config_of(name: str, changes: list[str], seed: int) -> RunConfig:
    """Return the recipe of a model; `changes` are the same for all, and a feed-forward layer is as wide as an event."""
    recipe, own = MODELS[name]
    changes = [*own, *changes, f"seed={seed}"]
    config = next_item_run(read_recipe(recipe, changes))
    if config.model.kind == "hstu":
        return config
    return next_item_run(read_recipe(recipe, [*changes, f"model.feedforward={config.model.width}"]))


def show(record: dict) -> None:
    """Print how the loss falls."""
    if record["event"] == "step" and record["step"] % 200 == 0:
        rate = f"{record['events_per_second']:,.0f} events/s"
        print(f"  step {record['step']}: loss {record['loss']:.4f}, {rate}", flush=True)


def main() -> None:
    """Make the stream, train, test, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--categories", type=int, default=100)
    parser.add_argument("--again", choices=["category", "item"], default="item")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="folder for the stream and the runs")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="key.path=value …, for all models")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    log = log_of(arguments)
    recipe = config_of("HSTU, pointwise", arguments.changes, 0)
    prepared, events = log / "prepared", log / "events.parquet"
    histories = Histories.open(prepared) if prepared.exists() else prepare(events, recipe.data, prepared)
    workload = f"{arguments.records:,} records, {arguments.items:,} items, repeats of {arguments.again}"
    tests = split(histories, recipe.split).test
    few = tests.select(np.linspace(0, len(tests) - 1, min(len(tests), 10_000)).astype(int))
    best = evaluate(Law(histories, arguments.again, arguments.items), histories, few, recipe.evaluate).values()
    rows = [ledger.row("streaming", workload, BEST, metric, round(best[metric], 5), "share") for metric in METRICS]
    for name in arguments.models:
        for seed in arguments.seeds:
            metrics = run(name, seed, histories, arguments).read_metrics()
            tested = metrics["rows"][0]["metrics"]
            for metric in METRICS:
                estimate = tested[metric]
                rows.append(ledger.row("streaming", workload, name, metric, round(estimate["value"], 5), "share", seed)
                            | {"low": round(estimate["low"], 5), "high": round(estimate["high"], 5)})
            rows.append(ledger.row("streaming", workload, name, "run_s", metrics["seconds"], "s", seed))
    for row in rows:
        print(f"{row['workload']}  {row['implementation']:20} {row['metric']:6} {row['value']:.4f}")
    ledger.write(arguments.ledger, rows)


if __name__ == "__main__":
    main()

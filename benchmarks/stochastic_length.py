"""How much stochastic length thins a long log: sparsity over alpha and the longest history, beside the paper's table.

    python benchmarks/stochastic_length.py

The paper's table is of a log that is not public. It counts the share of the places that stay empty, of `N` a user: at
alpha 2, where nothing is thinned, it gives how long its histories are. Ours is a synthetic log whose lengths follow
`ceil(4800 u^(5/8))`, `u` even in 0 … 1, which was fitted to the twenty figures: no distribution at all comes nearer
than some 3 points at the worst of them. Each history is read as training reads it, from a file through batches.

Rows go to `benchmarks/stochastic-length.json`; the paper's are quoted.
"""

import argparse
import tempfile
from pathlib import Path

import ledger
import numpy as np
import pyarrow as pa

from serrate.data import ColumnMapping, DataConfig, Histories, StochasticLength, prepare, split, training_batch
from serrate.data.config import SplitConfig
from serrate.train.next_item import training_windows

LEDGER = Path(__file__).parent / "stochastic-length.json"
ALPHAS = (1.6, 1.7, 1.8, 1.9, 2.0)
PAPER = {  # longest history: share of its places that stay empty, in per cent, by alpha
    1024: (71.5, 56.1, 40.2, 17.2, 3.1),
    2048: (76.1, 63.6, 45.3, 21.0, 6.6),
    4096: (80.5, 69.8, 54.1, 36.3, 29.1),
    8192: (84.4, 75.6, 66.4, 64.1, 64.1),
}
ROWS = 64  # histories of a batch


def long_log(users: int, seed: int) -> pa.Table:
    """Return a log (user, item, time): a history has three events more than are read, two held out and a target."""
    rng = np.random.default_rng(seed)
    lengths = np.ceil(4800 * rng.random(users) ** 0.625).astype(np.int64) + 3
    rows = np.repeat(np.arange(users), lengths)
    waits = rng.integers(1, 600, size=len(rows))  # seconds, so that a month holds the longest history
    return pa.table({"user": rows, "item": rng.integers(10_000, size=len(rows)), "time": np.cumsum(waits)})


def events_read(histories: Histories, longest: int, alpha: float, seed: int) -> tuple[int, int, int]:
    """Return how many histories there are, their events up to `longest` of each, and how many are read."""
    windows = training_windows(split(histories, SplitConfig()).train, longest, every=False)
    lengths = (windows.ends - 1).clip(max=longest)
    shortening = StochasticLength(lengths, longest, alpha, seed=seed)
    whole = read = 0
    for index in np.array_split(np.arange(len(windows)), -(-len(windows) // ROWS)):
        batch = training_batch(histories, windows, index, longest)
        whole += batch.num_events
        read += shortening.shorten(batch, 0, index).num_events
    return len(windows), whole, read


def main() -> None:
    """Count, print a table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="serrate-stochastic-length-") as folder:
        config = DataConfig(columns=ColumnMapping(time="time"))
        histories = prepare(long_log(arguments.users, arguments.seed), config, Path(folder) / "data")
        for longest, quoted in PAPER.items():
            for alpha, paper in zip(ALPHAS, quoted, strict=True):
                users, whole, read = events_read(histories, longest, alpha, arguments.seed)
                sparsity, removed = 100 * (1 - read / (users * longest)), 100 * (1 - read / whole)
                print(f"N {longest:5}  alpha {alpha}  sparsity {sparsity:5.1f} %  (paper {paper:4.1f} %)  "
                      f"events removed {removed:5.1f} %")
                workload = f"longest {longest}, alpha {alpha}"
                for name, metric, value in (("serrate", "sparsity", sparsity), ("serrate", "events_removed", removed),
                                            ("paper, quoted", "sparsity", paper)):
                    rows.append(ledger.row("stochastic length", workload, name, metric, round(value, 2), "%",
                                           arguments.seed, packages=("numpy",)))
    ledger.write(arguments.ledger, rows)


if __name__ == "__main__":
    main()

"""Training throughput: jagged batches against padded to the longest and against length buckets.

    python benchmarks/throughput.py --log ml-1m.prepared --name ml-1m
    python benchmarks/throughput.py                          # a long-tailed synthetic log

The same model, loss, optimiser and weights, the same rows an epoch, one process, one run, taking turns. The padded
model runs the same layers on `(B, N)` cells through torch's dense attention, and its loss reads real events only.
Figures are written only when the losses of all three agree on the same rows.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import ledger
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serrate.data import Histories, prepare, split, synthesize, training_batch
from serrate.data.config import ColumnMapping, DataConfig, SplitConfig
from serrate.jagged import EventBatch, to_padded
from serrate.models import Transformer, TransformerConfig
from serrate.nn import FullSoftmax
from serrate.train.next_item import training_windows

LEDGER = Path(__file__).parent / "throughput-cpu.json"
ROWS = 128  # rows of a padded batch, the usual size


def padded_hidden(model: Transformer, batch: EventBatch) -> Tensor:
    """`(T, E)`: the model on padded rows `(B, N)`, then the real events only."""
    items, lengths = to_padded(batch["item"], 0)
    columns = torch.arange(items.shape[1])
    real = columns < lengths[:, None]
    ages = (lengths[:, None] - 1 - columns).clamp(min=0)
    x = model.items(items) * model.config.width**0.5 + model.positions(ages)
    x = model.dropout(x)
    for block in model.blocks:
        qkv = block.attention.project_in(block.attention_norm(x))
        q, k, v = qkv.unflatten(-1, (3, block.attention.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + block.dropout(block.attention.project_out(attended))
        x = x + block.dropout(block.feedforward(block.feedforward_norm(x)))
    return model.norm(x[real])


def jagged_hidden(model: Transformer, batch: EventBatch) -> Tensor:
    """`(T, E)`: the model as it is."""
    return model(batch).values


def shuffled(lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of `ROWS` random rows; within a batch they stand in order of length, as in training."""
    order = rng.permutation(len(lengths))
    batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    return [batch[np.argsort(lengths[batch], kind="stable")] for batch in batches]


def bucketed(lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of `ROWS` rows of nearly one length: sorted by length (ties shuffled), batches in random order."""
    order = np.lexsort((rng.random(len(lengths)), lengths))
    batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    return [batches[at] for at in rng.permutation(len(batches))]


IMPLEMENTATIONS = {
    "jagged": (jagged_hidden, shuffled),
    "padded to the longest": (padded_hidden, shuffled),
    "length buckets": (padded_hidden, bucketed),
}


def step(model: Transformer, optimizer: torch.optim.Optimizer, loss: FullSoftmax, hidden: Tensor,
         batch: EventBatch) -> float:
    """One optimiser step; return the mean loss."""
    optimizer.zero_grad()
    total = loss(hidden, model.item_table(), batch["target"].values) / batch.num_events
    total.backward()
    optimizer.step()
    return float(total.detach())


def check(model: Transformer, batch: EventBatch) -> None:
    """Stop unless the padded model gives what the jagged one gives."""
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(padded_hidden(model, batch), jagged_hidden(model, batch), atol=1e-4, rtol=1e-4)
        model.train()


def measure(histories: Histories, config: TransformerConfig, seconds: float, seed: int) -> dict[str, list[float]]:
    """Return events a second of each implementation, one figure a turn of `seconds`; they take turns."""
    windows = training_windows(split(histories, SplitConfig()).train, config.max_length, every=False)
    lengths = np.minimum(windows.ends - 1, config.max_length)
    torch.manual_seed(seed)
    model = Transformer(config, histories.num_items)
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=1e-3), FullSoftmax()
    check(model, training_batch(histories, windows, np.arange(min(64, len(windows))), config.max_length))

    def endless(make) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            yield from make(lengths, rng)

    batches = {name: endless(make) for name, (_, make) in IMPLEMENTATIONS.items()}
    rates: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for turn in range(6):  # the first is warm-up
        for name, (forward, _) in IMPLEMENTATIONS.items():
            events, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                batch = training_batch(histories, windows, next(batches[name]), config.max_length)
                step(model, optimizer, loss, forward(model, batch), batch)
                events += batch.num_events
            if turn:
                rates[name].append(events / (time.perf_counter() - began))
    return rates


def main() -> None:
    """Measure, print a table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="a prepared data set; default: a long-tailed synthetic log")
    parser.add_argument("--name", default="synthetic long tail", help="how the workload is called in the ledger")
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn; five turns are measured")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.log:
        histories = Histories.open(arguments.log)
    else:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="serrate-throughput-"))
        log = synthesize(folder / "log.parquet", 1_000_000, 20_000, seed=arguments.seed)
        histories = prepare(log, DataConfig(columns=ColumnMapping(time="time")))
    config = TransformerConfig(width=arguments.width, max_length=arguments.max_length)
    rates = measure(histories, config, arguments.seconds, arguments.seed)
    ours = median(rates["jagged"])
    rows = []
    for name, values in rates.items():
        print(f"{arguments.name:20} {name:24} {median(values):10,.0f} events/s   jagged is {ours / median(values):.2f}×"
              f"   ({min(values):,.0f} … {max(values):,.0f})")
        rows.append(ledger.row("training throughput", arguments.name, name, "events_per_second", round(median(values)),
                               "events/s", arguments.seed))
    ledger.write(LEDGER, rows)


if __name__ == "__main__":
    main()

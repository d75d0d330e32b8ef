"""HSTU for ranking on a log of ratings: trained on all events of a history at once, tested on each user's last one.

    python benchmarks/ranking.py ml-100k/events.parquet --name ml-100k --seeds 42 43 44

Whether a rating is 4 or more is asked of every event before its rating is known; the ratings before it are read. Of a
user's events the last is for the test, the one before for the choice of the epoch. Beside it stands a logistic
regression on who rates and what is rated, its penalty chosen by the same events; it knows neither order nor time.

Rows go to `benchmarks/ranking.json`.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import ledger
import numpy as np
import torch
from torch import Tensor, nn

from serrate.config import override
from serrate.data import (
    ColumnMapping,
    DataConfig,
    Examples,
    Histories,
    SplitConfig,
    TokenBatches,
    chunks,
    history_batch,
    prepare,
    split,
)
from serrate.evaluate import auc, bootstrap_by_user, calibration, log_losses, normalised_entropy
from serrate.jagged import JaggedTensor
from serrate.models import HSTURanker, HSTURankingConfig
from serrate.train import TrainConfig
from serrate.train.schedule import learning_rate

LEDGER = Path(__file__).parent / "ranking.json"
LIKED = 4
BASELINE = "user + item"
MODEL = {
    "width": 64, "blocks": 2, "heads": 2, "dropout": 0.2, "max_length": 200, "time": True,
    "tasks": [
        {"kind": "binary", "name": "like", "field": "rating", "threshold": LIKED},
        {"kind": "regression", "name": "rating", "field": "rating", "centre": 3.5, "spread": 1.1},
        # what is read of a rating: the four steps between five values say which it is
        *({"kind": "binary", "name": f"{value} or more", "field": "rating", "threshold": value, "weight": 0}
          for value in (2, 3, 5)),
    ],
}
TRAIN = TrainConfig(epochs=10, tokens_per_batch=4000, learning_rate=2e-3, weight_decay=0.01, warmup_steps=20)
WORKLOAD = f"leave-last-two-out, test, rating of {LIKED} or more"
Scores = Callable[[Examples], Tensor]


def data_config() -> DataConfig:
    """Return how a log of MovieLens is read."""
    return DataConfig(columns=ColumnMapping(user="user_id", item="item_id", time="timestamp", features=("rating",)))


def windows(train: Examples, max_length: int) -> Examples:
    """Return examples that hold every event of the training histories once, the newest window of each whole."""
    repeats = -(-train.ends // max_length)
    rows = np.repeat(train.rows, repeats)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    ends = np.repeat(train.ends, repeats) - number * max_length
    return Examples(rows, ends, ends)


def trained(histories: Histories, model: HSTURanker, seed: int, train: TrainConfig) -> float:
    """Train with the epoch of the least log loss on the validation events; return the seconds it took."""
    parts, began, device = split(histories, SplitConfig()), time.monotonic(), next(model.parameters()).device
    every, longest = windows(parts.train, model.config.max_length), model.config.max_length
    batches = TokenBatches(every.ends.clip(max=longest), train.tokens_per_batch, seed)
    decayed = [parameter for parameter in model.layers.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if not any(parameter is one for one in decayed)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": train.weight_decay},
                                   {"params": others, "weight_decay": 0.0}], betas=train.betas)
    truth, best, step = liked(histories, parts.validation), (float("inf"), {}), 0
    for epoch in range(train.epochs):
        model.train()
        total = 0.0
        for number, index in batches.epoch(epoch):
            batch = history_batch(histories, every, index, longest).to(device)
            loss = model.loss(batch) / batch.num_events
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
            for group in optimizer.param_groups:
                progress = (epoch + number / batches.num_batches(epoch)) / train.epochs
                group["lr"] = learning_rate(train, step, progress)
            optimizer.step()
            total, step = total + float(loss.detach()), step + 1
        found = float(log_losses(scores_of(model, histories)(parts.validation), truth).mean())
        chosen = found < best[0]
        if chosen:
            best = found, copy.deepcopy(model.state_dict())
        print(f"  epoch {epoch + 1}: loss {total / batches.num_batches(epoch):.4f}, validation log loss {found:.4f}"
              f"{' *' if chosen else ''}", flush=True)
    model.load_state_dict(best[1])
    return time.monotonic() - began


def scores_of(model: HSTURanker, histories: Histories) -> Scores:
    """Return what gives the probability that the event after each history is liked, `(M,)`: candidates, one a row."""
    device = next(model.parameters()).device
    longest = model.config.max_length - 1  # the candidate is the last of the events that the model has learnt to read

    def scores(examples: Examples) -> Tensor:
        model.eval()
        found = []
        with torch.inference_mode():
            for index in chunks(examples.ends.clip(max=longest), 2**15):
                batch = history_batch(histories, examples, index, longest).to(device)
                truth = batch.context["truth"]
                assert isinstance(truth, JaggedTensor)
                asked = batch["asked"].values[batch.offsets[1:] - 1]  # when the event to predict happened
                found.append(model.score(batch, truth, asked).values[:, 0].cpu())
        return torch.cat(found)

    return scores


def liked(histories: Histories, examples: Examples) -> Tensor:
    """Return whether the event after each history is liked, `(M,)` float32."""
    at = histories.offsets[torch.from_numpy(examples.rows)] + torch.from_numpy(examples.ends)
    return (histories.fields["rating"][at] >= LIKED).float()


def regression(histories: Histories, ridge: float) -> Scores:
    """Return the scores of `base + user + item`, a logistic regression on the training events with a ridge penalty."""
    train = split(histories, SplitConfig()).train
    lengths = torch.from_numpy(train.ends)
    rows = torch.repeat_interleave(torch.from_numpy(train.rows), lengths)
    at = histories.offsets[rows] + torch.cat([torch.arange(int(length)) for length in lengths])
    items, truth = histories.fields["item"][at].long(), (histories.fields["rating"][at] >= LIKED).float()
    base, of_user, of_item = (nn.Parameter(torch.zeros(size)) for size in (1, histories.num_users, histories.num_items))
    optimizer = torch.optim.LBFGS([base, of_user, of_item], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = base + of_user[rows] + of_item[items]
        total = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        total = total + ridge / 2 * (of_user.square().sum() + of_item.square().sum())
        total.backward()
        return total

    optimizer.step(loss)

    def scores(examples: Examples) -> Tensor:
        rows = torch.from_numpy(examples.rows)
        wanted = histories.fields["item"][histories.offsets[rows] + torch.from_numpy(examples.ends)].long()
        return (base + of_user[rows] + of_item[wanted]).detach().sigmoid()

    return scores


def best_regression(histories: Histories) -> Scores:
    """Return the scores of the regression whose penalty gives the least log loss on the validation events."""
    validation = split(histories, SplitConfig()).validation
    truth = liked(histories, validation)
    fitted = [regression(histories, ridge) for ridge in (1.0, 2.0, 4.0, 8.0, 16.0)]
    return min(fitted, key=lambda scores: float(log_losses(scores(validation), truth).mean()))


def rows_of(name: str, implementation: str, probabilities: Tensor, truth: Tensor, seed: int) -> list[dict]:
    """Return the ledger rows of one model's probabilities of the test events."""
    values = {"auc": auc(probabilities, truth), "ne": normalised_entropy(probabilities, truth),
              "calibration": calibration(probabilities, truth)}
    [loss] = bootstrap_by_user(log_losses(probabilities, truth)[:, None], torch.arange(len(truth)))
    units = {"auc": "share", "ne": "share", "calibration": "ratio"}
    made = [ledger.row(f"ranking {name}", WORKLOAD, implementation, metric, round(value, 5), units[metric], seed)
            for metric, value in values.items()]
    return [*made, ledger.row(f"ranking {name}", WORKLOAD, implementation, "log_loss", round(loss.value, 5), "nats",
                              seed) | {"low": round(loss.low or 0.0, 5), "high": round(loss.high or 0.0, 5)}]


def difference_row(name: str, implementation: str, losses: list[Tensor], others: Tensor, seed: int) -> dict:
    """Return the ledger row of a paired difference of log losses `(M,)`, over all seeds, bootstrapped by user."""
    differences = torch.cat([own - others for own in losses])[:, None]
    [found] = bootstrap_by_user(differences, torch.arange(len(others)).repeat(len(losses)))
    return ledger.row(f"ranking {name}", WORKLOAD, implementation, "log_loss", round(found.value, 5), "difference",
                      seed) | {"low": round(found.low or 0.0, 5), "high": round(found.high or 0.0, 5)}


def main() -> None:
    """Train, test, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--name", required=True, help="how the log is called in the ledger")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="model.key=value or train.key=value …")
    parser.add_argument("--as", dest="called", default="HSTU", help="how a model that --set changes is called")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    name, called = arguments.name, arguments.called
    histories = prepare(arguments.log, data_config())
    test = split(histories, SplitConfig()).test
    truth = liked(histories, test)
    changed = override({"model": MODEL, "train": TRAIN.plain()}, arguments.changes)
    baseline = best_regression(histories)(test)
    rows, losses = rows_of(name, BASELINE, baseline, truth, 0), []
    for seed in arguments.seeds:
        torch.manual_seed(seed)
        model = HSTURanker(HSTURankingConfig.parse(changed["model"]), histories.num_items).to(arguments.device)
        seconds = trained(histories, model, seed, TrainConfig.parse(changed["train"]))
        found = scores_of(model, histories)(test)
        losses.append(log_losses(found, truth))
        rows += rows_of(name, called, found, truth, seed)
        rows.append(ledger.row(f"ranking {name}", WORKLOAD, called, "run_s", round(seconds, 1), "s", seed))
    rows.append(difference_row(name, f"{called} − {BASELINE}, {len(losses)} seed{'s' * (len(losses) > 1)}", losses,
                               log_losses(baseline, truth), min(arguments.seeds)))
    for row in rows:
        print(f"{row['implementation']:30} seed {row['seed']}  {row['metric']:12} {row['value']:+.4f}")
    ledger.write(arguments.ledger, rows)


if __name__ == "__main__":
    main()

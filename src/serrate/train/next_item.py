"""Learning the next item: windows of histories, a softmax over items, a full ranking of what came."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data import (
    Examples,
    Histories,
    Split,
    StochasticLength,
    TokenBatches,
    Vocabulary,
    history_batch,
    seen_items,
    split,
    training_batch,
    with_user_keys,
)
from ..errors import InvalidData
from ..evaluate import Evaluation, comparisons, evaluate, evaluate_baselines, item_counts, table
from ..index import top_k
from ..jagged import EventBatch
from ..models import NextItemModel
from ..nn import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from ..run_folder import RunFolder
from .config import RunConfig
from .device import autocast, to_device
from .lengths import histogram, padding_avoided

_SAMPLES, _SHOWN = 10, 20


@dataclass(frozen=True)
class Material:
    """What a run trains on: the histories, their split, the training windows, their batches, how they are shortened."""

    histories: Histories
    parts: Split
    windows: Examples
    batches: TokenBatches
    shortening: StochasticLength | None = None


def prepare_material(config: RunConfig, histories: Histories) -> Material:
    """Split the histories and plan the batches.

    Raises:
        InvalidData: nothing to train on, nothing to validate or test on, or no times where the model reads them.
    """
    if config.model.reads_time and not histories.has_time:
        raise InvalidData("data: model.time needs the time of each event, and this log has none (columns.time)")
    _ = histories.items, histories.users  # read now: damaged ids are told before training, not after
    parts = split(histories, config.split)
    windows = training_windows(parts.train, config.model.max_length, every=config.train.windows == "all")
    if len(windows) == 0:
        raise InvalidData("data: no training history has two events, so there is no next event to learn")
    for name, examples in (("validation", parts.validation), ("test", parts.test)):
        if len(examples) == 0:
            raise InvalidData(f"data: the {config.split.kind} split leaves no {name} example; more events are needed")
    lengths = (windows.ends - 1).clip(max=config.model.max_length)
    chosen, longest = config.train.stochastic_length, config.model.max_length
    shortening = None if chosen is None else StochasticLength(
        lengths, longest, chosen.alpha, seed=config.seed, sampler=chosen.sampler)
    batches = TokenBatches(lengths, config.train.tokens_per_batch, config.seed, config.train.shuffle,
                           drawn=None if shortening is None else shortening.lengths)
    return Material(histories, parts, windows, batches, shortening)


def training_windows(train: Examples, max_length: int, *, every: bool) -> Examples:
    """Return examples whose windows of `max_length` targets cover each history: the newest one, or every one.

    An example ends at event n; its window holds the targets n - max_length … n - 1. Windows of a history do not
    overlap in targets; the oldest may be shorter. Histories with fewer than two events have no target and no window.
    """
    counts = np.maximum(train.ends - 1, 0)  # targets of each history
    repeats = -(-counts // max_length) if every else np.minimum(counts, 1)
    rows = np.repeat(train.rows, repeats)
    first = np.repeat(np.cumsum(repeats) - repeats, repeats)
    ends = np.repeat(train.ends, repeats) - (np.arange(len(rows)) - first) * max_length
    return Examples(rows, ends, ends)


class NextItem:
    """The objective of a run whose model says what comes next; see `Objective`.

    Args:
        config: the run's configuration.
        histories: the prepared log.
        device: where the model computes.

    Raises:
        InvalidData: as `prepare_material`.
    """

    def __init__(self, config: RunConfig, histories: Histories, device: torch.device):
        self.config = config
        self.histories = histories
        self.device = device
        self.material = prepare_material(config, histories)
        self.batches = self.material.batches
        self.losses = _loss(config, self.material).to(device)
        self.user_keys = _user_keys(self.material) if config.model.reads_users else None

    def build(self) -> NextItemModel:
        """Return the model, its weights drawn from torch's generator."""
        return models.build(self.config.model, self.histories.num_items)

    def batch(self, epoch: int, index: np.ndarray) -> EventBatch:
        """Gather the windows `index` `(B,)`, thinned as they are in `epoch`."""
        material = self.material
        batch = self._of_users(training_batch(self.histories, material.windows, index, self.config.model.max_length))
        return batch if material.shortening is None else material.shortening.shorten(batch, epoch, index)

    def loss(self, model: NextItemModel, batch: EventBatch) -> tuple[Tensor, Tensor | int]:
        """Return the loss summed over the events of a batch, and the weight of these, both scalar."""
        weights = batch["weight"].values if "weight" in batch.events else None
        users = model.users(batch)
        loss = self.losses(
            model(batch).values, model.items.weight, batch["target"].values, weights, similarity=model.similarity,
            users=None if users is None else users[batch["target"].row_index()])
        return loss, batch.num_events if weights is None else weights.sum()

    def validate(self, model: NextItemModel) -> dict[str, float]:
        """Return name → value of each metric on at most `validation_examples`."""
        return self.evaluate(model, self.validation_examples()).values()

    def better(self, value: float, best: float) -> bool:
        """Whether a metric is larger."""
        return value > best

    def padding_avoided(self) -> float:
        """Return the share of the cells that padding would add."""
        return padding_avoided(self.batches)

    def measure(self, model: NextItemModel) -> dict[str, Any]:
        """Rank the test examples with the model and the baselines."""
        material, config = self.material, self.config
        validation = {config.model.kind: self.evaluate(model, material.parts.validation)}
        own = self.evaluate(model, material.parts.test)
        baselines, refusals = evaluate_baselines(
            self.histories, material.parts.train, material.parts.test, config.evaluate)
        evaluations = {config.model.kind: own, **baselines}
        measured = dict.fromkeys(
            [name for name in ("hr@10", "ndcg@10") if name in own.names] + [config.train.monitor])
        return {
            "examples": {"train": len(material.windows), "validation": len(material.parts.validation),
                         "test": len(own)},
            "warnings": [*material.parts.warnings, *refusals],
            "rows": table(evaluations) + table(validation, "validation"),
            "comparisons": comparisons(evaluations, config.model.kind, list(measured)),
            "lengths": {**histogram(self.histories.lengths.numpy()), "padding_avoided": self.padding_avoided()},
            "samples": self._samples(model),
        }

    def save(self, folder: RunFolder) -> None:
        """Write the vocabulary of the items, and of the users that the model knows, where it reads them."""
        self.histories.items.save(folder.items_path)
        if self.user_keys is not None:
            known = (self.user_keys >= 0).nonzero().squeeze(1)
            Vocabulary(self.histories.users.decode(known)).save(folder.users_path)

    def evaluate(self, model: NextItemModel, examples: Examples) -> Evaluation:
        """Rank `examples` with the model as it stands."""
        with autocast(self.config.train, self.device):
            return evaluate(model, self.histories, examples, self.config.evaluate,
                            max_length=self.config.model.max_length, device=self.device, user_keys=self.user_keys)

    def validation_examples(self) -> Examples:
        """Return the examples that a validation ranks: all, or as many as it may, the same each time."""
        examples, most = self.material.parts.validation, self.config.train.validation_examples
        if len(examples) <= most:
            return examples
        chosen = np.random.default_rng(self.config.seed).choice(len(examples), most, replace=False)
        return examples.select(np.sort(chosen))

    def _samples(self, model: NextItemModel) -> list[dict[str, Any]]:
        """Ten test histories, evenly spread over the users, with what the model recommends."""
        histories, examples = self.histories, self.material.parts.test
        chosen = np.unique(np.linspace(0, len(examples) - 1, _SAMPLES).astype(int))
        batch = self._of_users(history_batch(histories, examples, chosen, self.config.model.max_length))
        seen = seen_items(histories, examples, chosen)
        model.eval()
        with torch.inference_mode(), autocast(self.config.train, self.device):
            scores = model.score(to_device(batch, self.device)).cpu()
        values, ids = top_k(scores, 10, exclude=seen if self.config.evaluate.exclude_seen else None)
        users = histories.users.decode(examples.rows[chosen])
        return [{"user": users[row], "history": self._named(seen[row][-_SHOWN:].tolist()),
                 "recommended": [{**item, "score": score} for item, score in
                                 zip(self._named([i for i in ids[row].tolist() if i >= 0]), values[row].tolist(),
                                     strict=False)],
                 "truth": self._named(self._truth(examples, at))}
                for row, at in enumerate(chosen)]

    def _of_users(self, batch: EventBatch) -> EventBatch:
        return batch if self.user_keys is None else with_user_keys(batch, self.user_keys)

    def _truth(self, examples: Examples, at: int) -> list[int]:
        start = int(self.histories.offsets[examples.rows[at]])
        return self.histories.fields["item"][start + examples.ends[at] : start + examples.truth_ends[at]].tolist()

    def _named(self, dense: list[int]) -> list[dict[str, Any]]:
        items = self.histories.items
        titles = items.titles or [None] * len(items)
        return [{"id": raw, "title": titles[i]} for raw, i in zip(items.decode(dense), dense, strict=True)]


def _loss(config: RunConfig, material: Material) -> nn.Module:
    loss = config.loss
    temperature = loss.temperature or (0.07 if config.model.similarity == "cosine" else 1.0)
    if loss.kind == "full-softmax":
        return FullSoftmax(temperature=temperature)
    if loss.kind == "sampled-softmax":
        counts = torch.from_numpy(item_counts(material.histories, material.parts.train))
        return SampledSoftmax(counts, loss.negatives, smoothing=loss.smoothing, temperature=temperature,
                              shared=loss.shared)
    return BinaryCrossEntropy(material.histories.num_items, loss.negatives, temperature=temperature)


def _user_keys(material: Material) -> Tensor:
    """Return the key of each user `(num_users,)` int64, -1 for those of whom nothing is trained on."""
    users = material.histories.users
    keys, known = np.full(len(users), -1), np.unique(material.windows.rows)
    keys[known] = users.keys()[known]
    return torch.from_numpy(keys)

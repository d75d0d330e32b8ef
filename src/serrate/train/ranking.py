"""Learning what becomes of items that are shown: samples of user states, their labels, probabilities of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Histories, RankingData, Samples, TokenBatches, make_samples, samples_batch
from ..errors import InvalidData
from ..evaluate import LOWER_IS_BETTER, Predictions, TaskPredictions, comparisons, fit_rates, table
from ..jagged import RankingBatch
from ..models import RankingConfig, RankingModel
from ..models.ranking.config import DenseFeature
from ..models.tasks import BinaryTask
from ..run_folder import RunFolder
from .config import RankingRunConfig
from .device import autocast, to_device
from .lengths import histogram, padding_avoided

_COMPARED = ("auc", "grouped_auc", "log_loss")


class Ranking:
    """The objective of a run whose model ranks what is shown; see `Objective`. Its examples are user states.

    Args:
        config: the run's configuration; dense features without a centre or spread get those of the training samples.
        histories: the prepared log.
        device: where the model computes.

    Raises:
        InvalidData: side tables or labels that cannot be read, a split that leaves a part without samples or without
            both yes and no, no times where the model reads them.
    """

    def __init__(self, config: RankingRunConfig, histories: Histories, device: torch.device):
        self.histories = histories
        self.device = device
        _check_times(config.model, histories)
        self.data = RankingData.read(histories, config.features)
        self.parts = make_samples(histories, config.samples)
        self.config = config.model_copy(update={"model": _measured(config.model, self.data, self.parts.train)})
        self.max_lengths = {history.name: history.max_length for history in config.model.histories}
        self.tasks = {task.name: task for task in config.model.tasks if isinstance(task, BinaryTask)}
        for name, samples in (("training", self.parts.train), ("validation", self.parts.validation),
                              ("test", self.parts.test)):
            for task in self.tasks:
                if self._truth(samples, task).unique().numel() < 2:
                    raise InvalidData(f"samples: task {task!r} needs both yes and no in {name}, got one of them alone")
        self.batches = TokenBatches(self.data.state_lengths(self.parts.train, self.max_lengths),
                                    config.train.tokens_per_batch, config.seed, config.train.shuffle)

    def build(self) -> RankingModel:
        """Return the model, its weights drawn from torch's generator."""
        return RankingModel(self.config.model, self.data.features.sizes)

    def batch(self, epoch: int, index: np.ndarray) -> RankingBatch:
        """Gather the training states `index` `(U,)`, the same in each epoch."""
        return samples_batch(self.data, self.parts.train, index, self.max_lengths)

    def loss(self, model: RankingModel, batch: RankingBatch) -> tuple[Tensor, Tensor | int]:
        """Return the loss summed over the candidates of a batch, and how many these are, both scalar."""
        return model.loss(batch), len(batch)

    def validate(self, model: RankingModel) -> dict[str, float]:
        """Return name → value of each metric on the samples of at most `validation_examples` states.

        Raises:
            InvalidData: the metric that chooses the epoch is not defined of them.
        """
        values, monitor = self.predictions(model, self.validation_samples()).values(), self.config.train.monitor
        if monitor not in values:
            raise InvalidData(f"samples: {monitor} is not defined of the validation samples: no user has both yes and "
                              f"no; choose another train.monitor, such as {next(iter(values))}")
        return values

    def better(self, value: float, best: float) -> bool:
        """Whether the metric that chooses the epoch is larger, or smaller where less is better."""
        lower = self.config.train.monitor.rpartition(".")[2] in LOWER_IS_BETTER
        return value < best if lower else value > best

    def padding_avoided(self) -> float:
        """Return the share of the cells that padding each history and the candidates of a batch would add."""
        train = self.parts.train
        of_history = [self.data.state_lengths(train, {name: most}) - np.diff(train.offsets)
                      for name, most in self.max_lengths.items()]
        return padding_avoided(self.batches, (*of_history, np.diff(train.offsets)))

    def measure(self, model: RankingModel) -> dict[str, Any]:
        """Measure the test samples with the model and with the rates that it has to beat."""
        parts, kind = self.parts, self.config.model.kind
        predicted = {kind: self.predictions(model, parts.test), **self.baselines(parts.test)}
        own = predicted[kind]
        defined = [name for name in own.values() if name.rpartition(".")[2] in _COMPARED]
        return {
            "examples": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
            "states": {name: getattr(parts, name).num_states for name in ("train", "validation", "test")},
            "split_by": parts.by,
            "base_rates": {task: {name: float(self._truth(getattr(parts, name), task).mean(dtype=torch.float64))
                                  for name in ("train", "validation", "test")} for task in self.tasks},
            "warnings": list(parts.warnings),
            "rows": table(predicted) + table({kind: self.predictions(model, parts.validation)}, "validation"),
            "comparisons": comparisons(predicted, kind, defined),
            "calibration": [{"task": task, "bins": [vars(found) for found in each.calibration_curve(
                self.config.evaluate.bins)]} for task, each in own.of_task.items()],
            "lengths": {**histogram(self.histories.lengths.numpy()), "padding_avoided": self.padding_avoided()},
            "samples": [],
        }

    def save(self, folder: RunFolder) -> None:
        """Write the vocabulary and the features, which say what a request's items, users and columns mean."""
        self.histories.items.save(folder.items_path)
        self.data.features.save(folder.features_path)

    def predictions(self, model: RankingModel, samples: Samples) -> TaskPredictions:
        """Return what the model says of `samples`, beside what came true, of each binary task."""
        lengths = self.data.state_lengths(samples, self.max_lengths)
        batches = TokenBatches(lengths, self.config.evaluate.tokens_per_batch, seed=0, shuffle=False)
        model.eval()
        with torch.inference_mode(), autocast(self.config.train, self.device):
            found = torch.cat([
                model.predict(to_device(samples_batch(self.data, samples, index, self.max_lengths), self.device)).cpu()
                for _, index in batches.epoch(0)])
        names = [task.name for task in self.config.model.tasks]
        model.train()
        return self._beside({task: found[:, names.index(task)] for task in self.tasks}, samples)

    def validation_samples(self) -> Samples:
        """Return the samples that a validation measures: all, or those of as many states as it may, always the same."""
        samples, most = self.parts.validation, self.config.train.validation_examples
        if samples.num_states <= most:
            return samples
        chosen = np.random.default_rng(self.config.seed).choice(samples.num_states, most, replace=False)
        return samples.select(np.sort(chosen))

    def baselines(self, samples: Samples) -> dict[str, TaskPredictions]:
        """Return what the rates say of `samples`, none where the configuration asks for none."""
        if not self.config.evaluate.baselines:
            return {}
        parts, found = self.parts, {}
        for task in self.tasks:
            fitted = fit_rates(parts.train, self._truth(parts.train, task), parts.validation,
                               self._truth(parts.validation, task))
            for name, rate in fitted.items():
                found.setdefault(name, {})[task] = rate(samples)
        return {name: self._beside(each, samples) for name, each in found.items()}

    def _beside(self, probabilities: dict[str, Tensor], samples: Samples) -> TaskPredictions:
        """Return probabilities `(M,)` of each task beside what came true."""
        settings, users = self.config.evaluate, torch.from_numpy(samples.users)
        return TaskPredictions({task: Predictions(
            given, self._truth(samples, task), users,
            float(self._truth(self.parts.train, task).mean(dtype=torch.float64)),
            settings.confidence, settings.resamples, settings.seed) for task, given in probabilities.items()})

    def _truth(self, samples: Samples, task: str) -> Tensor:
        """Return whether a task came true of each sample, `(M,)` float32."""
        told = self.tasks[task]
        return told.target(torch.from_numpy(samples.labels[told.field]))


def _check_times(config: RankingConfig, histories: Histories) -> None:
    for history in config.histories:
        if history.reads_time and not histories.has_time:
            raise InvalidData(f"data: history {history.name!r} of the model reads the time of each event, and this log "
                              "has none (columns.time)")


def _measured(config: RankingConfig, data: RankingData, train: Samples) -> RankingConfig:
    """Return the model with the centre and the spread of each dense feature, measured where they are not given."""
    dense = [feature for feature in config.features if isinstance(feature, DenseFeature)]
    found = data.dense_statistics(train, {feature.name for feature in dense if feature.transform == "log1p"})
    features = []
    for feature in config.features:
        if isinstance(feature, DenseFeature):
            given = {"centre": feature.centre, "spread": feature.spread}
            told = dict(zip(given, found[feature.name], strict=True))
            feature = feature.model_copy(
                update={name: told[name] if value is None else value for name, value in given.items()})
        features.append(feature)
    return config.model_copy(update={"features": tuple(features)})

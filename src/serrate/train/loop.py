"""The training loop: batches of a global token budget, validation that chooses the epoch, exact resume.

Same seed, same data, same number of processes: the same weights, however often the run was killed (on the CPU).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data import Examples, Histories, Split, StochasticLength, TokenBatches, shard, split, training_batch
from ..distributed import World, sum_gradients
from ..errors import InvalidConfig, InvalidData
from ..evaluate import Evaluation, evaluate, item_counts
from ..jagged import EventBatch
from ..nn import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from ..run_folder import RunFolder
from . import checkpoint
from .config import RunConfig
from .schedule import learning_rate
from .track import TensorBoard

Listener = Callable[[dict[str, Any]], None]


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


class Trainer:
    """One run: built from a configuration and histories, then `train()`.

    Args:
        config: the run's configuration.
        histories: the prepared log.
        out: the run folder; checkpoints and the log go there.
        world: this process among those that train together.
        listeners: called with every log record, as log.jsonl gets it.
    """

    def __init__(self, config: RunConfig, histories: Histories, out: Path, world: World,
                 listeners: Sequence[Listener] = ()):
        self.config = config
        self.material = prepare_material(config, histories)
        self.folder = RunFolder(out)
        self.world = world
        self.listeners = [*listeners, TensorBoard(out / "tensorboard")]
        self.device = device_of(config, world)
        torch.manual_seed(config.seed)
        self.model = models.build(config.model, histories.num_items).to(self.device)
        self.loss = _loss(config, self.material).to(self.device)
        train = config.train
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, train.weight_decay), lr=train.learning_rate, betas=train.betas)
        self.position = checkpoint.Position()
        self._since_log = torch.zeros(2, device=self.device)  # loss and weight since the last record
        self._began = time.monotonic()

    def resume(self) -> None:
        """Go back to the newest checkpoint, in every process."""
        self.position = checkpoint.load(self.folder.checkpoints_path, self.model, self.optimizer)
        self._since_log = torch.tensor([self.position.loss_sum, self.position.loss_weight], device=self.device)
        if self.world.leads and self.folder.log_path.exists():
            with self.folder.log_path.open("ab") as log:
                log.truncate(self.position.log_bytes)

    def train(self) -> None:
        """Train until the last epoch or until validation stops improving; leave the best weights in rank 0's model."""
        if not checkpoint.exists(self.folder.checkpoints_path):
            if self.world.leads:
                self.folder.log_path.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
            self._record({"event": "start", **self._plan()})
            self._save()
        while self.position.epoch < self.config.train.epochs and not self.position.stopped:
            self._epoch()
        if self.world.leads:
            checkpoint.load_best(self.folder.checkpoints_path, self.model)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Record the end of the run and its test metrics."""
        values = {name: estimate["value"] for name, estimate in metrics["rows"][0]["metrics"].items()}
        self._record({"event": "end", "epoch": self.position.epoch, "step": self.position.step,
                      "best_epoch": self.position.best_epoch, "stopped_early": self.position.stopped,
                      "test": values})

    def _epoch(self) -> None:
        batches, epoch = self.material.batches, self.position.epoch
        lengths = batches.lengths_in(epoch)
        last_save = last_log = time.monotonic()
        events = 0
        self.model.train()
        for number, index in batches.epoch(epoch, start=self.position.batch):
            self._step(index, (epoch + number / batches.num_batches(epoch)) / self.config.train.epochs)
            events += int(lengths[index].sum())
            self.position.batch = number + 1
            self.position.step += 1
            last = number + 1 == batches.num_batches(epoch)
            if last or self.position.step % self.config.train.log_every == 0:
                now = time.monotonic()
                self._log_step(events / max(now - last_log, 1e-9))
                events, last_log = 0, now
            if time.monotonic() - last_save >= self.config.train.checkpoint_seconds:
                self._save()
                last_save = time.monotonic()
        self._check_loss()
        self.position.epoch, self.position.batch = epoch + 1, 0
        if self.position.epoch % self.config.train.validate_every == 0 or self._last_epoch():
            self._validate()
        self._save()

    def _step(self, index: np.ndarray, progress: float) -> None:
        """One optimiser step on the global batch `index`, of which this process computes its share."""
        train, material, world = self.config.train, self.material, self.world
        # The draws of a step (dropout, negatives) depend on nothing before it, so a resumed run needs no random state.
        torch.manual_seed(int(np.random.SeedSequence(
            [self.config.seed, self.position.step, world.rank]).generate_state(1)[0]))
        epoch = self.position.epoch
        mine = shard(index, material.batches.lengths_in(epoch), world.rank, world.size)
        batch = training_batch(material.histories, material.windows, mine, self.config.model.max_length)
        if material.shortening is not None:
            batch = material.shortening.shorten(batch, epoch, mine)
        batch = to_device(batch, self.device)
        weights = batch["weight"].values if "weight" in batch.events else None
        with autocast(self.config, self.device):
            hidden = self.model(batch)
            loss = self.loss(hidden.values, self.model.item_table(), batch["target"].values, weights)
        weight = torch.as_tensor(batch.num_events if weights is None else weights.sum(), dtype=torch.float32)
        totals = world.sum(torch.stack([loss.detach().float(), weight.to(self.device)]))
        self._since_log += totals
        self.optimizer.zero_grad()
        (loss / totals[1].clamp(min=1e-6)).backward()
        sum_gradients(self.model.parameters(), world)
        nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, self.position.step, progress)
        self.optimizer.step()

    def _validate(self) -> None:
        """Rank the validation examples in rank 0, tell all processes, keep the weights when they are the best."""
        train, position = self.config.train, self.position
        value = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.world.leads:
            metrics = self.evaluate(self._validation_examples()).values()
            value += metrics[train.monitor]
            best = position.best is None or float(value) > position.best
            self._record({"event": "validation", "epoch": position.epoch, "step": position.step, "metrics": metrics,
                          "best": best})
            if best:
                checkpoint.save_best(self.folder.checkpoints_path, self.model)
        monitored = float(self.world.agree(value))
        if position.best is None or monitored > position.best:
            position.best, position.best_epoch, position.stale = monitored, position.epoch, 0
        else:
            position.stale += 1
        position.stopped = position.stale >= train.patience

    def evaluate(self, examples: Examples) -> Evaluation:
        """Rank `examples` with the model as it stands."""
        with autocast(self.config, self.device):
            return evaluate(self.model, self.material.histories, examples, self.config.evaluate,
                            max_length=self.config.model.max_length, device=self.device)

    def _validation_examples(self) -> Examples:
        examples, most = self.material.parts.validation, self.config.train.validation_examples
        if len(examples) <= most:
            return examples
        chosen = np.random.default_rng(self.config.seed).choice(len(examples), most, replace=False)
        return examples.select(np.sort(chosen))

    def _last_epoch(self) -> bool:
        return self.position.epoch >= self.config.train.epochs

    def _plan(self) -> dict[str, Any]:
        batches = self.material.batches
        return {"epochs": self.config.train.epochs, "batches": batches.num_batches(0),
                "events": int(batches.lengths_in(0).sum()), "padding_avoided": padding_avoided(batches),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "device": device_name(self.device), "processes": self.world.size, "torch": torch.__version__}

    def _log_step(self, events_per_second: float) -> None:
        self._check_loss()
        loss, weight = self._since_log.tolist()
        self._since_log.zero_()
        self._record({"event": "step", "epoch": self.position.epoch + 1, "batch": self.position.batch,
                      "step": self.position.step, "loss": loss / max(weight, 1e-6),
                      "learning_rate": self.optimizer.param_groups[0]["lr"], "events_per_second": events_per_second})

    def _check_loss(self) -> None:
        loss = float(self._since_log[0])
        if not np.isfinite(loss):
            raise InvalidConfig(f"train: the loss became {loss} by step {self.position.step}; "
                                f"try a train.learning_rate below {self.config.train.learning_rate}")

    def _record(self, record: dict[str, Any]) -> None:
        if self.world.leads:
            self.folder.append_log(record)
            for listener in self.listeners:
                listener(record)

    def _save(self) -> None:
        if self.world.leads:
            log = self.folder.log_path
            self.position.seconds += time.monotonic() - self._began
            self._began = time.monotonic()
            self.position.log_bytes = log.stat().st_size if log.exists() else 0
            self.position.loss_sum, self.position.loss_weight = self._since_log.tolist()
            checkpoint.save(self.folder.checkpoints_path, self.position, self.model, self.optimizer)


def padding_avoided(batches: TokenBatches) -> float:
    """Share of the cells that padding each batch of epoch 0 to its longest row would add, 0 … 1."""
    lengths = batches.lengths_in(0)
    cells = sum(int(lengths[index].max()) * len(index) for _, index in batches.epoch(0))
    return 1 - int(lengths.sum()) / cells if cells else 0.0


def device_of(config: RunConfig, world: World) -> torch.device:
    """Return the device that this process computes on."""
    name = config.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("config: train.device: expected a device that is there, got 'cuda' without CUDA")
    return torch.device(name, world.local_rank) if name == "cuda" else torch.device(name)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def autocast(config: RunConfig, device: torch.device) -> AbstractContextManager:
    """Return the precision context of the forward pass: bfloat16 on CUDA unless told otherwise."""
    precision = config.train.precision
    low = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()


def to_device(batch: EventBatch, device: torch.device) -> EventBatch:
    """Move a batch; through page-locked memory to a GPU, so that the host does not wait."""
    return batch if device.type == "cpu" else batch.pin_memory().to(device, non_blocking=True)


def _loss(config: RunConfig, material: Material) -> nn.Module:
    loss = config.loss
    temperature = loss.temperature or {"dot": 1.0, "cosine": 0.07}[config.model.similarity]
    if loss.kind == "full-softmax":
        return FullSoftmax(temperature=temperature)
    if loss.kind == "sampled-softmax":
        counts = torch.from_numpy(item_counts(material.histories, material.parts.train))
        return SampledSoftmax(counts, loss.negatives, smoothing=loss.smoothing, temperature=temperature,
                              shared=loss.shared)
    return BinaryCrossEntropy(material.histories.num_items, loss.negatives, temperature=temperature)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices of layers; none on biases, norms and rows of tables that a batch does not touch."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and id(parameter) not in tables and not name.endswith("bias")
        (decayed if matrix else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

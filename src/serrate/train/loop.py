"""The training loop: batches of a global token budget, validation that chooses the epoch, exact resume.

Same seed, same data, same number of processes: the same weights, however often the run was killed (on the CPU).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Histories, shard
from ..distributed import World, sum_gradients
from ..errors import InvalidConfig
from ..nn import EmbeddingTables, Similarity
from ..run_folder import RunFolder
from . import checkpoint
from .config import AnyRunConfig
from .device import autocast, device_name, device_of, to_device
from .objective import objective_of
from .schedule import learning_rate
from .track import TensorBoard

Listener = Callable[[dict[str, Any]], None]


class Trainer:
    """One run: built from a configuration and histories, then `train()`.

    Args:
        config: the run's configuration.
        histories: the prepared log.
        out: the run folder; checkpoints and the log go there.
        world: this process among those that train together.
        listeners: called with every log record, as log.jsonl gets it.
    """

    def __init__(self, config: AnyRunConfig, histories: Histories, out: Path, world: World,
                 listeners: Sequence[Listener] = ()):
        self.device = device_of(config.train, world)
        self.objective = objective_of(config, histories, self.device)
        self.config: AnyRunConfig = self.objective.config
        self.folder = RunFolder(out)
        self.world = world
        self.listeners = [*listeners, TensorBoard(out / "tensorboard")]
        torch.manual_seed(config.seed)
        self.model = self.objective.build().to(self.device)
        train = config.train
        if train.compile:
            self.model.compile(dynamic=True)  # in place: its weights keep their names
            for module in self.model.modules():
                if isinstance(module, Similarity):  # losses call it, past the model
                    module.compile(dynamic=True)
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
        batches, epoch = self.objective.batches, self.position.epoch
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
        train, objective, world = self.config.train, self.objective, self.world
        # The draws of a step (dropout, negatives) depend on nothing before it, so a resumed run needs no random state.
        torch.manual_seed(int(np.random.SeedSequence(
            [self.config.seed, self.position.step, world.rank]).generate_state(1)[0]))
        epoch = self.position.epoch
        mine = shard(index, objective.batches.lengths_in(epoch), world.rank, world.size)
        batch = to_device(objective.batch(epoch, mine), self.device)
        with autocast(train, self.device):
            loss, weight = objective.loss(self.model, batch)
        weight = torch.as_tensor(weight, dtype=torch.float32)
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
        """Measure the validation examples in rank 0, tell all processes, keep the weights when they are the best."""
        train, position, better = self.config.train, self.position, self.objective.better
        value = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.world.leads:
            metrics = self.objective.validate(self.model)
            value += metrics[train.monitor]
            best = position.best is None or better(float(value), position.best)
            self._record({"event": "validation", "epoch": position.epoch, "step": position.step, "metrics": metrics,
                          "monitor": train.monitor, "best": best})
            if best:
                checkpoint.save_best(self.folder.checkpoints_path, self.model)
        monitored = float(self.world.agree(value))
        if position.best is None or better(monitored, position.best):
            position.best, position.best_epoch, position.stale = monitored, position.epoch, 0
        else:
            position.stale += 1
        position.stopped = position.stale >= train.patience

    def _last_epoch(self) -> bool:
        return self.position.epoch >= self.config.train.epochs

    def _plan(self) -> dict[str, Any]:
        batches = self.objective.batches
        return {"epochs": self.config.train.epochs, "batches": batches.num_batches(0),
                "events": int(batches.lengths_in(0).sum()), "padding_avoided": self.objective.padding_avoided(),
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


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices of layers; none on biases, norms and rows of tables that a batch does not touch."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables |= {id(weight) for module in model.modules() if isinstance(module, EmbeddingTables)
               for weight in module.parameters()}
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and id(parameter) not in tables and not name.endswith("bias")
        (decayed if matrix else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

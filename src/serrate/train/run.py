"""From a configuration and a prepared log to a saved run."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..data import Histories
from ..distributed import World, start
from ..errors import InvalidArgument, InvalidRun
from ..run_folder import RunFolder
from . import checkpoint
from .config import RunConfig
from .finish import test_metrics
from .loop import Listener, Trainer, device_of

DATA = "data"  # the prepared log, in the run folder when the run made it itself


def train(config: RunConfig, histories: Histories, out: Path | str, *,
          listeners: Sequence[Listener] = ()) -> RunFolder:
    """Train, choose the epoch on validation, test once, save.

    Args:
        config: the whole run.
        histories: the prepared log; its own configuration is kept as `data`.
        out: the run folder: a path that does not exist, or a folder that holds nothing but the prepared `data`.
        listeners: called with every log record.

    Returns:
        The saved run, complete but for its report.

    Raises:
        InvalidArgument: `out` is not empty.
        InvalidData: the log leaves nothing to train, validate or test on.
        InvalidConfig: a device that is not there, or a loss that stops being finite.
    """
    folder, world = RunFolder(out), _world(config)
    if world.leads and not _is_free(folder.path):
        raise InvalidArgument("out", "a path that does not exist or an empty folder", str(folder.path))
    trainer = Trainer(config, histories, folder.path, world, listeners)
    if world.leads:
        folder.write_config({**config.plain(), "data": histories.config, "serrate_version": __version__,
                             "dataset": {**histories.summary(), "path": str(histories.path.resolve())}})
    return _finish(trainer)


def resume(out: Path | str, histories: Histories | None = None, *,
           listeners: Sequence[Listener] = ()) -> RunFolder:
    """Go on with a run that was stopped at any moment, to the result it would have had.

    Args:
        out: the run folder.
        histories: the prepared log; opened from where it was when None.
        listeners: called with every log record.

    Raises:
        InvalidRun: no run at `out`, nothing to resume, or another data set than it began with.
    """
    folder = RunFolder(out)
    values = folder.read_config()
    config = read_run_config(values)
    if folder.metrics_path.exists():
        if not folder.checkpoints_path.exists():
            raise InvalidRun(f"run: {folder.path} is complete; there is nothing to resume")
        shutil.rmtree(folder.checkpoints_path)  # all that was left to do
        return folder
    histories = Histories.open(values["dataset"]["path"]) if histories is None else histories
    for part in ("num_users", "num_items", "num_events"):
        if values["dataset"].get(part) != getattr(histories, part):
            raise InvalidRun(f"run: {folder.path} began with {values['dataset'].get(part)} {part[4:]}, "
                             f"the data set at {histories.path} has {getattr(histories, part)}")
    trainer = Trainer(config, histories, folder.path, _world(config), listeners)
    if checkpoint.exists(folder.checkpoints_path):  # else it was killed before the first one: begin again
        trainer.resume()
    return _finish(trainer)


def read_run_config(values: dict[str, Any]) -> RunConfig:
    """Return the `RunConfig` in the values of a config.json, which holds more than that."""
    return RunConfig.parse({name: value for name, value in values.items() if name in RunConfig.model_fields})


def _finish(trainer: Trainer) -> RunFolder:
    trainer.train()
    folder = trainer.folder
    if trainer.world.leads:
        metrics = test_metrics(trainer)
        trainer.material.histories.items.save(folder.items_path)
        checkpoint.save_weights(folder.model_path, trainer.model)
        trainer.finish(metrics)
        folder.write_metrics(metrics)  # last: a run with metrics is complete
        shutil.rmtree(folder.checkpoints_path)
    return folder


def _is_free(out: Path) -> bool:
    """Whether a new run may go to `out`: there is nothing, or nothing but what preparing its log there leaves."""
    return not out.exists() or (out.is_dir() and all(
        part.name == DATA or part.name.endswith(".partial") for part in out.iterdir()))


def _world(config: RunConfig) -> World:
    return start(device_of(config, World()).type)

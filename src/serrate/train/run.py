"""From a configuration and a prepared log to a saved run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..data import DATA, DataConfig, Histories, data_of, is_prepared, prepare
from ..distributed import World, start
from ..errors import InvalidArgument, InvalidRun, SerrateError
from ..run_folder import RunFolder
from . import checkpoint
from .config import AnyRunConfig, RankingRunConfig, RunConfig, parse_run
from .device import device_of
from .loop import Listener, Trainer


def train(config: AnyRunConfig, histories: Histories, out: Path | str, *,
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
        folder.write_config({**trainer.config.plain(), "data": histories.config, "serrate_version": __version__,
                             "dataset": {**histories.summary(), "path": str(histories.path.resolve())}})
    return _finish(trainer)


def train_log(config: AnyRunConfig, log: Any, out: Path | str, *, listeners: Sequence[Listener] = ()) -> RunFolder:
    """Train on a log, which is prepared into the run folder first, or on what is prepared already.

    Nothing is left of a log that turns out not to be one to train on.

    Args:
        config: the whole run.
        log: whatever `data.prepare` reads, or a prepared data set (`Histories`, or the path of its folder).
        out: the run folder, as for `train`.
        listeners: called with every log record.

    Raises:
        InvalidArgument: `out` is not empty; several processes and a log that is not prepared.
        InvalidData: the log cannot be used, or leaves nothing to train, validate or test on.
    """
    if isinstance(log, Histories):
        return train(config, log, out, listeners=listeners)
    if isinstance(log, str | Path) and is_prepared(log):
        return train(config, Histories.open(log), out, listeners=listeners)
    folder, prepared = RunFolder(out), Path(out) / DATA
    if folder.config_path.exists():
        raise InvalidArgument("out", "a path that does not exist or an empty folder", f"a saved run, {out}")
    there = [path for path in (folder.path, prepared) if path.exists()]
    try:
        return train(config, _prepare(log, config.data, prepared), out, listeners=listeners)
    except SerrateError:
        if prepared not in there and not folder.config_path.exists():
            shutil.rmtree(folder.path if folder.path not in there else prepared, ignore_errors=True)
        raise


def resume(out: Path | str, histories: Histories | None = None, *,
           listeners: Sequence[Listener] = ()) -> RunFolder:
    """Go on with a run that was stopped at any moment, to the result it would have had.

    Args:
        out: the run folder.
        histories: the prepared log; `data_of` the run when None.
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
    histories = data_of(out) if histories is None else histories
    for part in ("num_users", "num_items", "num_events"):
        if values["dataset"].get(part) != getattr(histories, part):
            raise InvalidRun(f"run: {folder.path} began with {values['dataset'].get(part)} {part[4:]}, "
                             f"the data set at {histories.path} has {getattr(histories, part)}")
    trainer = Trainer(config, histories, folder.path, _world(config), listeners)
    if checkpoint.exists(folder.checkpoints_path):  # else it was killed before the first one: begin again
        trainer.resume()
    return _finish(trainer)


def read_run_config(values: dict[str, Any]) -> AnyRunConfig:
    """Return the run's configuration in the values of a config.json, which holds more than that."""
    known = {*RunConfig.model_fields, *RankingRunConfig.model_fields}
    return parse_run({name: value for name, value in values.items() if name in known})


def _finish(trainer: Trainer) -> RunFolder:
    trainer.train()
    folder = trainer.folder
    if trainer.world.leads:
        position, monitor = trainer.position, trainer.config.train.monitor
        metrics = {**trainer.objective.measure(trainer.model), "best_epoch": position.best_epoch,
                   "seconds": round(position.seconds, 1), "monitor": {"metric": monitor, "value": position.best}}
        trainer.objective.save(folder)
        checkpoint.save_weights(folder.model_path, trainer.model)
        trainer.finish(metrics)
        folder.write_metrics(metrics)  # last: a run with metrics is complete
        shutil.rmtree(folder.checkpoints_path)
    return folder


def _prepare(log: Any, config: DataConfig, folder: Path) -> Histories:
    """Prepare a log, or take up what a run that was killed before its training began has prepared of it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidArgument("log", "a prepared data set when several processes train", str(log))
    if isinstance(log, str | Path) and is_prepared(folder):
        prepared = Histories.open(folder)
        if _comparable(prepared.config) == _comparable(config.plain()) and prepared.summary()["source"] == str(log):
            return prepared
    return prepare(log, config, folder)


def _comparable(data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a `DataConfig` with the mere name of the item table, whose whole path a data set keeps."""
    items = data.get("items")
    return data | {"items": items | {"path": Path(items["path"]).name}} if items else data


def _is_free(out: Path) -> bool:
    """Whether a new run may go to `out`: there is nothing, or nothing but what preparing its log there leaves."""
    return not out.exists() or (out.is_dir() and all(
        part.name == DATA or part.name.endswith(".partial") for part in out.iterdir()))


def _world(config: AnyRunConfig) -> World:
    return start(device_of(config.train, World()).type)

"""A small synthetic log, prepared once, and small runs on it."""

import json
from pathlib import Path

import pytest

from serrate.data import ColumnMapping, DataConfig, Histories, prepare, synthesize
from serrate.train import RunConfig

SMALL = {
    "seed": 3,
    "model": {"width": 8, "blocks": 1, "heads": 2, "feedforward": 16, "dropout": 0.1, "max_length": 16},
    "train": {"epochs": 3, "tokens_per_batch": 512, "learning_rate": 0.01, "warmup_steps": 2, "log_every": 1,
              "device": "cpu", "checkpoint_seconds": 1e9},
    "evaluate": {"cutoffs": [10], "resamples": 20},
}


@pytest.fixture(scope="session")
def histories(tmp_path_factory) -> Histories:
    """70 users, 40 items, 1,500 events with something to learn; its folder stays for the session."""
    folder = tmp_path_factory.mktemp("log")
    log = synthesize(folder / "log.parquet", 1500, 70, clusters=5, items_per_cluster=8)
    return prepare(log, DataConfig(columns=ColumnMapping(time="time"), threads=1), folder / "data")


@pytest.fixture(scope="session")
def small():
    """Return the configuration of a run of some seconds, changed by `part={key: value}`."""
    def make(**changes) -> RunConfig:
        parts = {name: {**SMALL.get(name, {}), **values} if isinstance(values, dict) else values
                 for name, values in changes.items()}
        return RunConfig.parse({**SMALL, **parts})
    return make


@pytest.fixture(scope="session")
def files():
    """Return what a run folder holds, by name, in the form in which two equal runs are equal."""
    def read(out: Path) -> dict[str, object]:
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        log = [{name: value for name, value in record.items() if name != "events_per_second"} for record in log]
        metrics = json.loads((out / "metrics.json").read_text())
        parts = {name: (out / name).read_bytes() for name in ("model.safetensors", "items.parquet")}
        return {**parts, "log.jsonl": log, "metrics.json": {**metrics, "seconds": None}}
    return read

"""What the tests of the command line share: a small log, a run trained on it, and commands run in this process."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.cli.main import main

SMALL = ["train.epochs=2", "model.width=8", "model.feedforward=8", "model.max_length=8", "evaluate.resamples=20",
         "data.columns.time=time"]


class Outcome(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def serrate(capsys):
    """A function: arguments → `Outcome` of the command, run in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(serrate, tmp_path):
    """A function: arguments and words → the one line that refuses them.

    The line names all the words, the exit code is 2, nothing is on stdout, and `tmp_path` holds what it held
    before, hidden files included.
    """

    def run(*arguments, words=()):
        before = contents(tmp_path)
        outcome = serrate(*arguments)
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome
        assert lines[0].startswith("serrate: error: ")
        assert outcome.code == 2
        assert outcome.out == ""
        assert contents(tmp_path) == before
        for word in words:
            assert word in outcome.err
        return outcome.err

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file below `folder` with its bytes, and every folder, hidden ones included."""
    return {os.path.relpath(path, folder): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


@pytest.fixture(scope="session", name="contents")
def contents_fixture():
    """A function: folder → {path: bytes, or None for a folder}."""
    return contents


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    """A Parquet log of 30 users with 4 to 12 events over 20 items that mostly follow one another."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(30):
        item = int(rng.integers(20))
        for step in range(int(rng.integers(4, 13))):
            rows.append((user, 100 + item, 1000 * user + step))
            item = (item + 1) % 20 if rng.random() < 0.8 else int(rng.integers(20))
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    pq.write_table(pa.table(dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


@pytest.fixture(scope="session")
def small():
    """Changes to the default recipe that make it train in a blink."""
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory, log):
    """A run trained on `log`; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "default", *SMALL, "--data", str(log), "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def timed(tmp_path_factory, log):
    """A run of a model that reads times, trained on `log`; not to be changed."""
    run = tmp_path_factory.mktemp("timed") / "run"
    hstu = ["model.kind=hstu", "model.time=true", *(change for change in SMALL if "feedforward" not in change)]
    assert main(["train", "default", *hstu, "--data", str(log), "--out", str(run)]) == 0
    return run

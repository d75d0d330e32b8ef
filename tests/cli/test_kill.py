"""`kill -9` at random moments: what is there afterwards is whole, or absent, and the next try works."""

import random
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import Histories, synthesize


def killed_runs(command, out, kills, seed):
    """Kill `command` at `kills` random moments of its work; yield its code after each."""
    with running(command) as process:
        wait_for_work(process, out)
        begin = time.monotonic()
        assert process.wait() == 0, process.stderr.read()
        took = time.monotonic() - begin
    draw = random.Random(seed)
    for _ in range(kills):
        remove(out)
        with running(command) as process:
            wait_for_work(process, out)
            time.sleep(draw.random() * took)
            process.kill()
            process.wait()
        yield process.returncode


def running(command):
    return subprocess.Popen([sys.executable, "-m", "serrate.cli", *map(str, command)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)


def wait_for_work(process, out):
    """Wait until the command has begun to write beside `out`."""
    while process.poll() is None and not list(out.parent.glob(f".{out.name}.*")):
        time.sleep(0.002)


def remove(out):
    if out.is_dir():
        for file in out.iterdir():
            file.unlink()
        out.rmdir()
    out.unlink(missing_ok=True)


KILLS = [pytest.param(3, id="3"), pytest.param(10, id="10", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_recommendations_are_whole_or_absent(kills, tmp_path, trained):
    rows = np.random.default_rng(0).integers(100, 120, (60_000, 5))
    pq.write_table(pa.table({"user": range(60_000), "history": rows.tolist()}), tmp_path / "lists.parquet")
    out = tmp_path / "done" / "out.parquet"
    command = ["recommend", trained, "--histories", tmp_path / "lists.parquet", "--out", out]
    codes = []
    for code in killed_runs(command, out, kills, seed=1):
        codes.append(code)
        if out.exists():
            assert pq.read_table(out)["user"].to_pylist() == list(range(60_000))
    assert -9 in codes
    with running(command) as process:
        assert process.wait() == 0
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]  # and cleans up after the killed ones


@pytest.mark.parametrize("kills", KILLS)
def test_prepared_data_are_whole_or_absent(kills, tmp_path):
    log = synthesize(tmp_path / "events.parquet", 1_000_000, seed=0)
    out = tmp_path / "done" / "prepared"
    command = ["data", "prepare", log, "--out", out, "--time", "time", "--set", "threads=1"]
    codes = []
    for code in killed_runs(command, out, kills, seed=2):
        codes.append(code)
        if out.exists():
            histories = Histories.open(out)
            assert histories.num_events == 1_000_000
            assert len(histories.items) == histories.num_items
            assert len(histories.users) == histories.num_users
    assert -9 in codes
    remove(out)
    with running(command) as process:
        assert process.wait() == 0
    assert [path.name for path in out.parent.iterdir()] == ["prepared"]

"""Rows of figures: what stands behind each, how they replace one another, what a page says of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from serrate.ops import figures


def row(workload="w", implementation="i", metric="m", value=1.0):
    return figures.row("s", workload, implementation, metric, value, "ms")


def test_a_row_carries_what_is_behind_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/serrate", "bench", "/somewhere/else/log.csv", "a b"])
    one = row()
    assert one["command"] == "serrate bench log.csv 'a b'"
    assert set(one["versions"]) == {"python", "torch", "serrate"}
    assert set(one) == {*figures.KEY, "value", "unit", "command", "commit", "versions"}


def test_a_command_is_told_as_it_can_be_given_again(monkeypatch):
    for script, told in [(figures.__file__, "python -m serrate.ops.figures"), ("/x/y.py", "python y.py")]:
        monkeypatch.setattr(sys, "argv", [script, "--n", "3"])
        assert figures.command() == f"{told} --n 3"


@pytest.mark.parametrize(("given", "told"), [
    ("/data/log.csv", "$SERRATE_DATA/log.csv"), ("--log=/data/log.csv", "--log=$SERRATE_DATA/log.csv"),
    ("/database/log.csv", "log.csv"), ("/elsewhere/a b", "'a b'"), ("--out=/elsewhere/a.json", "--out=a.json"),
    ("runs/first", "runs/first"), ("a = 1", "'a = 1'"),
])  # fmt: skip
def test_a_command_names_no_folder_of_the_machine(monkeypatch, given, told):
    monkeypatch.setenv("SERRATE_DATA", "/data")
    monkeypatch.setattr(sys, "argv", ["x.py", given])
    assert figures.command() == f"python x.py {told}"


@pytest.fixture
def no_commit():
    """The commit is asked for anew, before and after."""
    figures.commit.cache_clear()
    yield
    figures.commit.cache_clear()


def test_the_commit_can_be_given(monkeypatch, no_commit):
    monkeypatch.setenv("SERRATE_COMMIT", "abc")
    assert figures.commit() == "abc"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")], ids=str)
def test_a_commit_that_git_does_not_tell_is_unknown(monkeypatch, no_commit, error):
    def run(*_, **__):
        raise error

    monkeypatch.delenv("SERRATE_COMMIT", raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    assert figures.commit() == "unknown"


def test_a_version_that_is_not_told_is_unknown():
    assert figures.versions(("torch", "not-there"))["not-there"] == "unknown"


def test_rows_replace_those_of_the_same_key_and_no_others(tmp_path):
    path = tmp_path / "figures.json"
    assert figures.read(path) == []
    figures.write(path, [row(), row(metric="n"), row(workload="other")])
    figures.write(path, [row(value=2.0)])
    assert [(each["workload"], each["metric"], each["value"]) for each in figures.read(path)] == [
        ("w", "n", 1.0), ("other", "m", 1.0), ("w", "m", 2.0)]
    figures.write(path, [row(value=3.0)], key=("subject", "workload"))
    assert [(each["workload"], each["value"]) for each in json.loads(path.read_text())] == [("other", 1.0), ("w", 3.0)]
    assert len(path.read_text().splitlines()) == 4  # a row a line


def test_a_table_and_where_its_figures_come_from():
    assert figures.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    told = figures.origin([row(), row(metric="n")])
    assert told.count("\n") == 0
    assert told.startswith("- `")


ROWS = [row("small", name, metric, value) for name, metric, value in [
    ("batch", "events", 1500), ("limit", "limit_ms", 0.03), ("limit", "limit_forward_backward_ms", 0.1),
    ("triton", "forward_ms", 0.04), ("triton", "forward_backward_ms", 0.1), ("triton", "peak_mib", 0.0),
    ("eager", "forward_ms", 0.2), ("eager", "forward_backward_ms", 0.8), ("eager", "peak_mib", 12.25),
    ("compiled", "forward_ms", 0.08)]]


def test_ours_stands_beside_its_peers_a_line_a_workload():
    head, _, small, wide, _, told = figures.beside_peers([*ROWS, row("wide", "triton", "forward_ms", 3.0)]).splitlines()
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert dict(zip(columns, [cell.strip() for cell in small.split("|")[1:-1]], strict=True)) == {
        "workload": "small", "events": "1,500", "limit": "0.03 / 0.1", "**triton**": "0.04 / 0.1",
        "eager": "0.2 / 0.8", "compiled": "0.08 / –", "triton / best peer": "0.50 / 0.12",
        "triton / limit": "1.33 / 1.00", "peak MiB: triton, eager, compiled": "0, 12.2, –"}
    assert wide == "| wide | – | – | 3 / – | – | – | – | – | –, –, – |"
    assert told.startswith("- `")
    assert figures.beside_peers([]) == "Not measured yet."


def test_replayed_graphs_stand_beside_the_limit():
    replayed = [row("small", "triton", f"graph_{metric}", value) for metric, value in
                [("forward_ms", 0.03), ("forward_backward_ms", 0.2)]]
    head, _, small, *_ = figures.beside_peers([*ROWS, *replayed]).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, small)), strict=True))
    assert cells["graph replayed"] == "0.03 / 0.2"
    assert cells["graph / limit"] == "1.00 / 2.00"
    assert cells["triton / best peer"] == "0.50 / 0.12"


def test_a_page_is_filled_between_its_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- GPU figures -->\nold\n<!-- end of GPU figures -->\nb\n")
    figures.fill(page, ROWS)
    once = page.read_text()
    figures.fill(page, ROWS)
    assert page.read_text() == once == (
        f"a\n<!-- GPU figures -->\n{figures.beside_peers(ROWS)}\n<!-- end of GPU figures -->\nb\n")
    assert figures.between("none here", "a\n", "b", "c") == "none here"


def test_the_device_is_the_one_of_that_kind(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1")
    assert figures.device() == figures.device("cuda") == "NVIDIA X1"
    assert figures.device("cpu") == f"CPU, {os.cpu_count()} cores"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert figures.device() == figures.device("cpu")

"""Rows of figures: what stands behind each, how they replace one another, what a page says of them."""

import json
import sys

import pytest

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


def test_the_commit_can_be_given(monkeypatch):
    monkeypatch.setenv("SERRATE_COMMIT", "abc")
    figures.commit.cache_clear()
    try:
        assert figures.commit() == "abc"
    finally:
        figures.commit.cache_clear()


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


@pytest.mark.parametrize("kind", [None, "cpu"])
def test_the_device_is_named(kind):
    assert figures.device(kind)

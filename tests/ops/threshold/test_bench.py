"""The benchmark of selection: checks that can fail, peers that find the same, the limit, rows, the table."""

import pytest
import torch

from serrate.ops import figures
from serrate.ops.threshold import bench
from serrate.ops.threshold.cases import CHECKED, WORKLOADS, Case

SMALL = Case("small", 3000, 5, keep=30, capacity=40, sample=1000)


@pytest.fixture(autouse=True)
def small_checks(monkeypatch):
    """The checks on cases that a CPU gets through at once."""
    monkeypatch.setattr(bench, "CHECKED", [Case("checked", 500, 3), Case("checked, filtered", 300, 2, allowed=0.5)])
    bench.check.cache_clear()
    yield
    bench.check.cache_clear()


def test_peers_find_the_same_and_chunks_are_put_together(monkeypatch):
    problem = SMALL.problem()
    monkeypatch.setattr(bench, "_ITEMS", 700)
    assert bench.agree(bench.selected(problem, 40, "reference"), *bench.eager(problem)())
    assert bench.agree(bench.selected(problem, 7, "reference"), *bench.eager(problem)())


@pytest.mark.parametrize("spoil", ["id", "count", "order", "rest"])
def test_a_wrong_answer_is_found(spoil):
    problem = SMALL.problem()
    ids, counts = bench.selected(problem, 60, "reference")
    if spoil == "id":
        ids[2, 3] += 1
    elif spoil == "count":
        counts[4] += 1
    elif spoil == "order":
        ids[0, :2] = ids[0, :2].flip(0)
    else:
        ids[1, -1] = 7
    assert not bench.agree((ids, counts), *bench.plainly(problem))


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    right = bench.selected

    def wrong(problem, capacity, implementation):
        ids, counts = right(problem, capacity, implementation)
        return ids, counts + (implementation != "reference")

    monkeypatch.setattr(bench, "selected", wrong)
    with pytest.raises(AssertionError, match="checked, cpu: other items than expected: no speed is told"):
        bench.compare(SMALL, 1e9, "cpu", "cpu")
    monkeypatch.setattr(bench, "CHECKED", [])
    with pytest.raises(AssertionError, match="small, cpu: other items than expected: no speed is told"):
        bench.compare(SMALL, 1e9, "cpu", "cpu")


def test_the_limit_reads_items_and_scales_once():
    assert bench.limit(SMALL.problem(), 100.0, "cpu")["limit_ms"] == 3000 * (64 + 4) / 100


def test_rows_become_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here\nreally")))
    rows = bench.compare(SMALL, 1e9, "cpu", "cpu")
    assert {row["implementation"] for row in rows} == {"batch", "limit", "cpu", "eager"}
    assert "  compiled                 failed: not here\n" in capsys.readouterr().err
    assert all(row["value"] > 0 and row["subject"] == "threshold" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(path)])
    assert "\n| small | 3,000 | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are 100M, 1, 100M, 8"):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own():
    for cases in (WORKLOADS, CHECKED):
        assert len({case.name for case in cases}) == len(cases)

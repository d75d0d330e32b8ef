"""The benchmark of mixture of logits: checks that can fail, peers that find the same, limits, rows, the table."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.ops import figures, measure
from serrate.ops.mixture_of_logits import bench
from serrate.ops.mixture_of_logits.cases import WORKLOADS, Case

SMALL = Case("small", 5, 40, 2, 3, 8, 16, k=7, dtype=torch.float32)
FILTERED = replace(SMALL, name="filtered", excluded=9, allowed=0.6)
MANY = replace(SMALL, name="all are asked for", k=60)

every_shape = pytest.mark.parametrize("case", [SMALL, FILTERED, MANY], ids=lambda case: case.name)


@every_shape
def test_a_right_answer_passes(case):
    inputs = bench.make(case, "cpu")
    assert bench.wrong(inputs, "cpu") < measure.TOLERANCE[torch.float32]
    assert bench.misplaced(inputs, "cpu") is None


@pytest.mark.parametrize("by", [0.01, math.nan])
@pytest.mark.parametrize("at", [0, -1])
def test_a_wrong_score_is_found(by, at, monkeypatch):
    right = bench.mixture_of_logits

    def spoiled(*arguments, implementation, **options):
        out = right(*arguments, implementation=implementation, **options)
        if implementation == "cpu":
            out[at] *= 1 + by
        return out

    monkeypatch.setattr(bench, "mixture_of_logits", spoiled)
    assert not bench.wrong(bench.make(SMALL, "cpu"), "cpu") < measure.TOLERANCE[torch.float32]


@every_shape
@pytest.mark.parametrize("what", ["scores", "ids"])
def test_a_misplaced_item_is_found(case, what, monkeypatch):
    right = bench.mixture_of_logits_top_k

    def spoiled(*arguments, **options):
        scores, ids = right(*arguments, **options)
        changed = scores if what == "scores" else ids
        changed[3, :2] = changed[3, :2].flip(0)
        return scores, ids

    monkeypatch.setattr(bench, "mixture_of_logits_top_k", spoiled)
    told = f"{case.name}, cpu: {what} differ from those of a sort"
    assert bench.misplaced(bench.make(case, "cpu"), "cpu") == told


@every_shape
@pytest.mark.parametrize("name", bench.PEERS)
def test_peers_find_the_same(case, name, monkeypatch):
    compile_ = torch.compile
    bench._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda *x, **options: compile_(*x, **options, backend="eager"))
    monkeypatch.setattr(bench, "_PAIRS", 60)  # some items at a time
    inputs = bench.make(case, "cpu")
    scores, ids = bench.PEERS[name](inputs)()
    expected, right = bench.ours(inputs, "cpu")()
    torch.testing.assert_close(scores, expected[:, :scores.shape[1]], rtol=1e-4, atol=1e-4)
    there = scores > -math.inf
    assert torch.equal(ids[there], right[:, :scores.shape[1]][there])
    bench._compiled.cache_clear()


def test_peers_score_equal_parts():
    for case in WORKLOADS.values():
        step = bench._at_a_time(case)
        assert case.items % step == 0
        assert case.queries * step <= bench._PAIRS


def test_the_limit_counts_products_and_exponentials(monkeypatch):
    monkeypatch.setattr(measure, "product_rate", lambda dtype: 2.0)
    monkeypatch.setattr(bench, "_clocks_a_second", lambda: 1e6)
    pairs = 5 * 40
    product, exponential = pairs * 6 * (8 + 2 * 16) * 2 / 1e9 / 2, pairs * (2 * 6 + 16) / 16e3
    assert bench.limit(SMALL) == pytest.approx(
        {"product_ms": product, "exponential_ms": exponential, "limit_ms": exponential})


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bench, "wrong", lambda *_: math.nan)
        with pytest.raises(AssertionError, match="small, cpu: relative error nan, more than"):
            bench.compare(SMALL, "cpu", "cpu")
    monkeypatch.setattr(bench, "misplaced", lambda *_: "small: ids differ")
    with pytest.raises(AssertionError, match="small: ids differ: no speed is told"):
        bench.compare(SMALL, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here\nreally")))
    rows = bench.compare(SMALL, "cpu", "cpu")
    assert {row["implementation"] for row in rows} == {"batch", "cpu", "eager"}
    assert "  compiled                 failed: not here\n" in capsys.readouterr().err
    assert all(row["value"] > 0 and row["subject"] == "mixture_of_logits" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(path)])
    assert "\n| small | 200 | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are 700k items, k 100, 700k"):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_the_usual_workloads_are_there():
    assert set(bench.USUAL) <= set(WORKLOADS)

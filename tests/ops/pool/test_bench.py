"""The benchmark of pooling: a check that can fail, peers that compute the same, rows, the table."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.jagged import from_padded
from serrate.ops import figures
from serrate.ops.pool import bench
from serrate.ops.pool.cases import EVERY, HOWS, WORKLOADS, Case

ROWS = (5, 3, 1, 9)
KINDS = [*(Case(how, ROWS, (6,), how) for how in (*HOWS, "softmax")), Case("weighted sum", ROWS, (6,), weights=()),
         Case("attention", ROWS, (6,), weights=(), activation="softmax")]

every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


@every_kind
def test_a_right_answer_passes(case):
    assert bench.wrong(case, case.tensors(), case.offsets(), "cpu") < bench.TOLERANCE[torch.float32]


@every_kind
def test_a_right_answer_of_empty_rows_passes(case):
    case = replace(case, lengths=(5, 0, 3))  # the log-sum-exp of nothing is -∞
    assert bench.wrong(case, case.tensors(), case.offsets(), "cpu") < bench.TOLERANCE[torch.float32]


@every_kind
@pytest.mark.parametrize("spoiled", range(3))
@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_output_or_gradient_is_found(case, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(case, tensors, offsets, implementation):
        run, leaves = right(case, tensors, offsets, implementation)
        if implementation == "reference":
            return bench.Peer(run, leaves)
        if spoiled == 2:
            return bench.Peer(lambda: run() * (1 + by), leaves)
        leaf = leaves[min(spoiled, len(leaves) - 1)]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()).sum(), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(case, case.tensors(), case.offsets(), "cpu") < bench.TOLERANCE[torch.float32]


@every_kind
def test_peers_compute_the_same(case):
    tensors, offsets = case.tensors(), case.offsets()
    expected = bench.ours(case, tensors, offsets, "reference").run()
    found = bench.padded(case, tensors, offsets).run()
    if case.how == "softmax":
        found = from_padded(found, offsets.diff()).values
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", [case for case in KINDS if case.name not in ("max", "logsumexp")],
                         ids=lambda case: case.name)
def test_nested_tensors_compute_the_same_where_they_can(case):
    tensors, offsets = case.tensors(), case.offsets()
    expected = bench.ours(case, tensors, offsets, "reference").run()
    torch.testing.assert_close(bench.nested(case, tensors, offsets).run(), expected)


def test_the_limit_moves_what_must_be_moved():
    def copied(nbytes: float) -> float:
        return nbytes / 4  # elements

    events, pooled, weights = sum(ROWS) * 6, len(ROWS) * 6, sum(ROWS)
    limits = {case.name: bench.limit(case, case.tensors(), copied) for case in KINDS}
    assert limits["sum"] == {"limit_ms": events + pooled, "limit_forward_backward_ms": 2 * (events + pooled)}
    assert limits["mean"] == limits["max"] == limits["sum"]
    assert limits["logsumexp"]["limit_forward_backward_ms"] == 3 * events + 2 * pooled
    assert limits["attention"] == {"limit_ms": events + weights + pooled,
                                   "limit_forward_backward_ms": 3 * (events + weights) + 2 * pooled}
    assert limits["softmax"] == {"limit_ms": 2 * events, "limit_forward_backward_ms": 5 * events}


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="sum, cpu: relative error nan"):
        bench.compare(KINDS[0], float, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here")))
    monkeypatch.setattr(bench.measure, "milliseconds", lambda run, *_: run() is None or 1.0)
    rows = bench.compare(KINDS[0], float, "cpu", "cpu")
    assert {row["implementation"] for row in rows} - {"nested"} == {"batch", "limit", "cpu", "padded"}
    assert all(row["value"] > 0 and row["subject"] == "pool" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    text = bench.README.read_text()
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text(text)
    bench.main(["--table", str(path)])
    assert "| sum | 18 | " in bench.README.read_text()


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are "):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own_and_are_among_all():
    names = [case.name for case in EVERY]
    assert len(set(names)) == len(names)
    assert {case.name for case in WORKLOADS} < set(names)

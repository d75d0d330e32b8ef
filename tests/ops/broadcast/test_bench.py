"""The benchmark of broadcast: a check that can fail, peers that compute the same, rows, the table."""

import math

import pytest
import torch

from serrate.jagged import from_padded
from serrate.ops import figures
from serrate.ops.broadcast import bench
from serrate.ops.broadcast.cases import EVERY, WORKLOADS, Case

ROWS = (5, 3, 1, 9)
KINDS = [Case(f"{'multiply' if product else 'add'} {along}", ROWS, along, product, (6,), (6,))
         for product in (False, True) for along in ("rows", "positions", "both")]

every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


@every_kind
def test_a_right_answer_passes(case):
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
        leaf = leaves[spoiled]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()).sum(), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(case, case.tensors(), case.offsets(), "cpu") < bench.TOLERANCE[torch.float32]


@every_kind
def test_peers_compute_the_same(case):
    tensors, offsets = case.tensors(), case.offsets()
    expected = bench.ours(case, tensors, offsets, "reference").run()
    found = bench.padded(case, tensors, offsets).run()
    torch.testing.assert_close(from_padded(found, offsets.diff()).values, expected)
    if case.along == "rows":
        torch.testing.assert_close(bench.nested(case, tensors, offsets).run(), expected)
    else:
        with pytest.raises(NotImplementedError):
            bench.nested(case, tensors, offsets)


def test_the_limit_moves_what_must_be_moved():
    def copied(nbytes: float) -> float:
        return nbytes / 4  # elements

    events, of_rows, of_positions = sum(ROWS) * 6, len(ROWS) * 6, max(ROWS) * 6
    limits = [tuple(bench.limit(case, case.tensors(), copied).values()) for case in KINDS]
    both = of_positions * len(ROWS)
    assert limits == [
        (2 * events + of_rows, 3 * events + 2 * of_rows), (2 * events + of_positions, 3 * events + 2 * of_positions),
        (3 * events, 4 * events + both),
        (2 * events + of_rows, 5 * events + 3 * of_rows), (2 * events + of_positions, 5 * events + 3 * of_positions),
        (3 * events, 7 * events + both)]


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="add rows, cpu: relative error nan"):
        bench.compare(KINDS[0], float, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here")))
    monkeypatch.setattr(bench.measure, "milliseconds", lambda run, *_: run() is None or 1.0)
    rows = bench.compare(KINDS[0], float, "cpu", "cpu")
    assert {row["implementation"] for row in rows} - {"nested"} == {"batch", "limit", "cpu", "padded"}
    assert all(row["value"] > 0 and row["subject"] == "broadcast" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    text = bench.README.read_text()
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text(text)
    bench.main(["--table", str(path)])
    assert "| add rows | 18 | " in bench.README.read_text()


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

"""The benchmark of joined and padded rows: a check that can fail, peers that compute the same, rows, the table."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.ops import figures
from serrate.ops.concat import bench
from serrate.ops.concat.cases import OPERATIONS, USUAL, WORKLOADS, Workload

SMALL = Workload("concatenate", 24, 5, 50, torch.float32, rows=4)

every_operation = pytest.mark.parametrize("workload", [replace(SMALL, operation=name) for name in OPERATIONS],
                                          ids=OPERATIONS)


@every_operation
def test_a_right_answer_passes(workload):
    assert bench.wrong(bench.make(workload, "cpu"), "cpu") == 0


@every_operation
@pytest.mark.parametrize("spoiled", ["output", "gradient"])
@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_output_or_gradient_is_found(workload, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(inputs, implementation):
        run, leaves = right(inputs, implementation)
        if implementation == "reference":
            return bench.Peer(run, leaves)
        if spoiled == "output":
            return bench.Peer(lambda: run() * (1 + by), leaves)
        return bench.Peer(lambda: run() + by * (leaves[-1] - leaves[-1].detach()).sum(), leaves)  # the gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(bench.make(workload, "cpu"), "cpu") < bench.TOLERANCE[torch.float32]


@every_operation
def test_peers_compute_the_same(workload):
    inputs = bench.make(workload, "cpu")
    expected = bench.ours(inputs, "reference").run()
    assert torch.equal(bench.edits(inputs).run(), expected)
    beside = bench.padded(inputs).run()
    if workload.operation == "concatenate":  # with padding between the two
        columns = torch.arange(24 + 3)
        first, second = inputs.lengths
        beside = beside[(columns < first[:, None]) | ((columns >= 24) & (columns < 24 + second[:, None]))]
    assert torch.equal(beside, expected)
    if workload.operation == "to_padded":
        assert torch.equal(bench.nested(inputs).run(), expected)


def test_the_limit_moves_every_event_once_a_pass():
    inputs = bench.make(SMALL, "cpu")
    events = sum(len(part) for part in inputs.parts)
    assert bench.moved(inputs) == (2 * 20 * events, 4 * 20 * events)
    events, cells = len(inputs.parts[0]), 4 * 24
    inputs.parts.pop()
    for operation, forward, both in (("to_padded", events + cells, 3 * events + cells),
                                     ("from_padded", 2 * events, 3 * events + cells)):
        changed = replace(inputs, workload=replace(SMALL, operation=operation))
        assert bench.moved(changed) == (20 * forward, 20 * both)


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="fill 50 %, cpu: relative error nan, more than"):
        bench.compare(SMALL, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here\nreally")))
    rows = bench.compare(SMALL, "cpu", "cpu")
    assert {row["implementation"] for row in rows} == {"batch", "cpu", "edits", "padded"}
    assert "  nested                   failed: nested tensors have no concatenate\n" in capsys.readouterr().err
    assert all(row["value"] > 0 and row["subject"] == "concat" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(path)])
    assert f"\n| {SMALL.name} | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are concatenate, 1024"):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own_and_the_lengths_they_say():
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    assert {workload.operation for workload in USUAL} == set(OPERATIONS)
    for workload in WORKLOADS:
        for longest, lengths in zip((workload.longest, workload.longest // 8), workload.lengths(), strict=False):
            assert 1 <= int(lengths.min()) <= int(lengths.max()) <= longest
            assert abs(float(lengths.double().mean()) / longest - workload.fill / 100) < 0.03

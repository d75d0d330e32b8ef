"""The benchmark of square blocks: a check that can fail, peers that compute the same, rows, the table."""

import math

import pytest
import torch

from serrate.ops import figures
from serrate.ops.blocks import bench, to_padded_blocks
from serrate.ops.blocks.cases import OPERATIONS, WORKLOADS, Case

SMALL = Case("small", (40, 7, 0, 21), width=8, dtype=torch.float32)
FULL = Case("full", (9, 9), width=4, dtype=torch.float32)

every_operation = pytest.mark.parametrize("kind", OPERATIONS)


def given(kind, case=SMALL):
    return case.tensors(OPERATIONS[kind].inputs)


@every_operation
def test_a_right_answer_passes(kind):
    assert bench.wrong(kind, SMALL, given(kind), "cpu") < bench.measure.TOLERANCE[torch.float32]


@every_operation
def test_many_pairs_are_stood_for_by_two_rows(kind, monkeypatch):
    monkeypatch.setattr(bench, "_MOST", 100)
    assert bench.wrong(kind, SMALL, given(kind), "cpu") < bench.measure.TOLERANCE[torch.float32]


@every_operation
@pytest.mark.parametrize("spoiled", range(3))
@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_output_or_gradient_is_found(kind, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(kind, case, given, implementation):
        run, leaves = right(kind, case, given, implementation)
        if implementation == "reference":
            return bench.Peer(run, leaves)
        if spoiled == 2:
            return bench.Peer(lambda: run() * (1 + by), leaves)
        leaf = leaves[min(spoiled, len(leaves) - 1)]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()).sum(), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(kind, SMALL, given(kind), "cpu") < bench.measure.TOLERANCE[torch.float32]


@pytest.mark.parametrize("case", [SMALL, FULL], ids=lambda case: case.name)
@every_operation
def test_peers_compute_the_same(kind, case):
    tensors, offsets = given(kind, case), case.offsets()
    expected = bench.ours(kind, case, tensors, "reference").run()
    if kind in bench.OF_PADDINGS or kind not in bench.PLAIN:
        torch.testing.assert_close(bench.indexed(kind, case, tensors).run(), expected)
        return
    found = bench.eager(kind, case, tensors).run()
    if OPERATIONS[kind].result == "a":
        there = to_padded_blocks(torch.ones(case.pairs), offsets, case.longest).bool()
        torch.testing.assert_close(found[there], expected)
    else:
        torch.testing.assert_close(torch.cat([row[:n] for row, n in zip(found, case.lengths, strict=True)]), expected)
    if kind in bench.OF_NESTED:
        rows = bench.nested(kind, case, tensors).run().unbind()
        torch.testing.assert_close(torch.cat([row.flatten() for row in rows]), expected.flatten())
    else:
        with pytest.raises(TypeError, match="nested tensors have no"):
            bench.nested(kind, case, tensors)


def test_the_limit_moves_every_tensor_once_a_pass_or_multiplies():
    case, bytes_of = Case("", (3, 4), width=2, dtype=torch.float32), 4  # 7 events, 25 pairs, a square of 16

    def times(kind, rate=1e9):
        return list(bench.limit(kind, case, lambda nbytes: nbytes / bytes_of, lambda dtype: rate).values())

    assert times("products") == [28 + 25, (28 + 25) + (28 + 25 + 28)]
    assert times("matmul") == [25 + 14 + 14, (25 + 14 + 14) + (39 + 14 + 39)]
    assert times("softmax") == [50, 50 + 75]
    assert times("differences") == [14 + 25, (14 + 25) + (25 + 14)]
    assert times("multiply") == [25 + 16 + 25, (25 + 16 + 25) + (41 + 25 + 41)]
    assert times("to padded") == [25 + 32, 2 * (25 + 32)]
    assert times("products", rate=1e-9) == pytest.approx([100, 300])  # 2 · 25 · 2 operations


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="softmax, small: cpu: relative error nan"):
        bench.compare("softmax", SMALL, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.measure, "tell", lambda text: None)
    monkeypatch.setattr(bench, "PEERS", {"padded": bench.eager, "nested": bench.nested})
    rows = [row for kind in ("multiply", "to padded") for row in bench.compare(kind, SMALL, "cpu", "cpu")]
    assert {row["implementation"] for row in rows} == {"batch", "cpu", "padded", "index"}
    assert {row["workload"] for row in rows} == {"multiply, small", "to padded, small"}
    assert all(row["value"] > 0 and row["subject"] == "blocks" for row in rows)
    path, page = tmp_path / "rows.json", tmp_path / "README.md"
    figures.write(path, rows)
    page.write_text(bench.README.read_text())
    monkeypatch.setattr(bench, "README", page)
    bench.main(["--table", str(path)])
    assert "| multiply, small | 68 | " in page.read_text()


def test_peers_may_be_chosen(monkeypatch):
    monkeypatch.setattr(bench.measure, "tell", lambda text: None)
    rows = bench.compare("softmax", SMALL, "cpu", "cpu", beside=("padded",))
    assert {row["implementation"] for row in rows} == {"batch", "cpu", "padded"}


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are usual, long, products"):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own_and_the_fill_they_say():
    assert len({case.name for case in WORKLOADS}) == len(WORKLOADS)
    for case in WORKLOADS:
        fill = sum(case.lengths) / len(case.lengths) / case.longest
        assert abs(100 * fill - int(case.name.split("fill ")[1].split(" %")[0])) < 6, case.name

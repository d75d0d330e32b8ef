"""The benchmark of norm, gate and dropout: a check that can fail, peers that compute the same, rows, the table."""

import math

import pytest
import torch

from serrate.ops import figures
from serrate.ops.norm_gate import bench
from serrate.ops.norm_gate.cases import WORKLOADS, Case

SMALL = Case("small", 40, 24, dropout=0.2, packed=False)
GROUPS = Case("groups", 40, 24, groups=3, narrow=True)
BARE = Case("bare", 40, 24, gated=False)

every_shape = pytest.mark.parametrize("case", [SMALL, GROUPS, BARE], ids=lambda case: case.name)


@every_shape
def test_a_right_answer_passes(case):
    assert bench.wrong(case, case.tensors(), "cpu") < bench.TOLERANCE[case.result(torch.float32)]


@every_shape
@pytest.mark.parametrize("spoiled", range(3))
@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_output_or_gradient_is_found(case, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(case, leaves, implementation):
        run, leaves = right(case, leaves, implementation)
        if implementation == "reference":
            return bench.Peer(run, leaves)
        if spoiled == 2:
            return bench.Peer(lambda: run() * (1 + by), leaves)
        leaf = leaves[min(spoiled, len(leaves) - 1)]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(case, case.tensors(), "cpu") < bench.TOLERANCE[case.result(torch.float32)]


@every_shape
def test_peers_compute_the_same(case):
    leaves = [x.requires_grad_() for x in case.tensors()]
    case = Case("", case.events, case.width, case.groups, case.gated, narrow=case.narrow)  # their dropout is another
    expected = bench.ours(case, leaves, "reference").run()
    found = bench.eager(case, leaves).run()
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_limit_moves_every_tensor_once_a_pass():
    elements = 40 * 24
    assert bench.limit(SMALL, SMALL.tensors(), 100.0) == {
        "limit_ms": 3 * 4 * elements / 100, "limit_forward_backward_ms": (3 + 5) * 4 * elements / 100}
    assert bench.limit(GROUPS, GROUPS.tensors(), 1.0) == {
        "limit_ms": (4 + 4 + 2) * elements, "limit_forward_backward_ms": (10 + 8 + 2 + 8) * elements}


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="small, cpu: relative error nan, more than"):
        bench.compare(SMALL, 1e9, "cpu", "cpu")


def test_rows_become_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.PEERS, "compiled", lambda *_: (_ for _ in ()).throw(RuntimeError("not here\nreally")))
    rows = bench.compare(SMALL, 1e9, "cpu", "cpu")
    assert {row["implementation"] for row in rows} == {"batch", "limit", "cpu", "eager"}
    assert "  compiled                 failed: not here\n" in capsys.readouterr().err
    assert all(row["value"] > 0 and row["subject"] == "norm_gate" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(path)])
    assert "\n| small | 40 | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are 256, 512"):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own():
    assert len({case.name for case in WORKLOADS}) == len(WORKLOADS)

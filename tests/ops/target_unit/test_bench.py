"""The benchmark of the target unit's first layer: a check that can fail, peers that compute the same, rows."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.ops import figures, measure
from serrate.ops.target_unit import bench
from serrate.ops.target_unit.cases import WORKLOADS, Case

SMALL = Case("small", (7, 20, 3, 20))
SHARED = Case("shared", (7, 20, 3, 20), (0, 0, 3, 1, 0))
MANY = Case("many", (2,) * 50, tuple(range(0, 50, 2)) * 2)

every_shape = pytest.mark.parametrize("case", [SMALL, SHARED, MANY], ids=lambda case: case.name)


@every_shape
def test_a_right_answer_passes_in_every_dtype(case):
    for dtype, allowed in measure.TOLERANCE.items():
        assert bench.wrong(bench.make(replace(case, dtype=dtype), "cpu"), "cpu") < allowed


@every_shape
@pytest.mark.parametrize("spoiled", range(5))
@pytest.mark.parametrize("by", [1.0, math.nan])
def test_a_wrong_output_or_gradient_is_found(case, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(inputs, implementation):
        run, leaves = right(inputs, implementation)
        if spoiled == 4:
            return bench.Peer(lambda: run() * (1 + by), leaves)
        leaf = leaves[spoiled]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()).sum(), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(bench.make(case, "cpu"), "cpu") < measure.TOLERANCE[torch.bfloat16]


@every_shape
@pytest.mark.parametrize("name", bench.PEERS)
def test_a_peer_computes_the_same(case, name, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *x, **options: compile_(*x, **options, backend="eager"))
    inputs = bench.make(case, "cpu")
    if case.rows is not None and name.startswith("padded"):
        with pytest.raises(ValueError, match="histories are shared"):
            bench.PEERS[name](inputs)
        return
    run, leaves = bench.PEERS[name](inputs)
    out, mine = run(), bench.ours(inputs, "cpu")
    out = out[torch.arange(20) < inputs.offsets.diff()[:, None]] if out.dim() == 3 else out
    torch.testing.assert_close(out, mine.run(), rtol=1e-4, atol=1e-4)
    weight = torch.randn_like(out)
    for at in (0, 2, 3):
        theirs, own = (torch.autograd.grad((x * weight).sum(), x_leaves[at])[0]
                       for x, x_leaves in ((run()[torch.arange(20) < inputs.offsets.diff()[:, None]]
                                            if name.startswith("padded") else run(), leaves),
                                           (mine.run(), mine.leaves)))
        torch.testing.assert_close(theirs, own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("case", "given", "read"), [
    (SMALL, 4 * 12 + 50 * 12 + 48 * 10 + 10, 50), (SHARED, 5 * 12 + 50 * 12 + 48 * 10 + 10, 7 * 3 + 20 * 2)])
def test_the_limit_counts_every_tensor_and_every_product_and_no_feature(case, given, read, monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "limits", lambda *x: seen.append(x) or {})
    bench.limit(bench.make(case, "cpu"))
    assert seen == [(4 * given, 4 * 10 * read, 2 * read * 12 * 10 / 1e9, torch.float32)]


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="small, cpu: relative error nan"):
        bench.compare(SMALL, "cpu", "cpu")


def test_ours_is_compared_with_its_peers(monkeypatch, tmp_path):
    for name in ("padded", "features"):  # there may be no compiler here
        monkeypatch.setitem(bench.PEERS, f"{name}, compiled", bench.PEERS[name])
    rows = bench.compare(SMALL, "cpu", "cpu")
    assert {row["implementation"] for row in rows} == {"batch", "cpu", *bench.PEERS}
    assert all(row["value"] > 0 and row["subject"] == "target_unit" for row in rows)
    shared = bench.compare(SHARED, "cpu", "cpu")
    assert {row["implementation"] for row in shared} == {"batch", "cpu", "features", "features, compiled"}
    figures.write(tmp_path / "rows.json", rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(tmp_path / "rows.json")])
    assert "\n| small | 50 | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_some_workloads_are_measured_without_a_name():
    assert set(bench.USUAL) <= set(WORKLOADS)


@pytest.mark.gpu
@every_shape
def test_the_benchmark_checks_and_measures(case):
    rows = bench.compare(replace(case, width=64, columns=64, dtype=torch.bfloat16))
    assert {row["implementation"] for row in rows} >= {"batch", "limit", "triton", "features"}
    assert all(row["value"] > 0 for row in rows)

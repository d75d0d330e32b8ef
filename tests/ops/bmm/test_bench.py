"""The benchmark of jagged products: a check that can fail, peers that compute the same, rows."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.ops import figures, measure
from serrate.ops.bmm import bench
from serrate.ops.bmm.cases import Case

SMALL = Case("small", (7, 20, 3, 20), 12, 8)

both_kinds = pytest.mark.parametrize("kind", ["dense", "jagged"])


@both_kinds
def test_a_right_answer_passes_in_every_dtype(kind):
    for dtype, allowed in measure.TOLERANCE.items():
        assert bench.wrong(bench.make(replace(SMALL, dtype=dtype), kind, "cpu"), "cpu") < allowed


@both_kinds
@pytest.mark.parametrize("spoiled", range(3))
@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_output_or_gradient_is_found(kind, spoiled, by, monkeypatch):
    right = bench.ours

    def spoil(inputs, implementation):
        run, leaves = right(inputs, implementation)
        if implementation == "reference":
            return bench.Peer(run, leaves)
        if spoiled == 2:
            return bench.Peer(lambda: run() * (1 + by), leaves)
        leaf = leaves[spoiled]
        return bench.Peer(lambda: run() + by * (leaf - leaf.detach()).sum(), leaves)  # adds to this gradient alone

    monkeypatch.setattr(bench, "ours", spoil)
    assert not bench.wrong(bench.make(SMALL, kind, "cpu"), "cpu") < measure.TOLERANCE[torch.bfloat16]


@both_kinds
@pytest.mark.parametrize("name", ["padded", "padded, compiled"])
def test_a_padded_peer_computes_the_same(kind, name, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *x, **options: compile_(*x, **options, backend="eager"))
    inputs = bench.make(SMALL, kind, "cpu")
    run, leaves = bench.PEERS[name](inputs)
    out, expected = run(), bench.ours(inputs, "cpu").run()
    if kind == "dense":
        out = out[torch.arange(20) < inputs.offsets.diff()[:, None]]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize(("kind", "given", "result"), [
    ("dense", 50 * 12 + 4 * 12 * 8 + 4 * 8, 50 * 8), ("jagged", 50 * 12 + 50 * 8, 4 * 12 * 8)])
def test_the_limit_counts_every_tensor_and_every_product(kind, given, result, monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "limits", lambda *x: seen.append(x) or {})
    bench.limit(bench.make(SMALL, kind, "cpu"))
    assert seen == [(4 * given, 4 * result, 2 * 50 * 12 * 8 / 1e9, torch.float32)]


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match="dense: small, cpu: relative error nan"):
        bench.compare(SMALL, "dense", "cpu", "cpu")


@both_kinds
def test_ours_is_compared_with_its_peers(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(bench.PEERS, "padded, compiled", bench.PEERS["padded"])  # there may be no compiler here
    rows = bench.compare(SMALL, kind, "cpu", "cpu")
    assert {row["implementation"] for row in rows} >= {"batch", "cpu", "padded", "padded, compiled"}
    assert {row["workload"] for row in rows} == {f"{kind}: small"}
    assert all(row["value"] > 0 and row["subject"] == "bmm" for row in rows)
    figures.write(tmp_path / "rows.json", rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(tmp_path / "rows.json")])
    assert f"\n| {kind}: small | 50 | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_some_workloads_are_measured_without_a_name(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "main", lambda *x, **options: seen.append((x, options)))
    bench.main([])
    (_, parts, _), options = seen[0]
    assert set(options["usual"]) <= set(parts)
    assert all(len(part) == 2 for part in parts.values())


@pytest.mark.gpu
@both_kinds
def test_the_benchmark_checks_and_measures(kind):
    case = replace(SMALL, width=64, columns=64, dtype=torch.bfloat16)
    rows = bench.compare(case, kind)
    assert {row["implementation"] for row in rows} >= {"batch", "limit", "triton", "padded", "padded, compiled"}
    assert all(row["value"] > 0 for row in rows)

"""The benchmark of attention: workloads, a check that can fail, peers that compute the same, rows, tables, curves."""

import importlib
import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from serrate.errors import NotUsable
from serrate.ops import figures, measure
from serrate.ops.attention import bench, peers, tables, workloads
from serrate.ops.attention.bench import VARIANTS, Comparison, compare, limit, wrong
from serrate.ops.attention.peers import PEERS, make, ours
from serrate.ops.attention.workloads import (
    CROWD,
    CURVES,
    FILLS,
    LENGTHS,
    POINTWISE,
    TARGETS,
    WORKLOADS,
    Workload,
    on_curve,
)
from serrate.ops.measure import Peer, asking

SELF = Workload("self", "uniform", 7, 20, 2, 8, True)
FULL = replace(SELF, name="full", causal=False)
TARGET = replace(FULL, name="target", queries=3)
POOLING = replace(TARGET, name="pooling", shared=True)
ALL = [SELF, FULL, TARGET, POOLING]
SILU = replace(SELF, name="silu", activation="silu")
BIASED = replace(SILU, name="biased", biased=True)
SOFTMAX_BIASED = replace(BIASED, name="softmax biased", activation="softmax", causal=False)

every_shape = pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)


def on_cpu(workload: Workload, dtype: torch.dtype = torch.float32) -> peers.Inputs:
    return make(workload, "cpu", dtype)


# --- workloads ---


def test_the_named_workloads_are_the_issue_s():
    assert [workload.name for workload in WORKLOADS] == ["short", "paper", "mid", "long", "full"]
    assert [int(workload.lengths().sum()) for workload in WORKLOADS] == [95530, 261262, 206546, 214205, 65536]
    assert CROWD.rows == 65536
    assert float(CROWD.lengths().double().mean()) == pytest.approx(8, rel=0.01)
    assert {(each.rows, each.longest, each.heads, each.width) for each in TARGETS} == {(2048, 1024, 4, 64)}
    assert [(each.queries, each.shared) for each in TARGETS] == [(64, False), (1, False), (32, True)]


@pytest.mark.parametrize("longest", CURVES)
@pytest.mark.parametrize("fill", FILLS)
def test_a_batch_on_a_curve_is_as_full_as_it_says(longest, fill):
    lengths = on_curve(longest, fill).lengths()
    assert float(lengths.double().mean()) == pytest.approx(fill / 100 * longest, rel=0.08)
    assert 1 <= int(lengths.min()) <= int(lengths.max()) <= longest


def test_pointwise_workloads_are_the_five_and_those_of_the_public_benchmark():
    assert [(each.name, each.longest, each.width) for each in POINTWISE] == [
        (f"pointwise {each.name}", each.longest, each.width) for each in WORKLOADS]
    assert all(torch.equal(each.lengths(), plain.lengths()) for each, plain in zip(POINTWISE, WORKLOADS, strict=True))
    assert {(each.activation, each.biased) for each in [*POINTWISE, *LENGTHS]} == {("silu", True)}
    assert {(each.rows, each.heads, each.width, each.causal) for each in LENGTHS} == {(512, 4, 128, True)}
    assert len({each.name for each in [*POINTWISE, *LENGTHS, *WORKLOADS]}) == 5 + 15 + 5
    means = [float(each.lengths().double().mean()) / each.longest for each in LENGTHS]
    assert means == pytest.approx([0.05, 0.5, 0.95] * 5, rel=0.08)


def test_times_grow_within_a_row_and_a_query_is_asked_when_the_next_event_happens():
    inputs = on_cpu(replace(BIASED, given=(3, 0, 400, 1, 0), rows=5, longest=400))
    asked, happened = inputs.times
    assert asked.shape == happened.shape == (404,)
    assert asked.dtype == torch.int64
    for begin, end in ((0, 3), (3, 403), (403, 404)):
        assert torch.equal(asked[begin : end - 1], happened[begin + 1 : end])
        assert bool((asked[begin:end] >= happened[begin:end]).all())
    gaps = (asked - happened).double()
    assert 0 <= float(gaps.min()) <= float(gaps.max()) < 5.2 * 86400
    assert 100 < float(gaps.median()) < 5000  # as many under exp(6.5) = 665 seconds as above
    assert [table.shape for table in inputs.tables] == [(799,), (peers.BUCKETS,)]


# --- the check ---


@pytest.mark.parametrize("workload", [SILU, BIASED, SOFTMAX_BIASED], ids=lambda workload: workload.name)
def test_a_right_pointwise_or_biased_answer_passes_in_every_dtype(workload):
    for dtype, allowed in bench.TOLERANCE.items():
        assert 0 <= wrong(on_cpu(workload, dtype), "reference") < allowed


@pytest.mark.parametrize("spoiled", range(5))
def test_a_wrong_gradient_of_a_table_is_found_and_any_other(spoiled, monkeypatch):
    def spoil(inputs, implementation):
        run, leaves = ours(inputs, implementation)
        return Peer(lambda: run() + 0.05 * (leaves[spoiled] - leaves[spoiled].detach()).sum(), leaves)

    monkeypatch.setattr(bench, "ours", spoil)
    assert not wrong(on_cpu(BIASED), "reference") < bench.TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("other", [
    {"activation": "softmax"}, {"activation": "gelu"}, {"biased": False}, {"causal": False}, {"longest": 21}], ids=str)
def test_another_computation_than_the_workload_s_is_found(other, monkeypatch):
    def of_another(inputs, implementation):
        run, leaves = ours(replace(inputs, workload=replace(inputs.workload, **other)), implementation)
        unused = [asking(table) for table in inputs.tables[len(leaves) - 3 :]]
        return Peer(lambda: run() + sum(0 * table.sum() for table in unused), [*leaves, *unused])

    assert wrong(on_cpu(BIASED), "reference") < bench.TOLERANCE[torch.float32]
    monkeypatch.setattr(bench, "ours", of_another)
    assert not wrong(on_cpu(BIASED), "reference") < bench.TOLERANCE[torch.bfloat16]


@every_shape
def test_a_right_answer_passes_in_every_dtype(workload):
    for dtype, allowed in bench.TOLERANCE.items():
        assert 0 <= wrong(on_cpu(workload, dtype), "reference") < allowed


@every_shape
@pytest.mark.parametrize("spoiled", range(4))
@pytest.mark.parametrize("by", [0.05, math.nan])
def test_a_wrong_output_or_gradient_is_found(workload, spoiled, by, monkeypatch):
    def spoil(inputs, implementation):
        run, leaves = ours(inputs, implementation)
        if spoiled == 3:
            return Peer(lambda: run() * (1 + by), leaves)

        def with_wrong_gradient():
            leaf = leaves[spoiled]
            return run() + by * (leaf - leaf.detach()).sum()  # adds nothing but to the gradient of this leaf

        return Peer(with_wrong_gradient, leaves)

    monkeypatch.setattr(bench, "ours", spoil)
    assert not wrong(on_cpu(workload), "reference") < bench.TOLERANCE[torch.float32]


def test_both_ends_of_a_batch_are_checked_and_no_more(monkeypatch):
    monkeypatch.setitem(bench.CHECKED, "cpu", 10)
    workload = replace(SELF, rows=4, longest=30, given=(4, 6, 30, 5))

    def spoil(at):
        def make_wrong(inputs, implementation):
            run, leaves = ours(inputs, implementation)
            wrongly = torch.zeros(45, 1, 1)
            wrongly[at] = 1.0
            return Peer(lambda: run() + wrongly, leaves)

        monkeypatch.setattr(bench, "ours", make_wrong)
        return wrong(on_cpu(workload), "reference")

    assert spoil(9) > 0.1
    assert spoil(44) > 0.1
    assert spoil(20) < 1e-4


def test_a_row_too_long_for_the_oracle_is_stood_for_by_a_shorter_one(monkeypatch):
    monkeypatch.setitem(bench.CHECKED, "cpu", 10)
    assert wrong(on_cpu(replace(SELF, rows=1, longest=40, given=(40,))), "reference") < 1e-4


def test_rows_of_one_event_have_no_gradient_of_queries_and_pass():
    assert wrong(on_cpu(replace(SELF, given=(1,) * 7, longest=1), torch.bfloat16), "reference") < 0.01


# --- peers ---


@pytest.mark.parametrize(("name", "served"), [
    ("dense", [SELF, FULL, TARGET, POOLING]),
    ("padded flash", [SELF]),  # padding is not masked, so only a causal mask hides it
    ("row by row", [SELF, FULL]),
    ("math", [SELF, TARGET, POOLING]),
    ("flex", ALL),
    ("flex with mask", ALL),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_peer_computes_the_same(name, served, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # there may be no compiler here
    math_ = partial(peers.scaled_dot_product, backend=torch.nn.attention.SDPBackend.MATH)
    for workload in served:
        inputs = on_cpu(workload)
        expected = own = ours(inputs, "reference").run()
        peer = (math_ if name == "math" else PEERS[name])(inputs)
        for leaf in peer.leaves:
            leaf.requires_grad_(not name.startswith("flex"))  # which has no backward pass on a CPU
        out = peer.run()
        if out.dim() == 4 and not name.startswith("flex"):  # (B, H, N, D), or (B, H, K, D)
            there = torch.arange(out.shape[2]) < inputs.offsets.diff()[:, None]
            out = out.transpose(1, 2) if workload.queries else out.transpose(1, 2)[there]
        elif out.dim() == 4:  # (1, H, T, D), filled up
            out = out[0].transpose(0, 1)[: own.flatten(0, -3).shape[0]].reshape(own.shape)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        if out.requires_grad:
            grads = torch.autograd.grad(out.sum(), peer.leaves)
            assert all(bool(grad.isfinite().all()) for grad in grads)
    peers.forget()


@pytest.mark.parametrize("name", ["dense pointwise", "compiled pointwise"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu_squared", "identity"])
def test_a_padded_peer_computes_the_same_pointwise_attention(name, activation, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for workload in (SILU, replace(SILU, causal=False)):
        inputs = on_cpu(replace(workload, activation=activation))
        own, (run, leaves) = ours(inputs, "reference"), PEERS[name](inputs)
        there = torch.arange(workload.longest) < inputs.offsets.diff()[:, None]
        out = run().transpose(1, 2)[there]
        torch.testing.assert_close(out, own.run(), rtol=1e-4, atol=1e-5)
        theirs = torch.autograd.grad(out, leaves, inputs.grad)
        mine = torch.autograd.grad(own.run(), own.leaves, inputs.grad)
        for grad, expected in zip(theirs, mine, strict=True):
            torch.testing.assert_close(grad.transpose(1, 2)[there], expected, rtol=1e-4, atol=1e-5)
    peers.forget()


# --- how fast ---


def test_limits_are_the_larger_of_bytes_and_products():
    inputs = on_cpu(replace(SELF, given=(3, 5), rows=2))  # 8 events, 2 heads of 8, float32: 512 bytes a tensor
    assert limit(inputs, 512.0, 1e9) == {"limit_ms": 4.0, "limit_forward_backward_ms": 12.0}
    gflop = 4 * (9 + 25) / 2 * 2 * 8 / 1e9
    assert limit(inputs, 1e30, gflop)["limit_ms"] == pytest.approx(1.0)
    assert limit(inputs, 1e30, gflop)["limit_forward_backward_ms"] == pytest.approx(3.5)
    pooled = on_cpu(replace(POOLING, given=(3, 5), rows=2))  # shared queries 3 × 64 bytes, outputs 6 × 64
    assert limit(pooled, 64.0, 1e9)["limit_ms"] == 3 + 8 + 8 + 6
    assert limit(pooled, 1e30, 4 * 3 * 8 * 2 * 8 / 1e9)["limit_ms"] == pytest.approx(1.0)


def comparison(**changes) -> Comparison:
    told: list[str] = []
    return Comparison(**{"peers": ("row by row", "padded flash"), "implementation": "cpu", "seconds": 0.05,
                         "tell": told.append} | changes)


def test_ours_is_compared_with_its_peers():
    rows = compare(on_cpu(SELF), comparison(ceilings=(1e9, 500.0)))
    found = {(row["implementation"], row["metric"]): row for row in rows}
    assert {name for name, _ in found} == {"batch", "limit", "cpu", "row by row", "padded flash"}
    assert all(row["value"] > 0 or row["implementation"] == "limit" for row in rows)
    assert found["cpu", "forward_ms"]["unit"] == "ms"
    assert found["cpu", "forward_ms"]["device"].startswith("CPU")


def test_ours_is_measured_in_each_variant_beside_the_same_peers(monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "wrong", lambda inputs, name: seen.append(inputs.workload) or wrong(inputs, name))
    how = comparison(implementation="reference", variants=tuple(VARIANTS), peers=("dense pointwise",))
    rows = compare(on_cpu(BIASED), how)
    assert [(each.activation, each.biased) for each in seen[:4]] == list(VARIANTS.values())
    assert {(row["implementation"], row["metric"]) for row in rows} == {("batch", "events")} | {
        (name, metric) for name in (*(f"reference {each}" for each in VARIANTS), "dense pointwise")
        for metric in ("forward_ms", "forward_backward_ms")}


def test_no_speed_is_told_while_one_variant_is_wrong(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda inputs, name: math.nan if inputs.workload.biased else 0.0)
    monkeypatch.setattr(measure, "milliseconds", lambda *_: pytest.fail("was measured"))
    with pytest.raises(AssertionError, match="biased, reference silu biased: relative error nan"):
        compare(on_cpu(BIASED), comparison(implementation="reference", variants=("silu", "silu biased")))


@pytest.mark.parametrize(("told", "of"), [("pointwise", lambda workload: workload.activation == "silu"),
                                          ("the other mask", lambda workload: not workload.causal)])
def test_no_speed_is_told_while_other_weights_or_another_mask_are_wrong(told, of, monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda inputs, name: math.nan if of(inputs.workload) else 0.0)
    monkeypatch.setattr(measure, "milliseconds", lambda *_: pytest.fail("was measured"))
    with pytest.raises(AssertionError, match=f"{told}: relative error nan"):
        compare(on_cpu(replace(SELF, causal=True)), comparison())


def test_no_speed_is_told_while_the_answer_is_wrong(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda inputs, name: math.nan)
    monkeypatch.setattr(measure, "milliseconds", lambda *_: pytest.fail("was measured"))
    with pytest.raises(AssertionError, match="no speed is told"):
        compare(on_cpu(SELF), comparison())


def test_a_peer_that_fails_is_told_and_left_out(monkeypatch):
    def fail(inputs):
        raise ValueError("cannot\nat all")

    monkeypatch.setitem(PEERS, "row by row", fail)
    how = comparison()
    rows = compare(on_cpu(SELF), how)
    assert {row["implementation"] for row in rows} == {"batch", "cpu", "padded flash"}
    assert any("row by row               failed: cannot" in line for line in how.tell.__self__)


def test_ours_failing_is_not_passed_over():
    with pytest.raises(NotUsable, match="needs a CUDA device"):
        compare(on_cpu(SELF), comparison(implementation="varlen"))


def test_dense_scores_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setitem(bench.LARGEST_SCORES, "dense", 8 * 7 * 2 * 20**2 - 1)
    how = comparison(peers=("dense",))
    assert {row["implementation"] for row in compare(on_cpu(SELF), how)} == {"batch", "cpu"}
    monkeypatch.setitem(bench.LARGEST_SCORES, "dense", 8 * 7 * 2 * 20**2)
    assert {row["implementation"] for row in compare(on_cpu(SELF), how)} == {"batch", "cpu", "dense"}


def test_the_host_s_time_is_measured():
    found = measure.host_time(ours(on_cpu(SELF), "cpu"), True, 1.0)
    assert 0 < found["host_forward_us"] < found["host_forward_backward_us"]


# --- parts ---


def row_of(workload, implementation="triton", metric="forward_ms", value=1.0):
    return figures.row("attention", workload, implementation, metric, value, "ms") | {"device": "NVIDIA X1"}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Stand-ins for a GPU on which `paper` fails; the folder that figures go to."""
    def stand_in(inputs, how):
        if inputs.name == "paper":
            raise NotUsable("cannot")
        return [row_of(inputs.name)]

    monkeypatch.setattr(bench, "compare", stand_in)
    monkeypatch.setattr(bench, "make", lambda workload: workload)
    monkeypatch.setattr(bench, "ceilings", lambda: (1.0, 1.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_a_part_that_fails_leaves_the_others(gpu, capsys):
    with pytest.raises(SystemExit, match="these parts failed: paper"):
        bench.main(["short", "paper", "target"])
    rows = json.loads((gpu / "out" / "attention-x1.json").read_text())
    assert [row["workload"] for row in rows] == ["short", *(workload.name for workload in TARGETS)]
    assert "paper: FAILED: NotUsable: cannot" in capsys.readouterr().err


def test_every_part_is_measured_without_a_name_and_rows_of_other_runs_stay(gpu):
    (gpu / "benchmarks").mkdir()
    old = [row_of("short", "flex"), row_of("another")]
    figures.write(gpu / "benchmarks" / "attention-x1.json", old)
    bench.main(["short"])
    rows = figures.read(gpu / "out" / "attention-x1.json")
    assert [(row["workload"], row["implementation"]) for row in rows] == [("another", "triton"), ("short", "triton")]
    assert figures.read(gpu / "benchmarks" / "attention-x1.json") == old
    with pytest.raises(SystemExit):
        bench.main([])
    measured = {row["workload"] for row in figures.read(gpu / "out" / "attention-x1.json")}
    assert len(measured) == 1 + 4 + 1 + 3 + 1 + len(CURVES) * len(FILLS) + len(POINTWISE) + len(LENGTHS)


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match=r"no part sort; there are short, .*curves"):
        bench.main(["sort"])


def test_parts_need_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main(["short"])


# --- tables ---


LEDGER = [row_of("short", name, metric, value) for name, metric, value in [
    ("batch", "events", 95530), ("limit", "limit_ms", 0.023), ("limit", "limit_forward_backward_ms", 0.07),
    ("triton", "peak_mib", 95.4), ("triton", "forward_ms", 0.05), ("triton", "forward_backward_ms", 0.2),
    ("triton", "graph_forward_ms", 0.04), ("triton", "graph_forward_backward_ms", 0.1),
    ("varlen", "forward_ms", 0.2), ("varlen", "forward_backward_ms", 0.4), ("flex", "forward_ms", 0.1),
    ("flex", "forward_backward_ms", 0.5), ("flex", "peak_mib", 97.0)]]
LEDGER += [row_of("target 1", "triton", "forward_ms", 0.3), row_of("target 1", "varlen", "forward_ms", 0.6)]
LEDGER += [row_of("smallest", name, f"host_{metric}_us", value) for name, metric, value in [
    ("triton", "forward", 30.0), ("triton", "forward_backward", 90.0), ("varlen", "forward", 40.0),
    ("varlen", "forward_backward", 120.0)]]
QUOTED = [row_of("short", "FA4", value=1.006), row_of("long", "FA4", value=5.3)]


def test_the_tables_tell_ratios_to_the_best_peer_of_each_figure():
    own, target, host, told = tables.block(LEDGER, QUOTED).split("\n\n")
    lines = dict(line.strip("| ").split(" | ", 1) for line in own.splitlines()[2:])
    assert own.splitlines()[0] == "|  | short |"
    assert lines == {
        "events": "95,530", "limit": "0.023 / 0.07", "**triton**": "0.05 / 0.2", "triton, graph replayed": "0.04 / 0.1",
        "varlen": "0.2 / 0.4", "flex": "0.1 / 0.5", "FA4, quoted": "1.01 / –", "**triton / best peer**": "0.50 / 0.50",
        "graph replayed / best peer": "0.40 / 0.25", "triton / limit": "2.17 / 2.86",
        "peak MiB: triton": "95.4", "peak MiB: flex": "97",
    }
    assert "| **triton / best peer** | 0.50 / – |" in target
    assert "| triton | 30 / 90 |" in host
    assert "NVIDIA X1" in told
    assert "quoted, " in told


def test_a_figure_of_zero_is_a_figure():
    found = figures.Found([row_of("short", metric="peak_mib", value=0.0)])
    assert found.cell("short", "triton", ["peak_mib"]) == "0"
    assert found.cell("short", "triton", ["peak_mib", "forward_ms"]) == "0 / –"
    assert found.cell("short", "triton", ["forward_ms"]) == "–"


def test_the_page_is_filled_between_its_marks(tmp_path):
    (tmp_path / "attention-x1.json").write_text(figures.text(LEDGER))
    (tmp_path / "attention-quoted.json").write_text(figures.text(QUOTED))
    page = "before\n<!-- GPU figures -->\nold\n<!-- end of GPU figures -->\nafter\n"
    filled = tables.filled(page, tmp_path / "attention-x1.json")
    assert filled.startswith("before\n<!-- GPU figures -->\n|  | short |")
    assert filled.endswith("\n<!-- end of GPU figures -->\nafter\n")
    assert "old" not in filled
    assert tables.filled(filled, tmp_path / "attention-x1.json") == filled
    assert "Not measured yet." in tables.filled(page, tmp_path / "none.json")


POINTWISE_LEDGER = [row_of("pointwise mid", name, metric, value) for name, forward, both in [
    ("triton silu", 0.2, 0.8), ("triton silu biased", 0.3, 1.2), ("triton softmax", 0.25, 1.0),
    ("triton softmax biased", 0.5, 1.5), ("varlen", 0.8, 2.4), ("flex", 0.9, 2.0), ("dense pointwise", 99.0, 180.0)]
    for metric, value in (("forward_ms", forward), ("forward_backward_ms", both))]
POINTWISE_LEDGER += [row_of("pointwise mid", "batch", "events", 206546),
                     row_of("pointwise mid", "triton silu", "peak_mib", 430.0)]
POINTWISE_QUOTED = [row_of("mid", tables.QUOTED, "forward_ms", 0.401), row_of("mid", "FA4", "forward_ms", 0.5),
                    row_of("long", tables.QUOTED, "forward_ms", 7.71)]


def test_the_table_of_pointwise_weights_tells_what_others_take_beside_silu():
    table, told = tables.pointwise_block([*LEDGER, *POINTWISE_LEDGER], POINTWISE_QUOTED).split("\n\n")
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert len(lines) == 1
    assert list(zip(head, lines[0], strict=True))[:6] == [
        ("", "mid"), ("events", "206,546"), ("**SiLU**", "0.2 / 0.8"), ("biased", "0.3 / 1.2"), ("softmax", "0.25 / 1"),
        ("biased", "0.5 / 1.5")]
    assert dict(zip(head[6:], lines[0][6:], strict=True)) == {
        "varlen": "0.8 / 2.4", "flex": "0.9 / 2", "dense SiLU": "99 / 180", "compiled": "–",
        "HSTU Triton, quoted": "0.401 / –", "**best softmax peer / SiLU**": "4.00 / 2.50",
        "softmax / SiLU": "1.25 / 1.25", "biased / SiLU": "1.50 / 1.50", "biased / softmax": "2.00 / 1.50",
        "peak MiB: SiLU, biased": "430, –"}
    assert "NVIDIA X1" in told
    assert "quoted, " in told
    assert tables.block([*LEDGER, *POINTWISE_LEDGER], QUOTED) == tables.block(LEDGER, QUOTED)
    assert tables.pointwise_block(LEDGER, POINTWISE_QUOTED) == "Not measured yet."


def test_both_blocks_of_a_page_are_filled(tmp_path):
    (tmp_path / "attention-x1.json").write_text(figures.text([*LEDGER, *POINTWISE_LEDGER]))
    page = "a\n<!-- GPU figures -->\n<!-- end of GPU figures -->\nb\n<!-- pointwise figures -->\nold\n" \
        "<!-- end of pointwise figures -->\nc\n"
    filled = tables.filled(page, tmp_path / "attention-x1.json")
    assert filled.index("| short |") < filled.index("\nb\n") < filled.index("| mid |") < filled.index("\nc\n")
    assert "old" not in filled
    assert tables.filled(filled, tmp_path / "attention-x1.json") == filled


# --- curves ---


@pytest.fixture
def curves(monkeypatch):
    """The program that draws them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    yield importlib.import_module("curves")
    sys.modules.pop("curves")


def curve_rows(longest: int = 512) -> list[dict]:
    """Rows on which ours takes as many ms and MiB as the fill says, dense 200 and 1,000, dense flash 40 and 100."""
    rows = []
    for fill in FILLS:
        name = on_curve(longest, fill).name
        for implementation, time, memory in (("triton", fill, fill), ("padded flash", 40, 100), ("dense", 200, 1000)):
            rows += [row_of(name, implementation, "forward_backward_ms", time),
                     row_of(name, implementation, "peak_mib", memory)]
    return rows


def test_curves_without_figures_are_not_there_yet(curves):
    assert curves.section([]) == "Not measured yet."
    assert curves.section(LEDGER) == "Not measured yet."
    assert curves.charts(LEDGER) == {}


def test_the_paper_s_ratios_are_marked_where_they_are_reached(curves):
    rows = curve_rows()
    found = figures.Found(rows)
    assert [curves.passes(found, 512, claim) for claim in curves.CLAIMS] == [
        [5, 10, 20], [5, 10, 20, 30], [5, 10], [5, 10, 20, 30]]
    text = curves.section(rows)
    line = next(line for line in text.splitlines() if line.startswith("| 30 % |"))
    assert line == "| 30 % | 30, 30 | 40, 100 | 200, 1,000 | 6.7× | **33.3×** | 1.3× | **3.3×** |"
    assert "### Longest 512" in text
    assert "Longest 2048" not in text


def test_a_chart_can_be_read_and_marks_what_the_table_marks(curves):
    charts = curves.charts(curve_rows(2048))
    assert list(charts) == ["attention-2048.svg"]
    root = ElementTree.fromstring(charts["attention-2048.svg"])
    kind = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{kind}polyline")) == 6
    assert len(root.findall(f".//{kind}circle")) == 3 + 4 + 2 + 4
    words = [node.text for node in root.iter(f"{kind}text")]
    assert "paper's 9× over dense eager: up to 20 %" in words
    assert "paper's 53 % over dense flash: up to 30 %" in words
    box = [float(number) for number in root.attrib["viewBox"].split()]
    for line in root.findall(f".//{kind}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= box[2]
            assert 0 <= y <= box[3]


def test_curves_without_a_peer_are_drawn_all_the_same(curves):
    rows = [row for row in curve_rows() if row["implementation"] == "triton"]
    assert "| 5 % | 5, 5 | – | – | – | – | – | – |" in curves.section(rows)
    ElementTree.fromstring(curves.charts(rows)["attention-512.svg"])


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("workload", [TARGET, POOLING], ids=lambda workload: workload.name)
def test_targets_are_measured_beside_their_peers(workload):
    large = replace(workload, rows=16, longest=64, width=64)
    rows = compare(make(large), comparison(peers=peers.OF_DENSE_QUERIES, implementation="triton",
                                           ceilings=(1e9, 500.0)))
    assert {row["implementation"] for row in rows} >= {"limit", "triton", "varlen", "flex", "flex with mask"}
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.gpu
def test_pointwise_weights_and_bias_are_measured_beside_their_peers():
    small = replace(BIASED, rows=16, longest=64, width=64)
    rows = compare(make(small), comparison(peers=peers.OF_POINTWISE, implementation="triton", ceilings=(1e9, 500.0),
                                           variants=tuple(VARIANTS)))
    assert {row["implementation"] for row in rows} == {
        "batch", "limit", *(f"triton {name}" for name in VARIANTS), *peers.OF_POINTWISE}
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.gpu
def test_curves_and_the_smallest_call_are_measured_on_a_gpu():
    crowd = replace(on_curve(512, 20), rows=8)
    rows = compare(make(crowd), comparison(peers=peers.ON_CURVES, implementation="triton", take=bench.both_passes))
    assert {(row["implementation"], row["metric"]) for row in rows} == {("batch", "events")} | {
        (name, metric) for name in ("triton", *peers.ON_CURVES) for metric in ("peak_mib", "forward_backward_ms")}
    rows = compare(make(workloads.SMALLEST), comparison(peers=("varlen",), implementation="triton",
                                                        take=bench.host_time))
    assert sum(row["metric"].startswith("host_") for row in rows) == 4

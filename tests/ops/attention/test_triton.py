"""What the Triton implementation promises beyond the conformance suite of `test_attention.py`; needs a CUDA device."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from serrate.jagged import offsets_from_lengths
from serrate.ops.attention import Bias, Mask, Rows, Settings, Weights, attention
from serrate.ops.attention.bench import Comparison, compare
from serrate.ops.attention.cases import CAUSAL, Case
from serrate.ops.attention.peers import make
from serrate.ops.attention.triton.problem import make_problem
from serrate.ops.attention.workloads import Workload
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

MANY_SHORT = Case("many_short", tuple(i * 7 % 41 for i in range(60)), heads=3, width=32)
CROWD = Case("crowd", tuple(i * 7 % 41 for i in range(240)))  # events enough to be described to the copy engine
FEW_LONG = Case("few_long", (300, 0, 65, 513, 1, 128), heads=2, width=64)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def plain(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: Mask, scale: float) -> Tensor:
    """Plain torch, row by row, in the dtype of its inputs."""
    outputs = []
    for query, key, value in zip(*(x.split(offsets.diff().tolist()) for x in (q, k, v)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", query, key) * scale
        if mask.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), value))
    return torch.cat(outputs)


def errors(case: Case, dtype: torch.dtype, mask: Mask, scale: float | None = None) -> None:
    """Hold output and gradients to the numerics promise."""
    *tensors, offsets = case.tensors(dtype, "cuda")
    grad = torch.randn_like(tensors[2])
    factor = case.width**-0.5 if scale is None else scale

    def run(compute, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
        out = compute(q, k, v, offsets, mask=mask, scale=factor)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(dtype))]

    ours = run(partial(attention, implementation="triton"), dtype)
    for i, (actual, exact, rough) in enumerate(zip(
            ours, run(plain, torch.float64), run(plain, dtype), strict=True)):
        if dtype == torch.float32:  # exp(score - logsumexp) bounds it, see README.md
            torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
        else:
            assert_within_budget(actual, exact, rough, gradient=i > 0)


@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("width", [1, 8, 20, 25, 32, 50, 64, 80, 96, 128, 192, 256])
def test_every_width_over_tiles_and_blocks(width, dtype, mask):
    errors(Case("", (131, 0, 70, 5, 64), heads=2, width=width), dtype, mask)


@pytest.mark.parametrize("case", [MANY_SHORT, FEW_LONG], ids=lambda case: case.name)
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.9])
def test_any_scale(case, mask, scale):
    errors(case, torch.bfloat16, mask, scale)


@pytest.mark.parametrize(("heads", "width"), [(4, 32), (3, 64)])
@pytest.mark.parametrize("scale", [None, 30.0], ids=["usual", "large"])
def test_packed_tiles_loaded_by_the_copy_engine_give_the_same(heads, width, scale, monkeypatch):
    from serrate.ops.attention.triton import short

    loaded = []
    monkeypatch.setattr("serrate.ops.attention.api._known", {})
    monkeypatch.setattr(short, "_described", lambda *given, make=short._described: loaded.append(given) or make(*given))
    case = replace(CROWD, heads=heads, width=width)
    *tensors, offsets = case.tensors(torch.bfloat16, "cuda")
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors]  # a head after the other: not for it
    out, other = (attention(*given, offsets, mask=CAUSAL, scale=scale, implementation="triton")
                  for given in (tensors, apart))
    assert len(loaded) == 2
    assert torch.equal(out, other)
    errors(case, torch.bfloat16, CAUSAL, scale)


BIASED = Case("biased", (30, 0, 7, 70), activation="silu", normaliser="length", reach=20, buckets=50, apart=True)


@pytest.mark.parametrize("case", [BIASED, replace(BIASED, lengths=MANY_SHORT.lengths, apart=False)],
                         ids=["tiles", "packed tiles"])
def test_calls_with_tables_are_made_again_and_give_the_same_bits(case, monkeypatch):
    from serrate.ops import launch

    again, make = [], launch.Tape.again
    monkeypatch.setattr("serrate.ops.attention.api._known", {})
    monkeypatch.setattr(launch.Tape, "again", lambda *given: again.append(make(*given)) or again[-1])
    *tensors, offsets = case.tensors(torch.float16, "cuda")
    leaves = [x.requires_grad_() for x in (*tensors, *case.tables("cuda"))]
    *_, position, time = leaves
    bias, results = case.bias((position, time)), []
    for _ in range(6):
        out = attention(*leaves[:3], offsets, mask=Mask(), implementation="triton", bias=bias,
                        weights=Weights(case.activation, case.normaliser))
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)])
    assert len(again) > 2
    assert None not in again
    for one, other in zip(results[0], results[-1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [MANY_SHORT, FEW_LONG, Case("", ()), Case("", (0, 0)), BIASED,
                                  replace(BIASED, name="softmax", activation="softmax", normaliser=None),
                                  replace(BIASED, name="silu", reach=0, buckets=0)], ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case):
    *tensors, offsets = case.tensors(torch.float16, "cuda")
    leaves = [x.requires_grad_() for x in tensors]
    tables = tuple(table.requires_grad_() for table in case.tables("cuda"))
    bias = case.bias(tuple(torch.atleast_2d(table) for table in tables))
    if bias is not None:
        bias = replace(bias, query_times=bias.key_times)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    settings = Settings(CAUSAL, 0.3, Weights(case.activation, case.normaliser), bias)
    arguments = (*leaves, *make_problem(Rows(offsets, offsets, (0, 0)), settings).as_arguments())
    torch.library.opcheck(torch.ops.serrate.jagged_attention_triton.default, arguments, test_utils=tests)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_lengths(backend):
    def loss(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return (attention(q * 2, k, v, offsets, mask=CAUSAL, implementation="triton").float() ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((3, 60), (2, 0, 90, 4), (1, 1, 640), (7,) * 300):
            *tensors, offsets = Case("", lengths).tensors(torch.float16, "cuda")
            leaves = [x.requires_grad_() for x in tensors]
            eager = torch.autograd.grad(loss(*leaves, offsets), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, offsets), leaves), eager)


def test_compiles_with_tables_once_for_all_lengths():
    def loss(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, position: Tensor, time: Tensor, at: Tensor) -> Tensor:
        out = attention(q * 2, k, v, offsets, mask=CAUSAL, implementation="triton", bias=Bias(position, time, at, at),
                        weights=Weights("silu", "length"))
        return (out.float() ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((3, 60), (2, 0, 90, 4), (1, 1, 640), (7,) * 300):
            case = replace(BIASED, lengths=lengths)
            *tensors, offsets = case.tensors(torch.float16, "cuda")
            leaves = [x.requires_grad_() for x in (*tensors, *case.tables("cuda"))]
            q, k, v, position, time = leaves
            arguments = (q, k, v, offsets, position, time, case.bias((position, time)).key_times)
            eager = torch.autograd.grad(loss(*arguments), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), leaves), eager)


@pytest.mark.parametrize("case", [MANY_SHORT, FEW_LONG, BIASED], ids=lambda case: case.name)
def test_a_captured_graph_follows_new_offsets_and_nothing_waits(case):
    *tensors, offsets = case.tensors(torch.bfloat16, "cuda")
    tables = case.tables("cuda")
    leaves = [x.requires_grad_() for x in (*tensors, *tables)]
    grad = torch.randn_like(tensors[2])
    given = case.arguments("cuda", tables=tables)

    def run():
        out = attention(*leaves[:3], offsets, implementation="triton", **given)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    def changes():
        for lengths in (case.lengths, tuple(reversed(case.lengths))):
            offsets.copy_(offsets_from_lengths(torch.tensor(lengths)))
            yield

    assert_captured(run, changes())


def test_elements_past_the_range_of_int32():
    heads, width = 8, 128
    lengths = torch.full((2**21 // 1024 + 2,), 1024)
    offsets = offsets_from_lengths(lengths).cuda()
    events = int(offsets[-1])
    assert events * heads * width > 2**31
    q = torch.randn(events, heads, width, device="cuda", dtype=torch.bfloat16)
    out = attention(q, q, q, offsets, mask=CAUSAL, implementation="triton")
    end, rows = q[-8192:], torch.arange(0, 8193, 1024, device="cuda")
    last = attention(end, end, end, rows, mask=CAUSAL, implementation="triton")
    assert torch.equal(out[-8192:], last)


def test_float32_is_exact_unless_tf32_is_asked_for(monkeypatch):
    q, k, v, offsets = FEW_LONG.tensors(torch.float32, "cuda")
    exact = attention(q.double(), k.double(), v.double(), offsets, implementation="reference")
    full = attention(q, k, v, offsets, implementation="triton")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    rough = attention(q, k, v, offsets, implementation="triton")
    assert float((full - exact).abs().max()) < 3e-6
    assert 3e-6 < float((rough - exact).abs().max()) < 5e-3



def test_the_benchmark_checks_and_measures():
    small = Workload("small", "uniform", 8, 60, 2, 32, True)
    rows = compare(make(small), Comparison(ceilings=(1e9, 500.0)))
    assert {row["implementation"] for row in rows} >= {"limit", "triton", "varlen", "dense"}
    assert all(row["value"] > 0 and math.isfinite(row["value"]) for row in rows)

"""The kernels for Hopper keep the promises of the suite; needs a Hopper and the Triton they are written in."""

from dataclasses import replace

import pytest
import torch

from serrate.ops.attention import Mask, Rows, Settings, Weights, attention
from serrate.ops.attention.cases import CAUSAL, Case
from serrate.testing import assert_within_budget
from serrate.testing.attention import check, run
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

ODD = (0, 1, 5, 64, 65, 127, 128, 129, 300, 0, 513, 63, 700, 2, 200)
LONG = (1025, 0, 2200, 1024, 1)  # rows that are worth two warp groups at width 128


@pytest.fixture(autouse=True)
def for_small_cases_too(monkeypatch):
    """Choose these kernels for batches that are too small to be worth them; skip where there are none to choose."""
    from serrate.ops.attention.triton import plan
    from serrate.ops.launch import has_gluon

    if not has_gluon(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("no Hopper, or another Triton than 3.6")
    monkeypatch.setattr(plan, "WORTH_DESCRIBING", 0)
    monkeypatch.setattr("serrate.ops.attention.api._known", {})  # of calls that others of these sizes were


def chosen(case: Case, tensors) -> tuple[bool, bool]:
    """Whether forward and backward of a case are those for Hopper."""
    from serrate.ops.attention.triton.plan import tiling
    from serrate.ops.attention.triton.problem import make_problem

    offsets = case.tensors(device="cuda")[3]
    bias = case.bias(tuple(torch.atleast_2d(table) for table in case.tables("cuda")))
    settings = Settings(case.mask, 1.0, Weights(case.activation, case.normaliser), bias)
    return tiling(make_problem(Rows(offsets, offsets, (0, 0)), settings), *tensors).hopper


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("lengths", [ODD, LONG, (1,), (0, 0, 3), (4096,)], ids=["odd", "long", "one", "three", "whole"])
@pytest.mark.parametrize("width", [40, 64, 96, 128])
def test_every_width_over_tiles_and_blocks(width, lengths, mask, dtype):
    case = Case("", lengths, width=width, mask=mask)
    tensors = case.tensors(dtype, "cuda")[:3]
    assert chosen(case, tensors) == (True, True)
    check("triton", case, tensors)
    grads, exact, rough = (  # without the log-sum-exp, whose gradient `check` asks for
        run(name, case, tensors, dtype=dtype).grads for name, dtype in (
            ("triton", None), ("reference", torch.float64), ("varlen", None)))
    assert_within_budget(grads, exact, rough, gradient=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("normaliser", [300.0, "length"])
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("lengths", [ODD, LONG], ids=["odd", "long"])
@pytest.mark.parametrize("width", [40, 64, 96, 128])
def test_pointwise_weights(width, lengths, mask, normaliser, dtype):
    case = Case("", lengths, width=width, mask=mask, activation="silu", normaliser=normaliser)
    tensors = case.tensors(dtype, "cuda")[:3]
    assert chosen(case, tensors) == (True, True)
    check("triton", case, tensors)


@pytest.mark.parametrize("tables", [
    {"reach": 300, "buckets": 100, "apart": True}, {"reach": 300, "buckets": 100}, {"reach": 600, "heads": 3},
    {"buckets": 30, "heads": 4}], ids=["apart", "shared", "positions", "times"])
@pytest.mark.parametrize("activation", ["softmax", "silu"])
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("lengths", [ODD, LONG], ids=["odd", "long"])
@pytest.mark.parametrize("width", [40, 64, 128])
def test_bias(width, lengths, mask, activation, tables):
    case = Case("", lengths, width=width, mask=mask, activation=activation, **tables)
    tensors = case.tensors(torch.bfloat16, "cuda")[:3]
    assert chosen(case, tensors) == (True, activation == "silu" and width <= 64)
    check("triton", case, tensors)


def test_tables_without_a_gradient_change_no_other():
    case = Case("", ODD, width=64, activation="silu", reach=300, buckets=100)
    *tensors, offsets = case.tensors(torch.bfloat16, "cuda")
    found = []
    for asking in (True, False):
        leaves = [x.clone().requires_grad_() for x in tensors]
        tables = tuple(x.requires_grad_(asking) for x in case.tables("cuda"))
        out = attention(*leaves, offsets, implementation="triton", **case.arguments("cuda", tables=tables))
        found.append(torch.autograd.grad(out.float().square().sum(), leaves))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("changes", [
    {"heads": 4, "kv_heads": 2}, {"width": 64, "value_width": 40}, {"value_width": 96},
], ids=["grouped", "narrow_values", "values"])
def test_shared_heads_and_values_of_another_width(changes):
    case = replace(Case("", ODD, width=128), **changes)
    tensors = case.tensors(torch.bfloat16, "cuda")[:3]
    assert chosen(case, tensors)[0]
    check("triton", case, tensors)


@pytest.mark.parametrize("heads", [1, 3, 4, 6])
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("width", [64, 128])
def test_heads_of_long_rows_side_by_side(width, mask, heads):
    case = Case("", (1300, 0, 2200, 1025, 65, 4100), heads=heads, width=width, mask=mask)
    check("triton", case, case.tensors(torch.bfloat16, "cuda")[:3])


@pytest.mark.parametrize("activation", ["softmax", "silu"])
@pytest.mark.parametrize("lengths", [(130, 129, 64, 300, 1, 70, 200, 128, 65) * 40, (1500, 1, 4001, 65, 3500)],
                         ids=["short", "long"])
def test_programs_that_stay_give_the_same_bits_whoever_draws(lengths, activation):
    case = Case("", lengths, width=128, activation=activation, normaliser=None if activation == "softmax" else 100.0)
    tensors = case.tensors(torch.bfloat16, "cuda")[:3]
    first, *others = (run("triton", case, tensors) for _ in range(20))  # a buffer filled too soon shows in some
    for other in others:
        assert torch.equal(first.out, other.out)
        assert torch.equal(first.grads, other.grads)


def test_programs_that_stay_begin_anew_in_a_replayed_graph():
    case = Case("", (1300, 2200, 1025), heads=40, width=128)  # more tiles than programs
    q, k, v = (x.requires_grad_() for x in case.tensors(torch.bfloat16, "cuda")[:3])
    offsets = case.tensors(device="cuda")[3]

    def both():
        out = attention(q, k, v, offsets, mask=CAUSAL, implementation="triton")
        return out.detach(), *torch.autograd.grad(out, (q, k, v), out.detach())

    def changes():
        for _ in range(2):
            q.detach().neg_()
            yield

    assert_captured(both, changes())


def test_views_of_a_packed_projection():
    packed = torch.randn(700, 3, 2, 128, device="cuda", dtype=torch.bfloat16)
    q, k, v = packed.unbind(1)
    offsets = torch.tensor([0, 130, 130, 700], device="cuda")
    seen = attention(q, k, v, offsets, mask=CAUSAL, implementation="triton")
    copied = attention(q.contiguous(), k.contiguous(), v.contiguous(), offsets, mask=CAUSAL, implementation="triton")
    assert torch.equal(seen, copied)


def test_what_the_copy_engine_cannot_read_is_served_otherwise():
    case = Case("", ODD, width=64)
    offset_by_one = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
                     for x in case.tensors(torch.bfloat16, "cuda")[:3]]
    assert chosen(case, offset_by_one) == (False, False)
    check("triton", case, tuple(offset_by_one))


@pytest.mark.parametrize("tables", [{}, {"reach": 50, "buckets": 50}], ids=["plain", "biased"])
@pytest.mark.parametrize("width", [64, 128])
def test_scores_far_apart(width, tables):
    case = Case("", ODD, width=width, **tables)
    q, k, v = case.tensors(torch.bfloat16, "cuda")[:3]
    check("triton", case, (q * 30, k, v), extreme=True)

"""Cross, target, pooling and candidate attention, shared heads: each against what it is a shorter way of saying."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from serrate.errors import InvalidArgument
from serrate.jagged import offsets_from_lengths
from serrate.ops.attention import Mask, attention, candidate_attention, pooling_attention, target_attention
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.testing.attention import (
    call_of,
    cases,
    check,
    dense,
    every_device,
    every_implementation,
    gives_lse,
    low_dtype,
    run,
    unusable,
    usable,
    with_gradients,
)

NAMED = {case.name: case for case in CASES}
FULL = Mask()


def close(name: str) -> dict[str, float]:
    """Tolerance of outputs and gradients of a few units; the budget of each is held elsewhere."""
    return {"rtol": 0, "atol": 1e-5 if low_dtype(name) == torch.float32 else 1e-2}


def offsets_of(lengths, device="cpu") -> Tensor:
    return offsets_from_lengths(torch.tensor(lengths)).to(device)


def gradients(compute, *tensors: Tensor) -> list[Tensor]:
    """The output and the gradients of all tensors, the incoming one fixed."""
    leaves = [x.detach().requires_grad_() for x in tensors]  # not a copy: views stay views
    out = compute(*leaves)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming)]


@every_device
@every_implementation
@settings(max_examples=60)
@given(case=cases())
def test_any_case_is_the_dense_computation(name, device, case):
    """In float64 to the last digits, where an implementation has no float64 in float16 within its budget."""
    usable(name, NAMED["cross"], NAMED["cross"].tensors(low_dtype(name), device)[:3])  # hardly any case is plainer
    tensors = case.tensors(torch.float64, device)[:3]
    if unusable(name, call_of(case, tensors)) is not None:
        tensors = case.tensors(torch.float16, device)[:3]
        if unusable(name, call_of(case, tensors)) is None:
            check(name, case, tensors)
        return
    lse = gives_lse(name, case, tensors)
    actual = run(name, case, tensors, lse=lse, scale=0.8)
    plain = with_gradients(lambda *x: dense(case, *x, scale=0.8) if lse else dense(case, *x, scale=0.8)[0], tensors,
                           tables=case.tables(device))
    torch.testing.assert_close(vars(actual), vars(plain), rtol=1e-11, atol=1e-11)


# --- cross-attention ---


@every_device
@pytest.mark.parametrize("mask", [FULL, CAUSAL, Mask(window=(2, 1))], ids=["full", "causal", "window"])
@every_implementation
def test_equal_rows_of_queries_and_keys_are_self_attention(name, mask, device):
    case = Case("", (7, 0, 33, 1), mask=mask, kv_lengths=(7, 0, 33, 1))
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    cross = gradients(lambda *x: attention(
        *x, offsets, kv_offsets=offsets.clone(), mask=mask, implementation=name), q, k, v)
    alone = gradients(lambda *x: attention(*x, offsets, mask=mask, implementation=name), q, k, v)
    for a, b in zip(cross, alone, strict=True):
        torch.testing.assert_close(a, b, **close(name))


@every_device
@every_implementation
def test_the_last_queries_of_a_row_alone_give_what_they_give_among_all(name, device):
    """What serving with a cache of keys relies on: queries are the last positions."""
    case = Case("", (7, 2, 33), kv_lengths=(7, 2, 33))
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    every = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    last = torch.tensor([5, 6, 8, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41], device=device)  # 2, 1 and 11 of them
    some = attention(q[last], k, v, offsets_of((2, 1, 11), device), kv_offsets=offsets, mask=CAUSAL,
                     implementation=name)
    torch.testing.assert_close(some, every[last], **close(name))


@every_device
@pytest.mark.parametrize("case", [
    NAMED["cross_causal"], NAMED["cross_no_keys"], Case("blind_in_a_window", (9, 3), kv_lengths=(4, 0),
                                                        mask=Mask(window=(1, 1))),
], ids=lambda case: case.name)
@every_implementation
def test_a_query_that_sees_nothing(name, case, device):
    """Gives 0 and -inf, and neither it nor what it would have looked at gets a gradient from it."""
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors), lse=True)
    q, k, v = (x.requires_grad_() for x in tensors)
    out, lse = attention(q, k, v, offsets, return_lse=True, implementation=name, **case.arguments(device))
    blind = lse.isneginf()
    assert blind.any()
    assert (blind == blind[:, :1]).all()
    assert not out[blind].any()
    assert lse[~blind].isfinite().all()
    incoming = torch.where(blind[..., None], torch.ones_like(out), 0), torch.where(blind, torch.ones_like(lse), 0)
    for grad in torch.autograd.grad((out, lse), (q, k, v), incoming, retain_graph=True):
        assert not grad.any()  # NaN counts as any
    dq, dk, dv = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert not dq[blind].any()
    assert all(grad.isfinite().all() for grad in (dq, dk, dv))


@every_device
@every_implementation
def test_a_key_that_nothing_sees_gets_no_gradient(name, device):
    case = Case("", (2, 0, 3), kv_lengths=(9, 5, 2), mask=Mask(causal=True, window=(2, None)))
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    _, dq, dk, dv = gradients(lambda *x: attention(
        *x, offsets, implementation=name, **case.arguments(device)), q, k, v)
    unseen = torch.tensor([0, 1, 2, 3, 4, *range(9, 14)], device=device)  # the queries of row 0 stand at 7 and 8
    assert not dk[unseen].any()
    assert not dv[unseen].any()
    assert dq[:2].any()
    assert dv[5:9].any(-1).all()
    assert dv[14:].any(-1).all()


@every_device
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "cross_causal", "target_3", "heads_share_cross", "everything", "everything_cross")], ids=lambda case: case.name)
@every_implementation
def test_a_row_does_not_depend_on_its_batch_mates_or_their_order(name, case, device):
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    given = case.arguments(device)
    incoming = torch.randn(*q.shape[:-1], v.shape[2], generator=torch.Generator().manual_seed(5)).to(device, q.dtype)
    theirs = (given["kv_offsets"] if case.kv_lengths else offsets).diff().tolist()
    ours = offsets.diff().tolist() if case.dense is None else [1] * len(theirs)
    counts = [x if isinstance(x, Tensor) else torch.full((len(theirs),), x or 0, device=device)
              for x in (given["mask"].context, given["mask"].targets)]

    def together(order: list[int]) -> list[list[Tensor]]:
        """The output and gradients of these rows in this order, cut into rows."""
        parts = [[x.split(lengths)[row] for row in order] for x, lengths in (
            (q, ours), (k, theirs), (v, theirs), (incoming, ours))]
        leaves = [torch.cat(part).detach().requires_grad_() for part in parts[:3]]
        keys = offsets_of([theirs[row] for row in order], device)
        mine = keys if case.dense is not None else offsets_of([ours[row] for row in order], device)
        m = given["mask"]
        mask = Mask(m.causal, m.window, m.block, *(x[order] for x in counts))
        out = attention(*leaves, mine, kv_offsets=keys if case.kv_lengths else None, mask=mask, implementation=name)
        results = [out.detach(), *torch.autograd.grad(out, leaves, torch.cat(parts[3]))]
        lengths = ([x[row] for row in order] for x in (ours, ours, theirs, theirs))
        return [list(x.split(cut)) for x, cut in zip(results, lengths, strict=True)]

    rows = list(range(len(theirs)))
    every = together(rows)
    backwards = together(rows[::-1])
    for result, other in zip(every, backwards, strict=True):
        for row, mirrored in zip(result, other[::-1], strict=True):
            torch.testing.assert_close(mirrored, row, **close(name))
    for row in rows:
        for result, alone in zip(every, together([row]), strict=True):
            torch.testing.assert_close(alone[0], result[row], **close(name))


@every_device
@pytest.mark.parametrize("case", [NAMED["cross_causal"], NAMED["target_3"], NAMED["everything_cross"]],
                         ids=lambda case: case.name)
@every_implementation
def test_longest_may_be_any_upper_bound(name, case, device):
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    queries, keys = case.dense or max(case.lengths), max(case.kv_lengths or case.lengths)
    outs = [attention(*tensors, offsets, longest=longest, implementation=name, **case.arguments(device))
            for longest in ((queries, keys), (queries, keys + 1), max(queries, keys), 1000, (1000, 2000), None)]
    assert all(torch.equal(out, outs[0]) for out in outs)


@every_device
@pytest.mark.parametrize("dense", [None, 2], ids=["cross", "dense"])
@every_implementation
def test_views_of_packed_projections(name, dense, device):
    """Keys and values as two views of one tensor, queries with heads outermost in memory or rows innermost."""
    case = Case("", (7, 1, 12), kv_lengths=None if dense else (9, 0, 11), dense=dense, heads=4, kv_heads=2, mask=FULL)
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    key, value = torch.stack([k, v], 1).unbind(1)
    query = q.transpose(0, -2).contiguous().transpose(0, -2)
    assert not any(x.is_contiguous() for x in (query, key, value))
    seen, copied = (gradients(lambda *x: attention(
        *x, offsets, implementation=name, **case.arguments(device)), *x) for x in ((query, key, value), (q, k, v)))
    assert all(torch.equal(a, b) for a, b in zip(seen, copied, strict=True))


@every_device
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@every_implementation
def test_gradients_for_some_inputs_only_and_twice(name, wanted, device):
    case = NAMED["heads_share_cross"]
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    every = gradients(lambda *x: attention(*x, offsets, implementation=name, **case.arguments(device)), *tensors)[1:]
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
    out = attention(*leaves, offsets, implementation=name, **case.arguments(device))
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(device, out.dtype)
    for _ in range(2):
        grads = torch.autograd.grad(out, [leaves[i] for i in wanted], incoming, retain_graph=True)
        assert all(torch.equal(grad, every[i]) for i, grad in zip(wanted, grads, strict=True))


# --- heads that share keys ---


@every_device
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "two_heads_share", "all_heads_share", "heads_share_target", "everything_heads_share")], ids=lambda case: case.name)
@every_implementation
def test_heads_that_share_are_heads_with_copies(name, case, device):
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    group = case.heads // case.kv_heads

    def attend(q, k, v):
        return attention(q, k, v, offsets, implementation=name, **case.arguments(device))

    shared = gradients(attend, q, k, v)
    copied = gradients(lambda q, k, v: attend(q, *(x.repeat_interleave(group, 1) for x in (k, v))), q, k, v)
    for a, b in zip(shared, copied, strict=True):  # the gradient of a copied head is the sum over its copies
        torch.testing.assert_close(a, b, **close(name))


# --- target and pooling attention ---


@every_device
@every_implementation
def test_target_attention_is_cross_attention_with_as_many_queries_in_every_row(name, device):
    case = NAMED["target_3"]
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    dense = gradients(lambda *x: target_attention(*x, offsets, implementation=name), q, k, v)
    own = torch.arange(0, 3 * len(case.lengths) + 1, 3, device=device)
    packed = gradients(lambda q, k, v: attention(
        q.flatten(0, 1), k, v, own, kv_offsets=offsets, implementation=name).unflatten(0, q.shape[:2]), q, k, v)
    for a, b in zip(dense, packed, strict=True):
        torch.testing.assert_close(a, b, **close(name))


@every_device
@every_implementation
def test_the_gradient_of_shared_queries_is_the_sum_over_rows(name, device):
    case = NAMED["pooling"]
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    assert q.stride(0) == 0
    out, dq, dk, dv = gradients(lambda q, k, v: pooling_attention(q, k, v, offsets, implementation=name), q[0], k, v)
    each = gradients(lambda q, k, v: target_attention(q, k, v, offsets, implementation=name), q.contiguous(), k, v)
    for a, b in zip((out, dq, dk, dv), (each[0], each[1].float().sum(0).to(dq.dtype), *each[2:]), strict=True):
        torch.testing.assert_close(a, b, **close(name))
    assert not out[1].any()  # an empty row
    assert dq.shape == q.shape[1:]


def test_pooling_by_hand():
    """A query of 0 takes the mean; one that is far along a key takes its value."""
    q = torch.tensor([[[0.0]], [[1000.0]]], dtype=torch.float64)
    k = torch.tensor([1.0, 2.0, 5.0, 4.0], dtype=torch.float64).view(4, 1, 1)
    v = torch.tensor([10.0, 20.0, 60.0, 7.0], dtype=torch.float64).view(4, 1, 1)
    out = pooling_attention(q, k, v, torch.tensor([0, 3, 3, 4]), scale=1.0)
    assert out.flatten(1).tolist() == [[30.0, 60.0], [0.0, 0.0], [7.0, 7.0]]


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3)], ids=["no rows", "no queries"])
def test_dense_queries_that_are_none(shape):
    rows, count, length = shape
    q, offsets = torch.zeros(rows, count, 2, 8), torch.arange(rows + 1) * length
    k, v = torch.zeros(2, rows * length, 2, 8)
    assert target_attention(q, k, v, offsets).shape == (rows, count, 2, 8)
    assert pooling_attention(torch.zeros(count, 2, 8), k, v, offsets).shape == (rows, count, 2, 8)


# --- candidates ---


@every_device
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
@every_implementation
def test_candidates_are_as_if_each_were_alone_with_the_history_it_points_at(name, index, device):
    """Rows in any order, users with no candidates, candidates of an empty history."""
    lengths, rows = (5, 3, 0, 12, 4), torch.tensor([3, 0, 2, 3, 4, 0, 3], dtype=index)
    case = Case("", tuple(torch.bincount(rows, minlength=5).tolist()), kv_lengths=lengths, mask=FULL, value_width=5)
    q, k, v, _ = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    offsets = offsets_of(lengths, device)
    together = gradients(lambda q, k, v: candidate_attention(
        q, k, v, offsets, rows.to(device), implementation=name), q, k, v)

    def one_by_one(q, k, v):
        outs = []
        for at, row in enumerate(rows.tolist()):
            history = slice(*offsets[row:row + 2].tolist())
            weights = torch.einsum("hd,jhd->hj", q[at], k[history] * 8**-0.5).softmax(-1)
            outs.append(torch.einsum("hj,jhd->hd", weights, v[history]))
        return torch.stack(outs)

    for a, b in zip(together, gradients(one_by_one, q, k, v), strict=True):
        torch.testing.assert_close(a, b, **close(name))
    assert not together[0][2].any()  # its history is empty
    assert not together[2][5:8].any()  # nobody asks user 1
    assert together[0].shape == (7, 2, 5)


@every_device
@every_implementation
def test_no_candidates(name, device):
    case = Case("", (0, 0), kv_lengths=(5, 3), mask=FULL)
    q, k, v, _ = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    none = torch.zeros(0, dtype=torch.int64, device=device)
    out, dq, dk, dv = gradients(lambda q, k, v: candidate_attention(
        q, k, v, offsets_of((5, 3), device), none, implementation=name), q, k, v)
    assert out.shape == dq.shape == (0, 2, 8)
    assert not dk.any()
    assert not dv.any()


def test_candidates_and_pooling_compile_once_for_all_lengths():
    def loss(q, k, v, offsets, rows):
        found = candidate_attention(q, k, v, offsets, rows)
        return found.square().sum() + pooling_attention(q[:3], k, v, offsets).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    fresh = torch.compiler.config.patch(force_disable_caches=True)
    with fresh, torch._dynamo.config.patch(error_on_recompile=True):
        for keys, rows in (((5, 3, 0, 12, 4), (3, 0, 2, 3, 4, 0, 3)), ((4, 1, 9), (2, 2, 0, 1)), ((7, 30), (1, 0, 1))):
            case = Case("", (1,) * len(rows), kv_lengths=keys, heads=4, kv_heads=2)
            leaves = [x.requires_grad_() for x in case.tensors()[:3]]
            given = offsets_of(keys), torch.tensor(rows)
            eager = torch.autograd.grad(loss(*leaves, *given), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, *given), leaves), eager)


# --- arguments ---

K = torch.zeros(4, 2, 8)
OFFSETS = torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: target_attention(K, K, K, OFFSETS), "q: expected shape (B, K, H, D), got (4, 2, 8)"),
        (lambda: target_attention(K[None], K, K, OFFSETS), "q: expected 2 rows of queries, as offsets has, got 1"),
        (lambda: pooling_attention(K[None], K, K, OFFSETS), "q: expected shape (K, H, D), got (1, 4, 2, 8)"),
        (lambda: pooling_attention(K[:, :1], K, K, OFFSETS),
         "k: expected shape (S, G, 8) where G divides 1, got (4, 2, 8)"),
        (lambda: candidate_attention(K[0], K, K, OFFSETS, OFFSETS), "q: expected shape (M, H, D), got (2, 8)"),
        (lambda: candidate_attention(K, K, K, OFFSETS, OFFSETS),
         "rows: expected shape (4,), dtype int32 or int64, got (3,) torch.int64"),
        (lambda: candidate_attention(K, K, K, OFFSETS, torch.zeros(4)),
         "rows: expected shape (4,), dtype int32 or int64, got (4,) torch.float32"),
        (lambda: candidate_attention(K, K, K, OFFSETS, torch.zeros(4, dtype=torch.int64, device="meta")),
         "rows: expected a tensor on cpu, as q, got meta"),
        (lambda: pooling_attention(K, K, K, torch.zeros(0, dtype=torch.int64)),
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (0,) torch.int64"),
    ],
)
def test_malformed_arguments_are_named(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message

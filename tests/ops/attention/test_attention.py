"""One conformance suite for every implementation of jagged attention, and the oracle against hand and plain torch.

`serrate.testing.attention` holds a call to the promise; the shapes, masks and dropout have files of their own for what
can be said of them beyond it.
"""

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops.attention import Bias, Call, Mask, Weights, attention
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.ops.select import choose
from serrate.testing.attention import (
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
MIXED = NAMED["mixed"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


# --- the oracle ---


def test_two_events_by_hand():
    # scores of event 1: q1 k0 = 0 and q1 k1 = ln 3, so its weights are 1/4 and 3/4
    q = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    k = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(2, 1, 1)
    v = torch.tensor([4.0, 8.0], dtype=torch.float64).view(2, 1, 1)
    offsets = torch.tensor([0, 2])
    causal = attention(q, k, v, offsets, mask=CAUSAL, scale=1.0, implementation="reference")
    assert causal.flatten().tolist() == pytest.approx([4.0, 4 / 4 + 8 * 3 / 4], abs=1e-15)
    full = attention(q, k, v, offsets, scale=1.0, implementation="reference")
    assert full.flatten().tolist() == pytest.approx([(4 + 8) / 2, 7.0], abs=1e-15)  # q0 = 0: the mean
    apart = attention(q, k, v, torch.tensor([0, 1, 2]), scale=1.0, implementation="reference")
    assert apart.flatten().tolist() == [4.0, 8.0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_is_the_dense_computation(case):
    tensors, lse = case.tensors(torch.float64)[:3], case.activation == "softmax"
    oracle = run("reference", case, tensors, lse=lse)
    plain = with_gradients(lambda *x: dense(case, *x) if lse else dense(case, *x)[0], tensors, tables=case.tables())
    torch.testing.assert_close(vars(oracle), vars(plain), rtol=1e-12, atol=1e-12)


def test_the_scale_is_one_over_the_root_of_the_width():
    q, k, v, offsets = Case("", (5, 3), width=16).tensors(torch.float64)
    torch.testing.assert_close(attention(q, k, v, offsets), attention(q, k, v, offsets, scale=0.25))


# --- every implementation ---


@every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    tensors = case.tensors(dtype, device)[:3]
    result = check(name, case, tensors)
    once, again = (run(name, case, tensors, offsets_dtype=offsets) for offsets in (torch.int64, torch.int32))
    assert torch.equal(result.out, once.out)  # asked for the log-sum-exp or not: the same bits
    assert torch.equal(once.out, again.out)  # int32 offsets, and a second run: the same bits
    assert torch.equal(once.grads, again.grads)


@every_device
@pytest.mark.parametrize("case", [MIXED, *(NAMED[name] for name in (
    "cross_causal", "target_3", "two_heads_share", "everything", "narrow_values", "mixed_dropout"))],
    ids=lambda case: case.name)
@every_implementation
def test_gradients_through_the_log_sum_exp_alone(name, case, device):
    dtype = torch.float64 if unusable(name, Call(torch.device(device), torch.float64, 8, 8, CAUSAL)) is None else \
        low_dtype(name)
    *tensors, offsets = case.tensors(dtype, device)
    usable(name, case, tuple(tensors), lse=True)

    def lse_alone(implementation):
        return lambda q, k, v: attention(q, k, v, offsets, return_lse=True, implementation=implementation,
                                         **case.arguments(device))[1] + 0 * v.sum()

    actual = with_gradients(lse_alone(name), tuple(tensors))
    exact = with_gradients(lse_alone("reference"), tuple(tensors), torch.float64)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    torch.testing.assert_close(actual.out.double(), exact.out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual.grads.double(), exact.grads, rtol=tolerance, atol=tolerance)
    if not case.dropout:
        assert not exact.grads[-tensors[2].numel():].any()  # values do not matter to it


def scores_of(kind: str, lengths: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of width 16 and scale 1 whose scores are extreme."""
    q, k, v, _ = Case("", lengths, width=16).tensors(dtype, device)
    if kind == "plus and minus 150":
        signs = torch.where(torch.arange(len(q), device=device) % 3 == 0, -1.0, 1.0).to(dtype)[:, None, None]
        q, k = torch.full_like(q, 2.5), torch.full_like(k, 3.75) * signs  # 16 · 2.5 · 3.75 = 150
    elif kind == "up to 150":
        q = q * (150 / torch.einsum("ihd,jhd->hij", q.double(), k.double()).abs().max()).to(dtype)
    elif kind == "all equal":
        q = torch.zeros_like(q)
    elif kind == "one huge outlier":
        k[20] *= 300
    return q, k, v


@every_device
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("kind", ["plus and minus 150", "up to 150", "all equal", "one huge outlier"])
@pytest.mark.parametrize("lengths", [(40, 3, 0, 17), (40, 3, 0, 30, 17)], ids=["few", "packed"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["float32", "bfloat16", "float16"])
@every_implementation
def test_extreme_scores(name, dtype, lengths, kind, mask, device):
    q, k, v = scores_of(kind, lengths, dtype, device)
    out = check(name, Case("", lengths, width=16, mask=mask), (q, k, v), scale=1.0, extreme=True).out
    assert out.isfinite().all()
    if kind == "all equal" and not mask.causal:
        mean = v[:40].float().mean(0).expand(40, -1, -1)
        torch.testing.assert_close(out[:40].float(), mean, rtol=0, atol=2 * torch.finfo(dtype).eps)


@every_device
@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "full"])
@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-46])
@every_implementation
def test_any_scale(name, scale, mask, device):
    case = replace(MIXED, mask=mask)
    check(name, case, case.tensors(low_dtype(name), device)[:3], scale=scale)


@every_device
@every_implementation
def test_views_of_a_packed_projection(name, device):
    packed = torch.randn(40, 3, 2, 8, generator=torch.Generator().manual_seed(1)).to(device, low_dtype(name))
    q, k, v = packed.unbind(1)
    offsets = torch.tensor([0, 12, 12, 40], device=device)
    usable(name, MIXED, (q, k, v))
    assert not q.is_contiguous()
    seen = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    copied = attention(q.contiguous(), k.contiguous(), v.contiguous(), offsets, mask=CAUSAL, implementation=name)
    assert torch.equal(seen, copied)
    transposed = v.transpose(0, 1).contiguous().transpose(0, 1)  # heads outermost in memory
    assert torch.equal(attention(q, k, transposed, offsets, mask=CAUSAL, implementation=name), copied)


@every_device
@every_implementation
def test_what_a_hook_saves_may_be_laid_out_otherwise(name, device):
    packed = torch.randn(40, 3, 2, 8, generator=torch.Generator().manual_seed(1)).to(device, low_dtype(name))
    offsets = torch.tensor([0, 12, 12, 40], device=device)
    usable(name, MIXED, packed.unbind(1))

    def gradient() -> Tensor:
        x = packed.clone().requires_grad_()
        out = attention(*x.unbind(1), offsets, mask=CAUSAL, implementation=name)
        return torch.autograd.grad(out.square().sum(), x)[0]

    expected = [gradient() for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: x.clone(memory_format=torch.contiguous_format), lambda x: x):
        found = [gradient() for _ in range(3)]
    for each in (*expected, *found):
        torch.testing.assert_close(each, expected[0], rtol=0, atol=1e-6 if each.dtype == torch.float32 else 2e-3)


@every_device
@every_implementation
def test_gradients_may_arrive_in_any_layout(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, MIXED, (q, k, v))
    v.requires_grad_()
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    expanded = torch.ones((), dtype=out.dtype, device=device).expand(out.shape)  # strides of zero, as sum() gives
    given = torch.autograd.grad(out, v, expanded, retain_graph=True)[0]
    assert torch.equal(given, torch.autograd.grad(out, v, torch.ones_like(out))[0])


@every_device
@pytest.mark.parametrize("event", [0, 40, 63])
@pytest.mark.parametrize("size", [1, 50], ids=["ordinary", "extreme"])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["default", "float16"])
@every_implementation
def test_no_event_sees_a_later_one(name, dtype, size, event, device):
    q, k, v, offsets = Case("", (7, 64, 3)).tensors(dtype or low_dtype(name), device)
    usable(name, MIXED, (q, k, v))
    before = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    at = 7 + event
    for x in (q, k, v):
        x[at] = size * (3 - x[at])
    after = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    assert torch.equal(before[:at], after[:at])
    assert torch.equal(before[71:], after[71:])  # nor does another row
    assert not torch.equal(before[at], after[at])


@every_device
@every_implementation
def test_a_row_does_not_depend_on_its_batch_mates_or_their_order(name, device):
    tensors = MIXED.tensors(low_dtype(name), device)
    *tensors, offsets = tensors
    usable(name, MIXED, tuple(tensors))
    together = attention(*tensors, offsets, mask=CAUSAL, implementation=name)
    tolerance = {"rtol": 0, "atol": 1e-6 if together.dtype == torch.float32 else 2e-3}
    rows = list(range(len(MIXED.lengths)))
    parts = [x.split(list(MIXED.lengths)) for x in (*tensors, together)]
    for row in rows:
        q, k, v, expected = (part[row] for part in parts)
        alone = attention(q, k, v, torch.tensor([0, len(q)], device=device), mask=CAUSAL, implementation=name)
        torch.testing.assert_close(alone, expected, **tolerance)
    q, k, v, expected = (torch.cat([part[row] for row in reversed(rows)]) for part in parts)
    backwards = offsets_from_lengths(offsets.diff().flip(0))
    torch.testing.assert_close(
        attention(q, k, v, backwards, mask=CAUSAL, implementation=name), expected, **tolerance)


@every_device
@every_implementation
def test_longest_may_be_any_upper_bound(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, MIXED, (q, k, v))
    outs = [attention(q, k, v, offsets, mask=CAUSAL, longest=longest, implementation=name)
            for longest in (64, 65, 1000, None)]
    assert all(torch.equal(out, outs[0]) for out in outs)


@every_device
@every_implementation
def test_more_rows_times_heads_than_a_launch_grid_holds(name, device):
    rows, heads = 4200, 16
    assert rows * heads > 65_535
    q, k, v = torch.randn(3, 2 * rows, heads, 8, generator=torch.Generator().manual_seed(3)).to(
        device, low_dtype(name))
    usable(name, MIXED, (q, k, v))
    offsets = torch.arange(0, 2 * rows + 1, 2, device=device)
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name).unflatten(0, (rows, 2)).float()
    query, key, value = (x.float().unflatten(0, (rows, 2)) for x in (q, k, v))
    weights = (torch.einsum("bhd,bjhd->bjh", query[:, 1], key) * 8**-0.5).softmax(1)
    expected = torch.stack([value[:, 0], torch.einsum("bjh,bjhd->bhd", weights, value)], 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 if q.dtype == torch.float32 else 2e-3)


@every_device
@every_implementation
def test_the_graph_can_be_used_twice(name, device):
    q, k, v, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, MIXED, (q, k, v))
    q.requires_grad_()
    out = attention(q, k, v, offsets, mask=CAUSAL, implementation=name)
    first = torch.autograd.grad(out.float().square().sum(), q, retain_graph=True)[0]
    second = torch.autograd.grad(out.float().square().sum(), q, retain_graph=True)[0]
    assert torch.equal(first, second)
    both = torch.autograd.grad(out.float().square().sum() + out.float().square().sum(), q)[0]
    torch.testing.assert_close(both, 2 * first, rtol=1e-5 if q.dtype == torch.float32 else 1e-2, atol=1e-5)


@every_device
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@every_implementation
def test_gradients_for_some_inputs_only(name, wanted, device):
    *tensors, offsets = MIXED.tensors(low_dtype(name), device)
    usable(name, MIXED, tuple(tensors))
    every = [x.clone().requires_grad_() for x in tensors]
    attention(*every, offsets, mask=CAUSAL, implementation=name).sum().backward()
    some = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
    attention(*some, offsets, mask=CAUSAL, implementation=name).sum().backward()
    for i, (one, other) in enumerate(zip(some, every, strict=True)):
        assert torch.equal(one.grad, other.grad) if i in wanted else one.grad is None


SMALL = (3, 0, 1, 4, 3)
EVERYTHING = Mask(causal=True, window=(1, 1), block=3, context=1, targets=torch.tensor([0, 1, 2, 1, 5]))


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("case", [
    Case("causal", SMALL, width=3),
    Case("full", SMALL, width=3, mask=Mask()),
    Case("cross", SMALL, kv_lengths=(2, 3, 4, 0, 2), width=3, value_width=2),
    Case("target", SMALL, dense=2, width=2, kv_heads=1, mask=Mask()),
    Case("everything", SMALL, width=2, mask=EVERYTHING),
    Case("silu", SMALL, width=3, activation="silu", normaliser="length"),
    Case("biased_silu", SMALL, width=2, mask=EVERYTHING, activation="silu", reach=2, buckets=40, apart=True),
    Case("biased_cross", SMALL, kv_lengths=(2, 3, 4, 0, 2), width=2, reach=3, buckets=9),
], ids=lambda case: case.name)
def test_gradcheck(name, case):
    *tensors, offsets = case.tensors(torch.float64)
    usable(name, case, tuple(tensors))
    tensors = [x.requires_grad_() for x in (*tensors, *(table.double() for table in case.tables()))]

    def outputs(q, k, v, *tables):
        given = case.arguments(tables=tables)
        if case.activation != "softmax":
            return attention(q, k, v, offsets, scale=0.7, implementation=name, **given)
        out, lse = attention(q, k, v, offsets, scale=0.7, return_lse=True, implementation=name, **given)
        return out, lse[lse.detach().isfinite()]

    assert torch.autograd.gradcheck(outputs, tensors)


@every_device
@pytest.mark.parametrize("case", [MIXED, *(NAMED[name] for name in (
    "cross_causal", "cross_no_keys", "cross_no_queries", "pooling", "heads_share_cross", "everything_cross",
    "everything_silu", "everything_both", "cross_both_softmax"))], ids=lambda case: case.name)
@every_implementation
def test_no_result_is_left_in_uninitialised_memory(name, case, device, monkeypatch):
    tensors = case.tensors(low_dtype(name), device)[:3]
    usable(name, case, tensors)
    lse = gives_lse(name, case, tensors)
    clean = run(name, case, tensors, lse=lse)
    poison_memory(monkeypatch)
    assert torch.empty(3).isnan().all()
    poisoned = run(name, case, tensors, lse=lse)
    assert torch.equal(clean.out, poisoned.out)
    assert torch.equal(clean.grads, poisoned.grads)
    assert torch.equal(clean.table_grads, poisoned.table_grads)
    assert clean.lse is None or torch.equal(clean.lse, poisoned.lse)


def poison_memory(monkeypatch) -> None:
    """Make every uninitialised floating tensor that Python asks for full of NaN."""
    def poisoned(make):
        def filled(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(math.nan) if made.dtype.is_floating_point else made
        return filled

    for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (Tensor, ("new_empty",))):
        for each in names:
            monkeypatch.setattr(owner, each, poisoned(getattr(owner, each)))


# --- under torch's machinery ---


@pytest.mark.parametrize("case", [MIXED, CASES[0], Case("all_empty", (0, 0)), NAMED["cross_causal"],
                                  NAMED["everything"]], ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case):
    q, k, v, offsets = case.tensors()
    mask, keys = case.mask, case.arguments().get("kv_offsets", offsets)
    table = [offsets, *([keys] if keys is not offsets or mask.per_row else [])]
    table += [torch.nn.functional.pad(counts, (0, 1)) for counts in (mask.context, mask.targets) if mask.per_row]
    numbers = [-1 if number is None else number for number in (*mask.reach, mask.block)]
    rest = (torch.stack(table), numbers, 0.3)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.serrate.row_attention_cpu.default, (*leaves, *rest))
    out, logsumexp = torch.ops.serrate.row_attention_cpu(q, k, v, *rest)
    backward = (torch.ones_like(out), [q, k, v, out, logsumexp], *rest)
    torch.library.opcheck(torch.ops.serrate.row_attention_cpu_backward.default, backward)


def compiled_and_eager_agree(backend, device, cases, *, lse=False):
    """Compile once, whole, and compare on every case."""
    def loss(q, k, v, offsets, **given):
        outputs = attention(q * 2, k, v, offsets, return_lse=lse, **given)
        return sum((x.masked_fill(x.isneginf(), 0) ** 2).sum() for x in (outputs if lse else (outputs,)))

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    # torch's cache on disk knows our operators by name alone: it would bring back graphs of an earlier version of them
    fresh = torch.compiler.config.patch(force_disable_caches=True)
    with fresh, torch._dynamo.config.patch(error_on_recompile=True):
        for case in cases:
            *tensors, offsets = case.tensors(device=device)
            given = case.arguments(device)
            leaves = [x.requires_grad_() for x in tensors]
            eager = torch.autograd.grad(loss(*leaves, offsets, **given), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, offsets, **given), leaves), eager)


@every_device
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_lengths(backend, device):
    compiled_and_eager_agree(
        backend, device, [Case("", lengths) for lengths in ((3, 6), (2, 0, 9, 4), (1, 1, 64), (7,) * 30)])


FIRST = (3, 6, 1, 2, 0, 1)  # no two sizes of these inputs are equal, which torch would take for a rule


@every_device
def test_compiles_cross_attention_once_for_all_lengths(device):
    rows = ((FIRST, (4, 0, 7, 3, 2, 1)), ((2, 0, 9, 4), (0, 3, 5, 70)), ((1, 5, 64), (9, 9, 9)))
    compiled_and_eager_agree("aot_eager", device, [
        Case("", queries, heads=4, kv_heads=2, value_width=5, kv_lengths=keys, mask=CAUSAL) for queries, keys in rows],
        lse=True)


@every_device
def test_compiles_target_attention_once_for_all_lengths(device):
    cases = ((FIRST, 5), ((2, 0, 9, 4), 2), ((2, 64, 7), 9))
    compiled_and_eager_agree("aot_eager", device, [Case("", keys, dense=dense, mask=Mask()) for keys, dense in cases])


@every_device
def test_compiles_masks_once_for_all_lengths(device):
    def mask(*counts):
        return Mask(causal=True, window=(5, None), block=7, context=torch.tensor(counts), targets=2)

    compiled_and_eager_agree("aot_eager", device, [
        Case("", FIRST, mask=mask(1, 2, 0, 9, 1, 1)), Case("", (2, 0, 9, 4), mask=mask(0, 0, 9, 1)),
        Case("", (2, 64, 7), mask=mask(2, 3, 4))])


def test_a_hundred_longest_rows_compile_once():
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="eager")
    q, k, v, offsets = MIXED.tensors()
    expected = attention(q, k, v, offsets, mask=CAUSAL)
    torch.compiler.reset()
    compiled(q, k, v, offsets, mask=CAUSAL, longest=64)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for longest in torch.randint(65, 5000, (100,), generator=torch.Generator().manual_seed(4)).tolist():
            assert torch.equal(compiled(q, k, v, offsets, mask=CAUSAL, longest=longest), expected)


@every_device
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "everything"])
def test_exports_with_free_lengths(masked, device):
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, offsets, kv_offsets, context):
            mask = Mask(causal=True, window=(3, None), block=9, context=context, targets=1) if masked else CAUSAL
            return attention(q, k, v, offsets, kv_offsets=kv_offsets, mask=mask)

    def inputs(queries, keys):
        case = Case("", queries, kv_lengths=keys)
        context = torch.arange(len(queries), device=device)
        return *case.tensors(device=device), case.arguments(device)["kv_offsets"], context

    events, keys, rows = (torch.export.Dim(name, min=1, max=2**20) for name in ("events", "keys", "rows"))
    exported = torch.export.export(
        Attention(), inputs((3, 6), (4, 2)),
        dynamic_shapes=({0: events}, {0: keys}, {0: keys}, {0: rows + 1}, {0: rows + 1}, {0: rows})).module()
    for other in (inputs((2, 0, 9, 4), (0, 3, 5, 30)), inputs((1,), (7,))):
        assert torch.equal(exported(*other), Attention()(*other))


@every_device
@pytest.mark.parametrize("loss", [Tensor.sum, lambda out: out.square().sum()], ids=["sum", "squares"])
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_second_derivative_is_refused_and_never_wrong(name, loss, device):
    *tensors, offsets = MIXED.tensors(device=device)
    usable(name, MIXED, tensors)
    q, k, v = (x.requires_grad_() for x in tensors)
    out = attention(q, k, v, offsets, implementation=name)
    (grad,) = torch.autograd.grad(loss(out), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"attention_(cpu|triton)_backward"):
        (out.mean() + grad.square().sum()).backward()  # a graph without attention's part would be wrong, and silent


@every_device
@every_implementation
def test_what_a_call_was_given_is_what_its_gradients_see(name, device):
    case = NAMED["mixed_dropout"]
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tensors)
    seed = torch.tensor(5, device=device)
    grads = []
    for step in (0, 1):
        leaves = [x.detach().requires_grad_() for x in tensors]
        weights = Weights(dropout=0.4, seed=seed - step)
        out = attention(*leaves, offsets, mask=case.mask, weights=weights, implementation=name)
        seed += 1  # for the next layer: it changes nothing here
        grads.append(torch.cat([x.flatten() for x in torch.autograd.grad(out.sum(), leaves)]))
    assert torch.equal(*grads)


# --- arguments and the choice ---

GOOD = {"q": torch.zeros(4, 2, 8), "k": torch.zeros(4, 2, 8), "v": torch.zeros(4, 2, 8),
        "offsets": torch.tensor([0, 1, 4])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 16)}, "q: expected shape (T, H, D) or (B, K, H, D) with H, D >= 1, got (4, 16)"),
        ({"q": torch.zeros(4, 2, 0)}, "q: expected shape (T, H, D) or (B, K, H, D) with H, D >= 1, got (4, 2, 0)"),
        ({"k": torch.zeros(4, 2, 9)}, "k: expected shape (S, G, 8) where G divides 2, got (4, 2, 9)"),
        ({"v": torch.zeros(5, 2, 8)}, "v: expected shape (4, 2, Dv), got (5, 2, 8)"),
        ({"v": torch.zeros(4, 16)}, "v: expected shape (4, 2, Dv), got (4, 16)"),
        ({name: torch.zeros(4, 2, 8, dtype=torch.int64) for name in "qkv"},
         "q: expected a floating-point dtype, got torch.int64"),
        ({"k": torch.zeros(4, 2, 8).half()}, "k: expected torch.float32, as q, got torch.float16"),
        ({"v": torch.zeros(4, 2, 8).double()}, "v: expected torch.float32, as q, got torch.float64"),
        ({"v": torch.zeros(4, 2, 8, device="meta")}, "v: expected a tensor on cpu, as q, got meta"),
        ({"offsets": torch.zeros(3, dtype=torch.int64, device="meta")},
         "offsets: expected a tensor on cpu, as q, got meta"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (0,) torch.int64"),
        ({"offsets": torch.zeros(2, 2, dtype=torch.int32)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (2, 2) torch.int32"),
        ({"offsets": torch.zeros(3)},
         "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) torch.float32"),
        ({"k": torch.zeros(4, 3, 8), "v": torch.zeros(4, 3, 8)},
         "k: expected shape (S, G, 8) where G divides 2, got (4, 3, 8)"),
        ({"k": torch.zeros(4, 0, 8)}, "k: expected shape (S, G, 8) where G divides 2, got (4, 0, 8)"),
        ({"v": torch.zeros(4, 1, 8)}, "v: expected shape (4, 2, Dv), got (4, 1, 8)"),
        ({"v": torch.zeros(4, 2, 0)}, "v: expected shape (4, 2, Dv), got (4, 2, 0)"),
        ({"k": torch.zeros(5, 2, 8), "v": torch.zeros(5, 2, 8)},
         "k: expected 4 events, as q, or kv_offsets, got 5"),
        ({"kv_offsets": torch.tensor([0, 4])},
         "kv_offsets: expected (3,) torch.int64, as offsets, got (2,) torch.int64"),
        ({"kv_offsets": torch.tensor([0, 1, 4], dtype=torch.int32)},
         "kv_offsets: expected (3,) torch.int64, as offsets, got (3,) torch.int32"),
        ({"kv_offsets": torch.zeros(3)},
         "kv_offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) torch.float32"),
        ({"kv_offsets": torch.zeros(3, dtype=torch.int64, device="meta")},
         "kv_offsets: expected a tensor on cpu, as q, got meta"),
        ({"q": torch.zeros(2, 3, 2, 8), "kv_offsets": GOOD["offsets"]},
         "kv_offsets: expected None with dense queries: offsets are those of the keys, got a tensor"),
        ({"q": torch.zeros(3, 3, 2, 8)}, "q: expected 2 rows of queries, as offsets has, got 3"),
        ({"q": torch.zeros(1, 2, 3, 2, 8)},
         "q: expected shape (T, H, D) or (B, K, H, D) with H, D >= 1, got (1, 2, 3, 2, 8)"),
        ({"mask": Mask(context=torch.zeros(3, dtype=torch.int64))},
         "mask.context: expected shape (2,), dtype int32 or int64, got (3,) torch.int64"),
        ({"mask": Mask(targets=torch.zeros(2))},
         "mask.targets: expected shape (2,), dtype int32 or int64, got (2,) torch.float32"),
        ({"mask": Mask(targets=torch.zeros(2, dtype=torch.int64, device="meta"))},
         "mask.targets: expected a tensor on cpu, as offsets, got meta"),
        ({"weights": Weights(dropout=0.5, seed=torch.zeros(2, dtype=torch.int64))},
         "weights.seed: expected an int, or one int64 on cpu, got (2,) torch.int64 on cpu"),
        ({"weights": Weights(dropout=0.5, seed=torch.zeros((), dtype=torch.int32))},
         "weights.seed: expected an int, or one int64 on cpu, got () torch.int32 on cpu"),
        ({"weights": Weights(dropout=0.5, seed=torch.zeros((), dtype=torch.int64, device="meta"))},
         "weights.seed: expected an int, or one int64 on cpu, got () torch.int64 on meta"),
        ({"weights": Weights("silu"), "return_lse": True},
         "return_lse: expected False with silu weights, which have none, got True"),
        ({"bias": Bias(torch.zeros(4))},
         "bias.position: expected an odd number of entries: as many distances before as after, got 4"),
        ({"bias": Bias(torch.zeros(3, 5))}, "bias.position: expected shape (N,) or (2, N) with N >= 1, got (3, 5)"),
        ({"bias": Bias(time=torch.zeros(0))}, "bias.time: expected shape (N,) or (2, N) with N >= 1, got (0,)"),
        ({"bias": Bias(torch.zeros(3, dtype=torch.int64))},
         "bias.position: expected a floating-point tensor on cpu, got torch.int64 on cpu"),
        ({"bias": Bias(time=torch.zeros(3))},
         "bias.key_times: expected times of the keys with a table of times, got None"),
        ({"bias": Bias(time=torch.zeros(3), key_times=torch.zeros(3, dtype=torch.int64))},
         "bias.query_times: expected shape (4,), dtype int32 or int64, on cpu, got (3,) torch.int64 on cpu"),
        ({"bias": Bias(None, torch.zeros(3), torch.zeros(4, dtype=torch.int64), torch.zeros(4))},
         "bias.key_times: expected shape (4,), dtype int32 or int64, on cpu, got (4,) torch.float32 on cpu"),
        ({"q": torch.zeros(2, 3, 2, 8), "bias": Bias(time=torch.zeros(3), key_times=torch.zeros(4, dtype=torch.int64))},
         "bias.query_times: expected times of the queries, which are not the keys, got None"),
        ({"scale": math.nan}, "scale: expected a finite number, got nan"),
        ({"scale": math.inf}, "scale: expected a finite number, got inf"),
        ({"implementation": "cpuu"}, "implementation: expected one of triton, varlen, cpu, reference "
                                     "(did you mean 'cpu'?), got 'cpuu'"),
    ],
)  # fmt: skip
def test_malformed_arguments_are_named(changes, message):
    with pytest.raises(InvalidArgument) as caught:
        attention(**{**GOOD, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Weights(dropout=1.0), "weights.dropout: expected a number from 0 to below 1, got 1.0"),
        (lambda: Weights(dropout=-0.1), "weights.dropout: expected a number from 0 to below 1, got -0.1"),
        (lambda: Weights(dropout=math.nan), "weights.dropout: expected a number from 0 to below 1, got nan"),
        (lambda: Weights("swish"),
         "weights.activation: expected softmax or silu or gelu or relu_squared or identity, got 'swish'"),
        (lambda: Weights(normaliser=3.0),
         "weights.normaliser: expected None under a softmax, which normalises, got 3.0"),
        (lambda: Weights("silu", 0.0),
         'weights.normaliser: expected a finite number above 0, "length" or None, got 0.0'),
        (lambda: Weights("silu", "rows"),
         'weights.normaliser: expected a finite number above 0, "length" or None, got \'rows\''),
    ],
)  # fmt: skip
def test_weights_refuse_what_they_are_not(make, message):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("triton", {}, "needs a CUDA device, got cpu"),
        ("varlen", {}, "needs a CUDA device, got cpu"),
        ("cpu", {name: tensor.to("meta") for name, tensor in GOOD.items()}, "needs a CPU tensor, got meta"),
    ],
)
def test_an_explicit_choice_never_slides(name, changes, reason):
    with pytest.raises(NotUsable) as caught:
        attention(**{**GOOD, **changes}, implementation=name)
    assert str(caught.value) == f"implementation '{name}' of attention cannot serve this call: {reason}"


def test_the_automatic_choice_keeps_its_reasons():
    choice = choose("attention", Call(torch.device("cuda"), torch.float64, 8, 3, CAUSAL))
    assert choice.implementation.name == "reference"
    assert choice.passed_over == (("triton", "needs float32, bfloat16 or float16, got torch.float64"),
                                  ("varlen", "needs float16 or bfloat16, got torch.float64"),
                                  ("cpu", "needs a CPU tensor, got cuda"))


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(CPU, torch.float32, 8, 8, CAUSAL), "cpu"),
        (Call(CPU, torch.float64, 7, 7, CAUSAL), "cpu"),
        (Call(CPU, torch.float32, 8, 4, CAUSAL), "cpu"),
        (Call(CPU, torch.float32, 8, 8, EVERYTHING, cross=True, grouped=True, with_lse=True), "cpu"),
        (Call(CPU, torch.float32, 8, 8, CAUSAL, dropout=True), "cpu"),
        (Call(CPU, torch.bfloat16, 8, 8, CAUSAL, pointwise=True, biased=True), "cpu"),
        (Call(CUDA, torch.bfloat16, 64, 64, CAUSAL), "triton"),
        (Call(CUDA, torch.float16, 256, 256, CAUSAL), "triton"),
        (Call(CUDA, torch.float16, 25, 25, CAUSAL), "triton"),
        (Call(CUDA, torch.float16, 25, 40, CAUSAL), "triton"),
        (Call(CUDA, torch.float16, 264, 264, CAUSAL), "reference"),
        (Call(CUDA, torch.float32, 64, 64, CAUSAL), "triton"),
        (Call(CUDA, torch.float64, 64, 64, CAUSAL), "reference"),
    ],
)
def test_which_implementation_serves_what(call, name):
    if name == "triton" and find_spec("triton") is None:  # torch's CUDA builds bring it
        name = "reference" if call.dtype == torch.float32 else "varlen"
    assert choose("attention", call).implementation.name == name

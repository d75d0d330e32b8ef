"""The attention modules and the block, against a loop over rows written with torch's own modules or by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor
from serrate.nn import AttentionPooling, JaggedMultiheadAttention, TargetAttention, TransformerBlock
from serrate.ops.attention import Mask, Weights, attention
from serrate.ops.attention.mask import seen
from serrate.testing import jagged_cases

CASES = pytest.mark.parametrize("case", jagged_cases(), ids=str)
SOME = pytest.mark.parametrize("case", [case for case in jagged_cases() if case.name in (
    "no rows", "all empty", "fewer events than rows", "ordinary", "int32 offsets", "non-contiguous")], ids=str)


def events(case, width: int = 12) -> JaggedTensor:
    made = case.make((width,), torch.float64)
    return made.with_values(made.values.requires_grad_())


def plain_attention(module: JaggedMultiheadAttention, row: Tensor) -> Tensor:
    """One row `(n, E)` through torch's own multi-head attention with the module's weights."""
    theirs = nn.MultiheadAttention(row.shape[1], module.heads, batch_first=True, dtype=row.dtype)
    theirs.in_proj_weight, theirs.in_proj_bias = module.project_in.weight, module.project_in.bias
    theirs.out_proj = module.project_out
    later = torch.ones(len(row), len(row), dtype=torch.bool).triu(1) if module.mask.causal else None
    return theirs(row[None], row[None], row[None], attn_mask=later, need_weights=False)[0][0]


def plain_block(block: TransformerBlock, row: Tensor) -> Tensor:
    norm, other, wide, narrow = (block.attention_norm, block.feedforward_norm, block.feedforward[0],
                                 block.feedforward[3])  # fmt: skip
    x = row + plain_attention(block.attention, F.layer_norm(row, row.shape[1:], norm.weight, norm.bias))
    normed = F.layer_norm(x, row.shape[1:], other.weight, other.bias)
    return x + F.gelu(normed @ wide.weight.T + wide.bias) @ narrow.weight.T + narrow.bias


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64 with no parameter at a value that hides it (ones, zeros)."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.double()


def assert_same_as_loop(module: nn.Module, plain, x: JaggedTensor) -> None:
    """Values and gradients, of the events and of every parameter, are those of one row at a time."""
    result = module(x)
    rows = [plain(module, row) for row in x if len(row)]
    expected = torch.cat([x.values[:0], *rows])
    assert torch.equal(result.offsets, x.offsets)
    torch.testing.assert_close(result.values, expected, rtol=1e-10, atol=1e-10)
    leaves = [x.values, *module.parameters()]
    got, want = (torch.autograd.grad(values.square().sum(), leaves, materialize_grads=True, allow_unused=True)
                 for values in (result.values, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@CASES
@pytest.mark.parametrize("mask", [Mask(causal=True), Mask()], ids=["causal", "full"])
def test_attention_is_torchs_own_row_by_row(case, mask):
    assert_same_as_loop(randomised(JaggedMultiheadAttention(12, 3, mask=mask)), plain_attention, events(case))


@CASES
def test_the_block_is_the_formula_row_by_row(case):
    assert_same_as_loop(randomised(TransformerBlock(12, 2, 20)), plain_block, events(case))


def test_the_block_drops_both_branches_in_training_only():
    torch.manual_seed(0)
    block = TransformerBlock(12, 2, 20, dropout=0.999999)
    x = jagged_cases()[-1].make((12,))
    assert not torch.equal(block.eval()(x).values, x.values)
    assert torch.equal(block.train()(x).values, x.values)  # nothing but the residual path is left


@pytest.mark.parametrize("heads", [0, 5, -2])
def test_heads_divide_the_width(heads):
    with pytest.raises(InvalidArgument) as caught:
        JaggedMultiheadAttention(12, heads)
    assert str(caught.value) == f"heads: expected a divisor of width 12, got {heads}"


# --- grouped heads, masks of a call, dropout ---


def grouped_by_hand(module: JaggedMultiheadAttention, row: Tensor, visible: Tensor) -> Tensor:
    """One row `(n, E)`, head by head: head `h` of queries reads head `h // (H / G)` of keys and values."""
    width = row.shape[1] // module.heads
    q, k, v = (row @ module.project_in.weight.T + module.project_in.bias).split(
        [x * width for x in (module.heads, module.kv_heads, module.kv_heads)], 1)
    found = []
    for head in range(module.heads):
        mine, theirs = (slice(x * width, (x + 1) * width) for x in (head, head * module.kv_heads // module.heads))
        scores = (q[:, mine] @ k[:, theirs].T / width**0.5).masked_fill(~visible, float("-inf"))
        found.append(scores.softmax(-1) @ v[:, theirs])
    return module.project_out(torch.cat(found, 1))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@SOME
def test_grouped_heads_by_hand(case, kv_heads):
    module = randomised(JaggedMultiheadAttention(12, 6, kv_heads=kv_heads))
    assert module.project_in.weight.shape == (12 + 2 * 2 * kv_heads, 12)
    assert_same_as_loop(
        module, lambda m, row: grouped_by_hand(m, row, torch.ones(len(row), len(row)).tril().bool()), events(case))


@pytest.mark.parametrize("make", [lambda **o: JaggedMultiheadAttention(12, 2, **o),
                                  lambda **o: TransformerBlock(12, 2, 20, **o)], ids=["attention", "block"])
def test_a_mask_may_be_given_with_the_call(make):
    x = JaggedTensor.from_lengths(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)),
                                  torch.tensor([5, 0, 7]))
    module = make()
    window, targets = (Mask(causal=True, window=(1, None)), Mask(causal=True, targets=torch.tensor([2, 0, 3])))
    outs = []
    for mask in (window, targets):
        other = make(mask=mask)
        other.load_state_dict(module.state_dict())
        outs.append(module(x, mask=mask).values)
        assert torch.equal(outs[-1], other(x).values)  # the same as a module of that mask
        assert torch.equal(other(x, mask=Mask(causal=True)).values, module(x).values)  # which it puts aside
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[1], module(x).values)


def test_targets_of_a_call_by_hand():
    module = randomised(JaggedMultiheadAttention(12, 3))
    x = events(next(case for case in jagged_cases() if case.name == "ordinary"))
    counts = [1, 3, 1, 0, 8]
    mask = Mask(causal=True, targets=torch.tensor(counts))
    rows = [grouped_by_hand(module, row, seen(mask, len(row), len(row), targets=count))
            for row, count in zip(x, counts, strict=True)]
    torch.testing.assert_close(module(x, mask=mask).values, torch.cat(rows), rtol=1e-10, atol=1e-10)


def dropping(rate: float) -> tuple[JaggedMultiheadAttention, JaggedTensor]:
    case = next(case for case in jagged_cases() if case.name == "ordinary")
    return randomised(JaggedMultiheadAttention(12, 3, kv_heads=1, dropout=rate)), events(case)


def test_dropout_is_that_of_a_seed_from_torchs_generator():
    module, x = dropping(0.4)
    torch.manual_seed(3)
    seed = torch.randint(2**63 - 1, ())
    q, k, v = module.project_in(x.values).unflatten(-1, (5, 4)).split([3, 1, 1], 1)
    attended = attention(q, k, v, x.offsets, mask=module.mask, weights=Weights(dropout=0.4, seed=seed))
    expected = module.project_out(attended.flatten(1))
    torch.manual_seed(3)
    first, second = module(x).values, module(x).values
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first, second)
    torch.manual_seed(3)
    assert torch.equal(module(x).values, first)
    leaves = [x.values, *module.parameters()]
    for got, want in zip(torch.autograd.grad(first.square().sum(), leaves),
                         torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_nothing_is_dropped_or_drawn_in_evaluation_or_at_zero(rate):
    module, x = dropping(rate)
    module.train(rate == 0)
    plain = grouped_by_hand(module, x[0], torch.ones(5, 5).tril().bool())
    before = torch.get_rng_state()
    torch.testing.assert_close(module(x).values[:5], plain, rtol=1e-10, atol=1e-10)
    assert torch.equal(module(x).values, module(x).values)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_block_passes_its_options_on():
    block = TransformerBlock(12, 6, 20, kv_heads=2, mask=Mask(block=3), attention_dropout=0.3)
    inner = block.attention
    assert (inner.kv_heads, inner.mask.block, inner.dropout) == (2, 3, 0.3)
    assert block.dropout.p == 0  # that of the branches is another
    default = TransformerBlock(12, 2, 20, 0.5).attention
    assert (default.kv_heads, default.mask.causal, default.mask.plain, default.dropout) == (2, True, True, 0.0)


def test_state_dicts_are_those_of_saved_runs():
    assert {name: tuple(x.shape) for name, x in JaggedMultiheadAttention(12, 3).state_dict().items()} == {
        "project_in.weight": (36, 12), "project_in.bias": (36,),
        "project_out.weight": (12, 12), "project_out.bias": (12,)}
    assert [*TransformerBlock(12, 2, 20).state_dict()] == [
        "attention_norm.weight", "attention_norm.bias", "attention.project_in.weight", "attention.project_in.bias",
        "attention.project_out.weight", "attention.project_out.bias", "feedforward_norm.weight",
        "feedforward_norm.bias", "feedforward.0.weight", "feedforward.0.bias", "feedforward.3.weight",
        "feedforward.3.bias"]
    assert [*AttentionPooling(12, 3, 2).state_dict()] == [
        "queries", "project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias"]
    assert [*TargetAttention(12, 3).state_dict()] == [
        "project_targets.weight", "project_targets.bias", "project_in.weight", "project_in.bias",
        "project_out.weight", "project_out.bias"]


# --- pooling and targets ---


def read(queries: Tensor, row: Tensor, module: AttentionPooling | TargetAttention) -> Tensor:
    """Projected queries `(K, E)` over one row `(n, E)`, head by head → `(K, E)`."""
    width = queries.shape[1] // module.heads
    k, v = (row @ module.project_in.weight.T + module.project_in.bias).split(queries.shape[1], 1)
    heads = [slice(at, at + width) for at in range(0, queries.shape[1], width)]
    found = [(queries[:, h] @ k[:, h].T / width**0.5).softmax(-1) @ v[:, h] for h in heads]  # no events: 0
    return torch.cat(found, 1) @ module.project_out.weight.T + module.project_out.bias


def assert_same(result: Tensor, expected: Tensor, module: nn.Module, *inputs: Tensor) -> None:
    """Values and gradients; parameters that had no part have none or zero."""
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    leaves = [*inputs, *module.parameters()]
    got, want = (torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True, allow_unused=True)
                 for out in (result, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def stacked(rows: list[Tensor], *shape: int) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("queries", [1, 4])
@CASES
def test_pooling_by_hand(case, queries):
    module, x = randomised(AttentionPooling(12, 3, queries)), events(case)
    expected = stacked([read(module.queries, row, module) for row in x], queries, 12)
    assert_same(module(x), expected, module, x.values)


@pytest.mark.parametrize("count", [1, 3])
@CASES
def test_targets_by_hand(case, count):
    module, history = randomised(TargetAttention(12, 3)), events(case)
    targets = torch.randn(len(history), count, 12, generator=torch.Generator().manual_seed(4),
                          dtype=torch.float64).requires_grad_()
    expected = stacked([read(module.project_targets(ours), row, module)
                        for ours, row in zip(targets, history, strict=True)], count, 12)
    assert_same(module(targets, history), expected, module, targets, history.values)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [(), (2,), (4, 0, 4, 1, 1, 4, 2, 0)])
def test_targets_that_point_at_their_row_by_hand(rows, dtype):
    module = randomised(TargetAttention(12, 3))
    values = torch.randn(10, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    history = JaggedTensor.from_lengths(values.requires_grad_(), torch.tensor([3, 0, 1, 2, 4]))
    targets = torch.randn(len(rows), 12, generator=torch.Generator().manual_seed(4),
                          dtype=torch.float64).requires_grad_()
    expected = stacked([read(module.project_targets(target)[None], history[row], module)[0]
                        for target, row in zip(targets, rows, strict=True)], 12)
    result = module(targets, history, torch.tensor(rows, dtype=dtype))
    assert_same(result, expected, module, targets, history.values)


def modules_that_read() -> list:
    pool, target = randomised(AttentionPooling(12, 3, 2)), randomised(TargetAttention(12, 3))
    wanted = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return [pytest.param(pool, lambda x: pool(x), id="pooling"),
            pytest.param(target, lambda x: target(wanted, x), id="targets"),
            pytest.param(target, lambda x: target(wanted[:, 0], x, torch.tensor([2, 0, 1]))[:, None], id="candidates")]


@pytest.mark.parametrize(("module", "compute"), modules_that_read())
def test_a_row_without_events_gives_the_bias(module, compute):
    x = JaggedTensor.from_lengths(torch.randn(4, 12, dtype=torch.float64), torch.tensor([3, 0, 1]))
    out = compute(x)
    empty = out[2] if out.shape[1] == 1 else out[1]  # the third candidate points at the second row
    assert torch.equal(empty, module.project_out.bias.expand_as(empty))
    assert not torch.allclose(out[0], empty)


@pytest.mark.parametrize(("module", "compute"), modules_that_read())
def test_every_parameter_learns_and_evaluation_is_deterministic(module, compute):
    x = JaggedTensor.from_lengths(torch.randn(9, 12, dtype=torch.float64), torch.tensor([3, 2, 4]))
    weights = torch.randn(compute(x).shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    grads = torch.autograd.grad((compute(x) * weights).sum(), list(module.parameters()))
    assert all(grad.abs().max() > 1e-6 for grad in grads)
    assert torch.equal(module.eval() and compute(x), compute(x))


@pytest.mark.parametrize(("module", "compute"), modules_that_read())
def test_a_row_does_not_depend_on_its_batch_mates(module, compute):
    x = JaggedTensor.from_lengths(torch.randn(9, 12, dtype=torch.float64), torch.tensor([3, 2, 4]))
    changed = JaggedTensor(torch.cat([x.values[:3], -x.values[3:5], x.values[5:]]), x.offsets)
    one, other = compute(x), compute(changed)
    own = 2 if one.shape[1] == 1 else 1
    rest = [row for row in range(3) if row != own]
    torch.testing.assert_close(one[rest], other[rest], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(one[own], other[own])


def test_pooling_and_targets_work_under_autocast():
    x = JaggedTensor.from_lengths(torch.randn(9, 12), torch.tensor([3, 2, 4]))
    targets = torch.randn(3, 2, 12)
    for module, inputs in ((AttentionPooling(12, 3), (x,)), (TargetAttention(12, 3), (targets, x)),
                           (JaggedMultiheadAttention(12, 3, kv_heads=1), (x,))):
        with torch.autocast("cpu", torch.bfloat16):
            low = module(*inputs)
        low, high = (out if isinstance(out, Tensor) else out.values for out in (low, module(*inputs)))
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), high, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: JaggedMultiheadAttention(12, 6, kv_heads=4), "kv_heads: expected a divisor of heads 6, got 4"),
    (lambda: JaggedMultiheadAttention(12, 6, kv_heads=0), "kv_heads: expected a divisor of heads 6, got 0"),
    (lambda: JaggedMultiheadAttention(12, 6, dropout=1.0), "dropout: expected a number from 0 to below 1, got 1.0"),
    (lambda: TransformerBlock(12, 6, 20, attention_dropout=-0.1),
     "dropout: expected a number from 0 to below 1, got -0.1"),
    (lambda: AttentionPooling(12, 5), "heads: expected a divisor of width 12, got 5"),
    (lambda: AttentionPooling(12, 3, 0), "queries: expected 1 or more, got 0"),
    (lambda: TargetAttention(12, 0), "heads: expected a divisor of width 12, got 0"),
])
def test_a_module_that_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert str(caught.value) == message

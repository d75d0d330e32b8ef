"""The suite of pooling and of softmax over rows: every implementation, every named case, against the float64 oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops import implementations
from serrate.ops.pool import Call, pool, softmax
from serrate.ops.pool.cases import CASES, Case, lengths_of, run
from serrate.ops.select import choose
from serrate.testing import assert_within_budget, lengths

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HOWS = ("sum", "mean", "max", "logsumexp")

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("pool")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
kinds = pytest.mark.parametrize("kind", [*HOWS, "softmax", "weighted sum: heads", "attention: heads"])


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the call."""
    implementation = next(each for each in implementations("pool") if each.name == name)
    reason = implementation.unusable(Call(torch.device(device), dtype))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def named(kind: str) -> Case:
    """Return an ordinary case of a kind."""
    return NAMED.get(kind) or NAMED[f"{kind}: ordinary"]


def computed(name: str, case: Case, tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradients by an implementation, of the tensors in a dtype and, without one, as they are."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]  # strides are kept
    out = run(case, leaves, case.offsets(str(leaves[0].device)), name)
    return with_gradients(out, leaves, tensors[0].dtype)


def with_gradients(out: Tensor, leaves: list[Tensor], given: torch.dtype) -> list[Tensor]:
    """The gradients that come in are random, rounded as those of the result."""
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, given)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]


def plainly(case: Case, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the same by plain torch, row after row, in the dtype of the events."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    rows = [x.split(list(case.lengths)) if case.lengths else [x] for x in leaves]
    out = [plain_row(case, *row) for row in zip(*rows, strict=True)]
    joined = torch.cat(out) if case.how == "softmax" else torch.stack(out)[:len(case.lengths)]
    return with_gradients(joined, leaves, tensors[0].dtype)


def plain_row(case: Case, x: Tensor, weights: Tensor | None = None) -> Tensor:
    if weights is not None:
        scale = weights.softmax(0) if case.activation else weights
        return (x * scale.view(*scale.shape, *[1] * (x.dim() - scale.dim()))).sum(0)
    if case.how == "softmax" or case.how == "logsumexp":
        return getattr(x, case.how)(0)
    if case.how == "sum" or not len(x):
        return x.sum(0)
    return x.mean(0) if case.how == "mean" else x.gather(0, (x == x.amax(0)).int().argmax(0)[None])[0]


# --- the oracle ---


def test_by_hand():
    x = torch.tensor([[1.0, 4.0], [3.0, 4.0], [5.0, -1.0]], dtype=torch.float64)
    offsets = torch.tensor([0, 2, 2, 3])
    for how, expected in {"sum": [[4, 8], [0, 0], [5, -1]], "mean": [[2, 4], [0, 0], [5, -1]],
                          "max": [[3, 4], [0, 0], [5, -1]]}.items():
        assert pool(x, offsets, how=how, implementation="reference").tolist() == expected
    found = pool(x, offsets, how="logsumexp", implementation="reference")
    e = math.e
    expected = [[math.log(e + e**3), 4 + math.log(2)], [-math.inf] * 2, [5, -1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    weights = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    assert pool(x, offsets, weights=weights, implementation="reference").tolist() == [[-1, 4], [0, 0], [15, -3]]
    logits = torch.tensor([0.0, math.log(3), 7.0], dtype=torch.float64)  # shares 1/4 and 3/4, then all
    found = pool(x, offsets, weights=logits, activation="softmax", implementation="reference")
    torch.testing.assert_close(found, torch.tensor([[2.5, 4], [0, 0], [5, -1]], dtype=torch.float64))
    found = softmax(logits, offsets, implementation="reference")
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75, 1], dtype=torch.float64))


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, exact = computed(name, case, tensors), computed("reference", case, tensors, torch.float64)
    assert [each.dtype for each in actual] == [dtype] * (1 + len(tensors))
    for i, (found, right, plain) in enumerate(zip(actual, exact, plainly(case, tensors), strict=True)):
        if found.dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plain, gradient=i > 0, name=("output", "x", "weights")[i])


@kinds
@every_device
@every_implementation
def test_the_same_inputs_give_the_same_bits_for_either_dtype_of_offsets(name, device, kind):
    usable(name, torch.float32, device)
    case = named(kind)
    tensors = case.tensors(device=device)
    first = computed(name, case, tensors)
    for index in (torch.int64, torch.int32):
        again = Case("", case.lengths, case.shape, case.how, case.weights, case.activation, index=index)
        assert all(torch.equal(*both) for both in zip(first, computed(name, again, tensors), strict=True))


@kinds
@every_device
@every_implementation
def test_a_row_depends_on_itself_alone(name, device, kind):
    usable(name, torch.float32, device)
    shape, weights = named(kind).shape, named(kind).weights
    case = Case("", (3, 300, 0, 5), shape, named(kind).how, weights, named(kind).activation)
    tensors = case.tensors(device=device)
    alone = Case("", (300,), shape, case.how, weights, case.activation)
    expected = computed(name, alone, tuple(x[3:303] for x in tensors))
    poisoned = tuple(x.clone().detach() for x in tensors)
    for x in poisoned:
        x[:3], x[303:] = math.nan, math.inf
    leaves = [x.requires_grad_() for x in poisoned]
    out = run(case, leaves, case.offsets(device), name)
    own = out[3:303] if case.how == "softmax" else out[1:2]
    found = with_gradients(own, leaves, torch.float32)
    assert torch.equal(found[0], expected[0])
    for mine, right in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine[3:303], right, rtol=0, atol=0)


@kinds
@every_device
@every_implementation
def test_any_strides(name, device, kind):
    usable(name, torch.float32, device)
    case = Case("", (2, 0, 5, 3), (2, 6), named(kind).how, (2,) if named(kind).weights else None,
                named(kind).activation)
    tensors = case.tensors(device=device)
    for odd in (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda x: x[:1].expand(x.shape),
                lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x[:, :1].expand(x.shape)):
        strange = tuple(map(odd, tensors))
        expected = computed(name, case, tuple(x.contiguous() for x in strange))
        leaves = [x.detach().requires_grad_() for x in strange]
        found = with_gradients(run(case, leaves, case.offsets(device), name), leaves, torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_device
@pytest.mark.parametrize("activation", [None, "softmax"])
@every_implementation
def test_gradients_of_events_or_weights_alone(name, device, activation):
    usable(name, torch.float32, device)
    case = NAMED[f"{'attention' if activation else 'weighted sum'}: heads"]
    tensors = case.tensors(device=device)
    both = computed(name, case, tensors)
    for at, leaf in enumerate(tensors):
        leaves = [x.detach().requires_grad_(x is leaf) for x in tensors]
        found = with_gradients(run(case, leaves, case.offsets(device), name), [leaves[at]], torch.float32)
        torch.testing.assert_close(found[1], both[1 + at])


@kinds
@every_device
@every_implementation
def test_a_graph_may_be_walked_twice(name, device, kind):
    usable(name, torch.float32, device)
    case = named(kind)
    leaves = [x.requires_grad_() for x in case.tensors(device=device)]
    out = run(case, leaves, case.offsets(device), name).cos().sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    assert all(torch.equal(*both) for both in zip(first, torch.autograd.grad(out, leaves), strict=True))


@every_device
@every_implementation
@every_dtype
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_ones(name, device, dtype):
    usable(name, dtype, device)
    for rows in ((4, 0, 3), (2000, 1)):  # of one chunk and of many
        x = torch.randint(-3, 4, (sum(rows), 5), generator=torch.Generator().manual_seed(0)).to(device, dtype)
        x[:, 1] = -math.inf
        offsets = offsets_from_lengths(torch.tensor(rows)).to(device)
        found, = torch.autograd.grad(pool(x.requires_grad_(), offsets, how="max", implementation=name).sum(), x)
        largest = [row == row.max(0).values for row in x.split(rows) if len(row)]
        assert torch.equal(found, torch.cat([row & (row.cumsum(0) == 1) for row in largest]).to(dtype))


@every_device
@every_implementation
@every_dtype
def test_a_missing_value_is_the_largest(name, device, dtype):
    usable(name, dtype, device)
    x = torch.tensor([1.0, math.nan, math.inf, math.nan, 2.0, 5.0, -math.inf], device=device, dtype=dtype)
    offsets = torch.tensor([0, 4, 6, 7], device=device)
    out = pool(x.requires_grad_(), offsets, how="max", implementation=name)
    torch.testing.assert_close(out, x.new_tensor([math.nan, 5, -math.inf]), equal_nan=True)
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [0, 1, 0, 0, 0, 1, 1]
    for how in ("sum", "mean", "logsumexp"):
        assert pool(x, offsets, how=how, implementation=name).isnan().tolist() == [True, False, False]


@every_device
@every_implementation
def test_infinities_among_exponents(name, device):
    usable(name, torch.float32, device)
    inf = math.inf
    x = torch.tensor([-inf, -inf, 1.0, -inf, 150.0, 150.0, -150.0, inf, 0.0], device=device).requires_grad_()
    offsets = torch.tensor([0, 2, 4, 7, 9], device=device)
    out = pool(x, offsets, how="logsumexp", implementation=name)
    torch.testing.assert_close(out, torch.tensor([-inf, 1.0, 150 + math.log(2), inf], device=device))
    found, = torch.autograd.grad(out[:3].sum(), x)
    torch.testing.assert_close(found[:7], torch.tensor([0, 0, 1, 0, 0.5, 0.5, 0], device=device))
    logits, values = x.detach()[:7].requires_grad_(), torch.arange(1.0, 8.0, device=device).requires_grad_()
    shares = softmax(logits, offsets[:4], implementation=name)
    torch.testing.assert_close(shares, torch.tensor([0, 0, 1, 0, 0.5, 0.5, 0], device=device))
    assert torch.autograd.grad(shares.square().sum(), logits)[0].isfinite().all()
    out = pool(values, offsets[:4], weights=logits, activation="softmax", implementation=name)
    torch.testing.assert_close(out, torch.tensor([0, 3, 5.5], device=device))
    d_values, d_logits = torch.autograd.grad(out.sum(), (values, logits))
    torch.testing.assert_close(d_values, shares)
    torch.testing.assert_close(d_logits, torch.tensor([0, 0, 0, 0, -0.25, 0.25, 0], device=device))


@every_device
@every_implementation
def test_logits_that_rise_from_chunk_to_chunk(name, device):
    usable(name, torch.float32, device)
    for rising in (torch.linspace(-150, 150, 1500, device=device), torch.linspace(150, -150, 1500, device=device)):
        x = torch.randn(1500, 80, generator=torch.Generator().manual_seed(0)).to(device)
        offsets = torch.tensor([0, 1500], device=device)
        exact = (x.double() * rising.double().softmax(0)[:, None]).sum(0, keepdim=True)
        found = pool(x, offsets, weights=rising, activation="softmax", implementation=name)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
        found = pool(rising, offsets, how="logsumexp", implementation=name)
        torch.testing.assert_close(found[0], rising.logsumexp(0))


@given(lengths(max_rows=7, max_length=90), st.sampled_from([(), (1,), (5,), (2, 3)]), st.sampled_from(
    [*HOWS, "softmax", "weights", "attention"]), st.booleans())
@pytest.mark.parametrize("name", ["cpu"])
def test_any_call_on_the_cpu(name, rows, shape, kind, packed):
    weighted = kind in ("weights", "attention")
    case = Case("", tuple(rows), shape, "sum" if weighted else kind, shape[:1] if weighted else None,
                "softmax" if kind == "attention" else None, packed)
    tensors = case.tensors(torch.float64)
    torch.testing.assert_close(computed(name, case, tensors), computed("reference", case, tensors, torch.float64),
                               rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_more_rows_than_a_grid_axis_has(name, device):
    rows = torch.arange(70_001) % 3
    offsets, x = offsets_from_lengths(rows).to(device), torch.ones(int(rows.sum()), device=device)
    for how, expected in (("sum", rows), ("mean", rows > 0), ("logsumexp", 1 + rows.float().log())):
        found = pool(x, offsets, how=how, implementation=name)
        torch.testing.assert_close(found.cpu(), expected.float())


# --- operators ---


@kinds
@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_custom_operators_are_well_behaved(name, device, kind):
    case = named(kind)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for rows in (case.lengths, (0, 0), ()):
        case = Case("", rows, case.shape, case.how, case.weights, case.activation, packed=False)
        x, weights = (*(each.requires_grad_() for each in case.tensors(device=device)), None)[:2]
        offsets = case.offsets(device)
        if case.how == "softmax":
            torch.library.opcheck(getattr(torch.ops.serrate, f"softmax_{name}").default, (x, offsets),
                                  test_utils=tests)
            continue
        heads = x[:, None] if weights is None else x
        torch.library.opcheck(getattr(torch.ops.serrate, f"pool_{name}").default,
                              (heads, offsets, weights, case.how, case.activation is not None), test_utils=tests)


@kinds
@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_lengths(name, device, kind):
    case = named(kind)

    def loss(offsets: Tensor, *leaves: Tensor) -> Tensor:
        return (run(case, [x * 2 for x in leaves], offsets, name) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ((5, 2), (12, 0, 7), (300, 2, 1, 9)):
            drawn = Case("", rows, case.shape, case.how, case.weights, case.activation)
            leaves = [each.requires_grad_() for each in drawn.tensors(device=device)]
            offsets = drawn.offsets(device)
            eager = torch.autograd.grad(loss(offsets, *leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(offsets, *leaves), leaves), eager)


@kinds
@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_second_derivative_is_refused(name, device, kind):
    usable(name, torch.float32, device)
    case = named(kind)
    leaves = [x.requires_grad_() for x in case.tensors(device=device)]
    out = run(case, leaves, case.offsets(device), name).square().sum()
    first = torch.autograd.grad(out, leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), leaves[0])


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_forward_derivative_is_refused(name, device):
    usable(name, torch.float32, device)
    x, offsets = torch.ones(3, device=device), torch.tensor([0, 3], device=device)
    for compute in (pool, softmax):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            torch.func.jvp(lambda x, compute=compute: compute(x, offsets, implementation=name), (x,), (x,))


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_sums_means_and_maxima_keep_no_events(name, device):
    usable(name, torch.float32, device)
    x = torch.randn(500, 32, device=device, requires_grad=True)
    offsets, kept = torch.tensor([0, 200, 500], device=device), []
    for how in ("sum", "mean", "max"):
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
            pool(x, offsets, how=how, implementation=name)
    assert max(each.numel() for each in kept) == 2 * 32


# --- the choice, batches and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), torch.float32)
    for operation in ("pool", "softmax"):
        assert choose(operation, call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
        on_gpu = call._replace(device=torch.device("cuda"), dtype=torch.float64)
        assert choose(operation, on_gpu).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        pool(torch.ones(3, dtype=torch.float64), torch.tensor([0, 3]), implementation="triton")


@pytest.mark.parametrize("fill", [0.1, 0.5, 0.8, 1.0])
def test_batches_are_as_full_as_they_say(fill):
    found = lengths_of(1024, 512, fill)
    assert max(found) == 512 == found[0]
    assert sum(found) == pytest.approx(fill * 512 * 1024, rel=0.05)


X, OFFSETS = torch.ones(3, 2, 4), torch.tensor([0, 1, 3])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pool(torch.ones(()), OFFSETS), "x: expected shape (T, ...), with no axis of 0 after the first, got ()"),
    (lambda: pool(torch.ones(3, 0), OFFSETS),
     "x: expected shape (T, ...), with no axis of 0 after the first, got (3, 0)"),
    (lambda: pool(X.int(), OFFSETS), "x: expected a floating-point dtype, got torch.int32"),
    (lambda: pool(X, OFFSETS.float()), "offsets: expected dtype int32 or int64, got torch.float32"),
    (lambda: pool(X, OFFSETS[None]), "offsets: expected shape (B + 1,), got (1, 3)"),
    (lambda: pool(X, torch.tensor([0, 2])), "offsets: expected a last entry of T = 3, got 2"),
    (lambda: pool(X, torch.tensor([0, 3, 1, 3])), "offsets: expected non-decreasing entries, got [3, 1]"),
    (lambda: pool(X, OFFSETS.to("meta")), "offsets: expected a tensor on cpu, as values, got meta"),
    (lambda: pool(X, OFFSETS, how="middle"), "how: expected one of sum, mean, max, logsumexp, got 'middle'"),
    (lambda: pool(X, OFFSETS, how="maxx"),
     "how: expected one of sum, mean, max, logsumexp (did you mean 'max'?), got 'maxx'"),
    (lambda: pool(X, OFFSETS, activation="softmax"),
     "activation: expected None, as there are no weights, got 'softmax'"),
    (lambda: pool(X, OFFSETS, weights=torch.ones(3), activation="relu"),
     "activation: expected 'softmax' or None, got 'relu'"),
    (lambda: pool(X, OFFSETS, weights=torch.ones(3), how="mean"),
     "weights: expected None, as how is 'mean' and not 'sum', got (3,)"),
    (lambda: pool(X, OFFSETS, weights=torch.ones(3, 4)), "weights: expected shape (3,) or (3, 2), as x, got (3, 4)"),
    (lambda: pool(X, OFFSETS, weights=X.double()[:, 0, 0]), "weights: expected torch.float32, as x, got torch.float64"),
    (lambda: pool(X, OFFSETS, weights=torch.ones(3, device="meta")),
     "weights: expected a tensor on cpu, as x, got meta"),
    (lambda: softmax(torch.ones(3, dtype=torch.int8), OFFSETS), "x: expected a floating-point dtype, got torch.int8"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message

"""The suite of broadcast: every implementation, on every named case, against the float64 oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.broadcast import Call, add, multiply, reference
from serrate.ops.broadcast.cases import CASES, Case, run
from serrate.ops.select import choose
from serrate.testing import assert_within_budget, lengths

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALONG = ("rows", "positions", "both")

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("broadcast")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
kinds = pytest.mark.parametrize("kind", [f"{operation} {along}" for operation in ("add", "multiply")
                                         for along in ALONG])


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the call."""
    implementation = next(each for each in implementations("broadcast") if each.name == name)
    reason = implementation.unusable(Call(torch.device(device), dtype))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def of_kind(kind: str, rows: tuple[int, ...], shape: tuple[int, ...] = (10,), own: tuple[int, ...] = (10,)) -> Case:
    """Return a case of a kind."""
    named = NAMED[f"{kind}: ordinary"]
    return Case("", rows, named.along, named.product, shape, own, spare=1)


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
    """Return the same by plain torch, in the dtype of the events: what belongs to each is gathered, then broadcast."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    x, y = leaves[0], leaves[1].reshape(*case.lead, *[1] * (len(case.shape) - len(case.own)), *case.own)
    row = torch.arange(len(case.lengths)).repeat_interleave(torch.tensor(case.lengths, dtype=torch.int64)).to(x.device)
    position = torch.arange(x.shape[0], device=x.device) - case.offsets(str(x.device))[row]
    own = {"rows": lambda: y[row], "positions": lambda: y[position], "both": lambda: y[row, position]}[case.along]()
    return with_gradients(x * own if case.product else x + own, leaves, tensors[0].dtype)


# --- the oracle ---


def test_by_hand():
    x, offsets = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 2, 2, 3])
    of_rows = torch.tensor([[10.0, 20.0], [0.0, 0.0], [-1.0, 2.0]])
    assert add(x, of_rows, offsets, implementation="reference").tolist() == [[11, 22], [13, 24], [4, 8]]
    assert multiply(x, of_rows[:, :1], offsets, implementation="reference").tolist() == [[10, 20], [30, 40], [-5, -6]]
    of_positions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]])
    found = multiply(x, of_positions, offsets, along="positions", implementation="reference")
    assert found.tolist() == [[1, 0], [0, 4], [5, 0]]
    of_both = torch.arange(12.0).view(3, 2, 2)
    found = add(x, of_both, offsets, along="both", implementation="reference")
    assert found.tolist() == [[1, 3], [5, 7], [13, 15]]


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, exact = computed(name, case, tensors), computed("reference", case, tensors, torch.float64)
    assert [each.dtype for each in actual] == [dtype] * 3
    for i, (found, right, plain) in enumerate(zip(actual, exact, plainly(case, tensors), strict=True)):
        if found.dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plain, gradient=i > 0, name=("output", "x", "y")[i])


@kinds
@every_device
@every_implementation
def test_the_same_inputs_give_the_same_bits_for_either_dtype_of_offsets(name, device, kind):
    usable(name, torch.float32, device)
    case = of_kind(kind, (5, 0, 17, 1, 32) * 3)
    tensors = case.tensors(device=device)
    first = computed(name, case, tensors)
    for index in (torch.int64, torch.int32):
        again = Case("", case.lengths, case.along, case.product, case.shape, case.own, 1, index=index)
        assert all(torch.equal(*both) for both in zip(first, computed(name, again, tensors), strict=True))


@kinds
@every_device
@every_implementation
def test_a_row_depends_on_itself_alone(name, device, kind):
    usable(name, torch.float32, device)
    case = of_kind(kind, (3, 300, 0, 5))
    x, y = case.tensors(device=device)
    offsets = case.offsets(device)
    expected = run(case, (x, y), offsets, name)[3:303]
    x[:3], x[303:] = math.nan, math.inf
    assert torch.equal(run(case, (x, y), offsets, name)[3:303], expected)
    if case.along == "rows":  # nor does the gradient of what belongs to it
        y.requires_grad_()
        found, = torch.autograd.grad(run(case, (x, y), offsets, name)[3:303].sum(), y)
        torch.testing.assert_close(found[1], x[3:303].sum(0) if case.product else torch.full_like(found[1], 300))


@kinds
@every_device
@every_implementation
def test_any_strides(name, device, kind):
    usable(name, torch.float32, device)
    case = of_kind(kind, (2, 0, 5, 3), (2, 6), (2, 6))
    tensors = case.tensors(device=device)
    for odd in (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda x: x[:1].expand(x.shape),
                lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x[..., :1].expand(x.shape)):
        strange = tuple(map(odd, tensors))
        expected = computed(name, case, tuple(x.contiguous() for x in strange))
        leaves = [x.detach().requires_grad_() for x in strange]
        found = with_gradients(run(case, leaves, case.offsets(device), name), leaves, torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@kinds
@every_device
@every_implementation
def test_gradients_of_one_of_the_two(name, device, kind):
    usable(name, torch.float32, device)
    case = of_kind(kind, (2, 0, 5, 3))
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
    case = of_kind(kind, (2, 0, 5, 3))
    leaves = [x.requires_grad_() for x in case.tensors(device=device)]
    out = run(case, leaves, case.offsets(device), name).cos().sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    assert all(torch.equal(*both) for both in zip(first, torch.autograd.grad(out, leaves), strict=True))


@given(lengths(max_rows=7, max_length=20), st.sampled_from(ALONG), st.booleans(), st.sampled_from(
    [((), ()), ((5,), (5,)), ((5,), (1,)), ((5,), ()), ((2, 3), (3,)), ((2, 3), (2, 1))]), st.integers(0, 3),
    st.booleans())
@pytest.mark.parametrize("name", ["cpu"])
def test_any_call_on_the_cpu(name, rows, along, product, shapes, spare, packed):
    case = Case("", tuple(rows), along, product, *shapes, spare, packed)
    tensors = case.tensors(torch.float64)
    torch.testing.assert_close(computed(name, case, tensors), computed("reference", case, tensors, torch.float64),
                               rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_more_rows_than_a_grid_axis_has(name, device):
    case = Case("", (0, 1, 2) * 25_000, shape=(), own=())
    x, y = (each.requires_grad_() for each in case.tensors(device=device))
    offsets, row = case.offsets(device), torch.arange(75_000, device=device).repeat_interleave(
        torch.tensor(case.lengths, device=device))
    for along, own in (("rows", y[row]), ("positions", y[torch.arange(len(x), device=device) - offsets[row]])):
        found = add(x, y, offsets, along=along, implementation=name)
        torch.testing.assert_close(found, x + own)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), y), torch.autograd.grad(own.sum(), y))


# --- operators ---


@kinds
@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_custom_operators_are_well_behaved(name, device, kind):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for rows in ((5, 0, 17), (0, 0), ()):
        for own in (6, 1):
            case = of_kind(kind, rows, (6,), (own,))
            x, y = (each.requires_grad_() for each in case.tensors(device=device))
            torch.library.opcheck(getattr(torch.ops.serrate, f"broadcast_{name}").default,
                                  (x, y, case.offsets(device), case.along, case.product), test_utils=tests)


@kinds
@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_lengths(name, device, kind):
    def loss(offsets: Tensor, *leaves: Tensor) -> Tensor:
        return (run(of_kind(kind, ()), [x * 2 for x in leaves], offsets, name) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ((5, 2), (12, 0, 7), (300, 2, 1, 9)):
            case = of_kind(kind, rows)
            leaves, offsets = [each.requires_grad_() for each in case.tensors(device=device)], case.offsets(device)
            eager = torch.autograd.grad(loss(offsets, *leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(offsets, *leaves), leaves), eager)


@kinds
@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_second_derivative_of_what_is_broadcast_is_refused(name, device, kind):
    usable(name, torch.float32, device)
    case = of_kind(kind, (2, 0, 5, 3))
    x, y = (each.requires_grad_() for each in case.tensors(device=device))
    out = run(case, (x, y), case.offsets(device), name).square().sum()
    first, = torch.autograd.grad(out, y, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), x)


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_forward_derivative_is_refused(name, device):
    usable(name, torch.float32, device)
    x, offsets = torch.ones(3, device=device), torch.tensor([0, 3], device=device)
    with pytest.raises(NotImplementedError, match="broadcast has no forward-mode derivative"):
        torch.func.jvp(lambda x: add(x, x[:1], offsets, implementation=name), (x,), (x,))


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_sum_keeps_no_events(name, device):
    usable(name, torch.float32, device)
    kept = []
    for along in ALONG:
        case = of_kind(f"add {along}", (200, 300))
        leaves = [each.requires_grad_() for each in case.tensors(device=device)]
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
            run(case, leaves, case.offsets(device), name)
    assert max(each.numel() for each in kept) == 3  # offsets alone


# --- the choice and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), torch.float32)
    assert choose("broadcast", call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
    on_gpu = call._replace(device=torch.device("cuda"), dtype=torch.float64)
    assert choose("broadcast", on_gpu).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.ones(3, dtype=torch.float64)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        add(x, x[:1], torch.tensor([0, 3]), implementation="triton")


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_row_longer_than_the_positions_is_refused_also_when_compiled(name):
    x, offsets = torch.ones(5, 2), torch.tensor([0, 4, 5])
    compiled = torch.compile(add, backend="aot_eager")
    for call in (add, compiled) if name == "cpu" else (add,):
        for along, y in (("positions", torch.ones(3, 2)), ("both", torch.ones(2, 3, 2))):
            with pytest.raises(InvalidArgument, match="y: expected at least 4 positions, the longest row, got 3"):
                call(x, y, offsets, along=along, implementation=name)


@every_device
@pytest.mark.parametrize("name", ["triton", "reference"])
def test_past_the_positions_nothing_is_read(name, device, monkeypatch):
    usable(name, torch.float32, device)
    monkeypatch.setattr(reference, "require_positions", lambda *_: None)  # the oracle's rule on a CPU alone
    x, offsets = torch.ones(5, 2, device=device), torch.tensor([0, 4, 5], device=device)
    for along, lead in (("positions", (3,)), ("both", (2, 3))):
        y = torch.full((*lead, 2), 2.0, device=device, requires_grad=True)
        found = add(x, y, offsets, along=along, implementation=name)
        assert found.tolist() == [[3, 3], [3, 3], [3, 3], [1, 1], [3, 3]]
        assert multiply(x, y, offsets, along=along, implementation=name)[3].tolist() == [0, 0]
        expected = torch.tensor([[2.0], [1], [1]] if along == "positions" else [[[1.0], [1], [1]], [[1], [0], [0]]])
        assert torch.equal(torch.autograd.grad(found.sum(), y)[0].cpu(), expected.expand(y.shape))
        leaf = x.clone().requires_grad_()
        product = multiply(leaf, y, offsets, along=along, implementation=name)
        of_x, of_y = torch.autograd.grad(product.sum(), (leaf, y))
        assert of_x.tolist() == [[2, 2], [2, 2], [2, 2], [0, 0], [2, 2]]
        assert torch.equal(of_y.cpu(), expected.expand(y.shape))


X, OFFSETS = torch.ones(3, 2, 4), torch.tensor([0, 1, 3])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: add(X.int(), X, OFFSETS), "x: expected a floating-point dtype, got torch.int32"),
    (lambda: add(X, X[:2], torch.tensor([0, 2])), "offsets: expected a last entry of T = 3, got 2"),
    (lambda: add(X, X[:2], OFFSETS, along="columns"), "along: expected one of rows, positions, both, got 'columns'"),
    (lambda: add(X, X[:2], OFFSETS, along="row"),
     "along: expected one of rows, positions, both (did you mean 'rows'?), got 'row'"),
    (lambda: add(X, X, OFFSETS), "y: expected shape (2, ...), the rest as (2, 4) or 1, got (3, 2, 4)"),
    (lambda: add(X, X[:2, :, :3], OFFSETS), "y: expected shape (2, ...), the rest as (2, 4) or 1, got (2, 2, 3)"),
    (lambda: add(X, torch.ones(()), OFFSETS), "y: expected shape (2, ...), the rest as (2, 4) or 1, got ()"),
    (lambda: add(X, torch.ones(2, 1, 2, 4), OFFSETS),
     "y: expected shape (2, ...), the rest as (2, 4) or 1, got (2, 1, 2, 4)"),
    (lambda: add(X, torch.ones(5, 3), OFFSETS, along="positions"),
     "y: expected shape (N, ...), the rest as (2, 4) or 1, got (5, 3)"),
    (lambda: add(X, torch.ones(2), OFFSETS, along="both"),
     "y: expected shape (2, N, ...), the rest as (2, 4) or 1, got (2,)"),
    (lambda: multiply(X, X[:2].double(), OFFSETS), "y: expected torch.float32, as x, got torch.float64"),
    (lambda: multiply(X, X[:2].to("meta"), OFFSETS), "y: expected a tensor on cpu, as x, got meta"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message

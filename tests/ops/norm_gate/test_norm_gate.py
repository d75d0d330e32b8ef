"""The suite of norm, gate and dropout: every implementation, on every named case, against the float64 oracle."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.norm_gate import Call, norm_gate
from serrate.ops.norm_gate.cases import CASES, Case
from serrate.ops.norm_gate.reference import stays
from serrate.ops.select import choose
from serrate.testing import assert_within_budget

SEED = 2**40 + 977
NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("norm_gate")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, case: Case, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    call = Call(torch.device(device), dtype, case.result(dtype), case.width // case.groups)
    reason = next(each for each in implementations("norm_gate") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run(name: str, case: Case, tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradients by an implementation, of the tensors in a dtype and, without one, as they are."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]  # strides are kept
    out = norm_gate(*leaves, *[None][:2 - len(leaves)], groups=case.groups, eps=case.eps, dropout=case.dropout,
                    seed=SEED, dtype=None if dtype else case.result(tensors[0].dtype), implementation=name)
    return with_gradients(out, leaves, case.result(tensors[0].dtype))


def with_gradients(out: Tensor, leaves: list[Tensor], result: torch.dtype) -> list[Tensor]:
    """The gradients that come in are random, rounded as those of the result."""
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, result)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]


def plainly(case: Case, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the same by plain torch, one operation after the other, in the dtype of the events."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    x = leaves[0].unflatten(1, (case.groups, -1))
    out = F.layer_norm(x, x.shape[-1:], eps=case.eps).flatten(1)
    out = out * leaves[1] if case.gated else out
    if case.dropout:
        kept = stays(torch.tensor(SEED, device=x.device), case.dropout, case.events, case.width)
        out = out * kept.to(out.dtype) / (1 - case.dropout)
    return with_gradients(out.to(case.result(x.dtype)), leaves, case.result(x.dtype))


# --- the oracle ---


def test_by_hand():
    x = torch.tensor([[1.0, 3.0, 8.0, 8.0], [0.0, 0.0, 5.0, -5.0]], dtype=torch.float64)
    gate = torch.tensor([[1.0, 2.0, -1.0, 0.0], [1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    # mean 5, variance (16 + 4 + 9 + 9) / 4 = 9.5, and with the 0.5 added 10; then mean 0, variance 12.5, 13
    expected = torch.tensor([[-4.0, -4.0, -3.0, 0.0], [0.0, 0.0, 10.0, -10.0]], dtype=torch.float64)
    expected /= torch.tensor([[10.0], [13.0]], dtype=torch.float64).sqrt()
    torch.testing.assert_close(norm_gate(x, gate, eps=0.5, implementation="reference"), expected)
    # in two groups: means 2 and 8, variances 1 and 0; then 0 and 0, variances 0 and 25
    halves = norm_gate(x, None, groups=2, eps=0.25, implementation="reference")
    root = 1.25**0.5
    torch.testing.assert_close(halves, torch.tensor([[-1 / root, 1 / root, 0, 0], [0, 0, 5 / 25.25**0.5,
                                                                                -5 / 25.25**0.5]]).double())


def test_the_oracle_is_torchs_own_layer_norm():
    case = Case("", 11, 30)
    x, gate = (each.requires_grad_() for each in case.tensors(torch.float64))
    ours, theirs = norm_gate(x, gate, implementation="reference"), F.layer_norm(x, (30,), eps=1e-6) * gate
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), (x, gate)) for out in (ours, theirs)))


def test_what_stays_is_a_hash_of_event_and_column():
    """The murmur3 finaliser in Python's own integers."""
    def mixed(x: int) -> int:
        x &= 2**32 - 1
        x = (x ^ x >> 16) * 0x85EBCA6B & 2**32 - 1
        x = (x ^ x >> 13) * 0xC2B2AE35 & 2**32 - 1
        return x ^ x >> 16

    found = stays(torch.tensor(SEED), 0.3, 5, 7, first=100)
    for event in range(5):
        for column in range(7):
            bits = mixed(mixed(100 + event ^ SEED)) ^ mixed(mixed(column ^ SEED >> 32) + 0x9E3779B9)
            assert bool(found[event, column]) is (mixed(bits) >= round(0.3 * 2**32))


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, case, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, exact = run(name, case, tensors), run("reference", case, tensors, torch.float64)
    assert actual[0].dtype == case.result(dtype)
    assert [grad.dtype for grad in actual[1:]] == [dtype] * len(tensors)
    for i, (found, right, plain) in enumerate(zip(actual, exact, plainly(case, tensors), strict=True)):
        if found.dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plain, gradient=i > 0, name=("output", "x", "gate")[i])


@every_device
@every_implementation
def test_the_same_inputs_give_the_same_bits_and_a_seed_as_tensor_too(name, device):
    case = NAMED["columns"]
    usable(name, case, torch.float32, device)
    tensors = case.tensors(device=device)
    first, second = run(name, case, tensors), run(name, case, tensors)
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))
    seed = torch.tensor([SEED], device=device)
    assert torch.equal(first[0], norm_gate(*tensors, dropout=case.dropout, seed=seed, implementation=name))
    assert not torch.equal(first[0], norm_gate(*tensors, dropout=case.dropout, seed=seed + 1, implementation=name))
    assert not torch.equal(first[0], norm_gate(*tensors, dropout=case.dropout, seed=SEED ^ 1 << 33,
                                               implementation=name))  # both halves of a seed count


@every_device
@every_implementation
def test_a_seed_counted_up_before_the_backward_pass_changes_nothing(name, device):
    case = NAMED["columns"]
    usable(name, case, torch.float32, device)
    x, gate = (each.requires_grad_() for each in case.tensors(device=device))
    seed = torch.tensor(SEED, device=device)
    out = norm_gate(x, gate, dropout=0.5, seed=seed, implementation=name)
    seed += 1
    grad, = torch.autograd.grad(out.sum(), gate)
    assert torch.equal(grad == 0, out == 0)


@every_device
@every_implementation
def test_an_event_depends_on_nothing_but_itself_and_its_place(name, device):
    case = NAMED["width 50"]
    usable(name, case, torch.float32, device)
    x, gate = case.tensors(device=device)
    whole = norm_gate(x, gate, dropout=0.2, seed=3, implementation=name)
    other = x.clone()
    other[40:] = math.nan
    assert torch.equal(norm_gate(other, gate, dropout=0.2, seed=3, implementation=name)[:40], whole[:40])
    assert torch.equal(norm_gate(x[:40], gate[:40], dropout=0.2, seed=3, implementation=name), whole[:40])


@every_device
@every_implementation
def test_any_strides(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    case = Case("", 12, 32)
    x, gate = case.tensors(device=device)
    plain = run(name, case, (x, gate))
    for odd in ((x.T.contiguous().T, gate), (x, torch.stack([gate, gate], -1)[..., 0]),
                (x, gate[:1].expand(12, 32))):
        expected = plain if torch.equal(odd[1], gate) else run(name, case, tuple(each.contiguous() for each in odd))
        leaves = [each.detach().requires_grad_() for each in odd]
        out = norm_gate(*leaves, implementation=name)
        torch.testing.assert_close(with_gradients(out, leaves, torch.float32), expected, rtol=1e-6, atol=1e-6)


@every_device
@every_implementation
def test_gradients_of_one_of_the_two(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    x, gate = Case("", 12, 32).tensors(device=device)
    both = run(name, Case("", 12, 32), (x, gate))
    for at, leaf in enumerate((x, gate)):
        leaves = [each.detach().requires_grad_(each is leaf) for each in (x, gate)]
        out = norm_gate(*leaves, implementation=name)
        torch.testing.assert_close(with_gradients(out, [leaves[at]], torch.float32)[1], both[1 + at])


@every_device
@every_implementation
def test_x_may_be_its_own_gate(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    x = Case("", 12, 32).tensors(device=device)[0].requires_grad_()
    exact = x.detach().double().requires_grad_()
    for leaf, chosen in ((x, name), (exact, "reference")):
        norm_gate(leaf, leaf, implementation=chosen).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 40), st.integers(1, 70), st.sampled_from((1, 2, 3)), st.booleans(), st.booleans(),
       st.sampled_from((0.0, 0.4)))
@pytest.mark.parametrize("name", ["cpu"])
def test_any_call_on_the_cpu(name, events, width, groups, gated, packed, dropout):
    case = Case("", events, width * groups, groups, gated, dropout, packed=packed)
    tensors = case.tensors(torch.float64)
    torch.testing.assert_close(run(name, case, tensors), run("reference", case, tensors, torch.float64),
                               rtol=1e-9, atol=1e-9)


# --- operators ---


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "no events", "columns", "no gate, dropped", "groups", "to half precision")], ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case, name, device):
    x, gate = (*(each.requires_grad_() for each in case.tensors(device=device)), None)[:2]
    seed = torch.tensor(SEED, device=device) if case.dropout else None
    operator = getattr(torch.ops.serrate, f"norm_gate_{name}").default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, (x, gate, seed, case.groups, case.eps, case.dropout, case.result(x.dtype)),
                          test_utils=tests)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_numbers_of_events(name, device):
    def loss(x: Tensor, gate: Tensor) -> Tensor:
        return (norm_gate(x * 2, gate, dropout=0.3, seed=5, implementation=name) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for events in (5, 12, 700):
            leaves = [each.requires_grad_() for each in Case("", events, 32).tensors(device=device)]
            eager = torch.autograd.grad(loss(*leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), eager)


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_second_derivative_is_refused(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    x, gate = (each.requires_grad_() for each in Case("", 5, 8).tensors(device=device))
    first, = torch.autograd.grad(norm_gate(x, gate, implementation=name).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), x)


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_events_and_gates_alone_are_kept(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    x, gate = (each.requires_grad_() for each in Case("", 50, 32).tensors(device=device))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        norm_gate(x, gate, dropout=0.2, implementation=name)
    places = {each.untyped_storage().data_ptr() for each in kept if each.numel() > 1}
    assert places == {x.untyped_storage().data_ptr(), gate.untyped_storage().data_ptr()}


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_events_changed_before_the_backward_pass_are_refused(name, device):
    usable(name, NAMED["width 64"], torch.float32, device)
    x, gate = Case("", 5, 8).tensors(device=device)
    out = norm_gate(x, gate.requires_grad_(), implementation=name)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- the choice and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), torch.float32, torch.float32, 64)
    choice = choose("norm_gate", call)
    assert choice.implementation.name in ("cpu", "triton")  # the latter under its interpreter
    on_gpu = call._replace(device=torch.device("cuda"))
    assert choose("norm_gate", on_gpu._replace(dtype=torch.float64)).implementation.name == "reference"
    assert choose("norm_gate", on_gpu._replace(width=8193)).implementation.name == "reference"
    assert choose("norm_gate", on_gpu._replace(result=torch.float64)).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.randn(3, 9000, dtype=torch.float64)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        norm_gate(x, x, implementation="triton")


X = torch.ones(3, 6)


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((torch.ones(3), None), {}, "x: expected shape (T, E) with E >= 1, got (3,)"),
    ((torch.ones(3, 0), None), {}, "x: expected shape (T, E) with E >= 1, got (3, 0)"),
    ((X.int(), None), {}, "x: expected a floating-point dtype, got torch.int32"),
    ((X, torch.ones(3, 5)), {}, "gate: expected shape (3, 6), as x, got (3, 5)"),
    ((X, X.double()), {}, "gate: expected torch.float32, as x, got torch.float64"),
    ((X, X.to("meta")), {}, "gate: expected a tensor on cpu, as x, got meta"),
    ((X, X), {"groups": 4}, "groups: expected a divisor of width 6, got 4"),
    ((X, X), {"groups": 0}, "groups: expected a divisor of width 6, got 0"),
    ((X, X), {"eps": 0.0}, "eps: expected a finite number above 0, got 0.0"),
    ((X, X), {"eps": math.nan}, "eps: expected a finite number above 0, got nan"),
    ((X, X), {"dropout": 1.0}, "dropout: expected a number from 0 to below 1, got 1.0"),
    ((X, X), {"dtype": torch.int8}, "dtype: expected a floating-point dtype, got torch.int8"),
    ((X, X), {"dropout": 0.1, "seed": torch.ones(2).long()},
     "seed: expected an int, or one int64 on cpu, got (2,) torch.int64 on cpu"),
    ((X, X), {"dropout": 0.1, "seed": torch.ones(())},
     "seed: expected an int, or one int64 on cpu, got () torch.float32 on cpu"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, options, message):
    with pytest.raises(InvalidArgument) as caught:
        norm_gate(*arguments, **options)
    assert str(caught.value) == message

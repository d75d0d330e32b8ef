"""The suite of the target unit's first layer: every implementation, on every named case, against the float64 oracle."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops import implementations
from serrate.ops.select import choose
from serrate.ops.target_unit import Call, Reading, target_unit
from serrate.ops.target_unit.cases import CASES, WORKLOADS, Case
from serrate.ops.target_unit.reference import pairs
from serrate.testing import assert_within_budget
from serrate.testing.strategies import lengths as row_lengths

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("output", "q", "k", "weight", "bias")

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("target_unit")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve."""
    call = Call(torch.device(device), dtype)
    reason = next(each for each in implementations("target_unit") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def compute(case: Case, leaves: list[Tensor], name: str | None) -> Tensor:
    offsets, rows = case.where(leaves[0].device.type)
    return target_unit(*leaves[:3], (*leaves, None)[3], offsets, rows=rows, implementation=name,
                       num_events=None if rows is None else case.read)


def plain(case: Case, leaves: list[Tensor]) -> Tensor:
    """Return the same by plain torch, the features in the dtype of the tensors."""
    q, k, weight, bias = (*leaves, None)[:4]
    every = range(len(q)) if case.rows is None else case.rows
    begins = case.where()[0].tolist()
    targets = [m for m, row in enumerate(every) for _ in range(case.lengths[row])]
    events = [begins[row] + i for row in every for i in range(case.lengths[row])]
    q, k = q[torch.tensor(targets, dtype=torch.long)], k[torch.tensor(events, dtype=torch.long)]
    out = torch.cat([q, k, q - k, q * k], 1) @ weight
    return out if bias is None else out + bias


def run(case: Case, tensors: tuple[Tensor, ...], name: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradients by an implementation, or by plain torch, of the tensors in a dtype."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]  # strides are kept
    out = plain(case, leaves) if name == "plain" else compute(case, leaves, name)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, tensors[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]


# --- the oracle ---


def test_by_hand():
    q, k = torch.tensor([[2.0], [5.0]]).double(), torch.tensor([[3.0], [4.0], [7.0]]).double()
    weight = torch.tensor([[1.0], [10.0], [100.0], [1000.0]]).double()
    offsets, bias = torch.tensor([0, 2, 3]), torch.tensor([0.5]).double()
    out = target_unit(q, k, weight, bias, offsets, implementation="reference")
    assert out.tolist() == [[2 + 30 - 100 + 6000 + 0.5], [2 + 40 - 200 + 8000 + 0.5], [5 + 70 - 200 + 35000 + 0.5]]
    # the first target reads the second history, the second one the first
    out = target_unit(q, k, weight, None, offsets, rows=torch.tensor([1, 0]), implementation="reference")
    assert out.tolist() == [[2 + 70 - 500 + 14000], [5 + 30 + 200 + 15000], [5 + 40 + 100 + 20000]]


def test_what_targets_read():
    reading = Reading(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 1, 0, 2]), torch.tensor([0, 3, 3, 5, 8]), 8)
    targets, events = pairs(reading)
    assert targets.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    assert events.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def test_gradients_of_the_oracle():
    case = Case("", (2, 0, 1), (2, 0, 0), 2, 3)
    leaves = [x.requires_grad_() for x in case.tensors(torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: compute(case, list(x), "reference"), leaves)


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, rough = run(case, tensors, name), run(case, tensors, "plain")
    exact = run(case, tensors, "reference", torch.float64)
    assert [x.dtype for x in actual] == [dtype] * (1 + len(tensors))
    for i, (found, right, plainly) in enumerate(zip(actual, exact, rough, strict=True)):
        if dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plainly, gradient=i > 0, name=NAMES[i])


@every_device
def test_programs_of_triton_take_targets_in_turns(device, monkeypatch):
    usable("triton", torch.float16, device)
    gradients = import_module("serrate.ops.target_unit.triton.gradients")
    case = NAMED["many tiny"]
    tensors = case.tensors(torch.float16, device)
    expected = run(case, tensors, "triton")
    monkeypatch.setattr(gradients, "_PARTS", 1)
    torch.testing.assert_close(run(case, tensors, "triton"), expected, rtol=2e-3, atol=2e-3)


@every_device
def test_the_gradient_of_the_bias_is_rounded_once(device):
    """A sum over all events: by targets, and then over these, it lost what a small sum of large ones has."""
    usable("triton", torch.float32, device)
    case = Case("", (300, 0, 150, 220), width=1, columns=7)
    *_, found = run(case, case.tensors(device=device), "triton")
    incoming = torch.randn(case.read, 7, generator=torch.Generator().manual_seed(9))
    assert torch.equal(found.cpu(), incoming.double().sum(0).float())


@every_device
@every_implementation
def test_the_same_inputs_give_the_same_bits(name, device):
    usable(name, torch.float32, device)
    case = NAMED["shared, columns"]
    tensors = case.tensors(device=device)
    assert all(torch.equal(*both) for both in zip(run(case, tensors, name), run(case, tensors, name), strict=True))


@every_device
@every_implementation
def test_a_target_depends_on_nothing_but_itself_and_its_history(name, device):
    usable(name, torch.float32, device)
    case = NAMED["shared"]
    q, k, weight, bias = case.tensors(device=device)
    whole = compute(case, [q, k, weight, bias], name)
    others, rest = q.clone(), k.clone()
    others[[0, 2, 3, 4, 5]], rest[:23], rest[55:] = torch.nan, torch.nan, torch.nan
    found = compute(case, [others, rest, weight, bias], name)
    assert torch.equal(found[5:37], whole[5:37])  # of target 1, which reads row 3, the events 23 to 55


@every_device
@every_implementation
def test_a_shared_history_is_as_good_as_a_copy_for_each_target(name, device):
    usable(name, torch.float32, device)
    case = NAMED["shared"]
    tensors = case.tensors(device=device)
    copied = Case("", tuple(case.lengths[row] for row in case.rows))
    places = torch.cat([torch.arange(sum(case.lengths[:row]), sum(case.lengths[:row + 1])) for row in case.rows])
    q, k, weight, bias = (x.detach().requires_grad_() for x in tensors)
    out = compute(copied, [q, k[places.to(device)], weight, bias], name)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(device)
    grads = torch.autograd.grad(out, (q, k, weight, bias), incoming)
    torch.testing.assert_close([out.detach(), *grads], run(case, tensors, name), rtol=1e-4, atol=1e-4)


@every_device
@every_implementation
def test_gradients_of_some_and_twice_through_one_graph(name, device):
    usable(name, torch.float32, device)
    case = NAMED["shared"]
    tensors = case.tensors(device=device)
    expected = run(case, tensors, name)[1:]
    for at in range(len(tensors)):
        leaves = [x.detach().requires_grad_(i == at) for i, x in enumerate(tensors)]
        out = compute(case, leaves, name)
        incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(device)
        for again in (True, False):
            grad, = torch.autograd.grad(out, leaves[at], incoming, retain_graph=again)
            torch.testing.assert_close(grad, expected[at], rtol=1e-5, atol=1e-5)


@every_device
@pytest.mark.parametrize("name", ["triton"])
def test_a_second_derivative_is_refused(name, device):
    usable(name, torch.float32, device)
    case = NAMED["shared"]
    leaves = [x.requires_grad_() for x in case.tensors(device=device)]
    for at in (0, 1):
        first, = torch.autograd.grad(compute(case, leaves, name).square().sum(), leaves[at], create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            torch.autograd.grad(first.sum(), leaves[1 - at])


@pytest.mark.parametrize("name", ["triton"])
def test_a_forward_mode_derivative_is_refused(name):
    usable(name, torch.float32, "cpu")
    q, *others = NAMED["ordinary"].tensors()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="target_unit has no forward-mode derivative"):
            compute(NAMED["ordinary"], [dual, *others], name)


@given(row_lengths(max_rows=5, max_length=9), st.lists(st.integers(0, 4), max_size=6) | st.none(), st.integers(1, 9),
       st.integers(1, 9), st.booleans(), st.booleans(), st.sampled_from((torch.int32, torch.int64)))
@pytest.mark.parametrize("name", ["cpu"])
def test_any_call_on_the_cpu(name, lengths, rows, width, columns, biased, packed, offsets_dtype):
    read = None if rows is None else tuple(row % len(lengths) for row in rows) if lengths else ()
    case = Case("", tuple(lengths), read, width, columns, biased, offsets_dtype, packed)
    tensors = case.tensors(torch.float64)
    torch.testing.assert_close(run(case, tensors, name), run(case, tensors, "reference"), rtol=1e-9, atol=1e-9)


# --- tracers ---


@pytest.mark.gpu
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "no rows", "all empty", "ordinary", "no bias", "no targets", "shared", "shared, columns", "shared, no bias")],
    ids=lambda case: case.name)
def test_the_operator_is_well_behaved(case):
    q, k, weight, bias = (*(each.requires_grad_() for each in case.tensors(device="cuda")), None)[:4]
    offsets, rows = case.where("cuda")
    lengths = offsets.diff() if rows is None else offsets.diff()[rows]
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
    torch.library.opcheck(torch.ops.serrate.target_unit_triton.default,
                          (q, k, weight, bias, offsets, rows, ends, case.read), test_utils=(
        "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"))


@every_device
@pytest.mark.parametrize("case", [NAMED["ordinary"], NAMED["shared, columns"]], ids=lambda case: case.name)
def test_the_gradients_of_kernels_come_as_tracers_are_told(case, device):
    usable("triton", torch.float32, device)
    q, k, weight, _ = case.tensors(device=device)
    offsets, rows = case.where(device)
    ends = offsets_from_lengths(offsets.diff() if rows is None else offsets.diff()[rows])
    grad = torch.randn(case.read, weight.shape[1], device=device)
    for kind in ("events", "others"):
        torch.library.opcheck(getattr(torch.ops.serrate, f"target_unit_triton_{kind}").default,
                              (grad, q, k, weight, offsets, rows, ends), test_utils=("test_schema", "test_faketensor"))
    if rows is None:
        torch.library.opcheck(torch.ops.serrate.target_unit_triton_gradients.default,
                              (*(x.half() for x in (grad, q, k, weight)), offsets),
                              test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("name", "device"), [("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shared", [False, True])
def test_compiles_whole_and_once_for_all_numbers_of_events(name, device, shared):
    def loss(q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor, rows: Tensor, read: int) -> Tensor:
        options = {"rows": rows, "num_events": read} if shared else {}
        return (target_unit(q * 2, k, weight, None, offsets, implementation=name, **options) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths, rows in (((5, 0, 3), (2, 0)), ((12, 1, 4, 2), (0, 0, 3)), ((0, 70, 9, 3, 2), (1, 2, 3, 4, 0, 1))):
            case = Case("", lengths, rows if shared else None, biased=False)
            leaves = [each.requires_grad_() for each in case.tensors(device=device)]
            where = case.where(device)[0], torch.tensor(rows, device=device), case.read
            eager = torch.autograd.grad(loss(*leaves, *where), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, *where), leaves), eager)


# --- the choice and errors ---


def test_the_automatic_choice():
    assert choose("target_unit", Call(torch.device("cpu"), torch.float32)).implementation.name in ("cpu", "triton")
    assert choose("target_unit", Call(torch.device("cuda"), torch.float64)).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        target_unit(x[:1], x, torch.ones(8, 2).double(), None, torch.tensor([0, 3]), implementation="triton")


def test_the_number_of_events_may_be_left_out_on_a_cpu():
    case = NAMED["shared"]
    q, k, weight, bias = case.tensors()
    offsets, rows = case.where()
    out = target_unit(q, k, weight, bias, offsets, rows=rows)
    assert out.shape == (case.read, 10)
    torch.testing.assert_close(out, compute(case, [q, k, weight, bias], None))


Q, K, W, BIAS, OFFSETS = torch.ones(2, 3), torch.ones(4, 3), torch.ones(12, 5), torch.ones(5), torch.tensor([0, 1, 4])
ROWS = torch.tensor([0, 1])


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((Q[0], K, W, BIAS, OFFSETS), {}, "q: expected shape (M, D) with D >= 1, got (3,)"),
    ((Q.int(), K, W, BIAS, OFFSETS), {}, "q: expected a floating-point dtype, got torch.int32"),
    ((Q, K[:, :2], W, BIAS, OFFSETS), {}, "k: expected shape (T, 3), got (4, 2)"),
    ((Q, K.double(), W, BIAS, OFFSETS), {}, "k: expected torch.float32, as q, got torch.float64"),
    ((Q, K, W[:9], BIAS, OFFSETS), {}, "weight: expected shape (12, F) with F >= 1, got (9, 5)"),
    ((Q, K, W, BIAS[:2], OFFSETS), {}, "bias: expected shape (5,), got (2,)"),
    ((Q, K, W, BIAS.to("meta"), OFFSETS), {}, "bias: expected a tensor on cpu, as q, got meta"),
    ((Q, K, W, None, OFFSETS.float()), {}, "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) "
                                           "torch.float32"),
    ((Q, K, W, None, OFFSETS.to("meta")), {}, "offsets: expected a tensor on cpu, as q, got meta"),
    ((Q[:1], K, W, None, OFFSETS), {}, "q: expected 2 targets, as offsets has rows, or rows, got 1"),
    ((Q, K, W, None, OFFSETS), {"rows": ROWS[:1]}, "rows: expected shape (2,), dtype int32 or int64, got (1,) "
                                                   "torch.int64"),
    ((Q, K, W, None, OFFSETS), {"rows": ROWS.to("meta")}, "rows: expected a tensor on cpu, as q, got meta"),
    ((Q, K, W, None, OFFSETS), {"num_events": 3}, "num_events: expected 4, or None, without rows, got 3"),
    ((Q, K, W, None, OFFSETS), {"rows": ROWS, "num_events": 3},
     "num_events: expected 4, the events that the targets read, got 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, options, message):
    with pytest.raises(InvalidArgument) as caught:
        target_unit(*arguments, **options)
    assert str(caught.value) == message


def test_the_number_of_events_is_needed_where_it_cannot_be_read():
    arguments = [x.to("meta") for x in (Q, K, W)]
    with pytest.raises(InvalidArgument, match="num_events: expected a number, as rows cannot be read here"):
        target_unit(*arguments, None, OFFSETS.to("meta"), rows=ROWS.to("meta"))


def test_workloads_tell_what_is_read():
    assert len(WORKLOADS) == 34
    assert NAMED["shared"].read == 5 + 32 + 32 + 17 + 32 + 5
    shared = WORKLOADS["candidates, bf16"]
    assert shared.read == 100 * sum(shared.lengths)

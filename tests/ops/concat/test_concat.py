"""The suite of concatenation, split and padding: every implementation, on every named case, exactly as the oracle."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import JaggedTensor, concatenate_events, from_lists, split_events
from serrate.jagged import from_padded as edited_from_padded
from serrate.jagged import to_padded as edited_to_padded
from serrate.ops import implementations
from serrate.ops.concat import Call, concatenate, from_padded, split, to_padded
from serrate.ops.concat.cases import CASES, Case
from serrate.ops.select import choose
from serrate.testing import jagged_tensors

NAMED = {case.name: case for case in CASES}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool,
          torch.complex64)

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("concatenate")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_side = pytest.mark.parametrize("side", ["left", "right"])


def usable(name: str, device: str, dtype: torch.dtype = torch.float32, parts: int = 1) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the call."""
    call = Call(torch.device(device), dtype, parts)
    reason = next(each for each in implementations("concatenate") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same in every bit, shape and dtype."""
    return found.dtype == expected.dtype and torch.equal(found, expected)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors as they lie in memory, asking for gradients where their dtype has them."""
    return [x.detach().requires_grad_(x.dtype.is_floating_point) for x in tensors]


def gradients(out: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """Return gradients for small integers that come in, which add up without rounding; none of other dtypes."""
    if not out.dtype.is_floating_point:
        return []
    incoming = torch.randint(-9, 9, out.shape, generator=torch.Generator().manual_seed(3)).to(out.device, out.dtype)
    return list(torch.autograd.grad(out, wanted, incoming, materialize_grads=True))


def events_of(case: Case) -> list[int]:
    return [sum(part) for part in case.parts if not isinstance(part, int)]


# --- the oracle ---


def test_by_hand():
    prefix = torch.tensor([[9], [8]])
    values, offsets = concatenate([prefix, torch.tensor([1, 2, 3]), torch.tensor([4])],
                                  [None, torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1])], implementation="reference")
    assert (values.tolist(), offsets.tolist()) == ([9, 1, 4, 8, 2, 3], [0, 3, 6])
    parts = split(values, [1, torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1])], implementation="reference")
    assert [part.tolist() for part in parts] == [[[9], [8]], [1, 2, 3], [4]]
    x, rows = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 3, 3, 4])
    for length, side, expected in (
            (3, "right", [[1, 2, 3], [7, 7, 7], [4, 7, 7]]), (3, "left", [[1, 2, 3], [7, 7, 7], [7, 7, 4]]),
            (2, "right", [[1, 2], [7, 7], [4, 7]]), (2, "left", [[2, 3], [7, 7], [7, 4]])):
        padded = to_padded(x, rows, length, fill=7, side=side, implementation="reference")
        assert padded.tolist() == expected
    assert from_padded(padded, rows, implementation="reference").tolist() == [2, 3, 0, 7]
    assert from_padded(padded, rows, side="left", implementation="reference").tolist() == [0, 2, 3, 4]


# --- every implementation ---


@every_device
@every_dtype
@every_case
@every_implementation
def test_named_cases_concatenate_and_split_exactly(name, case, dtype, device):
    usable(name, device, dtype, len(case.parts))
    tensors, offsets = case.tensors(dtype, device), case.offsets(device)
    described = [part if isinstance(part, int) else own for part, own in zip(case.parts, offsets, strict=True)]
    found, expected = [], []
    for results, one in ((found, name), (expected, "reference")):
        parts = leaves(tensors)
        values, ends = concatenate(parts, offsets, implementation=one)
        x = leaves([values])[0]
        again = split(x, described, num_events=events_of(case), implementation=one)
        flat = torch.cat([part.reshape(-1) for part in again])
        results += [values.detach(), ends, *(part.detach() for part in again), *gradients(values, parts),
                    *gradients(flat, [x])]
    assert all(same(*both) for both in zip(found, expected, strict=True))
    assert all(same(part, given) for part, given in zip(found[2:2 + len(tensors)], tensors, strict=True))


@every_device
@every_dtype
@every_side
@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case.parts[-1], int)],
                         ids=lambda case: case.name)
@every_implementation
def test_named_cases_are_padded_and_taken_back_exactly(name, case, side, dtype, device):
    usable(name, device, dtype)
    given, offsets, lengths = case.tensors(dtype, device)[-1], case.offsets(device)[-1], case.parts[-1]
    longest = max(lengths, default=2)
    for length in (longest, longest + 3, longest // 2, 0):
        found, expected = [], []
        for results, one in ((found, name), (expected, "reference")):
            x, = leaves([given])
            padded = to_padded(x, offsets, length, fill=1, side=side, implementation=one)
            y, = leaves([padded])
            taken = from_padded(y, offsets, num_events=sum(lengths), side=side, implementation=one)
            results += [padded.detach(), taken.detach(), *gradients(padded, [x]), *gradients(taken, [y])]
        assert all(same(*both) for both in zip(found, expected, strict=True))
        assert length < longest or same(found[1], given)


@every_device
@every_implementation
@pytest.mark.parametrize("fill", [-1.5, float("inf"), float("nan"), 2.0**-20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_padding_holds_what_it_is_told(name, fill, dtype, device):
    usable(name, device, dtype)
    padded = to_padded(torch.zeros(3, 5, dtype=dtype, device=device), torch.tensor([0, 1, 3], device=device), 2,
                       fill=fill, implementation=name)
    expected = torch.full((5,), fill, dtype=dtype, device=device)
    torch.testing.assert_close(padded[0, 1], expected, rtol=0, atol=0, equal_nan=True)
    assert not padded[1].any()


@every_device
@every_implementation
def test_whole_numbers_pad_exactly(name, device):
    usable(name, device, torch.int64)
    padded = to_padded(torch.ones(1, dtype=torch.int64, device=device), torch.tensor([0, 1], device=device), 2,
                       fill=2**62 + 1, implementation=name)
    assert padded.tolist() == [[1, 2**62 + 1]]


@every_implementation
@given(st.data())
def test_any_rows_are_joined_as_lists_are(name, data):
    usable(name, "cpu")
    if name == "triton":
        pytest.skip("slow under the interpreter, which the named cases go through")
    first = data.draw(jagged_tensors(inner=((), (2,)), min_rows=1))
    second = data.draw(jagged_tensors(inner=(first.values.shape[1:],), min_rows=len(first), max_rows=len(first)))
    dense = torch.randn(len(first), data.draw(st.integers(0, 3)), *first.values.shape[1:])
    parts = [(first.values, first.offsets), (dense, None), (second.values, second.offsets)]
    order = data.draw(st.permutations(range(3)))
    values, offsets = concatenate([parts[i][0] for i in order], [parts[i][1] for i in order], implementation=name)
    lists = [first.tolist(), dense.tolist(), second.tolist()]
    assert JaggedTensor(values, offsets).tolist() == [
        [event for i in order for event in lists[i][row]] for row in range(len(first))]


@given(jagged_tensors(), st.data())
def test_the_contract_is_that_of_the_edits_of_jagged_tensors(x, data):
    lengths = torch.tensor([data.draw(st.integers(0, length)) for length in x.lengths.tolist()], dtype=torch.int64)
    heads, tails = split_events(x, lengths)
    joined = concatenate_events([heads, tails])
    values, offsets = concatenate([heads.values, tails.values], [heads.offsets, tails.offsets])
    assert torch.equal(values, joined.values)
    assert same(offsets.long(), joined.offsets.long())
    for part, expected in zip(split(values, [heads.offsets, tails.offsets]), (heads, tails), strict=True):
        assert same(part, expected.values)
    assert x.longest is not None
    for side in ("left", "right"):
        padded, counts = edited_to_padded(x, 5, side=side)
        assert same(to_padded(x.values, x.offsets, x.longest, fill=5, side=side), padded)
        assert same(from_padded(padded, x.offsets, side=side), edited_from_padded(padded, counts, side=side).values)


@every_device
@every_implementation
def test_any_strides(name, device):
    usable(name, device, parts=2)
    offsets = torch.tensor([[0, 9], [3, 9], [3, 9], [7, 9]], device=device)[:, 0]
    wide, dense = torch.randn(8, 3, 10, device=device), torch.randn(3, 5, 2, 4, device=device)
    for x in (wide[:7, 1, :8].unflatten(1, (2, 4)), wide.permute(2, 1, 0)[:7, :2, :4], wide[:7, 1:, 3:7],
              wide[:1, :2, :4].expand(7, 2, 4), wide[:7, :2, 1:9:2]):
        for part in (dense, dense.transpose(0, 2).contiguous().transpose(0, 2), dense[:, :1].expand(3, 5, 2, 4),
                     dense[:, ::2]):
            found, plain = (concatenate(each, [offsets, None], implementation=name)[0]
                            for each in ([x, part], [x.contiguous(), part.contiguous()]))
            assert torch.equal(found, plain)
            found, plain = (from_padded(each, offsets, num_events=7, implementation=name)
                            for each in (part, part.contiguous()))
            assert torch.equal(found, plain)
        found, plain = (to_padded(each, offsets, 4, implementation=name) for each in (x, x.contiguous()))
        assert torch.equal(found, plain)
        dense_offsets = torch.tensor([0, 1, 1, 1], device=device)
        found, plain = (split(each, [dense_offsets, 2], num_events=[1], implementation=name)
                        for each in (x, x.contiguous()))
        assert all(map(torch.equal, found, plain))


@every_device
@every_implementation
def test_gradients_of_some_parts_and_of_parts_used_twice(name, device):
    usable(name, device, parts=3)
    case = NAMED["both ends"]
    tensors, offsets = case.tensors(device=device), case.offsets(device)
    parts = leaves(tensors)
    every = gradients(concatenate(parts, offsets, implementation=name)[0], parts)
    for wanted in range(3):
        some = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(tensors)]
        out = concatenate(some, offsets, implementation=name)[0]
        assert torch.equal(gradients(out, [some[wanted]])[0], every[wanted])
    x = parts[1]
    twice = concatenate([x, x], [offsets[1], offsets[1]], implementation=name)[0]
    grad, = torch.autograd.grad(twice.sum() + (3 * twice).sum(), x)
    assert bool((grad == 8).all())


@every_device
@every_implementation
def test_parts_of_a_split_that_nobody_uses_get_no_gradient(name, device):
    usable(name, device, parts=2)
    x = torch.randn(7, 2, device=device, requires_grad=True)
    offsets = torch.tensor([0, 1, 5], device=device)
    _, tail = split(x, [1, offsets], num_events=[5], implementation=name)
    grad, = torch.autograd.grad(tail.sum(), x)
    assert grad[:, 0].tolist() == [0, 1, 0, 1, 1, 1, 1]


@every_device
@every_implementation
def test_any_derivative(name, device):
    usable(name, device, torch.float64, 2)
    offsets = torch.tensor([0, 3, 3], device=device)
    x, dense = (torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)
                for shape in ((3, 1), (2, 1, 1)))

    def every(x: Tensor, dense: Tensor) -> Tensor:
        values, _ = concatenate([dense, x], [None, offsets], implementation=name)
        head, tail = split(values**3, [1, offsets], num_events=[3], implementation=name)
        padded = to_padded(tail**2, offsets, 2, side="left", implementation=name)
        return from_padded(padded**2, offsets, num_events=3, implementation=name).sum() + (head**2).sum()

    assert torch.autograd.gradcheck(every, (x, dense))
    assert torch.autograd.gradgradcheck(every, (x, dense))


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_forward_mode_derivative_is_refused(name, device):
    usable(name, device)
    x, offsets = torch.randn(3, 2, device=device), torch.tensor([0, 1, 3], device=device)
    for operation in (lambda x: concatenate([x], [offsets], implementation=name)[0],
                      lambda x: to_padded(x, offsets, 2, implementation=name)):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            torch.func.jvp(operation, (x,), (x,))


@every_device
@every_implementation
def test_the_offsets_are_as_wide_as_they_must_be(name, device):
    usable(name, device, parts=2)
    narrow = torch.tensor([0, 2], dtype=torch.int32, device=device)
    x = torch.randn(2, device=device)
    for second, expected in ((narrow, torch.int32), (narrow.long(), torch.int64), (None, torch.int32)):
        part = x if second is not None else x[None]
        _, offsets = concatenate([x, part], [narrow, second], implementation=name)
        assert same(offsets, torch.tensor([0, 4], dtype=expected, device=device))


@every_device
def test_triton_leaves_events_past_the_last_row_there(device, monkeypatch):
    """As a captured graph has them whose rows become shorter; on a CPU such offsets are refused."""
    usable("triton", device, parts=2)
    monkeypatch.setattr("serrate.ops.concat.api.readable", lambda _: False)
    x, y = (torch.randn(length, 3, device=device) for length in (7, 2))
    first, second = torch.tensor([[0, 2, 5], [0, 1, 2]], device=device)
    values, ends = concatenate([x, y], [first, second], implementation="triton")
    assert torch.equal(values, torch.cat([x[:2], y[:1], x[2:5], y[1:], x[5:]]))
    assert ends.tolist() == [0, 3, 7]
    again = split(values, [first, second], num_events=[7], implementation="triton")
    assert all(map(torch.equal, again, (x, y)))
    for side, padding in (("right", [False, True]), ("left", [True, False])):
        padded = to_padded(x, first, 3, fill=9, side=side, implementation="triton")
        assert (padded[0, :, 0] == 9).tolist() == [padding[0], False, padding[1]]
        assert torch.equal(padded[padded != 9].view(-1, 3), x[:5])
        taken = from_padded(padded, first, num_events=7, side=side, implementation="triton")
        assert torch.equal(taken, torch.cat([x[:5], 0 * x[:2]]))


# --- custom operators ---


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@pytest.mark.parametrize("case", [NAMED[name] for name in ("no rows", "both ends", "heads", "columns", "one part")],
                         ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case, name, device):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    parts, offsets = leaves(case.tensors(device=device)), case.offsets(device)
    lengths = [part if isinstance(part, int) else -1 for part in case.parts]
    jagged = [own for own in offsets if own is not None]
    values = concatenate(parts, offsets)[0].detach().requires_grad_()
    x = parts[lengths.index(-1)]
    padded = to_padded(x, jagged[0], 3).detach().requires_grad_()
    for operator, arguments in (
            ("concatenate", (parts, jagged, lengths)), ("split", (values, jagged, lengths, events_of(case))),
            ("to_padded", (x, jagged[0], 3, 0.5, True)), ("from_padded", (padded, jagged[0], x.shape[0], False))):
        operator = getattr(torch.ops.serrate, f"{operator}_{name}").default
        torch.library.opcheck(operator, arguments, test_utils=tests)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_lengths(name, device):
    def loss(dense: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
        values, ends = concatenate([dense, x * 2], [None, offsets], implementation=name)
        _, tail = split(values, [dense.shape[1], offsets], num_events=[x.shape[0]], implementation=name)
        padded = to_padded(values, ends, 6, implementation=name)
        return (from_padded(padded, offsets, num_events=x.shape[0], implementation=name) * tail).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((2, 3, 0), (5, 7), (100, 3, 8, 1)):
            offsets = torch.tensor([0, *accumulate(lengths)], device=device)
            given = [torch.randn(*shape, device=device, requires_grad=True)
                     for shape in ((len(lengths), 2, 11), (sum(lengths), 11))]
            eager = torch.autograd.grad(loss(*given, offsets), given)
            torch.testing.assert_close(torch.autograd.grad(compiled(*given, offsets), given), eager)


# --- the choice and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), torch.float32, 2)
    assert choose("concatenate", call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
    on_gpu = call._replace(device=torch.device("cuda"))
    assert choose("split", on_gpu._replace(dtype=torch.complex128)).implementation.name == "reference"
    assert choose("split", on_gpu._replace(parts=17)).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.randn(3, 4, dtype=torch.complex128)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        to_padded(x, torch.tensor([0, 3]), 3, implementation="triton")


X, O = torch.ones(3, 2), torch.tensor([0, 1, 3])  # noqa: E741


@pytest.mark.parametrize(("call", "message"), [
    (lambda: concatenate([], []), "offsets: expected an entry for each of one or more parts, got 0 for 0"),
    (lambda: concatenate([X], [O, O]), "offsets: expected an entry for each of one or more parts, got 2 for 1"),
    (lambda: concatenate([X[None]], [None]),
     "offsets: expected at least one tensor of shape (B + 1,), with the same B in all, got None"),
    (lambda: concatenate([X, X], [O, torch.tensor([0, 3])]),
     "offsets: expected at least one tensor of shape (B + 1,), with the same B in all, got (3,), (2,)"),
    (lambda: concatenate([X], [O[None]]),
     "offsets: expected at least one tensor of shape (B + 1,), with the same B in all, got (1, 3)"),
    (lambda: concatenate([X, X], [O, None]), "parts[1]: expected shape (2, K, ...), as it has no offsets, got (3, 2)"),
    (lambda: concatenate([X, X[:, :1]], [O, O]),
     "parts[1]: expected events (2,) torch.float32, as parts[0], got events (1,) torch.float32"),
    (lambda: concatenate([X, X.double()], [O, O]),
     "parts[1]: expected events (2,) torch.float32, as parts[0], got events (2,) torch.float64"),
    (lambda: concatenate([X, X.to("meta")], [O, O]), "parts[1]: expected a tensor on cpu, as parts[0], got meta"),
    (lambda: concatenate([torch.ones(())], [O]), "parts[0]: expected shape (T, ...), got ()"),
    (lambda: concatenate([X], [O.float()]), "offsets[0]: expected dtype int32 or int64, got torch.float32"),
    (lambda: concatenate([X], [O.to("meta")]), "offsets[0]: expected a tensor on cpu, as the events, got meta"),
    (lambda: concatenate([X[:2]], [O]), "offsets[0]: expected a last entry of T = 2, got 3"),
    (lambda: split(X, [3]), "parts: expected at least one tensor of shape (B + 1,), with the same B in all, got None"),
    (lambda: split(X, [O, -1]), "parts[1]: expected a length of at least 0, got -1"),
    (lambda: split(X, [O, 1]), "x: expected as many events as its parts have together, got 3"),
    (lambda: split(X, [O], num_events=[2]), "num_events: expected [3], the last entries of the offsets, got [2]"),
    (lambda: to_padded(X, O, -1), "length: expected at least 0, got -1"),
    (lambda: to_padded(X, O, 3, side="top"), "side: expected 'left' or 'right', got 'top'"),
    (lambda: to_padded(X, O[:2], 3), "offsets: expected a last entry of T = 3, got 1"),
    (lambda: from_padded(X, O), "padded: expected shape (2, N, ...), got (3, 2)"),
    (lambda: from_padded(X[:2], O, num_events=4), "num_events: expected 3, the last entry of offsets, got 4"),
    (lambda: from_padded(X[:2].to("meta"), O.to("meta")),
     "num_events: expected a number, as offsets cannot be read here without waiting, got None"),
    (lambda: split(X.to("meta"), [O.to("meta"), O.to("meta")]),
     "num_events: expected 1 or 2 numbers, as offsets cannot be read here without waiting, got None"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message


def test_the_last_jagged_part_of_a_split_follows_from_the_others(monkeypatch):
    monkeypatch.setattr("serrate.ops.concat.api.readable", lambda _: False)  # as on an accelerator
    rows = from_lists([[1, 2, 3, 4, 5], [6, 7]]).values
    parts = split(rows, [1, torch.tensor([0, 2, 2]), torch.tensor([0, 2, 3])], num_events=[2])
    assert [part.tolist() for part in parts] == [[[1], [6]], [2, 3], [4, 5, 7]]

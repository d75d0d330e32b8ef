"""The suite of lookups: every implementation, on every named case, against the float64 oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument
from serrate.ops import implementations
from serrate.ops.lookup import Call, lookup
from serrate.ops.lookup.cases import CASES, Case
from serrate.testing import assert_within_budget

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("lookup")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    named = {each.name: each for each in implementations("lookup")}
    reason = named[name].unusable(Call(torch.device(device), dtype))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run(name: str, case: Case, tensors: tuple[Tensor, Tensor, Tensor | None],
        dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradient by an implementation, of the table in a dtype."""
    table, rows, offsets = tensors
    table = table.detach().to(dtype or table.dtype).requires_grad_()
    out = lookup(table, rows, how=case.how, offsets=offsets, implementation=name)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, tensors[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, table, grad.to(out.dtype))]


def added(grad: Tensor, rows: list[int], size: int) -> Tensor:
    """Return the gradient of the table one place after the other."""
    out = torch.zeros(size, grad.shape[1], dtype=grad.dtype)
    for place, row in enumerate(rows):
        out[row] += grad[place]
    return out


# --- the oracle ---


def test_by_hand():
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[0, 2], [2, 2]])
    assert lookup(table, rows)[1].tolist() == [[4, 40], [4, 40]]
    total = lookup(table, rows, how="sum")
    assert total.tolist() == [[5, 50], [8, 80]]
    grad, = torch.autograd.grad(total, table, torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
    assert grad.tolist() == [[1, 0], [0, 0], [1, 2]]
    ends = torch.tensor([0, 1, 1, 4])
    bags = lookup(table, rows.flatten(), how="mean", offsets=ends)
    assert bags.tolist() == [[1, 10], [0, 0], [4, 40]]
    assert lookup(table, rows.flatten(), how="sum", offsets=ends).tolist() == [[1, 10], [0, 0], [12, 120]]


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, exact, plain = (run(name, case, tensors), run("reference", case, tensors, torch.float64),
                            run("reference", case, tensors))
    for found, right, rough, gradient in zip(actual, exact, plain, (False, True), strict=True):
        assert found.dtype == dtype
        if dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, rough, gradient=gradient)


@every_device
@every_implementation
def test_the_same_inputs_give_the_same_bits_in_either_dtype_of_rows(name, device):
    usable(name, torch.float32, device)
    for case in (NAMED["sums"], NAMED["means of bags"]):
        table, rows, offsets = case.tensors(device=device)
        first = run(name, case, (table, rows, offsets))
        small = run(name, case, (table, rows.int(), None if offsets is None else offsets.int()))
        assert all(torch.equal(*both) for both in zip(first, run(name, case, (table, rows, offsets)), strict=True))
        assert all(torch.equal(*both) for both in zip(first, small, strict=True))


@every_device
@every_implementation
@settings(max_examples=30)
@given(data=st.data())
def test_gradients_are_what_places_are_given(name, device, data):
    usable(name, torch.float32, device)
    size = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=3))  # of runs of one row
    rows = [row for i, length in enumerate(lengths) for row in [i % size] * length]
    grad = torch.arange(2.0 * len(rows)).reshape(-1, 2) % 7
    table = torch.zeros(size, 2, device=device, requires_grad=True)
    out = lookup(table, torch.tensor(rows, dtype=torch.int64, device=device)[:, None], implementation=name)
    found, = torch.autograd.grad(out[:, 0], table, grad.to(device))
    assert torch.equal(found.cpu(), added(grad, rows, size))  # whole numbers, so in any order


# --- what does not fit ---

TABLE, ROWS = torch.zeros(3, 2), torch.tensor([[0, 2]])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: lookup(TABLE[0], ROWS), r"table: expected floating-point \(V, E\), got torch.float32 \(2,\)"),
    (lambda: lookup(TABLE.long(), ROWS), "table: expected floating-point"),
    (lambda: lookup(TABLE, ROWS, how="most"), "how: expected one of each, sum, mean"),
    (lambda: lookup(TABLE, ROWS, how="mean"), "offsets: expected given for means, not for each, got None"),
    (lambda: lookup(TABLE, ROWS[0], offsets=torch.tensor([0, 2])), "offsets: expected given for means, not for each"),
    (lambda: lookup(TABLE, ROWS[0]), r"rows: expected int32 or int64 of 2 axes, got torch.int64 \(2,\)"),
    (lambda: lookup(TABLE, ROWS.float()), "rows: expected int32 or int64 of 2 axes, got torch.float32"),
    (lambda: lookup(TABLE, ROWS.to("meta")), "rows: expected a tensor on cpu, as the table, got meta"),
    (lambda: lookup(TABLE, ROWS + 1), "rows: expected from 0 to below 3, got 1 to 3"),
    (lambda: lookup(TABLE, ROWS - 1), "rows: expected from 0 to below 3, got -1 to 1"),
])
def test_malformed_calls(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()

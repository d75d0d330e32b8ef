"""The suite of square blocks: every implementation and operation, on every named case, against the float64 oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.blocks import (
    Call,
    block_differences,
    block_matmul,
    block_multiply,
    block_offsets,
    block_products,
    block_softmax,
    from_padded_blocks,
    to_padded_blocks,
)
from serrate.ops.blocks.cases import CASES, OPERATIONS, Case, Operation
from serrate.ops.select import choose
from serrate.testing import assert_within_budget
from serrate.testing import lengths as drawn_lengths

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("block_products")])
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve tensors of a dtype."""
    call = Call(torch.device(device), dtype)
    reason = next(each for each in implementations("block_products") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run(name: str, operation: Operation, case: Case, tensors: list[Tensor],
        dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradients by an implementation, of the tensors in a dtype and, without one, as they are."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]  # strides are kept
    return with_gradients(operation.run(case, leaves, name), leaves, tensors[0].dtype)


def with_gradients(out: Tensor, leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradients that come in are random, rounded as those of the result in a dtype."""
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]


def plain_of_row(operation: str, *given: Tensor) -> Tensor:
    """Return what torch makes of one row, in its dtype: of `(L, H, D)`, `(L, L, H)`, `(L, H)` and squares `(L, L)`."""
    if operation == "products":
        return (given[0].transpose(0, 1) @ given[1].permute(1, 2, 0)).permute(1, 2, 0)
    if operation.startswith("matmul"):
        block = given[0].permute(2, 1, 0) if "transposed" in operation else given[0].permute(2, 0, 1)
        return (block @ given[1].transpose(0, 1)).transpose(0, 1)
    if operation.startswith("softmax"):
        return given[0].softmax(0 if "queries" in operation else 1)
    if operation == "differences":
        return given[0][:, None] - given[1][None]
    return given[0] * given[1][..., None] if operation == "multiply" else given[0]


def plainly(operation: str, case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """Return output and gradients by plain torch, row by row, in the dtype of the tensors."""
    letters = OPERATIONS[operation].inputs
    leaves = [x.detach().requires_grad_() for x in tensors]
    headed = [x if letter == "m" or case.heads else x.unsqueeze(1 if letter in "xy" else -1)
              for letter, x in zip(letters, leaves, strict=True)]
    rows, event, pair = [], 0, 0
    for row, length in enumerate(case.lengths):
        parts = {"m": lambda x, n=length: x[:n, :n], "p": lambda x, n=length, row=row: x[row, :n, :n],
                 "a": lambda x, n=length, at=pair: x[at:at + n * n].reshape(n, n, x.shape[1])}
        of_events = lambda x, n=length, at=event: x[at:at + n]  # noqa: E731
        rows.append(plain_of_row(operation, *(parts.get(letter, of_events)(x)
                                              for letter, x in zip(letters, headed, strict=True))))
        event, pair = event + length, pair + length**2
    nothing = sum(x[:0].sum() for x in leaves)  # without a row, too, the result belongs to a graph
    return with_gradients(together(operation, case, rows, headed[0]) + nothing, leaves, tensors[0].dtype)


def together(operation: str, case: Case, rows: list[Tensor], like: Tensor) -> Tensor:
    """Return the results of rows as the operation gives them, without the heads that a case does not have."""
    heads = case.heads or 1
    result = OPERATIONS[operation].result
    if result == "p":
        out = like.new_full((len(rows), case.longest, case.longest, heads), -1.5)
        for row, block in enumerate(rows):
            out[row, :len(block), :len(block)] = block
    elif result == "y":
        out = torch.cat([*rows, like.new_zeros((0, heads, case.width))])
    else:
        flat = [row.flatten(0, 1) for row in rows if len(row)]
        out = torch.cat([*flat, like.new_zeros((case.more, heads))])
    return out if case.heads else out.squeeze(1 if result == "y" else -1)


# --- the oracle ---

TWO_ROWS = torch.tensor([0, 2, 2, 3])  # of two events, of none, of one


def test_by_hand():
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert block_offsets(TWO_ROWS).tolist() == [0, 4, 4, 5]
    products = block_products(x, y, TWO_ROWS, implementation="reference")
    assert products.tolist() == [1, 2, 3, 4, 11]  # x₀·y₀, x₀·y₁, x₁·y₀, x₁·y₁, and of the last row 5 + 6
    assert block_matmul(products, y, TWO_ROWS, implementation="reference").tolist() == [[1, 2], [3, 4], [11, 11]]
    transposed = block_matmul(products, y, TWO_ROWS, transposed=True, implementation="reference")
    assert transposed.tolist() == [[1, 3], [2, 4], [11, 11]]
    differences = block_differences(x[:, 0], y[:, 1], TWO_ROWS, implementation="reference")
    assert differences.tolist() == [1, 0, 3, 2, 4]
    square = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert block_multiply(products, square, TWO_ROWS, implementation="reference").tolist() == [1, -2, 0, 8, 11]
    padded = to_padded_blocks(products, TWO_ROWS, 2, fill=9, implementation="reference")
    assert padded.tolist() == [[[1, 2], [3, 4]], [[9, 9], [9, 9]], [[11, 9], [9, 9]]]
    assert from_padded_blocks(padded, TWO_ROWS, implementation="reference").tolist() == products.tolist()


def test_the_softmax_by_hand():
    scores = torch.tensor([0.0, math.log(3.0), 0.0, 0.0, -70.0])  # (0, log 3), (0, 0) and one alone
    keys = block_softmax(scores, TWO_ROWS, implementation="reference")
    torch.testing.assert_close(keys, torch.tensor([0.25, 0.75, 0.5, 0.5, 1.0]))
    queries = block_softmax(scores, TWO_ROWS, over="queries", implementation="reference")
    torch.testing.assert_close(queries, torch.tensor([0.5, 0.75, 0.5, 0.25, 1.0]))


@every_operation
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_is_plain_torch_and_its_gradients(case, operation):
    tensors = case.tensors(operation.inputs, torch.float64)
    name = next(name for name, each in OPERATIONS.items() if each is operation)
    found, plain = run("reference", operation, case, tensors), plainly(name, case, tensors)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)


# --- every implementation ---


@every_device
@every_dtype
@every_operation
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, operation, dtype, device):
    usable(name, dtype, device)
    kind = next(kind for kind, each in OPERATIONS.items() if each is operation)
    tensors = case.tensors(operation.inputs, dtype, device)
    actual, exact = run(name, operation, case, tensors), run("reference", operation, case, tensors, torch.float64)
    assert [x.dtype for x in actual] == [dtype] * len(actual)
    for i, (found, right, plain) in enumerate(zip(actual, exact, plainly(kind, case, tensors), strict=True)):
        if found.dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plain, gradient=i > 0, name=("output", *operation.inputs)[i])


@every_device
@every_operation
@every_implementation
def test_the_same_inputs_give_the_same_bits_and_a_graph_may_be_used_twice(name, operation, device):
    usable(name, torch.float32, device)
    case = NAMED["ordinary"]
    tensors = case.tensors(operation.inputs, device=device)
    first, second = run(name, operation, case, tensors), run(name, operation, case, tensors)
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))
    leaves = [x.requires_grad_() for x in tensors]
    out = operation.run(case, leaves, name)
    once = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    again = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(torch.equal(*both) for both in zip(once, again, strict=True))


@every_device
@every_operation
@every_implementation
def test_a_row_depends_on_no_other_row(name, operation, device):
    usable(name, torch.float32, device)
    case, own = Case("", (5, 9, 4)), {"a": 25, "p": 1, "m": 9} | dict.fromkeys("xytu", 5)  # of the first row
    tensors = case.tensors(operation.inputs, device=device)
    whole = run(name, operation, case, tensors)
    for letter, x in zip(operation.inputs, tensors, strict=True):
        x[own[letter]:] = math.nan
    for letter, right, found in zip((operation.result, *operation.inputs), whole, run(name, operation, case, tensors),
                                    strict=True):
        if letter != "m":  # whose gradient is the sum over rows
            assert torch.equal(found[:own[letter]], right[:own[letter]])


@every_device
@pytest.mark.parametrize("operation", [each for each in OPERATIONS.values() if len(each.inputs) == 2],
                         ids=[name for name, each in OPERATIONS.items() if len(each.inputs) == 2])
@every_implementation
def test_gradients_of_one_of_the_two(name, operation, device):
    usable(name, torch.float32, device)
    case = NAMED["heads"]
    tensors = case.tensors(operation.inputs, device=device)
    both = run(name, operation, case, tensors)
    for at in range(2):
        leaves = [x.detach().requires_grad_(i == at) for i, x in enumerate(tensors)]
        found = with_gradients(operation.run(case, leaves, name), [leaves[at]], torch.float32)[1]
        assert torch.equal(found, both[1 + at])


@every_device
@every_implementation
def test_events_may_stand_on_both_sides(name, device):
    usable(name, torch.float32, device)
    case = NAMED["ordinary"]
    x, = case.tensors("x", device=device)
    for of in (lambda x, chosen: block_products(x, x, case.offsets(device), pairs=case.pairs, implementation=chosen),
               lambda x, chosen: block_differences(x[:, 0], None, case.offsets(device), pairs=case.pairs,
                                                   implementation=chosen)):
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        for each, chosen in ((leaf, name), (exact, "reference")):
            of(each, chosen).square().sum().backward()
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-3)


@every_device
@pytest.mark.parametrize("kind", ["products", "matmul", "multiply"])
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_what_no_gradient_needs_is_not_kept(name, kind, device):
    usable(name, torch.float32, device)
    case, operation = NAMED["ordinary"], OPERATIONS[kind]
    for asked in range(2):
        leaves = [x.requires_grad_(i == asked) for i, x in
                  enumerate(case.tensors(operation.inputs, device=device))]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each, to=kept: to.append(each) or each, lambda each: each):
            operation.run(case, leaves, name)
        places = {x.untyped_storage().data_ptr() for x in kept if x.is_floating_point()}
        assert places == {leaves[1 - asked].untyped_storage().data_ptr()}


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_the_softmax_keeps_its_result_alone(name, device):
    usable(name, torch.float32, device)
    case, kept = NAMED["ordinary"], []
    scores = case.tensors("a", device=device)[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out = block_softmax(scores, case.offsets(device), implementation=name)
    places = {x.untyped_storage().data_ptr() for x in kept if x.is_floating_point()}
    assert places == {out.untyped_storage().data_ptr()}


@every_device
@every_implementation
def test_a_softmax_of_nothing_seen_is_zero_and_never_nan(name, device):
    usable(name, torch.float32, device)
    offsets = torch.tensor([0, 3, 4], device=device)
    scores = torch.tensor([0.0, -math.inf, 0.0, -math.inf, -math.inf, -math.inf, 0.0, -math.inf, 0.0, -math.inf],
                          device=device)
    for over, expected in (("keys", [0.5, 0, 0.5, 0, 0, 0, 0.5, 0, 0.5, 0]),
                           ("queries", [0.5, 0, 0.5, 0, 0, 0, 0.5, 0, 0.5, 0])):
        leaf = scores.clone().requires_grad_()
        out = block_softmax(leaf, offsets, over=over, implementation=name)
        assert out.tolist() == expected
        grad, = torch.autograd.grad(out.square().sum(), leaf)
        assert grad.isfinite().all()


@every_device
@every_implementation
def test_rows_too_long_for_a_tile(name, device):
    usable(name, torch.float32, device)
    case = Case("", (3, 140), width=4)
    for kind in ("softmax over queries", "softmax"):
        tensors = case.tensors("a", device=device)
        tensors[0][60:90] = -math.inf  # where a tile begins with nothing seen
        for found, right in zip(run(name, OPERATIONS[kind], case, tensors),
                                run("reference", OPERATIONS[kind], case, tensors, torch.float64), strict=True):
            torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6)


@every_device
@pytest.mark.parametrize("transposed", [False, True])
def test_long_sums_of_single_precision_keep_what_is_small(transposed, device):
    """Beside a sum of 2²⁴ another 1 is lost to rounding: sixteen of them, one after the other, were lost too."""
    usable("triton", torch.float32, device)
    x = torch.zeros(17 * 32, 1, device=device)
    x[::32] = 1  # none together with another in a tile
    x[0] = 2.0**24
    offsets, pairs = torch.tensor([0, len(x)], device=device), torch.ones(len(x)**2, device=device)
    found = block_matmul(pairs, x, offsets, transposed=transposed, implementation="triton")
    assert float((found.double() - (2.0**24 + 16)).abs().max()) <= 2  # the distance of neighbours up there


@every_device
@every_implementation
def test_times_are_subtracted_as_the_integers_that_they_are(name, device):
    usable(name, torch.int64, device)
    times = torch.tensor([2**40, 2**40 + 1, 5, -(2**50)], device=device)
    found = block_differences(times, None, torch.tensor([0, 2, 4], device=device), pairs=8, implementation=name)
    assert found.tolist() == [0, -1, 1, 0, 0, 2**50 + 5, -(2**50) - 5, 0]
    small = block_differences(times.to(torch.int32), None, torch.tensor([0, 2, 4], device=device), pairs=8,
                              implementation=name)
    assert small.dtype == torch.int32


@every_device
@every_implementation
def test_paddings_hold_any_numbers_and_cut_on_purpose(name, device):
    usable(name, torch.int64, device)
    offsets = torch.tensor([0, 2, 2, 5], device=device)
    a = torch.arange(13, device=device)
    padded = to_padded_blocks(a, offsets, 2, fill=-7, implementation=name)
    assert padded.tolist() == [[[0, 1], [2, 3]], [[-7, -7], [-7, -7]], [[4, 5], [7, 8]]]
    back = from_padded_blocks(padded, offsets, pairs=14, implementation=name)
    assert back.tolist() == [0, 1, 2, 3, 4, 5, 0, 7, 8, 0, 0, 0, 0, 0]
    assert to_padded_blocks(a, offsets, 0, implementation=name).shape == (3, 0, 0)
    mask = block_multiply(torch.ones(13, device=device), torch.ones(3, 3, device=device).tril().bool(), offsets,
                          implementation=name)
    assert mask.tolist() == [1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1]


@given(drawn_lengths(), st.integers(1, 9), st.sampled_from((None, 1, 3)), st.booleans(), st.integers(0, 2),
       st.sampled_from(list(OPERATIONS)))
def test_any_call_on_the_cpu(lengths, width, heads, packed, more, kind):
    case = Case("", tuple(lengths), width, heads, packed=packed, more=more)
    tensors = case.tensors(OPERATIONS[kind].inputs, torch.float64)
    torch.testing.assert_close(run("cpu", OPERATIONS[kind], case, tensors),
                               run("reference", OPERATIONS[kind], case, tensors), rtol=1e-9, atol=1e-9)


@given(drawn_lengths(), st.sampled_from((torch.int32, torch.int64)))
def test_offsets_of_blocks(lengths, dtype):
    offsets = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=dtype)
    expected = [sum(length**2 for length in lengths[:i]) for i in range(len(lengths) + 1)]
    for name in ("cpu", "reference"):
        found = block_offsets(offsets, implementation=name)
        assert (found.tolist(), found.dtype) == (expected, torch.int64)


# --- gradients of gradients ---


@pytest.mark.parametrize("kind", [kind for kind in OPERATIONS if not kind.startswith("softmax")])
def test_gradients_of_gradients(kind):
    case = Case("", (3, 0, 2), width=2, heads=2)
    leaves = tuple(x.requires_grad_() for x in case.tensors(OPERATIONS[kind].inputs, torch.float64))
    assert torch.autograd.gradgradcheck(lambda *given: OPERATIONS[kind].run(case, list(given), "cpu"), leaves)


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_both_gradients_of_products_at_once_are_those_of_a_graph(name, device):
    usable(name, torch.float32, device)
    case = NAMED["past a tile"]
    leaves = [x.requires_grad_() for x in case.tensors("xy", device=device)]
    out = OPERATIONS["products"].run(case, leaves, name)
    grad = torch.randn_like(out)
    found = [torch.autograd.grad(out, leaves, grad, create_graph=graph, retain_graph=True) for graph in (False, True)]
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert [x.requires_grad for x in (*found[0], *found[1])] == [False, False, True, True]


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_second_derivative_of_the_softmax_is_refused(name, device):
    usable(name, torch.float32, device)
    case = NAMED["ordinary"]
    scores = case.tensors("a", device=device)[0].requires_grad_()
    out = block_softmax(scores, case.offsets(device), implementation=name)
    first, = torch.autograd.grad(out.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), scores)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_forward_mode_derivatives_are_refused_and_never_zero(kind):
    case = NAMED["ordinary"]
    given = case.tensors(OPERATIONS[kind].inputs)
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(lambda x: OPERATIONS[kind].run(case, [x, *given[1:]], "cpu"), (given[0],), (given[0],))


# --- operators ---


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


def operator_calls(case: Case, device: str) -> dict[str, tuple]:
    """Return arguments for every operator."""
    heads = case.heads or 1
    x, y, a, m, p = (each.requires_grad_() for each in Case("", case.lengths, 8, heads, more=case.more).tensors(
        "xyamp", device=device))
    rows = case.offsets(device), block_offsets(case.offsets(device))
    t, b = x[..., 0].detach().requires_grad_(), a.detach() * 2
    return {"products": (x, y, *rows, case.pairs), "matmul": (a, y, *rows, True),
            "both_matmuls": (b, y.detach(), x.detach(), *rows), "sums": (b, *rows, x.shape[0]),
            "softmax": (a, *rows, False),
            "softmax_backward": (b, b, *rows, False), "differences": (t, t, *rows, case.pairs),
            "multiply": (a, m, *rows), "totals": (a, b, *rows, case.longest),
            "to_padded": (a, *rows, case.longest, 0.5), "from_padded": (p, *rows, case.pairs), "offsets": rows[:1]}


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@pytest.mark.parametrize("operator", operator_calls(NAMED["one event"], "cpu"))
@pytest.mark.parametrize("case", [NAMED[name] for name in ("no rows", "heads", "pairs past the last")],
                         ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case, operator, name, device):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.serrate, f"block_{operator}_{name}").default,
                          operator_calls(case, device)[operator], test_utils=tests)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_lengths(name, device):
    def loss(x: Tensor, y: Tensor, square: Tensor, offsets: Tensor, pairs: int) -> Tensor:
        scores = block_products(x, y, offsets, pairs=pairs, implementation=name)
        scores = scores + block_differences(x[:, 0], None, offsets, pairs=pairs, implementation=name)
        weights = block_softmax(scores, offsets, implementation=name)
        weights = block_multiply(weights, square, offsets, implementation=name)
        padded = to_padded_blocks(weights, offsets, square.shape[0], implementation=name)
        weights = weights + from_padded_blocks(padded, offsets, pairs=pairs, implementation=name)
        return (block_matmul(weights, y, offsets, implementation=name) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 3), (12, 7), (2, 40)):
            case = Case("", lengths)
            *leaves, square = (each.requires_grad_() for each in case.tensors("xym", device=device))
            given = *leaves, square, case.offsets(device), case.pairs
            eager = torch.autograd.grad(loss(*given), (*leaves, square))
            torch.testing.assert_close(torch.autograd.grad(compiled(*given), (*leaves, square)), eager)


# --- the choice and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), torch.float32)
    for operation in ("block_products", "block_softmax", "to_padded_blocks"):
        assert choose(operation, call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
        on_gpu = choose(operation, Call(torch.device("cuda"), torch.float64))
        assert on_gpu.implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        block_products(x, x, torch.tensor([0, 3]), implementation="triton")


OFFSETS = torch.tensor([0, 2, 3])
X, A = torch.ones(3, 6), torch.ones(5)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: block_offsets(OFFSETS.float()), "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) "
                                             "torch.float32"),
    (lambda: block_products(A, A, OFFSETS), "x: expected shape (T, D) or (T, H, D) with H, D >= 1, got (5,)"),
    (lambda: block_products(X.int(), X, OFFSETS), "x: expected a floating-point dtype, got torch.int32"),
    (lambda: block_products(X, X[:, :5], OFFSETS), "y: expected shape (3, 6), as x, got (3, 5)"),
    (lambda: block_products(X, X.double(), OFFSETS), "y: expected torch.float32, as x, got torch.float64"),
    (lambda: block_products(X, X.to("meta"), OFFSETS), "y: expected a tensor on cpu, as x, got meta"),
    (lambda: block_products(X, X, OFFSETS.to("meta")), "offsets: expected a tensor on cpu, as what it divides, got "
                                                       "meta"),
    (lambda: block_products(X, X, OFFSETS, pairs=4), "pairs: expected at least 5, the sum of squared lengths, got 4"),
    (lambda: block_products(X.to("meta"), X.to("meta"), OFFSETS.to("meta")),
     "pairs: expected the number of pairs, where it cannot be read from offsets, got None"),
    (lambda: block_products(X, X, OFFSETS + 1), "offsets: expected entries that begin with 0 and do not fall, got "
                                                "[1, 3, 4]"),
    (lambda: block_products(X, X, torch.tensor([0, 3, 2])), "offsets: expected entries that begin with 0 and do not "
                                                            "fall, got [0, 3, 2]"),
    (lambda: block_products(X, X, torch.tensor([0, 4])), "offsets: expected a last entry of T = 3, got 4"),
    (lambda: block_matmul(A[:, None, None], X, OFFSETS), "a: expected shape (P,) or (P, H) with H >= 1, got (5, 1, 1)"),
    (lambda: block_matmul(A[:4], X, OFFSETS), "a: expected P of at least 5, the sum of squared lengths, got 4"),
    (lambda: block_matmul(A, X[None], OFFSETS), "y: expected shape (T, D) with D >= 1, got (1, 3, 6)"),
    (lambda: block_matmul(A[:, None].expand(5, 2), X[:, None], OFFSETS),
     "y: expected shape (T, 2, D) with D >= 1, got (3, 1, 6)"),
    (lambda: block_softmax(A.int(), OFFSETS), "a: expected a floating-point dtype, got torch.int32"),
    (lambda: block_softmax(A, OFFSETS, over="events"), "over: expected 'keys' or 'queries', got 'events'"),
    (lambda: block_differences(X[:, 0] > 0, None, OFFSETS), "x: expected a floating-point or integer dtype, got "
                                                            "torch.bool"),
    (lambda: block_differences(X[:, :, None], None, OFFSETS), "x: expected shape (T,) or (T, H) with H >= 1, got "
                                                              "(3, 6, 1)"),
    (lambda: block_multiply(A, X, OFFSETS), "square: expected shape (N, N), got (3, 6)"),
    (lambda: block_multiply(A, X[:1, :1], OFFSETS), "square: expected N of at least 2, the longest row, got 1"),
    (lambda: block_multiply(A, X[:, :3].int(), OFFSETS), "square: expected torch.float32, as a, got torch.int32"),
    (lambda: to_padded_blocks(A, OFFSETS, -1), "length: expected a number of at least 0, got -1"),
    (lambda: from_padded_blocks(X, OFFSETS), "padded: expected shape (B, N, N) or (B, N, N, H) with H >= 1, got "
                                             "(3, 6)"),
    (lambda: from_padded_blocks(torch.ones(3, 2, 2), OFFSETS), "padded: expected 2 rows, as offsets has, got 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message

"""The suite of jagged products: every implementation, on every named case, against the float64 oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.jagged import offsets_from_lengths
from serrate.ops import implementations
from serrate.ops.bmm import Call, jagged_dense_bmm, jagged_jagged_bmm
from serrate.ops.bmm.cases import CASES, WORKLOADS, Case
from serrate.ops.select import choose
from serrate.testing import assert_within_budget
from serrate.testing.strategies import lengths as row_lengths

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("dense", "jagged")

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("jagged_dense_bmm")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def usable(name: str, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve."""
    call = Call(torch.device(device), dtype)
    reason = next(each for each in implementations("jagged_dense_bmm") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def compute(kind: str, leaves: list[Tensor], offsets: Tensor, name: str | None = None) -> Tensor:
    if kind == "jagged":
        return jagged_jagged_bmm(*leaves, offsets, implementation=name)
    return jagged_dense_bmm(*leaves[:2], offsets, bias=(*leaves, None)[2], implementation=name)


def plain(kind: str, leaves: list[Tensor], offsets: Tensor) -> Tensor:
    """Return the same by plain torch, a product a row in the dtype of the tensors."""
    x, y, bias = (*leaves, None)[:3]
    if len(offsets) == 1:
        return torch.einsum("n...d,n...f->n...df" if kind == "jagged" else "n...d,b...df->n...f", x, y) + (
            0 if bias is None else bias.sum(0))
    parts = []
    for row, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if kind == "jagged":
            parts.append(torch.einsum("n...d,n...f->...df", x[begin:end], y[begin:end])[None])
        else:
            part = torch.einsum("n...d,...df->n...f", x[begin:end], y[row])
            parts.append(part if bias is None else part + bias[row])
    return torch.cat(parts)


def run(kind: str, case: Case, tensors: tuple[Tensor, ...], name: str, dtype: torch.dtype | None = None,
        offsets: Tensor | None = None) -> list[Tensor]:
    """Return output and gradients by an implementation, or by plain torch, of the tensors in a dtype."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]  # strides are kept
    offsets = case.offsets(tensors[0].device.type) if offsets is None else offsets
    out = plain(kind, leaves, offsets) if name == "plain" else compute(kind, leaves, offsets, name)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device, tensors[0].dtype)
    grads = torch.autograd.grad(out, leaves, incoming.to(out.dtype), allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


def tensors_of(kind: str, case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
    return getattr(case, kind)(dtype, device)


# --- the oracle ---


def test_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    offsets = torch.tensor([0, 2, 2, 3])
    y = torch.tensor([[[1.0], [1.0]], [[9.0], [9.0]], [[2.0], [0.0]]], dtype=torch.float64)
    bias = torch.tensor([[10.0], [20.0], [30.0]], dtype=torch.float64)
    out = jagged_dense_bmm(x, y, offsets, bias=bias, implementation="reference")
    assert out.tolist() == [[1 + 2 + 10], [3 + 4 + 10], [5 * 2 + 30]]
    out = jagged_jagged_bmm(x, torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64), offsets,
                            implementation="reference")
    assert out.tolist() == [[[1 + 30], [2 + 40]], [[0], [0]], [[500], [600]]]


def test_the_oracle_is_torchs_own_product_of_padded_rows():
    offsets = torch.tensor([0, 3, 6])  # rows of one length need no padding
    x, y, z = (torch.randn(shape, dtype=torch.float64) for shape in ((6, 4), (2, 4, 5), (6, 5)))
    torch.testing.assert_close(jagged_dense_bmm(x, y, offsets, implementation="reference"),
                               (x.view(2, 3, 4) @ y).view(6, 5))
    torch.testing.assert_close(jagged_jagged_bmm(x, z, offsets, implementation="reference"),
                               x.view(2, 3, 4).mT @ z.view(2, 3, 5))


@both_kinds
def test_gradients_of_the_oracle(kind):
    case = Case("", (2, 0, 1), 3, 2, heads=2)
    leaves = [x.requires_grad_() for x in tensors_of(kind, case, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: compute(kind, list(x), case.offsets(), "reference"), leaves)


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@both_kinds
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, kind, case, dtype, device):
    usable(name, dtype, device)
    tensors = tensors_of(kind, case, dtype, device)
    actual, rough = run(kind, case, tensors, name), run(kind, case, tensors, "plain")
    exact = run(kind, case, tensors, "reference", torch.float64)
    assert [x.dtype for x in actual] == [dtype] * (1 + len(tensors))
    for i, (found, right, plainly) in enumerate(zip(actual, exact, rough, strict=True)):
        if dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, plainly, gradient=i > 0, name=("output", "x", "y", "bias")[i])


@every_device
@both_kinds
@every_implementation
def test_the_same_inputs_give_the_same_bits_whatever_other_rows_hold(name, kind, device):
    usable(name, torch.float32, device)
    case = NAMED["longer than a chunk"]
    tensors = tensors_of(kind, case, device=device)
    first, second = run(kind, case, tensors, name), run(kind, case, tensors, name)
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))
    begin, end = case.offsets()[3:5].tolist()
    spoiled = [x.clone() for x in tensors]
    for x in spoiled:
        if len(x) == case.events:
            x[:begin], x[end:] = torch.nan, torch.nan
        else:
            x[:3], x[4:] = torch.nan, torch.nan
    out = compute(kind, spoiled, case.offsets(device), name)
    own = slice(begin, end) if kind == "dense" else slice(3, 4)
    assert torch.equal(out[own], first[0][own])


@every_device
@both_kinds
@every_implementation
def test_rows_without_events_are_zero_though_memory_was_not(name, kind, device, monkeypatch):
    usable(name, torch.float32, device)
    empty = torch.Tensor.new_empty

    def spoiled(*shape, **options):
        out = empty(*shape, **options)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", spoiled)
    case = NAMED["fewer events than rows"]
    tensors = tensors_of("jagged", case, device=device)
    out = jagged_jagged_bmm(*tensors, case.offsets(device), implementation=name)
    assert out[case.offsets().diff() == 0].count_nonzero() == 0
    found = run(kind, case, tensors_of(kind, case, device=device), name)
    assert all(bool(x.isfinite().all()) for x in found)


@every_device
@every_implementation
def test_any_strides(name, device):
    usable(name, torch.float32, device)
    case = Case("", (5, 0, 20, 3), 12, 8, heads=2)
    x, y, bias = case.dense(device=device)
    expected = run("dense", case, (x, y, bias), name)
    flipped = y.mT.contiguous().mT
    spread = torch.stack([y, y], -1)[..., 0]
    for odd in ((x.transpose(0, 2).contiguous().transpose(0, 2), y, bias), (x, flipped, bias), (x, spread, bias),
                (x.transpose(0, 1).contiguous().transpose(0, 1), y, bias.mT.contiguous().mT)):
        torch.testing.assert_close(run("dense", case, odd, name), expected, rtol=1e-5, atol=1e-5)
    one = y[:, :, :1, :1].expand(-1, -1, 12, 8)
    torch.testing.assert_close(run("dense", case, (x, one, bias), name)[0],
                               run("dense", case, (x, one.contiguous(), bias), name)[0], rtol=1e-5, atol=1e-5)


@every_device
@both_kinds
@every_implementation
def test_gradients_of_some_and_twice_through_one_graph(name, kind, device):
    usable(name, torch.float32, device)
    case = NAMED["heads"]
    tensors, offsets = tensors_of(kind, case, device=device), case.offsets(device)
    expected = run(kind, case, tensors, name)[1:]
    for at in range(len(tensors)):
        leaves = [x.detach().requires_grad_(i == at) for i, x in enumerate(tensors)]
        out = compute(kind, leaves, offsets, name)
        incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(device)
        for again in (True, False):
            grad, = torch.autograd.grad(out, leaves[at], incoming, retain_graph=again)
            torch.testing.assert_close(grad, expected[at], rtol=1e-5, atol=1e-5)


@every_device
@both_kinds
@every_implementation
def test_gradients_of_gradients(name, kind, device):
    usable(name, torch.float32, device)
    case = NAMED["heads"]
    found = []
    for dtype, each in ((torch.float32, name), (torch.float64, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in tensors_of(kind, case, device=device)]
        out = compute(kind, leaves, case.offsets(device), each)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves))
    for actual, exact in zip(*found, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_gradients_of_dense_at_once_are_those_of_a_graph(name, device):
    usable(name, torch.float16, device)
    case = NAMED["heads, columns"]
    leaves = [x.requires_grad_() for x in case.dense(torch.float16, device)]
    out = compute("dense", leaves, case.offsets(device), name)
    grad = torch.randn_like(out)
    found = [torch.autograd.grad(out, leaves, grad, create_graph=graph, retain_graph=True) for graph in (False, True)]
    torch.testing.assert_close(*found)
    assert [x.requires_grad for x in (*found[0], *found[1])] == [False] * 3 + [True] * 3


@given(row_lengths(max_rows=5, max_length=9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.booleans(),
       st.booleans(), st.sampled_from((torch.int32, torch.int64)))
@pytest.mark.parametrize("name", ["cpu"])
def test_any_call_on_the_cpu(name, lengths, width, columns, heads, biased, packed, offsets_dtype):
    case = Case("", tuple(lengths), width, columns, heads, biased, offsets_dtype, packed)
    for kind in KINDS:
        tensors = tensors_of(kind, case, torch.float64)
        torch.testing.assert_close(run(kind, case, tensors, name), run(kind, case, tensors, "reference"),
                                   rtol=1e-9, atol=1e-9)


# --- operators ---


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "no rows", "all empty", "ordinary", "no bias", "heads, columns", "columns")], ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case, name, device):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    case = case if case.heads else Case("", case.lengths, case.width, case.columns, 1, case.biased,
                                        case.offsets_dtype, case.packed)
    x, y, bias = (*(each.requires_grad_() for each in case.dense(device=device)), None)[:3]
    torch.library.opcheck(getattr(torch.ops.serrate, f"jagged_dense_bmm_{name}").default,
                          (x, y, bias, case.offsets(device)), test_utils=tests)
    if name == "triton":
        grad = torch.randn(case.events, case.heads, case.columns, device=device)
        torch.library.opcheck(torch.ops.serrate.jagged_dense_bmm_backward_triton.default,
                              (x.detach(), y.detach(), grad, case.offsets(device), True), test_utils=tests)
    x, y = (each.requires_grad_() for each in case.jagged(device=device))
    for sums in (False, True):
        torch.library.opcheck(getattr(torch.ops.serrate, f"jagged_jagged_bmm_{name}").default,
                              (x, y, case.offsets(device), sums), test_utils=tests)


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@both_kinds
def test_compiles_whole_and_once_for_all_numbers_of_events(name, device, kind):
    def loss(*leaves: Tensor) -> Tensor:
        return (compute(kind, [x * 2 for x in leaves[:-1]], leaves[-1], name) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 0, 3), (12, 1, 4, 2), (0, 70, 9, 3, 1)):
            case = Case("", lengths)
            leaves = [each.requires_grad_() for each in tensors_of(kind, case, device=device)]
            eager = torch.autograd.grad(loss(*leaves, case.offsets(device)), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, case.offsets(device)), leaves), eager)


@both_kinds
@pytest.mark.parametrize("name", ["cpu"])
def test_forward_mode_derivatives_are_refused(name, kind):
    case = NAMED["ordinary"]
    tensors = tensors_of(kind, case)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
        with pytest.raises(NotImplementedError, match=f"jagged_{kind}_bmm has no forward-mode derivative"):
            compute(kind, [dual, *tensors[1:]], case.offsets(), name)


@every_device
@both_kinds
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_what_is_multiplied_is_kept_and_nothing_else(name, kind, device):
    usable(name, torch.float32, device)
    case = NAMED["heads"]
    leaves, offsets = [x.requires_grad_() for x in tensors_of(kind, case, device=device)], case.offsets(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        compute(kind, leaves, offsets, name)
    places = {each.untyped_storage().data_ptr() for each in kept}
    assert places == {each.untyped_storage().data_ptr() for each in (*leaves[:2], offsets)}


# --- the choice and errors ---


@both_kinds
def test_the_automatic_choice(kind):
    call = Call(torch.device("cpu"), torch.float32)
    assert choose(f"jagged_{kind}_bmm", call).implementation.name in ("cpu", "triton")  # the latter interpreted
    on_gpu = Call(torch.device("cuda"), torch.float64)
    assert choose(f"jagged_{kind}_bmm", on_gpu).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    x = torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(NotUsable, match="cannot serve this call: needs"):
        jagged_jagged_bmm(x, x, torch.tensor([0, 3]), implementation="triton")


X, Y, OFFSETS = torch.ones(3, 6), torch.ones(2, 6, 4), torch.tensor([0, 1, 3])
HEADS = torch.ones(3, 2, 6)


@pytest.mark.parametrize(("arguments", "bias", "message"), [
    ((X[0], Y, OFFSETS), None, "x: expected shape (T, D) or (T, H, D) with H, D >= 1, got (6,)"),
    ((X[:, :0], Y, OFFSETS), None, "x: expected shape (T, D) or (T, H, D) with H, D >= 1, got (3, 0)"),
    ((X.int(), Y, OFFSETS), None, "x: expected a floating-point dtype, got torch.int32"),
    ((X, Y, OFFSETS.float()), None, "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) torch.float32"),
    ((X, Y, OFFSETS[None]), None, "offsets: expected shape (B + 1,), dtype int32 or int64, got (1, 3) torch.int64"),
    ((X, Y, OFFSETS[:0]), None, "offsets: expected shape (B + 1,), dtype int32 or int64, got (0,) torch.int64"),
    ((X, Y, OFFSETS.to("meta")), None, "offsets: expected a tensor on cpu, as x, got meta"),
    ((X, Y[:1], OFFSETS), None, "y: expected shape (2, 6, F) with F >= 1, got (1, 6, 4)"),
    ((HEADS, Y, OFFSETS), None, "y: expected shape (2, 2, 6, F) with F >= 1, got (2, 6, 4)"),
    ((X, Y[..., :0], OFFSETS), None, "y: expected shape (2, 6, F) with F >= 1, got (2, 6, 0)"),
    ((X, Y.double(), OFFSETS), None, "y: expected torch.float32, as x, got torch.float64"),
    ((X, Y.to("meta"), OFFSETS), None, "y: expected a tensor on cpu, as x, got meta"),
    ((X, Y, OFFSETS), torch.ones(4), "bias: expected shape (2, 4), got (4,)"),
    ((X, Y, OFFSETS), torch.ones(2, 4).half(), "bias: expected torch.float32, as x, got torch.float16"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, bias, message):
    with pytest.raises(InvalidArgument) as caught:
        jagged_dense_bmm(*arguments, bias=bias)
    assert str(caught.value) == message


@pytest.mark.parametrize(("arguments", "message"), [
    ((X[0], X, OFFSETS), "x: expected shape (T, D) or (T, H, D) with H, D >= 1, got (6,)"),
    ((X, X[:2], OFFSETS), "y: expected shape (3, F) with F >= 1, got (2, 6)"),
    ((HEADS, X, OFFSETS), "y: expected shape (3, 2, F) with F >= 1, got (3, 6)"),
    ((X, X.double(), OFFSETS), "y: expected torch.float32, as x, got torch.float64"),
    ((X, X, OFFSETS.char()), "offsets: expected shape (B + 1,), dtype int32 or int64, got (3,) torch.int8"),
])  # fmt: skip
def test_what_does_not_fit_row_by_row_is_refused(arguments, message):
    with pytest.raises(InvalidArgument) as caught:
        jagged_jagged_bmm(*arguments)
    assert str(caught.value) == message


# --- workloads ---


def test_workloads_are_as_full_as_they_say():
    assert len(WORKLOADS) == 32
    for name, case in WORKLOADS.items():
        longest, fill = int(name.split(",")[0]), int(name.split(", ")[1].split()[0])
        assert len(case.lengths) == 1024
        assert 1 <= min(case.lengths) <= max(case.lengths) <= longest
        assert case.events / (1024 * longest) == pytest.approx(fill / 100, rel=0.05)


def test_offsets_are_those_of_the_lengths():
    assert torch.equal(NAMED["ordinary"].offsets(), offsets_from_lengths(torch.tensor((5, 17, 1, 32, 8))))

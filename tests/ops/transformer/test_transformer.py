"""The suite of a transformer block's operations: every implementation, on every named case, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.transformer import Call, Layer, feed_forward, norm_linear
from serrate.ops.transformer.cases import CASES, Case
from serrate.testing import assert_within_budget

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPERATIONS = ("norm_linear", "feed_forward")

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("norm_linear")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, case: Case, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    operation = "feed_forward" if case.operation == "feed_forward" else "norm_linear"
    widths = (case.width,) if case.operation == "norm" else (case.width, case.hidden)
    stored = torch.float32 if case.wide and dtype != torch.float64 else dtype
    call = Call(torch.device(device), (stored,), dtype, widths)
    reason = next(each for each in implementations(operation) if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run(name: str, case: Case, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return output and gradients by an implementation; float64 makes everything so."""
    leaves = [x.detach().to(dtype if dtype == torch.float64 else x.dtype) for x in tensors]
    if not case.packed:  # events are columns of a tensor twice as wide
        leaves[0] = torch.cat([leaves[0], leaves[0]], 1)[:, :case.width]
    leaves = [x.requires_grad_() for x in leaves]
    out = case.run(leaves, dtype, name)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming)]


# --- the oracle ---


def test_by_hand():
    norm = Layer(torch.tensor([2.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double())
    linear = Layer(torch.tensor([[1.0, 1.0], [0.0, 3.0], [1.0, 0.0]]).double(), torch.tensor([0.0, 0.5, 0.0]).double())
    x = torch.tensor([[1.0, 5.0]], dtype=torch.float64)  # mean 3, variance 4, and with the 12 added 16: (-.5, .5)
    torch.testing.assert_close(norm_linear(x, norm, eps=12.0), torch.tensor([[-1.0, 1.5]]).double())
    torch.testing.assert_close(norm_linear(x, norm, linear=linear, eps=12.0), torch.tensor([[0.5, 5.0, -1.0]]).double())
    out = Layer(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([1.0, 0.0]).double())
    first = Layer(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([3.0]).double())
    last = Layer(torch.tensor([[1.0], [0.0]]).double(), torch.tensor([0.0, 7.0]).double())
    # (1, 5) + (2, 1) swapped + (1, 0) is (3, 7): mean 5, variance 4, normed (-1, 1.5); first gives -1 + 3 = 2
    found = feed_forward(x, torch.tensor([[2.0, 1.0]]).double(), [out, norm, first, last], eps=12.0)
    torch.testing.assert_close(found, torch.tensor([[3.0 + float(F.gelu(torch.tensor(2.0).double())), 14.0]]).double())


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, case, dtype, device)
    tensors = case.tensors(dtype, device)
    actual, exact, plain = (run(*how) for how in ((name, case, tensors, dtype), (
        "reference", case, tensors, torch.float64), ("reference", case, tensors, dtype)))
    assert actual[0].dtype == case.result(dtype)
    assert [grad.dtype for grad in actual[1:]] == [x.dtype for x in tensors]
    for i, (found, right, rough) in enumerate(zip(actual, exact, plain, strict=True)):
        if found.dtype == torch.float64:
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
        else:
            assert_within_budget(found, right, rough, gradient=i > 0, name=f"tensor {i}")


@every_device
@every_dtype
@every_implementation
def test_the_same_inputs_give_the_same_bits_and_events_do_not_meet(name, dtype, device):
    for case in (NAMED["projection"], NAMED["feed forward"]):
        usable(name, case, dtype, device)
        tensors = case.tensors(dtype, device)
        first, second = run(name, case, tensors, dtype), run(name, case, tensors, dtype)
        assert all(torch.equal(*both) for both in zip(first, second, strict=True))
        events = 2 if case.operation == "feed_forward" else 1
        few = [x[70:] if i < events else x for i, x in enumerate(tensors)]
        alone = case.run(few, dtype, name)
        torch.testing.assert_close(alone, first[0][70:], rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wider_events_go_to_torch(operation):
    case = NAMED["wider than kernels take"]
    call = Call(torch.device("cuda"), (torch.float32,), torch.bfloat16, (case.width, case.hidden))
    named = {each.name: each for each in implementations(operation)}
    assert "width 64 or less" in (named["triton"].unusable(call) or "width 64 or less")  # or Triton is not installed
    assert named["reference"].unusable(call) is None


# --- what does not fit ---


def _layers(width: int = 4, hidden: int = 6) -> list[Layer]:
    shapes = [(width, width), (width,), (hidden, width), (width, hidden)]
    return [Layer(torch.ones(shape), torch.ones(shape[:1])) for shape in shapes]


X = torch.ones(3, 4)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: norm_linear(X[0], _layers()[1]), r"x: expected floating-point \(T, E\) with E >= 1"),
    (lambda: norm_linear(X.long(), _layers()[1]), "x: expected floating-point"),
    (lambda: norm_linear(X, _layers(5)[1]), r"norm.weight: expected shape \(4,\), got \(5,\)"),
    (lambda: norm_linear(X, _layers()[1], linear=_layers(5)[2]),
     r"linear.weight: expected shape \(6, 4\), got \(6, 5\)"),
    (lambda: norm_linear(X, _layers()[1], eps=0.0), "eps: expected a finite number above 0, got 0.0"),
    (lambda: feed_forward(X, X[:2], _layers()), r"attended: expected floating-point \(3, 4\) on cpu"),
    (lambda: feed_forward(X, X, _layers()[:3]), "layers: expected four: out, norm, first, last, got 3"),
    (lambda: feed_forward(X, X, [*_layers()[:3], Layer(torch.ones(4, 5), torch.ones(4))]),
     r"last.weight: expected shape \(4, 6\), got \(4, 5\)"),
    (lambda: feed_forward(X, X, [*_layers()[:3], Layer(torch.ones(4, 6), torch.ones(4, device="meta"))]),
     "last.bias: expected a tensor on cpu, as x, got meta"),
])
def test_malformed_calls(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device that it may be used on")
def test_an_explicit_choice_does_not_slide():
    for call in (lambda: norm_linear(X, _layers()[1], implementation="triton"),
                 lambda: feed_forward(X, X, _layers(), implementation="triton")):
        with pytest.raises(NotUsable, match="needs"):
            call()

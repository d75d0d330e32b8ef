"""When operators may be left out: not before tracers, dispatch modes and tensors of other classes."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from serrate.ops.attention import Bias, attention
from serrate.ops.direct import (
    INTERPRETED,
    no_kernel,
    on_device_of,
    operator,
    refuse_tangents,
    unit_stride,
    watched,
)
from serrate.ops.norm_gate import norm_gate


class Other(torch.Tensor):
    """A tensor of another class."""


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_plain_tensors_and_parameters_are_not_watched():
    assert not watched(torch.ones(2), torch.nn.Parameter(torch.ones(2)), None)


def test_others_are_watched():
    assert watched(torch.ones(2), torch.ones(2).as_subclass(Other))
    with Looking():
        assert watched(torch.ones(2))
    assert not watched(torch.ones(2))
    compiled = torch.compile(lambda x: x + watched(x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter serves the CPU too")
def test_kernels_say_why_they_do_not_serve():
    cuda = torch.device("cuda")
    assert no_kernel(torch.device("cpu"), torch.float32) == "needs a CUDA device, got cpu"
    assert no_kernel(cuda, torch.float64) == "needs float32, bfloat16 or float16, got torch.float64"
    assert no_kernel(cuda, torch.bfloat16) in (None, "needs the package triton")


def test_the_last_axis_is_made_dense_where_it_is_not():
    x = torch.arange(12.0).view(3, 4)
    assert unit_stride(x[:, 1:3]).data_ptr() == x[:, 1:].data_ptr()
    assert unit_stride(x.T).stride(-1) == 1
    assert torch.equal(unit_stride(x.T), x.T)


@pytest.mark.gpu
def test_the_device_of_a_tensor_is_current():
    with on_device_of(torch.ones(1, device="cuda")):
        assert torch.cuda.current_device() == 0


def test_on_a_cpu_nothing_is_entered():
    with on_device_of(torch.ones(1)):
        pass


@pytest.mark.parametrize("compute", [
    lambda x: attention(x, x, x, torch.tensor([0, 3])),
    lambda x: attention(x.detach(), x.detach(), x.detach(), torch.tensor([0, 3]), bias=Bias(x[:, 0, 0])),
    lambda x: norm_gate(x[:, 0], x[:, 0]),
], ids=["attention", "bias", "norm_gate"])  # fmt: skip
def test_forward_mode_derivatives_are_refused_and_never_zero(compute):
    x = torch.randn(3, 1, 4)
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(compute, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        compute(x)  # nobody asks
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            compute(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    refuse_tangents("attention", x, None)


# --- operators that are left out where nobody looks on ---


@operator("serrate::test_scaled")
def scaled(parts: list[Tensor], factor: Tensor, power: int) -> list[Tensor]:
    """Each part times factor ** power."""
    return [part * factor**power for part in parts]


@operator("serrate::test_twice")
def twice(x: Tensor) -> Tensor:
    """2 x, without a gradient."""
    return 2 * x


def _keep(ctx, inputs, output):
    parts, factor, ctx.power = inputs
    ctx.save_for_backward(factor, *parts)


def _gradients(ctx, grads):
    factor, *parts = ctx.saved_tensors
    d_factor = None
    if ctx.needs_input_grad[len(parts) if len(ctx.needs_input_grad) > 3 else 1]:
        d_factor = sum((grad * part).sum() for grad, part in zip(grads, parts, strict=True)) * ctx.power
    return scaled(grads, factor, ctx.power), d_factor, None


scaled.register_fake(lambda parts, factor, power: [torch.empty_like(part) for part in parts])
scaled.register_autograd(_gradients, setup_context=_keep)


class Counting(TorchDispatchMode):
    """Counts the operators of ours that torch's dispatcher sees."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func.namespace == "serrate"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_both_ways_of_an_operator_give_the_same(count):
    def gradients():
        parts = [torch.full((2,), 1.0 + i, requires_grad=True) for i in range(count)]
        factor = torch.tensor(3.0, requires_grad=True)
        out = scaled(parts, factor, 1)
        assert isinstance(out, list)
        total = sum((i + 1) * x.sum() for i, x in enumerate(out)) if out else factor * 0
        return [x.detach() for x in out], torch.autograd.grad(total, [*parts, factor])

    out, found = gradients()
    assert [x.tolist() for x in out] == [[3.0 * (1 + i)] * 2 for i in range(count)]
    assert [x.tolist() for x in found[:-1]] == [[3.0 * (i + 1)] * 2 for i in range(count)]
    assert found[-1] == sum(2.0 * (i + 1) ** 2 for i in range(count))
    with Counting() as looking:
        watched_out, watched_found = gradients()
    assert looking.seen == (2 if count else 1)
    for x, y in zip([*out, *found], [*watched_out, *watched_found], strict=True):
        assert torch.equal(x, y)


def test_gradients_of_gradients_are_those_of_the_operators():
    x, factor = torch.tensor([2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    first, = torch.autograd.grad(scaled([x], factor, 1)[0].sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), factor)[0] == 1  # d²(x f) / dx df


def test_an_operator_without_a_gradient_refuses_to_be_differentiated():
    x = torch.ones(2, requires_grad=True)
    assert torch.equal(twice(x.detach()), torch.full((2,), 2.0))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        twice(x).sum().backward()


def test_what_a_gradient_needs_may_not_change_in_place():
    x, factor = torch.ones(2, requires_grad=True), torch.tensor(3.0)
    out, = scaled([x], factor, 1)
    factor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

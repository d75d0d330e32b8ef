"""When operators may be left out: not before tracers, dispatch modes and tensors of other classes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serrate.ops.attention import Bias, attention
from serrate.ops.direct import INTERPRETED, no_kernel, on_device_of, refuse_tangents, unit_stride, watched
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
    seen = []
    torch.compile(lambda x: seen.append(watched(x)) or x + 1, backend="eager")(torch.ones(2))
    assert seen == [True]


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

"""What is computed again in the backward pass: the same gradients, less kept, refusals where autograd refuses."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from serrate.errors import InvalidArgument
from serrate.nn.recompute import Recompute


class Chain:
    """`(silu(x w) split in two, multiplied) w`, counting how often each function is called."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        self.w = torch.randn(6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        self.u = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        self.calls: list[str] = []
        self.results: list[weakref.ref] = []

    def counted(self, name: str, function):
        def call(*inputs: Tensor) -> Tensor:
            self.calls.append(name)
            result = function(*inputs)
            self.results.append(weakref.ref(result))
            return result

        return call

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.w, self.u]

    def run(self, again) -> Tensor:
        projected = again(self.counted("product", torch.mm), self.x, self.w)
        left, right = again(self.counted("silu", F.silu), projected).split(3, -1)
        product = again(self.counted("gate", torch.mul), left, right)
        return (product @ self.u).sin()


def at_once(function, *inputs):
    return function(*inputs)


def test_gradients_are_those_of_plain_autograd_and_each_function_is_repeated_once():
    chain = Chain()
    expected = torch.autograd.grad(chain.run(at_once).sum(), chain.leaves)
    chain.calls.clear()
    with Recompute(*chain.leaves) as again:
        out = chain.run(again)
    assert chain.calls == ["product", "silu", "gate"]
    torch.testing.assert_close(torch.autograd.grad(out.sum(), chain.leaves), expected, rtol=0, atol=0)
    assert sorted(chain.calls) == ["gate", "gate", "product", "product", "silu", "silu"]


def test_results_go_with_the_context_and_come_again_for_the_backward_pass_only():
    chain = Chain()
    with Recompute(*chain.leaves) as again:
        out = chain.run(again)
    gc.collect()
    assert [result() for result in chain.results] == [None, None, None]
    torch.autograd.grad(out.sum(), chain.leaves)
    gc.collect()
    assert [result() for result in chain.results] == [None] * 6


def test_a_graph_may_be_walked_twice_and_differentiated_again():
    chain = Chain()
    plain = chain.run(at_once)
    with Recompute(*chain.leaves) as again:
        out = chain.run(again)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(out.sum(), chain.leaves, retain_graph=True),
                                   torch.autograd.grad(plain.sum(), chain.leaves, retain_graph=True))
    second = []
    for result in (plain, out):
        first = torch.autograd.grad(result.sum(), chain.leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(each.square().sum() for each in first), chain.leaves))
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("at", range(3))
def test_a_source_changed_in_place_is_refused(at):
    chain = Chain()
    with Recompute(*chain.leaves) as again:
        out = chain.run(again)
    with torch.no_grad():
        chain.leaves[at].add_(1)
    with pytest.raises(InvalidArgument, match="as they were in the forward pass, got changed in place"):
        torch.autograd.grad(out.sum(), chain.leaves)


def test_a_new_tensor_in_the_place_of_one_that_is_gone_is_not_taken_for_it():
    x = torch.randn(64, 64, requires_grad=True)
    with Recompute(x) as again:
        total = x.new_zeros(())
        for _ in range(20):
            total = total + again(torch.exp, x).square().sum()  # freed, were it not for the context
            total = total + (x * 2).square().sum()  # of the same size
    grad, = torch.autograd.grad(total, x)
    torch.testing.assert_close(grad, 20 * (2 * (2 * x).exp() + 8 * x))


def test_autocast_is_that_of_the_first_call():
    x, w = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16), Recompute(x, w) as again:
        hidden = again(lambda x: F.linear(x, w), x)
        out = hidden * hidden
    assert hidden.dtype == torch.bfloat16
    found = torch.autograd.grad(out.float().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = F.linear(x, w)
        out = hidden * hidden
    torch.testing.assert_close(found, torch.autograd.grad(out.float().sum(), x), rtol=0, atol=0)


def test_within_other_hooks_it_steps_aside():
    seen = []

    def pack(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    x = torch.ones(3, requires_grad=True)
    with saved_tensors_hooks(pack, lambda x: x), Recompute(x) as again:
        hidden = again(torch.exp, x)
        hidden.square()
    assert any(x.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr() for x in seen)


def test_within_a_checkpoint_gradients_are_the_same():
    chain = Chain()

    def run(*_: Tensor) -> Tensor:
        with Recompute(*chain.leaves) as again:
            return chain.run(again)

    out = checkpoint(run, *chain.leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), chain.leaves),
                               torch.autograd.grad(chain.run(at_once).sum(), chain.leaves))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_noted(off):
    with off():
        x = torch.ones(3)
        with Recompute(x) as again:
            hidden = again(torch.exp, x)
        assert torch.equal(hidden, x.exp())


def test_an_error_within_leaves_no_hooks_behind():
    with pytest.raises(ZeroDivisionError), Recompute():
        raise ZeroDivisionError
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None

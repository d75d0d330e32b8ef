"""What the Triton implementation promises beyond the suite of `test_transformer.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.transformer import bench
from serrate.ops.transformer.cases import Case
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("operation", ["norm", "norm_linear", "feed_forward"])
@pytest.mark.parametrize(("width", "hidden"), [(8, 8), (16, 200), (33, 64), (50, 192), (64, 256)])
def test_every_width_over_more_events_than_programs_take_at_once(operation, width, hidden):
    case = Case("", operation, 40_000, width, hidden)
    assert bench.wrong(case, case.tensors(torch.bfloat16, "cuda")) < 2 * bench.TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("operation", ["norm", "norm_linear", "feed_forward"])
def test_a_captured_graph_follows_new_events_and_nothing_waits(operation):
    case = Case("", operation, 300, 64, 192)
    leaves = [x.requires_grad_() for x in case.tensors(torch.bfloat16, "cuda")]
    grad = torch.randn_like(case.run(leaves, torch.bfloat16, "triton"))

    def run():
        out = case.run(leaves, torch.bfloat16, "triton")
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    def changes():
        for _ in range(2):
            with torch.no_grad():
                leaves[0].copy_(torch.randn_like(leaves[0]))
            yield

    assert_captured(run, changes())


@pytest.mark.parametrize("operation", ["norm", "norm_linear", "feed_forward"])
def test_inductor_compiles_it_whole(operation):
    def loss(*leaves):
        case = Case("", operation, leaves[0].shape[0], 32, 64)
        return (case.run([leaves[0] * 2, *leaves[1:]], torch.bfloat16, "triton").float() ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for events in (5, 12, 700):
        tensors = Case("", operation, events, 32, 64).tensors(torch.bfloat16, "cuda")
        leaves = [x.requires_grad_() for x in tensors]
        eager = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), eager, rtol=2e-2, atol=2e-2)


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", "feed_forward", 500, 64, 256))
    assert {row["implementation"] for row in rows} == {"batch", "limit", "triton", "eager", "compiled"}
    assert all(row["value"] > 0 for row in rows)

"""What the Triton implementation promises beyond the suite of `test_norm_gate.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.norm_gate import bench, norm_gate
from serrate.ops.norm_gate.cases import Case
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("width", [1, 3, 8, 16, 50, 96, 128, 256, 300, 511, 2048, 4096, 5000, 8192])
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_every_width_over_blocks_of_events(width, gated):
    case = Case("", 1027 if width < 1000 else 65, width, gated=gated, dropout=0.2)
    tensors = case.tensors(torch.bfloat16, "cuda")
    found = []
    for dtype, name in ((torch.bfloat16, "triton"), (torch.float64, "reference"), (torch.bfloat16, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        out = norm_gate(*leaves, *[None][:2 - len(leaves)], dropout=0.2, seed=7, implementation=name)
        found.append([out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)])
    for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
        assert_within_budget(actual, exact, rough, gradient=i > 0)


def test_a_captured_graph_follows_new_events_and_seeds_and_nothing_waits():
    x, gate = (each.requires_grad_() for each in Case("", 300, 64).tensors(device="cuda"))
    grad, seed = torch.randn(300, 64, device="cuda"), torch.tensor(5, device="cuda")

    def run():
        out = norm_gate(x, gate, dropout=0.3, seed=seed, implementation="triton")
        return out.detach(), *torch.autograd.grad(out, (x, gate), grad)

    def changes():
        for _ in range(2):
            with torch.no_grad():
                x.copy_(torch.randn_like(x))
                seed.add_(1)
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def loss(x, gate):
        return (norm_gate(x * 2, gate, dropout=0.3, seed=5, implementation="triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for events in (5, 12, 700):
            leaves = [each.requires_grad_() for each in Case("", events, 32).tensors(device="cuda")]
            eager = torch.autograd.grad(loss(*leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), eager)


def test_elements_past_the_range_of_int32():
    x = torch.randn(2**18 + 3, 8192, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    out = norm_gate(x, x, implementation="triton")
    torch.testing.assert_close(out[-9:], norm_gate(x[-9:], x[-9:], implementation="triton"), rtol=0, atol=0)


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", 500, 48, dropout=0.2, packed=False, dtype=torch.bfloat16), 1e9)
    assert {row["implementation"] for row in rows} == {"batch", "limit", "triton", "eager", "compiled"}
    assert all(row["value"] > 0 for row in rows)

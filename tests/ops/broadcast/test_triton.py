"""What the Triton implementation promises beyond the suite of `test_broadcast.py`; needs a CUDA device."""

import pytest
import torch

from serrate.jagged import offsets_from_lengths
from serrate.ops.broadcast import add, bench, multiply
from serrate.ops.broadcast.cases import Case, run
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

KINDS = [(along, product) for product in (False, True) for along in ("rows", "positions", "both")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{'multiply' if kind[1] else 'add'} {kind[0]}")


@every_kind
@pytest.mark.parametrize("width", [1, 3, 8, 50, 64, 100, 128, 300, 1024])
@pytest.mark.parametrize("lengths", [(700, 0, 3, 5000, 1, 64, 0) + (40, 2) * 100, (2500, 0, 3000, 1999)],
                         ids=["short rows", "long rows"])
def test_every_width_over_chunks_of_rows(kind, lengths, width):
    case = Case("", lengths, *kind, (width,), (width,))
    found = []
    for dtype, name in ((torch.bfloat16, "triton"), (torch.float64, "reference"), (torch.bfloat16, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in case.tensors(torch.bfloat16, "cuda")]
        out = run(case, leaves, case.offsets("cuda"), name)
        found.append([out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)])
    for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
        assert_within_budget(actual, exact, rough, gradient=i > 0)


@every_kind
def test_a_captured_graph_follows_new_rows_and_nothing_waits(kind):
    case = Case("", (300, 0, 20, 1), *kind, spare=30)
    leaves, offsets = [x.requires_grad_() for x in case.tensors(device="cuda")], case.offsets("cuda")

    def both():
        out = run(case, leaves, offsets, "triton")
        return out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))

    def changes():
        for rows in ((0, 1, 0, 320), (80, 80, 80, 81)):
            offsets.copy_(offsets_from_lengths(torch.tensor(rows)))
            yield

    assert_captured(both, changes())


@every_kind
def test_inductor_compiles_it_whole(kind):
    def loss(offsets, *leaves):
        return (run(Case("", (), *kind), [x * 2 for x in leaves], offsets, "triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ((5, 2), (12, 0, 7), (300, 2, 1, 9)):
            case = Case("", rows, *kind)
            leaves, offsets = [x.requires_grad_() for x in case.tensors(device="cuda")], case.offsets("cuda")
            eager = torch.autograd.grad(loss(offsets, *leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(offsets, *leaves), leaves), eager)


def test_elements_past_the_range_of_int32():
    events = 2**25 + 3
    x = torch.ones(events, 64, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    offsets = torch.tensor([0, events - 9, events], device="cuda")
    y = torch.tensor([[2.0], [3.0]], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    out = multiply(x, y, offsets, implementation="triton")
    assert torch.equal(out[-10:, 0], torch.tensor([2.0] + [3.0] * 9, device="cuda", dtype=torch.bfloat16))
    assert torch.autograd.grad(out[-9:].sum(), y)[0].tolist() == [[0.0], [9 * 64.0]]
    # cells of padded rows, of which the last lie past that range too
    y = torch.zeros(2**12 + 1, 2**13, 64, device="cuda", dtype=torch.bfloat16)
    y[-1, :3] = 5
    offsets = torch.cat([torch.zeros(2**12 + 1, device="cuda"), torch.tensor([3.0], device="cuda")]).long()
    found = add(x[:3], y.requires_grad_(), offsets, along="both", implementation="triton")
    assert torch.equal(found, torch.full_like(found, 6))
    grad, = torch.autograd.grad(found.sum(), y)
    assert grad[-1, :3].sum() == 3 * 64
    assert not grad[:-1].any()


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", (50, 0, 30, 9), "positions", True, (48,), (48,), dtype=torch.bfloat16))
    assert {"batch", "limit", "triton", "padded", "compiled"} <= {row["implementation"] for row in rows}
    assert all(row["value"] > 0 for row in rows)
